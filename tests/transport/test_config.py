"""Link settings."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from transport.config import LinkConfig
from transport.errors import LocalProtocolError


def test_the_presets_are_valid_and_wan_is_more_patient() -> None:
    """All presets pass their own checks."""
    local, lan, wan = LinkConfig.local(), LinkConfig.lan(), LinkConfig.wan()
    assert local == lan == LinkConfig()
    assert wan.keepalive_timeout_s > lan.keepalive_timeout_s


@pytest.mark.parametrize("name", [spec.name for spec in fields(LinkConfig)])
def test_every_value_has_bounds(name: str) -> None:
    """A value far below or above what makes sense is refused by name."""
    for value in (-1, 1e18, float("nan")):
        with pytest.raises(LocalProtocolError, match=name):
            replace(LinkConfig(), **{name: value})  # type: ignore[arg-type]  # fields by name


def test_the_timeout_leaves_room_for_a_late_ping() -> None:
    """A keepalive timeout below two intervals is a contradiction."""
    with pytest.raises(LocalProtocolError, match="twice"):
        LinkConfig(keepalive_interval_s=3, keepalive_timeout_s=5)
