"""Updates are released in FIFO and causal order, each once, whatever the network did, in bounded space."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.clocks.vectors import Dot, Span, VersionVector, Writer
from state.guards.holdback import HoldBack, HoldBackLimits, Parcel, Verdict
from transport.types import NodeId

A, B, C = (Writer(NodeId(node), 1) for node in "abc")


def _parcel(writer: Writer, counter: int, *needs: tuple[Writer, int], size_bytes: int = 10) -> Parcel[str]:
    return Parcel(Dot(writer, counter), needs, size_bytes, f"{writer.node}{counter}")


def test_what_is_held_and_who_is_known_can_be_asked() -> None:
    """By dot, and how many writers there are."""
    held: HoldBack[str] = HoldBack()
    _deliver(held, _parcel(A, 2))
    assert held.holds(Dot(A, 2))
    assert not held.holds(Dot(A, 1))
    assert not held.holds(Dot(B, 2))
    assert held.writers == 0
    _deliver(held, _parcel(A, 1))
    assert not held.holds(Dot(A, 2))
    assert held.writers == 1


def _deliver(held: HoldBack[str], parcel: Parcel[str]) -> list[str]:
    """Offer one update and apply all that this makes ready."""
    if held.offer(parcel) is not Verdict.READY:
        return []
    ready, applied = [parcel], []
    while ready:
        applied.append(ready[0].content)
        ready += held.settle(ready.pop(0).dot)
    return applied


def _history(seed: int, size: int) -> list[Parcel[str]]:
    """Updates of three writers who hear of each other now and then, in an order in which they may be applied."""
    rng = random.Random(seed)
    known = {writer: VersionVector() for writer in (A, B, C)}
    told = dict(known)
    parcels = []
    for _ in range(size):
        writer = rng.choice([A, B, C])
        if rng.random() < 0.4:
            known[writer] = known[writer].merge(known[rng.choice([A, B, C])])
        changed = [(span.writer, span.last) for span in known[writer].beyond(told[writer]) if span.writer != writer]
        dot = known[writer].next(writer)
        known[writer] = told[writer] = known[writer].with_dot(dot)
        parcels.append(_parcel(writer, dot.counter, *changed))
    return parcels


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_any_order_with_repetitions_releases_everything_in_order(seed: int, size: int) -> None:
    """Shuffled and doubled, every update is released once, after all that its writer had seen."""
    parcels = _history(seed, size)
    arrivals = parcels * 2
    random.Random(seed).shuffle(arrivals)
    held: HoldBack[str] = HoldBack()
    applied = [content for parcel in arrivals for content in _deliver(held, parcel)]
    assert sorted(applied) == sorted(parcel.content for parcel in parcels)
    place = {content: number for number, content in enumerate(applied)}
    for parcel in parcels:
        before = [*parcel.needs, (parcel.dot.writer, parcel.dot.counter - 1)]
        for writer, counter in before:
            assert counter == 0 or place[f"{writer.node}{counter}"] < place[parcel.content]
    assert (len(held), held.size_bytes, held.missing()) == (0, 0, [])
    assert held.known == VersionVector({parcel.dot.writer: parcel.dot.counter for parcel in parcels})


@given(st.integers(0, 10_000), st.integers(5, 40))
def test_what_is_missing_is_exactly_what_helps(seed: int, size: int) -> None:
    """Sending what is said to be missing, round by round, releases all that is held."""
    parcels = _history(seed, size)
    by_dot = {parcel.dot: parcel for parcel in parcels}
    rng = random.Random(seed)
    held: HoldBack[str] = HoldBack()
    for parcel in parcels:
        if rng.random() < 0.6:
            _deliver(held, parcel)
    rounds = 0
    while held.missing():
        rounds += 1
        assert rounds <= size
        for span in held.missing():
            for counter in range(span.first, span.last + 1):
                dot = Dot(span.writer, counter)
                assert dot not in held.known
                _deliver(held, by_dot[dot])
    assert len(held) == 0


def test_verdicts() -> None:
    """New and next is ready, too early is held, known or held already is a duplicate."""
    held: HoldBack[str] = HoldBack(VersionVector({A: 1}))
    assert held.offer(_parcel(A, 1)) is Verdict.DUPLICATE
    assert held.offer(_parcel(A, 3)) is Verdict.HELD
    assert held.offer(_parcel(A, 3)) is Verdict.DUPLICATE
    assert held.offer(_parcel(A, 2, (B, 1))) is Verdict.HELD
    assert held.missing() == [Span(B, 1, 1)]
    assert held.offer(_parcel(B, 1)) is Verdict.READY
    assert [parcel.content for parcel in held.settle(Dot(B, 1))] == ["a2"]
    assert [parcel.content for parcel in held.settle(Dot(A, 2))] == ["a3"]
    assert held.counter(A) == 2
    with pytest.raises(ValueError, match="not the next"):
        held.settle(Dot(A, 5))


def test_waiting_for_two_writers() -> None:
    """An update that lacks two others waits for each in turn."""
    held: HoldBack[str] = HoldBack()
    assert _deliver(held, _parcel(C, 1, (A, 1), (B, 1))) == []
    assert _deliver(held, _parcel(A, 1)) == ["a1"]
    assert _deliver(held, _parcel(B, 1)) == ["b1", "c1"]


def test_one_writer_cannot_take_all_the_room() -> None:
    """Each writer has its own bound, in number and bytes; what is ready needs no room."""
    limits = HoldBackLimits(writer_count_max=2, writer_bytes_max=30, count_max=5, size_bytes_max=100)
    held: HoldBack[str] = HoldBack(limits=limits)
    assert [held.offer(_parcel(A, counter)) for counter in (2, 3, 4)] == [Verdict.HELD, Verdict.HELD, Verdict.OVERFLOW]
    assert [held.offer(_parcel(B, counter, size_bytes=20)) for counter in (2, 3)] == [Verdict.HELD, Verdict.OVERFLOW]
    assert held.offer(_parcel(C, 2, size_bytes=70)) is Verdict.OVERFLOW
    assert (held.dropped, len(held), held.size_bytes) == (3, 3, 40)
    assert _deliver(held, _parcel(A, 1)) == ["a1", "a2", "a3"]


def test_all_together_are_bounded() -> None:
    """However many writers there are, the whole has a bound."""
    limits = HoldBackLimits(count_max=3)
    held: HoldBack[str] = HoldBack(limits=limits)
    writers = [Writer(NodeId(f"n{number}"), 1) for number in range(5)]
    verdicts = [held.offer(_parcel(writer, 2)) for writer in writers]
    assert verdicts == [Verdict.HELD] * 3 + [Verdict.OVERFLOW] * 2


def test_a_writer_can_be_forgotten() -> None:
    """What was held of a writer whose updates turned out bad is dropped, and others that wait for it go on waiting."""
    held: HoldBack[str] = HoldBack()
    held.offer(_parcel(A, 2))
    held.offer(_parcel(A, 3))
    held.offer(_parcel(B, 1, (A, 3)))
    assert held.forget(A) == 2
    assert held.forget(A) == 0
    assert (len(held), held.size_bytes) == (1, 10)
    assert held.missing() == [Span(A, 1, 3)]
