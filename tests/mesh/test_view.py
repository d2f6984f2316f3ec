"""What an application sees and hears of members."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from gossip.events import Member, MemberState
from mesh.events import (
    AgentJoined,
    AgentLeft,
    MeshEvent,
    NodeFailed,
    NodeJoined,
    NodeLeft,
    NodeSuspected,
    NodeUpdated,
)
from mesh.profile import NodeProfile, encode_profile
from mesh.sealing.handshake import Peer
from mesh.sealing.keyring import Readers
from mesh.types import AgentInfo, NodeStatus
from mesh.view import NetworkView
from transport.types import Address, NodeId

S = MemberState
AGENT = AgentInfo(7, "a", ("sum", "sort"))
META = encode_profile(NodeProfile(metadata={"rack": "1"}, agents=(AGENT,)))


def _member(state: MemberState, meta: bytes = b"", incarnation: int = 1, port: int = 1) -> Member:
    return Member(NodeId("a"), incarnation, state, (Address("10.0.0.1", port),), 0, meta)


# The whole table, written out: (before, after) -> what is heard.  None: not known before.
HEARD: dict[tuple[MemberState | None, MemberState], type | None] = {
    (None, S.ALIVE): NodeJoined,
    (None, S.SUSPECT): NodeJoined,
    (None, S.DEAD): None,
    (None, S.LEFT): None,
    (S.ALIVE, S.ALIVE): None,
    (S.ALIVE, S.SUSPECT): NodeSuspected,
    (S.ALIVE, S.DEAD): NodeFailed,
    (S.ALIVE, S.LEFT): NodeLeft,
    (S.SUSPECT, S.ALIVE): NodeUpdated,
    (S.SUSPECT, S.SUSPECT): None,
    (S.SUSPECT, S.DEAD): NodeFailed,
    (S.SUSPECT, S.LEFT): NodeLeft,
    (S.DEAD, S.ALIVE): NodeJoined,
    (S.DEAD, S.SUSPECT): NodeJoined,
    (S.DEAD, S.DEAD): None,
    (S.DEAD, S.LEFT): None,
    (S.LEFT, S.ALIVE): NodeJoined,
    (S.LEFT, S.SUSPECT): NodeJoined,
    (S.LEFT, S.DEAD): None,
    (S.LEFT, S.LEFT): None,
}


def _kinds(events: list[MeshEvent]) -> list[type]:
    return [type(event) for event in events]


def test_the_table_is_complete() -> None:
    """Every pair of states has its row."""
    assert set(HEARD) == set(itertools.product([None, *MemberState], MemberState))


@pytest.mark.parametrize(("before", "after"), list(HEARD))
def test_a_change_of_state_is_heard_once(before: MemberState | None, after: MemberState) -> None:
    """Each change of state means one event or none, and the node's own state is in it."""
    view = NetworkView()
    if before is not None:
        view.apply(_member(before))

    events = view.apply(_member(after))

    expected = HEARD[before, after]
    assert _kinds(events) == ([expected] if expected else [])
    if events:
        assert getattr(events[0], "node").status is view.node("a").status  # noqa: B009 - not all events have one


@pytest.mark.parametrize(("before", "after"), list(itertools.product(MemberState, MemberState)))
def test_agents_come_and_go_with_their_node(before: MemberState, after: MemberState) -> None:
    """The agents of a node that is alive or suspected are there; those of one that is gone are not."""
    view = NetworkView()
    view.apply(_member(before, META))
    events = view.apply(_member(after, META))

    was, is_ = (state in (S.ALIVE, S.SUSPECT) for state in (before, after))
    assert [e for e in events if isinstance(e, AgentJoined | AgentLeft)] == (
        [] if was == is_ else [AgentJoined(AGENT)] if is_ else [AgentLeft(AGENT)]
    )
    assert view.directory.locate(7) == ("a" if is_ else None)


@pytest.mark.parametrize("changed", [_member(S.ALIVE, META), _member(S.ALIVE, incarnation=2), _member(S.ALIVE, port=2)])
def test_what_users_can_see_is_an_update(changed: Member) -> None:
    """Metadata, incarnation and address of a live node are news; the same record again is not."""
    view = NetworkView()
    view.apply(_member(S.ALIVE))

    events = view.apply(changed)

    assert _kinds(events)[0] is NodeUpdated
    assert view.apply(changed) == []


def test_a_node_is_seen_with_all_that_it_says() -> None:
    """A snapshot has the node's address, agents, capabilities, metadata and when it was heard from."""
    view = NetworkView()
    view.apply(_member(S.ALIVE, META, incarnation=5))

    node = view.node("a", 123)

    assert (node.address, node.port, node.incarnation, node.last_heartbeat) == ("10.0.0.1", 1, 5, 123)
    assert (node.agent_ids, node.capabilities, node.metadata) == ((7,), ("sort", "sum"), {"rack": "1"})


def test_a_node_can_be_described_before_it_is_in_the_view() -> None:
    """As the application is asked whether to admit it; nothing is remembered of it."""
    view = NetworkView()

    described = view.describe(_member(S.ALIVE, META))

    assert (described.node_id, described.agent_ids, described.metadata) == ("a", (7,), {"rack": "1"})
    assert (described.address, described.port, described.capabilities) == ("10.0.0.1", 1, ("sort", "sum"))
    assert view.node_ids() == []


