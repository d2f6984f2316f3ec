"""What a node remembers across a restart adds up, whatever happened to the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.discovery import member_log
from gossip.discovery.member_log import MemberLog
from gossip.events import Member, MemberState
from transport.types import Address, NodeId

A, B = Address("10.0.0.1", 1), Address("10.0.0.2", 2)


def member(name: str, state: MemberState = MemberState.ALIVE, *addresses: Address) -> Member:
    """A member's record."""
    return Member(NodeId(name), 1 << 16, state, addresses or (A,))


def replayed(*lines: str | None) -> MemberLog:
    """A log read back from these lines."""
    log = MemberLog()
    log.replay("".join(line for line in lines if line).splitlines())
    return log


def test_what_was_noted_is_remembered() -> None:
    """Members that came up are remembered with their addresses; those that went are not."""
    log = MemberLog()
    lines = [
        log.note(member("a")),
        log.note(member("b")),
        log.note(member("b", MemberState.DEAD)),
        log.note(member("c")),
        log.note(member("c", MemberState.LEFT)),
        log.note(member("a", MemberState.ALIVE, B)),
    ]

    assert replayed(*lines).alive == {"a": (B,)} == log.alive


def test_no_news_is_no_line() -> None:
    """A suspicion, a repetition, a stranger's death and a member without addresses write nothing."""
    log = MemberLog()
    assert log.note(member("a")) is not None

    assert log.note(member("a", MemberState.SUSPECT)) is None
    assert log.note(member("a")) is None
    assert log.note(member("b", MemberState.DEAD)) is None
    assert log.note(Member(NodeId("c"), 1, MemberState.ALIVE)) is None


def test_leaving_in_order_forgets() -> None:
    """After a graceful leave nothing draws the node back, and what comes later counts again."""
    log = MemberLog()
    before = log.note(member("a"))
    left = log.leave()
    after = log.note(member("b"))

    assert replayed(before, left).alive == {}
    assert replayed(before, left, after).alive == {"b": (A,)}


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "7", '["up"]', '["up","X!","10.0.0.1:1"]', '["up","a","http://x"]', '["who","a"]', '["up","a",'],
)
def test_damaged_lines_are_passed_over(line: str) -> None:
    """A line that cannot be read costs nothing but itself."""
    good = MemberLog().note(member("good"))

    assert replayed(good, line + "\n", good).alive == {"good": (A,)}


def test_absurdly_long_lines_are_passed_over() -> None:
    """A line longer than ours can be is not even parsed."""
    assert replayed('["up","a","' + "x" * member_log.LINE_CHARS_MAX + '"]\n').alive == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the longest known go first."""
    monkeypatch.setattr(member_log, "NODES_MAX", 3)
    log = MemberLog()
    for name in "abcde":
        log.note(member(name))

    assert list(log.alive) == ["c", "d", "e"]


def test_history_is_rewritten_when_it_outgrows_the_present() -> None:
    """A member that flaps for long leads to a rewrite that says the same in one line."""
    log = MemberLog()
    for _ in range(600):
        log.note(member("a"))
        log.note(member("a", MemberState.DEAD))
    log.note(member("a"))
    assert log.wants_rewrite

    text = log.rewritten()

    assert text.count("\n") == 1
    assert replayed(text).alive == log.alive
    assert not log.wants_rewrite


@given(st.binary(max_size=2_000))
def test_any_file_can_be_read(content: bytes) -> None:
    """Arbitrary bytes never stop a start."""
    log = MemberLog()
    log.replay(content.decode(errors="replace").splitlines())

    assert all(log.alive.values())
