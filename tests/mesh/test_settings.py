"""Readers of values, and secrets; tests/mesh/test_config.py has the sources and the errors."""

from __future__ import annotations

import pytest

from mesh.config import LogsSection, MeshConfig
from mesh.errors import ConfigError
from mesh.settings import Secret, Source, arguments, count, resolve, sections_of, several, whole


def test_whole_numbers_have_inclusive_bounds() -> None:
    """The least and the greatest are allowed."""
    assert [whole(1, 3)(value) for value in (1, "2", 3)] == [1, 2, 3]
    for value in (0, 4, "four", None):
        with pytest.raises(ValueError, match="from 1 to 3"):
            whole(1, 3)(value)


def test_a_list_may_be_one_text() -> None:
    """Commas and spaces separate; a list stays one."""
    assert several(count)("1, 2 3") == several(count)([1, 2, 3]) == (1, 2, 3)


def test_secrets_are_compared_and_not_shown() -> None:
    """Equal values are equal secrets."""
    assert Secret("x") == Secret("x") != Secret("y")
    assert hash(Secret("x")) == hash(Secret("x"))
    assert "hush" not in repr(Secret("hush"))


def test_the_first_source_wins_and_checks_name_the_section() -> None:
    """A section that contradicts itself is the fault of the first source that has it."""
    high, low = Source("high", {"logs": {"level": "debug"}}), Source("low", {"logs": {"level": "error"}})
    assert resolve(MeshConfig, [high, low], {})["logs"] == LogsSection(level="debug")

    def refuse(section: object) -> None:
        raise ValueError("no")

    with pytest.raises(ConfigError, match="configuration logs from high: no"):
        resolve(MeshConfig, [high, low], {"logs": refuse})


def test_sections_are_found_by_their_class() -> None:
    """A section object counts as all its keys."""
    assert sections_of(MeshConfig)["logs"] is LogsSection
    given = arguments(MeshConfig, {"logs": LogsSection(level="error")})
    assert given.values == {"logs": {"level": "error", "format": "auto"}}
