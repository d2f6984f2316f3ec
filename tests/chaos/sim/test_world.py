"""The world's laws: time, order, freezes, ends of processes, and one seed that says it all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos_sim import Scripted, nodes, plan_of, scripted_world

from chaos.sim.plan import Network, Step, node_name
from chaos.sim.runner import Runner
from gossip.events import (
    BroadcastRequested,
    Dial,
    LeaveRequested,
    LinkLost,
    LinkOpened,
    MemberState,
    PeerFound,
    Received,
    Send,
    SetTimer,
    Stalled,
    Started,
    TimerFired,
    Unlink,
)
from gossip.incarnation import life_of

A, B, C = node_name(0), node_name(1), node_name(2)


def test_a_node_is_started_then_told_of_its_seeds() -> None:
    """The first event is Started; seeds follow as hints, and again as long as nobody is linked."""
    world = scripted_world(Network(discovery_interval_s=10.0))
    core = Scripted.of(world.start(1, [A]))
    world.run(15.0)

    assert core.heard[0] == Started()
    assert [type(event) for event in core.heard[1:]] == [PeerFound, PeerFound]


def test_timers_fire_by_the_nodes_own_clock() -> None:
    """A fast clock's timer fires early in true time, and exactly on its own time."""
    world = scripted_world(Network(clock_drift=0.2, discovery_interval_s=0.0))
    process = world.start(0)
    core = Scripted.of(process)
    core.answer(Started, [SetTimer(7, 10.0)])
    world.tell(process, Started())
    told_at = core.times[-1]
    world.run(20.0)

    assert core.heard[-1] == TimerFired(7)
    assert core.times[-1] - told_at == pytest.approx(10.0)
    assert process.drift != 1.0


def test_equal_times_keep_the_order_of_asking() -> None:
    """Two timers for the same moment fire in the order in which they were set."""
    world = scripted_world(Network(clock_drift=0.0))
    process = world.start(0)
    core = Scripted.of(process)
    core.answer(BroadcastRequested, [SetTimer(token, 1.0) for token in (3, 1, 2)])
    world.tell(process, BroadcastRequested(b"", 1))
    world.run(2.0)

    assert [event.token for event in core.heard if isinstance(event, TimerFired)] == [3, 1, 2]


def test_idle_time_costs_nothing() -> None:
    """A thousand years without events pass at once."""
    world = scripted_world(Network(discovery_interval_s=0.0))
    world.start(0)
    world.run(3e10)

    assert world.now >= 3e10
    assert world.events == 1


def test_a_restart_has_a_higher_life() -> None:
    """However soon it comes, and whatever the clock says."""
    world = scripted_world()
    first = world.start(0)
    with pytest.raises(ValueError, match="runs already"):
        world.start(0)
    world.kill(first, silent=False)
    second = world.start(0)

    assert life_of(second.core.me.incarnation) > life_of(first.core.me.incarnation)
    assert (first.uid, second.uid) == (0, 1)
    assert world.live() == [second]


def test_an_ended_process_hears_nothing() -> None:
    """Timers of a killed process fire into nothing."""
    world = scripted_world(Network(discovery_interval_s=0.0))
    process = world.start(0)
    core = Scripted.of(process)
    core.answer(BroadcastRequested, [SetTimer(1, 1.0)])
    world.tell(process, BroadcastRequested(b"", 1))
    world.kill(process, silent=False)
    world.tell(process, LeaveRequested())
    world.run(5.0)

    assert core.heard == [Started(), BroadcastRequested(b"", 1)]


def test_leaving_tells_peers_that_it_was_meant() -> None:
    """The core may say its goodbyes, then the links close in order."""
    world = scripted_world(linked=(0, 1))
    a, b = world.processes[A], world.processes[B]
    Scripted.of(a).answer(LeaveRequested, [Send(B, b"bye")])
    world.leave(a)
    world.run(1.0)

    assert not a.running
    assert Scripted.of(b).heard[-2:] == [Received(A, b"bye"), LinkLost(A, left=True)]


def test_a_frozen_process_catches_up_in_order() -> None:
    """It hears first that it stood still, then its late timers, then what arrived, in order."""
    world = scripted_world(Network(latency_s=(0.01, 0.01), discovery_interval_s=0.0, clock_drift=0.0), linked=(0, 1))
    a, b = world.processes[A], world.processes[B]
    Scripted.of(a).answer(BroadcastRequested, [SetTimer(5, 0.5), SetTimer(6, 0.2)])
    Scripted.of(b).answer(BroadcastRequested, [Send(A, b"1"), Send(A, b"2")])
    world.tell(a, BroadcastRequested(b"", 1))
    world.freeze(a, 1.0)
    world.tell(b, BroadcastRequested(b"", 1))
    world.run(0.9)
    assert Scripted.of(a).heard[-1] == BroadcastRequested(b"", 1)
    world.tell(a, LeaveRequested())
    world.run(1.0)

    caught_up = Scripted.of(a).heard[-6:]
    assert isinstance(caught_up[0], Stalled)
    assert caught_up[0].duration_s == pytest.approx(1.0)
    assert caught_up[1:] == [TimerFired(6), TimerFired(5), Received(B, b"1"), Received(B, b"2"), LeaveRequested()]
    assert not a.deferred
    assert world.inbox_peak == 3


def test_a_short_freeze_is_not_worth_mentioning() -> None:
    """Below the shell's threshold nobody says Stalled."""
    world = scripted_world(linked=(0, 1))
    process = world.processes[A]
    world.freeze(process, 0.1)
    world.freeze(process, 50.0)
    world.run(1.0)

    assert not any(isinstance(event, Stalled) for event in Scripted.of(process).heard)
    assert process.frozen_at is None


