"""Groups in virtual time with everything going wrong; and the checkers, which must see what is planted."""

from __future__ import annotations

import pytest
from raft_checkers import Checker, Disk, Violation
from raft_plants import PLANTS, planted
from raft_sim import World

from state.raft.configuration import Configuration
from state.raft.log import Log
from state.raft.types import Entry, Snapshot, Stored, Vote
from transport.types import NodeId

#: Seeds of a test run; `make raft-sim` runs ten thousand.
SEEDS = 80
#: Where the search for each planted violation begins, so that it is soon found; the rest follow if that has changed.
FIRST = {"forget_the_vote": 110, "ignore_the_outgoing": 100}
SEARCHED = 400

A, B = NodeId("a"), NodeId("b")


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_nothing_that_must_hold_is_broken(first: int) -> None:
    """Safety in each moment, agreement when the faults have stopped; and the runs are not empty."""
    committed = reads = 0
    for seed in range(first, first + 20):
        world = World(seed)
        world.run()  # raises Violation; repeat with tests/raft_sim.py --first SEED --seeds 1
        committed += len(world.check.committed)
        reads += world.check.reads_done

    assert committed > 500
    assert reads > 50


def test_a_seed_repeats_its_run() -> None:
    """Step by step, so that a failure can be looked at."""
    runs = []
    for _ in range(2):
        world = World(3)
        world.run()
        runs.append((world.steps, world.now, world.check.committed))

    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", PLANTS)
def test_planted_violations_are_found(name: str) -> None:
    """Each mistake that implementations have made is seen by a checker within some seeds."""
    first = FIRST.get(name, 0)
    with planted(name), pytest.raises(Violation):
        for seed in range(first, first + SEARCHED):
            try:
                World(seed).run()
            except Violation:
                raise
            except Exception:  # noqa: BLE001 - a core that is wrong may also fall over; the checkers are to see it
                continue


def test_checkers_tell_what_they_see() -> None:
    """Each invariant on its own."""
    members = Configuration((A, B))
    log = Log(Stored(Vote(2), entries=(Entry(1, 1, members), Entry(2, 2, b"x"))))
    check = Checker()
    check.leads(A, 2, log)
    with pytest.raises(Violation, match="two leaders"):
        check.leads(B, 2, log)
    check.voted(A, Vote(2, A))
    with pytest.raises(Violation, match="voted for"):
        check.voted(A, Vote(2, B))
    check.wrote(A, (Entry(2, 2, b"x"),), 1)
    for entry, previous in ((Entry(2, 2, b"y"), 1), (Entry(2, 2, b"x"), 2)):
        with pytest.raises(Violation, match="entry 2"):
            check.wrote(B, (entry,), previous)
    check.applies(A, (Entry(1, 1, members), Entry(2, 2, b"x"), Entry(3, 2, b"z")), 0)
    with pytest.raises(Violation, match="after 0"):
        check.applies(B, (Entry(2, 2, b"x"),), 0)
    with pytest.raises(Violation, match="and not"):
        check.applies(B, (Entry(1, 2, None),), 0)
    with pytest.raises(Violation, match="2 of 3"):
        check.leads(B, 3, log)
    with pytest.raises(Violation, match="never one"):
        check.restored(B, Snapshot(2, 2, members), b"other")
    check.asks(A, 1)
    with pytest.raises(Violation, match="must see 3"):
        check.reads(A, 1, 2, 3)


def test_commits_are_checked_against_disks() -> None:
    """A majority must have stored it, and it must be of the leader's own term."""
    members = Configuration((A, B))
    log = Log(Stored(Vote(2), entries=(Entry(1, 1, members), Entry(2, 2, b"x"))))
    log.committed = 2
    disks = {A: Disk(entries={2: Entry(2, 2, b"x")}), B: Disk()}
    with pytest.raises(Violation, match="which only"):
        Checker().commits(A, 2, log, disks)
    with pytest.raises(Violation, match="by counting"):
        Checker().commits(A, 3, log, disks)
    disks[B].snapshot = Snapshot(2, 2, members)
    Checker().commits(A, 2, log, disks)
    log.append([Entry(3, 2, b"")])
    assert not disks[B].has(3, 2)
