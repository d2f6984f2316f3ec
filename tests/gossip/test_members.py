"""The member table: the laws of merging, and its bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.config import GossipConfig
from gossip.events import Member, MemberState
from gossip.incarnation import life_of, make_incarnation
from gossip.members import EQUAL_INCARNATION, MemberTable, is_gone, merge, status_wins
from transport.types import Address, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT
X = NodeId("x")

claims = st.builds(
    Member,
    node_id=st.just(X),
    incarnation=st.builds(make_incarnation, st.integers(1, 3), st.integers(0, 3)),
    state=st.sampled_from(MemberState),
    addresses=st.sampled_from([(), (Address("a", 1),), (Address("b", 2),)]),
    meta_version=st.integers(0, 3),
    meta=st.sampled_from([b"", b"m", b"n"]),
)


def member(
    name: str = "x", life: int = 1, refutations: int = 0, state: MemberState = ALIVE, meta: bytes = b""
) -> Member:
    """A claim about a node."""
    return Member(NodeId(name), make_incarnation(life, refutations), state, (), 1 if meta else 0, meta)


def table(**limits: float) -> MemberTable:
    """The table of node ``me``."""
    return MemberTable(member("me"), GossipConfig(**limits))  # type: ignore[arg-type]


@given(claims, claims)
def test_merge_commutes(a: Member, b: Member) -> None:
    """It does not matter which claim comes first."""
    assert merge(a, b) == merge(b, a)


@given(claims, claims, claims)
def test_merge_associates(a: Member, b: Member, c: Member) -> None:
    """It does not matter how claims are grouped on their way."""
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(claims, claims)
def test_merge_is_idempotent(a: Member, b: Member) -> None:
    """Hearing a claim again changes nothing."""
    assert merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)


@given(claims, claims)
def test_nothing_rises_without_a_higher_incarnation(a: Member, b: Member) -> None:
    """Dead or suspect to alive takes a higher incarnation, left to anything takes a higher life."""
    merged = merge(a, b)

    assert life_of(merged.incarnation) == max(life_of(a.incarnation), life_of(b.incarnation))
    if a.state is not ALIVE and merged.state is ALIVE:
        assert merged.incarnation > a.incarnation
    if a.state is LEFT and merged.state is not LEFT:
        assert life_of(merged.incarnation) > life_of(a.incarnation)


@given(claims, claims)
def test_details_never_go_back_within_a_life(a: Member, b: Member) -> None:
    """A claim of status alone never loses what the owner said."""
    merged = merge(a, b)

    if life_of(merged.incarnation) == life_of(a.incarnation):
        assert merged.meta_version >= a.meta_version


@pytest.mark.parametrize(("believed", "claimed"), list(EQUAL_INCARNATION))
def test_at_equal_incarnation_the_graver_state_stands(believed: MemberState, claimed: MemberState) -> None:
    """The literal table says exactly this."""
    assert EQUAL_INCARNATION[believed, claimed] is max(believed, claimed)
    assert merge(member(state=believed), member(state=claimed)).state is max(believed, claimed)


def test_the_table_of_states_is_complete() -> None:
    """Every pair of states has an answer."""
    assert list(EQUAL_INCARNATION) == [(a, b) for a in MemberState for b in MemberState]


def test_late_news_of_leaving_beat_a_refutation() -> None:
    """LEFT at a lower refutation count still ends the life."""
    assert status_wins(member(state=LEFT), member(refutations=5))
    assert not status_wins(member(refutations=5), member(state=LEFT))
    assert status_wins(member(life=2), member(state=LEFT))


@given(st.lists(claims, max_size=12), st.randoms(use_true_random=False))
def test_tables_that_heard_the_same_are_equal(heard: list[Member], rng: object) -> None:
    """Any order of claims gives one belief and one digest."""
    shuffled = list(heard)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    tables = []
    for order in (heard, shuffled):
        one = table()
        for claim in order:
            if (after := one.join(claim)) is not None:
                one.put(after, 0.0)
        tables.append(one)

    assert tables[0].get(X) == tables[1].get(X)
    assert tables[0].digest == tables[1].digest


def test_the_digest_ignores_the_dead() -> None:
    """A table that knows a dead member looks like one that never knew it."""
    one = table()
    empty = one.digest
    one.put(member(), 0.0)
    alive = one.digest
    one.put(member(state=SUSPECT), 0.0)
    assert one.digest == alive != empty

    one.put(member(state=DEAD), 0.0)

    assert one.digest == empty
    assert one.gone_count == 1


def test_the_dead_are_forgotten_and_cannot_be_raised_by_old_news() -> None:
    """Visible, then a tombstone, then nothing."""
    one = table(dead_retention_s=10, tombstone_s=100)
    one.put(member(state=DEAD), 5.0)
    one.put(member(state=LEFT), 9.0)  # the time of death stays the first

    assert one.reap(14.9) == []
    assert one.reap(15.0) == [member(state=LEFT)]
    assert one.get(X) is None
    assert one.known(X) == member(state=LEFT)
    assert one.join(member()) is None
    assert one.tombstone_count == 1
    assert one.gone() == [member(state=LEFT)]
    assert one.join(member(life=2)) == member(life=2)
    one.reap(115.0)
    assert one.known(X) is None
    assert one.join(member()) == member()


def test_a_returning_member_leaves_no_tombstone() -> None:
    """Whoever is a member again is not also buried."""
    one = table()
    one.bury(member(state=DEAD), 0.0)
    one.put(member(life=2), 1.0)

    assert one.tombstone_count == 0
    assert one.gone() == []


def test_burying_twice_keeps_the_graver_news() -> None:
    """A tombstone never goes back to an older incarnation, and keeps no metadata."""
    one = table()
    one.bury(member(life=2, state=DEAD, meta=b"m"), 0.0)
    one.bury(member(life=1, state=DEAD), 1.0)
    assert one.known(X) == member(life=2, state=DEAD)

    one.bury(member(life=3, state=LEFT), 2.0)

    assert one.known(X) == member(life=3, state=LEFT)


def test_a_full_table_refuses_newcomers_but_not_news() -> None:
    """The bound counts the living; what is known already can still change."""
    one = table(members_max=2)
    one.put(member("a"), 0.0)

    assert one.join(member("b")) is None
    assert one.refused_full == 1
    assert one.join(member("a", state=SUSPECT)) == member("a", state=SUSPECT)
    one.put(member("a", state=DEAD), 0.0)
    assert one.join(member("b")) == member("b")


def test_too_many_dead_are_forgotten_at_once() -> None:
    """The bound on visible dead members, and on tombstones, holds; the oldest go first."""
    one = table(dead_max=2, members_max=3)
    for index in range(6):
        one.put(member(f"d{index}", state=DEAD), float(index))

    assert [gone.node_id for gone in one.reap(6.0)] == ["d0", "d1", "d2", "d3"]
    assert one.tombstone_count == 3
    assert [gone.node_id for gone in one.gone()] == ["d5", "d4", "d3", "d2", "d1"]
    assert len(one) == 3


def test_metadata_is_bounded_in_sum_and_status_still_passes() -> None:
    """Where details find no room the status is taken all the same."""
    one = table(meta_table_bytes_max=10)
    one.put(member("a", meta=b"12345678"), 0.0)

    refused = one.join(member("b", meta=b"123"))
    assert refused == replace(member("b"), meta_version=0, meta=b"")
    one.put(refused, 0.0)
    assert one.join(member("b", state=SUSPECT, meta=b"123")) == member("b", state=SUSPECT)
    assert one.join(member("a", meta=b"87654321")) == member("a", meta=b"87654321")
    assert one.meta_bytes == 8
    assert one.refused_full == 2


def test_the_table_iterates_over_its_members() -> None:
    """This node included."""
    one = table()
    one.put(member(), 0.0)

    assert [m.node_id for m in one] == ["me", "x"]
    assert [is_gone(state) for state in MemberState] == [False, False, True, True]