def test_a_node_without_address_is_seen() -> None:
    """A member that cannot be dialled has an empty address."""
    view = NetworkView()
    view.apply(Member(NodeId("a"), 1, S.ALIVE))

    assert (view.node("a").address, view.node("a").port) == ("", 0)


@pytest.mark.parametrize(
    ("state", "maintenance", "status"),
    [
        (S.ALIVE, False, NodeStatus.ACTIVE),
        (S.ALIVE, True, NodeStatus.MAINTENANCE),
        (S.SUSPECT, True, NodeStatus.INACTIVE),
        (S.DEAD, False, NodeStatus.DISCONNECTED),
        (S.LEFT, True, NodeStatus.DISCONNECTED),
    ],
)
def test_status_follows_state(state: MemberState, maintenance: bool, status: NodeStatus) -> None:
    """What is believed of a member outweighs what it says of itself."""
    view = NetworkView()
    view.apply(_member(state, encode_profile(NodeProfile(maintenance=maintenance))))

    assert view.node("a").status is status


def test_a_member_with_an_unreadable_profile_is_still_a_member() -> None:
    """A profile of a later version, or nonsense, is counted and shown as empty."""
    view = NetworkView()

    assert _kinds(view.apply(_member(S.ALIVE, b"\xc1"))) == [NodeJoined]
    assert view.profiles_refused == 1
    assert view.node("a").agent_ids == ()


def test_a_forgotten_member_is_gone() -> None:
    """What gossip has dropped is not shown any more, agents included; forgetting twice is harmless."""
    view = NetworkView()
    view.apply(_member(S.ALIVE, META))

    view.forget("a")
    view.forget("a")

    assert view.node_ids() == []
    assert view.directory.agents() == []
    with pytest.raises(KeyError):
        view.node("a")


def test_issuers_are_live_members_that_can_issue() -> None:
    """Only a member that is alive and holds the authority's key is asked for certificates."""
    view = NetworkView()
    can, cannot = encode_profile(NodeProfile(can_issue=True)), encode_profile(NodeProfile())
    for name, state, meta in (
        ("d", S.ALIVE, can),
        ("a", S.ALIVE, can),
        ("b", S.ALIVE, cannot),
        ("c", S.SUSPECT, can),
    ):
        view.apply(Member(NodeId(name), 1, state, (), 0, meta))

    assert view.issuers() == ["a", "d"]
    assert view.node_ids() == ["a", "b", "c", "d"]


def _subscribed(*groups: str, state: MemberState = S.ALIVE, version: int = 1) -> Member:
    return Member(NodeId("a"), 1, state, (), version, encode_profile(NodeProfile(groups=groups)))


def test_subscribers_follow_what_nodes_say_and_how_they_are() -> None:
    """Each change is told once; a node that is gone, or forgotten, subscribes to nothing."""
    view = NetworkView()
    view.apply(_subscribed("g", "h"))
    assert view.group_changes == [("g", "a", True), ("h", "a", True)]
    assert view.subscribers("g") == ["a"]
    view.apply(_subscribed("g", "i", version=2))
    assert view.group_changes == [("h", "a", False), ("i", "a", True)]
    view.apply(_subscribed("g", "i", version=2, state=S.SUSPECT))
    assert view.group_changes == []
    view.apply(_subscribed("g", "i", version=2, state=S.DEAD))
    assert view.group_changes == [("g", "a", False), ("i", "a", False)]
    assert view.subscribers("g") == view.subscribers("h") == []
    view.apply(_subscribed("g", version=3))
    view.forget("a")
    assert view.group_changes == [("g", "a", False)]
    view.forget("a")
    assert view.group_changes == []


def _reader(name: str, state: MemberState = S.ALIVE, life: int = 1, **profile: Any) -> Member:
    return Member(NodeId(name), life << 16 | 3, state, (), 0, encode_profile(NodeProfile(**profile)))


def test_readers_are_the_lives_of_live_members_and_of_live_subscribers() -> None:
    """Who is suspected may read, who is gone may not; one that demands sealing and those that cannot open are told."""
    view = NetworkView()
    assert view.readers("") == view.readers("g") == Readers([])
    view.apply(_reader("a", opens_sealed=True, groups=("g",)))
    view.apply(_reader("b", S.SUSPECT, 5, opens_sealed=True))
    assert view.readers("") == Readers([Peer("a", 1), Peer("b", 5)])
    assert view.readers("g") == Readers([Peer("a", 1)])
    view.apply(_reader("c", groups=("g",)))
    view.apply(_reader("d", opens_sealed=True, demands_sealed=True))
    assert view.readers("") == Readers([Peer("a", 1), Peer("b", 5), Peer("c", 1), Peer("d", 1)], True, 1)
    assert view.readers("g") == Readers([Peer("a", 1), Peer("c", 1)], False, 1)
    assert [view.demands_sealed(name) for name in "adz"] == [False, True, False]
    for gone in (_reader("c", S.LEFT), _reader("d", S.DEAD)):
        view.apply(gone)
    view.forget("b")
    assert view.readers("") == view.readers("g") == Readers([Peer("a", 1)])
