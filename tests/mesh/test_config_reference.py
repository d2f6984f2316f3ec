"""``docs/configuration.md`` says what the model says.

``PEERMESH_REWRITE_DOCS=1 pytest tests/mesh/test_config_reference.py`` writes the tables anew.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from support import ROOT

from mesh.config import PRESETS, MeshConfig
from mesh.settings import sections_of, settings_of

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


def table(model: type[Any], section: str = "") -> str:
    """The keys as a table; presets that differ from the default are named."""
    lines = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    defaults = {one.name: one.default for one in fields(model)}
    for name, setting in settings_of(model).items():
        default = shown(defaults[name])
        for preset, values in PRESETS.items():
            other = values.get(section, {}).get(name, defaults[name])
            if other != defaults[name]:
                default += f", {preset} {shown(other)}"
        lines.append(f"| `{name}` | {default} | {unit(name)} | {setting.description} |")
    return "\n".join(lines)


def reference() -> str:
    """All tables."""
    parts = ["### Top level", table(MeshConfig)]
    for name, section in sections_of(MeshConfig).items():
        parts += [f"### `[{name}]`", table(section, name)]
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
    """A setting without a description is not finished, and a field that is neither key nor section is none."""
    tables: list[type[Any]] = [MeshConfig, *sections_of(MeshConfig).values()]
    for one in tables:
        assert all(setting.description for setting in settings_of(one).values())
        assert len(settings_of(one)) + len(sections_of(one)) == len(fields(one))
