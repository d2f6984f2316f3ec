"""Logs go to stderr for people or machines, and never hold up the node."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from mesh.logs import QUEUE_RECORDS_MAX, bind_node, configure_logging, get_logger
from transport.logs import unbind_all


@pytest.fixture(autouse=True)
def clean_context() -> Iterator[None]:
    """Keep one test's names out of the next."""
    unbind_all()
    yield
    unbind_all()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    """What was logged, line by line."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_hold_the_event_and_its_fields() -> None:
    """One object a line, with the node's names from the context."""
    stream = io.StringIO()
    stop = configure_logging("info", "json", stream=stream)
    bind_node(network="lab", node_id="n1")
    get_logger("mesh.test").info("link refused", peer="n2", reason="wrong network")
    get_logger("mesh.test").debug("not shown")
    stop()
    (line,) = lines(stream)
    assert line["event"] == "link refused"
    assert (line["level"], line["logger"], line["peer"], line["node_id"]) == ("info", "mesh.test", "n2", "n1")
    assert str(line["time"]).endswith("+00:00")


def test_libraries_are_shown_from_warning_up() -> None:
    """Their debug and info lines are theirs; their warnings matter to the node's owner."""
    stream = io.StringIO()
    stop = configure_logging("debug", "json", stream=stream)
    logging.getLogger("websockets").info("chatter")
    logging.getLogger("websockets").warning("trouble %d", 1)
    logging.getLogger("zeroconf").warning("somebody sent nonsense")
    stop()
    assert [line["event"] for line in lines(stream)] == ["trouble 1"]


def test_the_console_shows_one_line_for_people() -> None:
    """Level, event and fields, without the names that would be the same on every line."""
    stream = io.StringIO()
    stop = configure_logging("info", "console", stream=stream)
    bind_node(network="lab", node_id="n1")
    get_logger("mesh.test").warning("link refused", peer="n2", reason="two words")
    stop()
    text = stream.getvalue()
    assert "warning  link refused peer=n2 reason='two words'\n" in text
    assert "node_id" not in text


def test_control_characters_from_peers_do_not_reach_the_terminal() -> None:
    """A peer's name or reason may hold escape sequences."""
    stream = io.StringIO()
    stop = configure_logging("info", "console", stream=stream)
    get_logger("mesh.test").warning("link refused", reason="\x1b[2J\nfake line")
    stop()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_exceptions_keep_their_traceback() -> None:
    """A failure that is logged can be found."""
    stream = io.StringIO()
    stop = configure_logging("info", "json", stream=stream)
    try:
        raise ValueError("inside")
    except ValueError:
        get_logger("mesh.test").exception("handler failed")
    stop()
    assert "ValueError: inside" in str(lines(stream)[0]["exception"])


def test_a_library_sees_warnings_through_standard_logging(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without configuration nothing is printed by us, and the host's handlers get the record."""
    with caplog.at_level(logging.WARNING):
        get_logger("mesh.test").warning("link refused", peer="n2")
    assert caplog.messages == ["link refused peer=n2"]
    assert capsys.readouterr().out == ""


def test_a_record_says_where_it_was_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The line is the caller's, not ours, for handlers that show it."""
    with caplog.at_level(logging.DEBUG, "mesh.test"):
        get_logger("mesh.test").error("failed")
        get_logger("mesh.test").exception("failed", exc_info=ValueError("given"))
    assert {record.pathname for record in caplog.records} == {__file__}
    assert "ValueError: given" in caplog.text


def test_stopping_restores_what_was_there() -> None:
    """Handlers and levels are as before, so tests and hosts do not inherit them; stopping twice is harmless."""
    root, others = logging.getLogger(), [logging.getLogger(name) for name in ("mesh", "zeroconf")]
    before = list(root.handlers), root.level, [logger.level for logger in others]
    stop = configure_logging("debug", "json", stream=io.StringIO())
    stop()
    stop()
    assert (list(root.handlers), root.level, [logger.level for logger in others]) == before


def test_a_stream_that_nobody_reads_does_not_hold_up_the_caller() -> None:
    """Beyond the queue's bound lines are dropped and counted."""
    gate = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str, /) -> int:
            gate.wait(10)
            return super().write(text)

    stream = Stuck()
    stop = configure_logging("info", "json", stream=stream)
    log = get_logger("mesh.test")
    for number in range(QUEUE_RECORDS_MAX + 100):
        log.info("line", number=number)
    gate.set()
    stop()
    assert "log lines were dropped" in stream.getvalue()
