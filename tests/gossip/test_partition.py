"""Partition detection: many lost at once are one event, and so is their return."""

from __future__ import annotations

from gossip.config import GossipConfig
from gossip.events import Effect, Member, MemberState, PartitionDetected, PartitionHealed, SetTimer
from gossip.incarnation import make_incarnation
from gossip.members import MemberTable
from gossip.partition import PartitionCore
from transport.types import NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


class Watch:
    """A core of node ``n00`` among ``count`` nodes, with its timers."""

    def __init__(self, count: int = 10) -> None:
        self.config = GossipConfig()
        self.names = [NodeId(f"n{number:02}") for number in range(count)]
        me = Member(self.names[0], make_incarnation(1), ALIVE)
        self.table = MemberTable(me, self.config)
        self.core = PartitionCore(self.names[0], self.table, self.config)
        self.now = 0.0
        self.timers: list[tuple[float, int]] = []
        self.said: list[Effect] = []
        for name in self.names:
            self.table.put(Member(name, make_incarnation(1), ALIVE), 0.0)

    def change(self, number: int, state: MemberState, *, new: bool = False) -> None:
        before = self.table[self.names[number]] if not new else None
        after = Member(self.names[number], make_incarnation(1), state)
        self.table.put(after, self.now)
        self._take(self.core.member_changed(before, after, self.now))

    def run(self, seconds: float) -> list[Effect]:
        end = self.now + seconds
        self.said = []
        while due := sorted(timer for timer in self.timers if timer[0] <= end):
            self.timers.remove(due[0])
            self.now = due[0][0]
            self._take(self.core.timer(due[0][1], self.now))
        self.now = end
        return self.said

    def _take(self, effects: list[Effect]) -> None:
        self.timers += [(self.now + e.delay_s, e.token) for e in effects if isinstance(e, SetTimer)]
        self.said += [e for e in effects if not isinstance(e, SetTimer)]

    def names_of(self, *numbers: int) -> tuple[NodeId, ...]:
        return tuple(self.names[number] for number in numbers)


def split(watch: Watch, *lost: int) -> list[Effect]:
    """Lose members within a second."""
    for number in lost:
        watch.change(number, SUSPECT)
        watch.run(0.1)
    watch.run(watch.config.suspicion_s)
    said = watch.said
    for number in lost:
        watch.change(number, DEAD)
    return said + watch.run(watch.config.partition_settle_s)


def test_a_fifth_lost_at_once_is_one_event_with_both_sides() -> None:
    """Said when nothing more was lost for a moment, and once."""
    watch = Watch()

    assert split(watch, 7, 8, 9) == [PartitionDetected(watch.names_of(7, 8, 9), watch.names_of(*range(7)))]
    assert watch.run(100) == []
    assert watch.core.counters == {"partitions_detected": 1, "partitions_healed": 0}


def test_a_single_failure_is_no_partition() -> None:
    """Nor is a suspicion that is refuted, nor failures that have nothing to do with each other."""
    watch = Watch()
    assert split(watch, 9) == []
    watch.run(watch.config.partition_window_s)
    watch.change(8, SUSPECT)
    watch.change(7, SUSPECT)
    watch.change(7, ALIVE)
    assert watch.run(100) == []
    watch.change(6, SUSPECT)

    assert watch.run(100) == []


def test_two_of_many_are_no_partition() -> None:
    """The part counts, not only the number."""
    assert split(Watch(20), 17, 18) == []


def test_members_that_leave_or_are_first_heard_of_as_lost_do_not_count() -> None:
    """They did not go silent here; neither does this node itself."""
    watch = Watch()
    watch.change(0, ALIVE)
    for number in (5, 6, 7):
        watch.change(number, LEFT)
        watch.change(number, SUSPECT)
    watch.change(8, SUSPECT, new=True)
    watch.change(9, SUSPECT, new=True)

    assert watch.run(100) == []


def test_the_return_of_the_lost_is_one_event() -> None:
    """When at least half are back and no more come for a moment; it names who is still missing."""
    watch = Watch()
    split(watch, 5, 6, 7, 8, 9)
    watch.run(600)
    watch.change(9, ALIVE)
    assert watch.run(60) == []
    for number in (7, 8):
        watch.change(number, ALIVE)
        watch.run(1)

    assert watch.run(10) == [
        PartitionHealed(watch.names_of(7, 8, 9), watch.names_of(5, 6), watch.names_of(0, 1, 2, 3, 4, 7, 8, 9))
    ]
    assert split(watch, 7, 8, 9) != []


def test_more_may_be_lost_with_the_rest_while_a_later_failure_is_one_of_its_own() -> None:
    """The group grows within the window only."""
    watch = Watch()
    split(watch, 7, 8, 9)
    watch.change(6, SUSPECT)
    watch.run(100)
    watch.change(5, DEAD)
    for number in (5, 6, 7, 8, 9):
        watch.change(number, ALIVE)

    healed = watch.run(10)

    assert [e.returned for e in healed if isinstance(e, PartitionHealed)] == [watch.names_of(6, 7, 8, 9)]


def test_who_returns_and_is_lost_again_is_missing() -> None:
    """A flapping member does not count as returned."""
    watch = Watch()
    split(watch, 8, 9)
    watch.run(100)
    watch.change(8, ALIVE)
    watch.change(9, ALIVE)
    watch.change(9, SUSPECT)

    healed = watch.run(10)

    assert [(e.returned, e.missing) for e in healed if isinstance(e, PartitionHealed)] == [
        (watch.names_of(8), watch.names_of(9))
    ]


def test_a_group_of_which_none_returns_ends_silently() -> None:
    """Forgotten one by one, or returned and then forgotten or left: the next partition is another one."""
    watch = Watch()
    split(watch, 8, 9)
    for name in watch.names_of(8, 9):
        watch.core.forgotten(name)
    watch.core.forgotten(NodeId("stranger"))
    assert watch.run(100) == []
    assert split(watch, 6, 7) != []

    watch.change(6, LEFT)
    watch.change(7, LEFT)
    assert watch.run(100) == []

    assert split(watch, 4, 5) != []
    watch.core.forgotten(watch.names[4])
    watch.run(100)
    watch.change(5, ALIVE)
    watch.change(5, SUSPECT)
    assert watch.run(100) == []
    assert split(watch, 1, 2, 3) != []


def test_a_lone_pair_is_no_partition_and_stale_timers_are_ignored() -> None:
    """Of two nodes one lost is a failure."""
    watch = Watch(2)
    assert split(watch, 1) == []
    assert watch.core.timer(99, watch.now) == []
