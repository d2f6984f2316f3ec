"""Who decides: voters, learners, and the two majorities that rule while voters change.

From "In Search of an Understandable Consensus Algorithm" (Ongaro and Ousterhout 2014, extended version), section 6.
A configuration is an entry of the log and counts from the moment when it is *in* the log, not when it is committed.
While the voters change, old and new ones rule together (*joint consensus*): every decision needs a majority of each.
So there is no moment at which two majorities that do not know of each other can decide.

What deviates from the paper: a change of at most one voter skips the joint phase, because any majority of before and
any of after share a member (Ongaro's dissertation, section 4.1; its error, found in 2015, needs a leader that changes
the voters before it has committed anything in its term, which :mod:`state.raft.leader` does not do).  *Learners* get
the log and have no say; a voter that is to become a learner stays a voter of the outgoing half until the joint phase
ends.  Each entry holds the whole configuration rather than a difference, so that a log cut anywhere can be read.
"""

# core: no I/O

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from transport.types import NodeId

T = TypeVar("T", int, float)

#: Voters of one majority: a decision waits for half of them, and five survive any two.
VOTERS_MAX: Final = 15
#: Learners of a group: each costs the leader what a voter costs.
LEARNERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members of a group; node ids ascend within each field.

    Raises:
        ValueError: Members repeat, are out of order, too many, or a learner votes already.
    """

    voters: tuple[NodeId, ...] = ()
    """Who decides; while joint, the incoming half.  Empty: this node knows of no group yet."""
    learners: tuple[NodeId, ...] = ()
    """Who gets the log without a say; none of them is among ``voters``."""
    outgoing: tuple[NodeId, ...] = ()
    """While joint, the voters of before; else empty."""
    auto_leave: bool = False
    """While joint: whether the leader ends the joint phase by itself once it is committed."""

    def __post_init__(self) -> None:
        for members, most in (
            (self.voters, VOTERS_MAX),
            (self.outgoing, VOTERS_MAX),
            (self.learners, LEARNERS_MAX),
        ):
            if len(members) > most or any(a >= b for a, b in itertools.pairwise(members)):
                raise ValueError(f"not at most {most} members in ascending order: {members}")
        if any(learner in self.voters for learner in self.learners):
            raise ValueError("a learner is no voter of the same configuration")
        if not self.voters and (self.learners or self.outgoing):
            raise ValueError("a configuration has voters")
        if self.auto_leave and not self.outgoing:
            raise ValueError("only a joint configuration can be left")

    @property
    def joint(self) -> bool:
        """Whether two majorities rule."""
        return bool(self.outgoing)

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Everybody who gets the log, each once, ascending."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))

    def votes(self, node: NodeId) -> bool:
        """Whether ``node`` is a voter of either half."""
        return node in self.voters or node in self.outgoing

    def agreed(self, says_yes: Callable[[NodeId], bool]) -> bool:
        """Whether a majority of each half says yes; nobody decides for a group without voters."""
        return bool(self.voters) and all(
            2 * sum(map(says_yes, half)) > len(half) for half in (self.voters, self.outgoing) if half
        )

    def hopeless(self, says_no: Callable[[NodeId], bool]) -> bool:
        """Whether so many said no that :meth:`agreed` cannot come true any more."""
        return any(2 * sum(map(says_no, half)) >= len(half) for half in (self.voters, self.outgoing) if half)

    def reached(self, value: Callable[[NodeId], T]) -> T:
        """The highest value that a majority of each half has reached; there are voters."""
        halves = [half for half in (self.voters, self.outgoing) if half]
        return min(sorted(map(value, half), reverse=True)[len(half) // 2] for half in halves)


def changed(
    current: Configuration, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...], *, auto_leave: bool
) -> Configuration:
    """The first configuration on the way from ``current``, which is not joint, to new members.

    Args:
        current: What rules now.
        voters: Who is to vote.
        learners: Who is to learn.
        auto_leave: Whether the joint phase, if there is one, ends by itself; ``False`` asks for a joint phase even
            where none is needed.

    Raises:
        ValueError: The new members are no configuration, or it is the current one.
    """
    target = Configuration(tuple(sorted(voters)), tuple(sorted(learners)))
    if not target.voters:
        raise ValueError("a group keeps at least one voter")
    if target == current:
        raise ValueError("the members are these already")
    moved = {*target.voters} ^ {*current.voters}
    if auto_leave and len(moved) <= 1:
        return target
    return Configuration(target.voters, target.learners, current.voters, auto_leave)


def left(current: Configuration) -> Configuration:
    """What follows a joint configuration."""
    return Configuration(current.voters, current.learners)
