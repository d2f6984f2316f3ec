"""Loggers with key-value pairs on top of standard logging."""

from __future__ import annotations

import logging

import pytest

from transport.logs import RECORD_EVENT, RECORD_FIELDS, bind, get_logger, unbind_all


def test_an_event_and_its_fields_are_one_line_and_apart(caplog: pytest.LogCaptureFixture) -> None:
    """Any handler can print the line; one that knows us finds the parts."""
    with caplog.at_level(logging.DEBUG, "mesh.test"):
        get_logger("mesh.test").debug("link refused", peer="n2", reason="two words")
    (record,) = caplog.records
    assert record.getMessage() == "link refused peer=n2 reason='two words'"
    assert getattr(record, RECORD_EVENT) == "link refused"
    assert getattr(record, RECORD_FIELDS) == {"peer": "n2", "reason": "two words"}


def test_a_level_that_is_off_costs_no_text() -> None:
    """Values are not even turned into text."""

    class Loud:
        def __str__(self) -> str:
            raise AssertionError("nobody asked")

    logging.getLogger("mesh.test.off").setLevel(logging.ERROR)
    get_logger("mesh.test.off").warning("line", value=Loud())
    assert not logging.getLogger("mesh.test.off").isEnabledFor(logging.WARNING)


def test_bound_fields_are_on_every_event_until_they_are_taken_away(caplog: pytest.LogCaptureFixture) -> None:
    """An event's own field wins over a bound one of that name."""
    bind(node="a")
    bind(network="lab")
    get_logger("mesh.test").warning("one", node="b")
    unbind_all()
    get_logger("mesh.test").warning("two")
    assert caplog.messages == ["one node=b network=lab", "two"]
