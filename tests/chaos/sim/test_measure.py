"""Figures are what they say they are."""

from __future__ import annotations

import pytest
from chaos_sim import Scripted, scripted_world

from chaos.sim.measure import Broadcasts, Detections, number_of, payload_of, quantile
from chaos.sim.plan import node_name
from chaos.sim.process import Process
from gossip.events import Deliver, Member, MemberState, Send
from transport.wire import Kind


def started(count: int) -> list[Process]:
    """So many processes, running."""
    world = scripted_world()
    return [world.start(index) for index in range(count)]


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([], 0.5, None),
        ([3], 0.99, 3),
        ([1, 2, 3, 4], 0.5, 2),
        ([4, 3, 2, 1], 1.0, 4),
        (range(1, 101), 0.99, 99),
        ([1, 2], 0, 1),
    ],
)
def test_quantiles_are_values_that_occurred(values: list[float], part: float, expected: float | None) -> None:
    """The nearest rank: no interpolation between two nodes."""
    assert quantile(values, part) == expected


def test_payloads_carry_their_number() -> None:
    """Wherever in a body they stand, however many, and nothing else looks like one."""
    body = b"head" + payload_of(3) + b"tail" + payload_of(70_000, size_bytes=20)
    first = number_of(body)
    assert first is not None
    second = number_of(body, first[1])
    assert second is not None

    assert (first[0], second[0]) == (3, 70_000)
    assert number_of(body, second[1]) is None
    assert len(payload_of(1)) == 64
    assert number_of(b"nothing") is None


def test_broadcast_figures() -> None:
    """Delivery counts survivors, redundancy counts copies beyond the first, times are from the request."""
    processes = started(5)
    broadcasts = Broadcasts()
    broadcast = broadcasts.begin("", processes[0], processes, 10.0)
    body = payload_of(broadcast.number)
    for _ in range(6):
        broadcasts.count_copies(Send(node_name(1), b"x" + body, kind=Kind.BROADCAST))
    for process, at in zip(processes[1:4], (10.1, 10.2, 10.4), strict=True):
        delivery = Deliver(node_name(0), 1, 1, body)
        assert broadcasts.delivered(process, delivery, at) is None
        assert broadcasts.delivered(process, delivery, at) is broadcast
    processes[3].running = False

    figures = broadcasts.figures()
    assert broadcast.missing() == [processes[4]]
    assert figures["delivered_fraction"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["redundancy"] == 1.0
    assert (figures["p50_ms"], figures["p100_ms"]) == (100.0, 200.0)


def test_labels_are_reported_apart_and_warming_up_not_at_all() -> None:
    """What only trains the tree is no result."""
    processes = started(2)
    broadcasts = Broadcasts()
    for label in ("warm", "first", "first", "late"):
        broadcasts.begin(label, processes[0], processes, 0.0)
    figures = broadcasts.figures()

    assert figures["broadcasts"] == 3
    assert figures["broadcasts_first"] == 2
    assert figures["delivered_fraction_late"] == 0.0
    assert "broadcasts_warm" not in figures


def test_other_deliveries_are_not_measured() -> None:
    """A broadcast that the run did not request is nobody's figure."""
    broadcasts = Broadcasts()

    assert broadcasts.delivered(started(1)[0], Deliver(node_name(5), 1, 1, b"else"), 1.0) is None
    broadcasts.count_copies(Send(node_name(1), payload_of(9), kind=Kind.BROADCAST))
    assert broadcasts.figures()["delivered_fraction"] is None


def test_detection_figures() -> None:
    """First suspicion by anybody, knowledge by each, and by the last; who ended itself meanwhile does not count."""
    processes = started(4)
    victim = processes[0]
    me = Scripted.of(victim).me
    detections = Detections()
    detections.ended(victim, processes, 100.0)
    suspect = Member(me.node_id, me.incarnation, MemberState.SUSPECT)
    dead = Member(me.node_id, me.incarnation, MemberState.DEAD)
    detections.transition(processes[1], suspect, 101.0)
    detections.transition(processes[2], suspect, 101.5)
    detections.transition(processes[1], dead, 102.0)
    detections.transition(processes[1], dead, 109.0)
    detections.transition(processes[2], dead, 103.0)
    detections.transition(victim, dead, 100.0)
    detections.transition(processes[1], Member(node_name(9), 1, MemberState.DEAD), 104.0)
    assert detections.figures()["unnoticed"] == 1
    assert detections.figures()["all_know_p99_s"] is None
    processes[3].running = False

    figures = detections.figures()
    assert figures["suspected_p50_s"] == 1.0
    assert (figures["detected_p50_s"], figures["detected_p99_s"], figures["all_know_p99_s"]) == (2.0, 3.0, 3.0)
    assert figures["unnoticed"] == 0


def test_nobody_left_to_notice() -> None:
    """If all ended there is no figure rather than a good one."""
    processes = started(1)
    detections = Detections()
    detections.ended(processes[0], processes, 1.0)

    assert detections.figures()["detected_p50_s"] is None
