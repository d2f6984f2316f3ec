"""The bodies of broadcast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.plumtree_codec import (
    IDS_MAX,
    ORIGINS_MAX,
    Announcement,
    Body,
    Gossip,
    Graft,
    IHave,
    MessageId,
    Prune,
    Sync,
    decode,
    encode,
    grafts,
    ihaves,
)
from gossip.seen import GAPS_MAX, Summary
from transport.errors import RemoteProtocolError
from transport.types import NodeId
from transport.wire import BODY_BYTES_MAX, pack

ID = MessageId(NodeId("o"), 1, 2)

BODIES: list[Body] = [
    Gossip(1, 0, b"sealed"),
    IHave(()),
    IHave((Announcement(ID, 0, 1, 9), Announcement(ID._replace(sequence=3), 255, 255, 1))),
    Graft(()),
    Graft((ID,)),
    Prune(),
    Sync(False, 0, "", "", ()),
    Sync(True, 9, "a", "z", (Summary(NodeId("b"), 1, 0, 0), Summary(NodeId("c"), 1, 2, 9, ((3, 3), (5, 6))))),
]


@pytest.mark.parametrize("body", BODIES)
def test_bodies_survive_the_wire(body: Body) -> None:
    """Encoding and decoding give the same."""
    assert decode(encode(body)) == body


@pytest.mark.parametrize(
    "raw",
    [
        [0, 1, 2, b"x", "more"],
        [1, [["o", 1, 2, 3, 4, 5, "more"]], "more"],
        [2, [["o", 1, 2, "more"]], "more"],
        [3, "more"],
        [4, False, 0, "", "", [["o", 1, 2, 3, [], "more"]], "more"],
    ],
)
def test_later_fields_are_ignored(raw: list[object]) -> None:
    """At the end of a body, an id or an entry."""
    assert decode(pack(raw)) is not None


def test_later_types_are_ignored() -> None:
    """As a whole."""
    assert decode(pack([99, "whatever"])) is None


def _sync(*summaries: object, after: object = "", upto: object = "") -> list[object]:
    return [4, False, 0, after, upto, list(summaries)]


@pytest.mark.parametrize(
    "raw",
    [
        {},
        [],
        ["0"],
        [True],
        [256],
        [0, 1, 2],
        [0, 0, 2, b""],
        [0, 256, 2, b""],
        [0, 1, -1, b""],
        [0, 1, 2**32, b""],
        [0, 1, 2, "text"],
        [1],
        [1, {}],
        [1, [["o", 1, 2, 3, 4]]],
        [1, [["o", 1, 2, 256, 4, 5]]],
        [1, [["o", 1, 2, 3, 0, 5]]],
        [1, [["o", 1, 2, 3, 4, BODY_BYTES_MAX + 1]]],
        [1, [["o", 1, 2, 3, 4, 5]] * (IDS_MAX + 1)],
        [2, [["O!", 1, 2]]],
        [2, [[7, 1, 2]]],
        [2, [["o" * 64, 1, 2]]],
        [2, [["o", -1, 2]]],
        [2, [["o", 1, 0]]],
        [2, [["o", 1, 2**53]]],
        [2, [["o", 1, 2.0]]],
        [2, [["o", 1, 2]] * (IDS_MAX + 1)],
        [4, 0, 0, "", "", []],
        [4, False, -1, "", "", []],
        _sync(after="b", upto="a"),
        _sync(after=1),
        _sync(["a", 1, 0, 1, []], after="a"),
        _sync(["c", 1, 0, 1, []], after="a", upto="b"),
        _sync(["b", 1, 0, 1, []], ["a", 1, 0, 1, []]),
        _sync(["a", 1, 0, 1, []], ["a", 1, 0, 1, []]),
        _sync(["a", 1, 5, 4, []]),
        _sync(["a", 1, 0, 9, [1]]),
        _sync(["a", 1, 0, 9, [3, 2]]),
        _sync(["a", 1, 0, 9, [1, 2, 2, 3]]),
        _sync(["a", 1, 3, 9, [3, 4]]),
        _sync(["a", 1, 0, 9, [3, 10]]),
        _sync(["a", 1, 0, 999, list(range(1, 2 * GAPS_MAX + 3))]),
        _sync(*[[f"n{i:04}", 1, 0, 1, []] for i in range(ORIGINS_MAX + 1)]),
    ],
)
def test_what_does_not_fit_is_refused(raw: object) -> None:
    """Type, range, order and number of everything."""
    with pytest.raises(RemoteProtocolError):
        decode(pack(raw))


def test_bodies_over_the_size_caps_are_refused() -> None:
    """Control bodies have a lower one than payloads."""
    with pytest.raises(RemoteProtocolError, match="too large"):
        decode(encode(Gossip(1, 0, b"x" * BODY_BYTES_MAX)))
    with pytest.raises(RemoteProtocolError, match="control body"):
        decode(pack([3, b"x" * 600_000]))
    assert decode(encode(Gossip(1, 0, b"x" * (BODY_BYTES_MAX - 100)))) is not None


def test_many_ids_take_several_bodies() -> None:
    """Each of which may be decoded; a graft without ids is one body, an empty announcement none."""
    ids = [ID._replace(sequence=n) for n in range(1, 2 * IDS_MAX + 2)]

    wanted = [decode(body) for body in grafts(ids)]
    announced = [decode(body) for body in ihaves([Announcement(id_, 1, 1, 1) for id_ in ids])]

    assert [i for body in wanted if isinstance(body, Graft) for i in body.ids] == ids
    assert [a.id for body in announced if isinstance(body, IHave) for a in body.announcements] == ids
    assert len(wanted) == len(announced) == 3
    assert [decode(body) for body in grafts([])] == [Graft(())]
    assert list(ihaves([])) == []


def test_the_largest_sync_fits_its_cap() -> None:
    """Longest names, largest numbers, most gaps."""
    top = 2**53 - 1
    gaps = tuple((top - 4 * n, top - 4 * n + 1) for n in range(GAPS_MAX, 0, -1))
    summaries = tuple(Summary(NodeId(f"{n:063}"), 2**37 - 1, 2**52, top, gaps) for n in range(ORIGINS_MAX))
    body = Sync(True, 2**32 - 1, "", "", summaries)

    assert decode(encode(body)) == body


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(data: bytes) -> None:
    """Nothing else is raised."""
    try:
        body = decode(data)
    except RemoteProtocolError:
        return
    assert body is None or decode(encode(body)) == body
