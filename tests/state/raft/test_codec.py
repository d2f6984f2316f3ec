"""The bytes of the protocol: everything comes back as it was, and nothing else is taken."""

from __future__ import annotations

import pytest
from fuzz_raft import RAFT_MESSAGES
from hypothesis import given
from hypothesis import strategies as st

from state.raft.codec import ENTRIES_MAX, content_fields, decode, encode, read_configuration, read_content
from state.raft.configuration import Configuration
from state.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadAnswer,
    ReadAsk,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from state.raft.types import ENTRY_BYTES_MAX, INDEX_MAX, Entry, RaftConfig, Snapshot
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.types import NodeId
from transport.wire import BODY_BYTES_MAX, pack

whole = st.integers(0, INDEX_MAX)
flag = st.booleans()
node = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).map(NodeId)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Any configuration."""
    half = st.sets(node, max_size=5).map(lambda names: tuple(sorted(names)))
    voters, learners, outgoing = draw(half.filter(bool)), draw(half), draw(half)
    learners = tuple(learner for learner in learners if learner not in voters)
    return Configuration(voters, learners, outgoing, bool(outgoing) and draw(flag))


@st.composite
def appends(draw: st.DrawFn) -> Append:
    """Entries with indexes that follow each other."""
    previous = draw(st.integers(0, INDEX_MAX - 9))
    contents = draw(st.lists(st.none() | st.binary(max_size=20) | configurations(), max_size=5))
    entries = tuple(Entry(index, draw(whole), content) for index, content in enumerate(contents, previous + 1))
    return Append(draw(whole), previous, draw(whole), draw(whole), entries)


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(VoteRequest, whole, whole, whole, flag, flag),
    st.builds(VoteReply, whole, flag, flag),
    appends(),
    st.builds(AppendReply, whole, flag, whole, whole, whole),
    st.builds(Heartbeat, whole, whole, whole),
    st.builds(HeartbeatReply, whole, whole),
    st.builds(InstallSnapshot, whole, st.builds(Snapshot, whole, whole, configurations())),
    st.builds(TimeoutNow, whole),
    st.builds(ReadAsk, whole, whole),
    st.builds(ReadAnswer, whole, whole, st.none() | whole),
)


@given(message=messages, group=st.text("ab-ü/", min_size=1, max_size=20))
def test_every_message_comes_back(message: Message, group: str) -> None:
    """What is encoded is decoded to the same."""
    assert decode(encode(group, message)) == (group, message)


@pytest.mark.parametrize("message", RAFT_MESSAGES, ids=lambda message: type(message).__name__)
def test_each_kind_comes_back(message: Message) -> None:
    """One of each, whatever is drawn above."""
    assert decode(encode("group", message)) == ("group", message)


@given(
    data=st.binary(max_size=60) | st.recursive(st.none() | flag | whole | st.binary() | st.text(), st.lists).map(pack)
)
def test_anything_is_read_or_refused(data: bytes) -> None:
    """No other error, whatever the bytes."""
    try:
        read = decode(data)
    except RemoteProtocolError:
        return
    assert read is None or decode(encode(*read)) == read


def test_later_versions_may_say_more() -> None:
    """Further fields are ignored, and so are types that are not known."""
    assert decode(pack([7, "g", 3, "new"])) == ("g", TimeoutNow(3))
    assert decode(pack([10, "g", 3])) is None


@pytest.mark.parametrize(
    "body",
    [
        5,
        [],
        [7, "g"],
        [-1, "g", 3],
        ["7", "g", 3],
        [7, "", 3],
        [7, "g" * 64, 3],
        [7, b"g", 3],
        [7, "g", -3],
        [7, "g", 2**53],
        [7, "g", 3.0],
        [8, "g", 3],
        [1, "g", 3, 1, False],
        [2, "g", 3, 1, 1, 1, {}],
        [2, "g", 3, 1, 1, 1, [[1]]],
        [2, "g", 3, 1, 1, 1, [[1, "text"]]],
        [2, "g", 3, 1, 1, 1, [[1, [["a"], [], []]]]],
        [2, "g", 3, 1, 1, 1, [[1, [["b", "a"], [], [], False]]]],
        [2, "g", 3, 1, 1, 1, [[1, [["A_"], [], [], False]]]],
        [2, "g", 3, 1, 1, 1, [[1, [[1], [], [], False]]]],
        [2, "g", 3, 1, 1, 1, [[1, bytes(ENTRY_BYTES_MAX + 1)]]],
        [2, "g", 3, 1, 1, 1, [[1, None]] * (ENTRIES_MAX + 1)],
        [7, "g", 3, *range(20)],
    ],
    ids=lambda body: repr(body)[:60],
)
def test_bodies_that_do_not_fit_are_refused(body: object) -> None:
    """Wrong types, counts, names and sizes."""
    with pytest.raises(RemoteProtocolError):
        decode(pack(body))


def test_sizes_are_capped_both_ways() -> None:
    """A body never exceeds what an envelope holds."""
    with pytest.raises(RemoteProtocolError):
        decode(bytes(BODY_BYTES_MAX + 1))
    entries = tuple(Entry(index, 1, bytes(ENTRY_BYTES_MAX)) for index in range(1, 6))
    with pytest.raises(LocalProtocolError):
        encode("g", Append(1, 0, 0, 0, entries))


def test_a_message_at_the_limits_can_be_read() -> None:
    """As many entries as may go in one message, and as many members as their weight allows."""
    config = RaftConfig()
    many = tuple(Entry(index, 1, b"") for index in range(1, config.append_entries_max + 1))
    assert decode(encode("g", Append(1, 0, 0, 0, many))) is not None
    members = Configuration(tuple(NodeId(f"n{number:02}") for number in range(15)))
    count = config.append_bytes_max // Entry(1, 1, members).size_bytes
    heavy = tuple(Entry(index, 1, members) for index in range(1, count + 1))
    assert decode(encode("g", Append(1, 0, 0, 0, heavy))) == ("g", Append(1, 0, 0, 0, heavy))


@given(content=st.none() | st.binary(max_size=9) | configurations())
def test_contents_are_stored_in_the_same_encoding(content: bytes | Configuration | None) -> None:
    """For the shell's journal."""
    fields = content_fields(content)
    if isinstance(content, Configuration):
        assert isinstance(fields, list)
        assert read_configuration([list(part) if isinstance(part, tuple) else part for part in fields]) == content
    else:
        assert read_content(fields) == content
