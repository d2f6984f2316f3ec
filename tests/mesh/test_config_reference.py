"""``docs/configuration.md`` says what the model says.

``PEERMESH_REWRITE_DOCS=1 pytest tests/mesh/test_config_reference.py`` writes the tables anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from support import ROOT

from mesh.config import PRESETS, MeshConfig

DOCUMENT = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- keys: generated -->", "<!-- keys: end -->"


def shown(value: object) -> str:
    """A default as it is written in TOML."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == ():
        return "`[]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def unit(name: str) -> str:
    """The unit that the name ends in."""
    parts = name.split("_")
    return "s" if "s" in parts else "bytes" if "bytes" in parts else "count" if name.endswith("_max") else ""


def table(fields: Mapping[str, FieldInfo], section: str = "") -> str:
    """The fields as a table; presets that differ from the default are named."""
    lines = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        if isinstance(field.default, BaseModel):
            continue
        default = shown(field.default)
        for preset, values in PRESETS.items():
            other = values.get(section, {}).get(name, field.default)
            if other != field.default:
                default += f", {preset} {shown(other)}"
        lines.append(f"| `{name}` | {default} | {unit(name)} | {field.description} |")
    return "\n".join(lines)


def reference() -> str:
    """All tables."""
    parts = ["### Top level", table(MeshConfig.model_fields)]
    for name, field in MeshConfig.model_fields.items():
        if isinstance(field.default, BaseModel):
            parts += [f"### `[{name}]`", table(type(field.default).model_fields, name)]
    return "\n\n".join(parts)


def test_the_reference_is_the_model() -> None:
    """Every key, its default for each preset, its unit and its meaning."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    current, _, after = rest.partition(END)
    if os.environ.get("PEERMESH_REWRITE_DOCS"):
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}")
        return
    assert current.strip() == reference(), "run this test with PEERMESH_REWRITE_DOCS=1"


def test_every_key_is_explained() -> None:
    """A setting without a description is not finished."""
    for field in MeshConfig.model_fields.values():
        fields = type(field.default).model_fields if isinstance(field.default, BaseModel) else {"": field}
        assert all(one.description for one in fields.values())
