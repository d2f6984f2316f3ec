"""Who decides, compared with the obvious way to count."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.raft.configuration import LEARNERS_MAX, VOTERS_MAX, Configuration, changed, left
from transport.types import NodeId


def nodes(names: str) -> tuple[NodeId, ...]:
    """Nodes of one letter each."""
    return tuple(map(NodeId, names))


ABC = Configuration(nodes("abc"))
JOINT = Configuration(nodes("cd"), nodes("e"), nodes("abc"), auto_leave=True)

halves = st.sets(st.sampled_from("abcdefg")).map(lambda names: nodes("".join(sorted(names))))


@pytest.mark.parametrize(
    ("voters", "learners", "outgoing", "auto_leave"),
    [
        ("ba", "", "", False),
        ("aa", "", "", False),
        ("a", "a", "", False),
        ("", "a", "", False),
        ("", "", "a", False),
        ("a", "", "", True),
        ("a", "cb", "", False),
    ],
)
def test_nonsense_is_refused(voters: str, learners: str, outgoing: str, auto_leave: bool) -> None:
    """Members out of order, twice, learning and voting, or nobody who votes: no configuration."""
    with pytest.raises(ValueError):
        Configuration(nodes(voters), nodes(learners), nodes(outgoing), auto_leave)


def test_there_is_a_limit_to_members() -> None:
    """Too many of a kind are refused."""
    many = tuple(NodeId(f"n{number:03}") for number in range(LEARNERS_MAX + 1))
    with pytest.raises(ValueError):
        Configuration(many[: VOTERS_MAX + 1])
    with pytest.raises(ValueError):
        Configuration(nodes("a"), many)
    assert len(Configuration(many[:VOTERS_MAX], many[VOTERS_MAX:-1]).members) == LEARNERS_MAX


def test_members_are_all_who_get_the_log() -> None:
    """Voters of both halves and learners, each once and in order; only voters vote."""
    assert JOINT.members == nodes("abcde")
    assert [node for node in JOINT.members if JOINT.votes(node)] == list(nodes("abcd"))
    assert JOINT.joint
    assert not ABC.joint


@given(voters=halves.filter(bool), outgoing=halves, yes=st.sets(st.sampled_from("abcdefg")))
def test_agreed_and_hopeless_are_what_counting_says(
    voters: tuple[NodeId, ...], outgoing: tuple[NodeId, ...], yes: set[str]
) -> None:
    """A majority of each half says yes; and it is hopeless when the rest cannot make one."""
    configuration = Configuration(voters, (), outgoing)

    def counted(says: set[str]) -> bool:
        return all(len(says & {*half}) > len(half) / 2 for half in (voters, outgoing) if half)

    assert configuration.agreed(lambda node: node in yes) == counted(yes)
    assert configuration.hopeless(lambda node: node not in yes) == (not counted(yes))


def test_nobody_decides_for_nobody() -> None:
    """A node that knows of no group is never agreed with."""
    assert not Configuration().agreed(lambda node: True)


@given(voters=halves.filter(bool), outgoing=halves, values=st.lists(st.integers(0, 9), min_size=7, max_size=7))
def test_reached_is_the_highest_value_that_is_agreed(
    voters: tuple[NodeId, ...], outgoing: tuple[NodeId, ...], values: list[int]
) -> None:
    """The clever way gives what trying every value gives."""
    configuration = Configuration(voters, (), outgoing)
    at = dict(zip("abcdefg", values, strict=True))
    tried = [value for value in range(10) if configuration.agreed(lambda node: at[node] >= value)]  # noqa: B023 - used at once

    assert configuration.reached(lambda node: at[node]) == max(tried)


def test_one_voter_more_or_less_needs_no_joint_phase() -> None:
    """And neither do learners; more than one voter does, and who asks for a joint phase gets one."""
    assert changed(ABC, nodes("dabc"), (), auto_leave=True) == Configuration(nodes("abcd"))
    assert changed(ABC, nodes("ab"), nodes("c"), auto_leave=True) == Configuration(nodes("ab"), nodes("c"))
    assert changed(ABC, nodes("abd"), nodes("c"), auto_leave=True) == Configuration(
        nodes("abd"), nodes("c"), nodes("abc"), auto_leave=True
    )
    assert changed(ABC, nodes("ab"), (), auto_leave=False) == Configuration(nodes("ab"), (), nodes("abc"))
    assert left(JOINT) == Configuration(nodes("cd"), nodes("e"))


@pytest.mark.parametrize(("voters", "learners"), [("", ""), ("abc", ""), ("aab", ""), ("ab", "b")])
def test_a_change_to_nothing_or_to_the_same_is_refused(voters: str, learners: str) -> None:
    """There is nothing to change to."""
    with pytest.raises(ValueError):
        changed(ABC, nodes(voters), nodes(learners), auto_leave=True)


def test_majorities_of_one_step_meet() -> None:
    """Every majority before and every majority after a change of one voter share a member (dissertation, 4.1)."""
    for size in range(1, 6):
        before, after = nodes("abcdef"[:size]), nodes("abcdef"[: size + 1])
        for yes, also in itertools.product(_majorities(before), _majorities(after)):
            assert yes & also


def _majorities(half: tuple[NodeId, ...]) -> list[set[NodeId]]:
    sizes = range(len(half) // 2 + 1, len(half) + 1)
    return [set(chosen) for size in sizes for chosen in itertools.combinations(half, size)]