def test_a_process_that_freezes_again_keeps_what_waits() -> None:
    """In 64 milliseconds only so much is worked off; the rest stays for the next time."""
    network = Network(latency_s=(0.01, 0.01), event_cost_s=0.01, discovery_interval_s=0.0)
    world = scripted_world(network, linked=(0, 1))
    a, b = world.processes[A], world.processes[B]
    Scripted.of(b).answer(BroadcastRequested, [Send(A, b"%d" % number) for number in range(20)])
    world.freeze(a, 1.0)
    world.tell(b, BroadcastRequested(b"", 1))
    world.at(1.05, world.freeze, a, 1.0)
    world.run(1.5)
    part = [event for event in Scripted.of(a).heard if isinstance(event, Received)]
    world.run(5.0)
    whole = [event for event in Scripted.of(a).heard if isinstance(event, Received)]

    assert 0 < len(part) < 20
    assert whole == [Received(B, b"%d" % number) for number in range(20)]


def test_a_frozen_process_reads_its_links_end_last() -> None:
    """A peer that closed while the process stood still is noticed behind what the peer had sent."""
    world = scripted_world(linked=(0, 1))
    a, b = world.processes[A], world.processes[B]
    Scripted.of(b).answer(BroadcastRequested, [Send(A, b"last words"), Unlink(A, "enough")])
    world.freeze(a, 1.0)
    world.tell(b, BroadcastRequested(b"", 1))
    world.run(2.0)

    assert Scripted.of(a).heard[-2:] == [Received(B, b"last words"), LinkLost(B, wanted=True)]


def test_a_killed_process_that_was_frozen_is_reset() -> None:
    """SIGKILL ends a stopped process too, and the kernel closes its links."""
    world = scripted_world(linked=(0, 1))
    world.freeze(world.processes[A], 60.0)
    world.run(0.1)
    world.kill(world.processes[A], silent=False)
    world.run(0.2)

    assert Scripted.of(world.processes[B]).heard[-1] == LinkLost(A)


def test_links_open_on_both_sides() -> None:
    """A dial ends with LinkOpened at the acceptor, then at the dialler, each with the other's incarnation."""
    world = scripted_world(Network(latency_s=(0.01, 0.01), discovery_interval_s=0.0))
    a, b = world.start(0), world.start(1)
    Scripted.of(a).answer(BroadcastRequested, [Dial(B, ())])
    world.tell(a, BroadcastRequested(b"", 1))
    dialled_at = world.now
    world.run(1.0)

    for here, there in ((a, b), (b, a)):
        opened = Scripted.of(here).heard[-1]
        assert opened == LinkOpened(there.name, there.core.me.incarnation, there.core.me.addresses)
    assert Scripted.of(a).times[-1] / a.drift - dialled_at == pytest.approx(8 * 0.01)
    assert Scripted.of(b).times[-1] / b.drift - dialled_at == pytest.approx(7 * 0.01)


def test_who_is_apart() -> None:
    """Groups are apart while the partition lasts, and for the grace that is asked for."""
    world = scripted_world()
    world.separate([[0, 1], [2]])
    assert world.apart(0, 2)
    assert not world.apart(0, 1)
    world.separate(None)
    world.run(5.0)

    assert world.apart(0, 2, grace_s=10.0)
    assert not world.apart(0, 2, grace_s=1.0)


# --- one seed ---------------------------------------------------------------------------------------------------

_SCRIPT = """
import sys; sys.path[:0] = sys.argv[1:]
from chaos.sim.runner import run
from chaos.sim.scenarios import SCENARIOS, Options
print(run(SCENARIOS["chaos"].plan(Options(8, 7))).trace_digest)
"""


def test_a_seed_repeats_a_run_in_any_process() -> None:
    """The trace depends on the seed alone, not on the hash seed of the process."""
    root = Path(__file__).resolve().parents[3]
    digests = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(root)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("0", "1", "77")
    ]

    assert len(digests[0]) == 32
    assert digests[0] == digests[1] == digests[2]


def test_another_seed_is_another_run() -> None:
    """What the seed draws matters."""
    steps = (Step("start", {"nodes": nodes(4), "seeds": [0]}), Step("run", {"seconds": 3.0}))

    assert len({Runner(plan_of(*steps, seed=seed)).run().trace_digest for seed in range(4)}) == 4


def test_every_line_of_the_log_is_json() -> None:
    """The first line is the plan; every further one is [time, node, tag, ...] with times that never go back."""
    log = io.StringIO()
    plan = plan_of(
        Step("start", {"nodes": nodes(3), "seeds": [0]}),
        Step("run", {"seconds": 2.0}),
        Step("freeze", {"nodes": [1], "freeze_s": 0.5}),
        Step("broadcast", {"nodes": [0]}),
        Step("run", {"seconds": 1.0}),
        Step("kill", {"nodes": [2]}),
        Step("run", {"seconds": 3.0}),
    )
    report = Runner(plan, log=log).run()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]

    assert lines[0]["nodes"] == plan.nodes
    times = [line[0] for line in lines[1:]]
    assert times == sorted(times)
    assert {line[2] for line in lines[1:]} == {"r", "t", "e", "m", "d", "f"}
    assert [C, "m"] in [line[1:3] for line in lines[1:]]
    assert any(line[2] == "m" and line[3] == C and line[6] == MemberState.DEAD for line in lines[1:])
    assert report.trace_digest == Runner(plan).run().trace_digest
