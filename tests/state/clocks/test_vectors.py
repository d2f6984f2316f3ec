"""Version vectors are a lattice, and their order is happens-before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.clocks.vectors import COUNTER_MAX, Dot, Order, Span, VersionVector, Writer
from transport.types import NodeId

WRITERS = [Writer(NodeId(node), life) for node in ("a", "b", "c") for life in (1, 2)]
A, B = WRITERS[0], WRITERS[2]

vectors = st.dictionaries(st.sampled_from(WRITERS), st.integers(0, 4)).map(VersionVector)


@given(vectors, vectors, vectors)
def test_merge_is_a_join(x: VersionVector, y: VersionVector, z: VersionVector) -> None:
    """Merging commutes, associates, repeats without effect, and covers both sides with nothing more."""
    assert x.merge(y) == y.merge(x)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    assert x.merge(x) == x
    assert x.merge(y).covers(x)
    assert x.merge(y).covers(y)
    assert x.merge(y) == VersionVector({writer: max(x[writer], y[writer]) for writer in WRITERS})


@given(vectors, vectors)
def test_the_order_is_partial_and_antisymmetric(x: VersionVector, y: VersionVector) -> None:
    """Each comparison mirrors its inverse, and equal means the same vector."""
    mirror = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    order = x.compare(y)
    assert y.compare(x) is mirror.get(order, order)
    assert (order is Order.EQUAL) == (x == y)
    assert (order is Order.CONCURRENT) == bool(x.beyond(y) and y.beyond(x))
    if x == y:
        assert hash(x) == hash(y)


@given(vectors, vectors, vectors)
def test_the_order_is_transitive(x: VersionVector, y: VersionVector, z: VersionVector) -> None:
    """Whoever covers one who covers a third covers the third."""
    top = x.merge(y).merge(z)
    assert top.covers(x.merge(y))
    if x.covers(y) and y.covers(z):
        assert x.covers(z)


@given(vectors, st.sampled_from(WRITERS))
def test_a_write_moves_a_vector_forward(x: VersionVector, writer: Writer) -> None:
    """The next dot of a writer is new, and knowing it comes strictly after not knowing it."""
    dot = x.next(writer)
    after = x.with_dot(dot)
    assert dot not in x
    assert dot in after
    assert x.compare(after) is Order.BEFORE
    assert after.with_dot(dot) is after


@given(vectors, vectors)
def test_beyond_is_exactly_what_is_missing(x: VersionVector, y: VersionVector) -> None:
    """Sending the spans that the other lacks makes it cover us, and each dot of them was missing."""
    for span in x.beyond(y):
        assert Dot(span.writer, span.first) not in y
        y = y.with_dot(Dot(span.writer, span.last))
    assert y.covers(x)


@given(
    st.lists(st.tuples(st.sampled_from(["write", "tell"]), st.integers(0, 2), st.integers(0, 2)), max_size=30),
)
def test_the_order_of_vectors_is_happens_before(steps: list[tuple[str, int, int]]) -> None:
    """In a run of writes and messages, vectors compare as the sets of events that each replica knows."""
    writers = [A, B, WRITERS[4]]
    clocks = [VersionVector()] * 3
    known: list[frozenset[Dot]] = [frozenset()] * 3
    for what, here, there in steps:
        if what == "write":
            dot = clocks[here].next(writers[here])
            clocks[here], known[here] = clocks[here].with_dot(dot), known[here] | {dot}
        else:
            clocks[there], known[there] = clocks[there].merge(clocks[here]), known[there] | known[here]
    for here in range(3):
        for there in range(3):
            assert clocks[here].covers(clocks[there]) == (known[here] >= known[there])


def test_a_vector_is_a_value() -> None:
    """It prints its entries in order, has no zeros, copies what it is given, and equals nothing else."""
    counters = {B: 2, A: 1, WRITERS[5]: 0}
    vector = VersionVector(counters)
    counters[A] = 9
    assert len(vector) == 2
    assert list(vector) == [(A, 1), (B, 2)]
    assert repr(vector) == "VersionVector(a/1: 1, b/1: 2)"
    assert vector != {A: 1, B: 2}
    assert vector.beyond(VersionVector({A: 1})) == [Span(B, 1, 2)]
    assert vector.without({A: 1}) == VersionVector({B: 2})
    assert Dot(A, 0) not in vector


def test_a_refutation_is_the_same_writer() -> None:
    """Writers are told apart by life: a refutation raises the incarnation and not the life."""
    assert Writer.of(NodeId("a"), 7 << 16 | 3) == Writer.of(NodeId("a"), 7 << 16) == Writer(NodeId("a"), 7)


@pytest.mark.parametrize("counter", [-1, COUNTER_MAX + 1])
def test_counters_are_bounded(counter: int) -> None:
    """A counter that is no positive exact number is an argument error."""
    with pytest.raises(ValueError, match="outside 0"):
        VersionVector({A: counter})


def test_a_writer_can_run_out_of_numbers() -> None:
    """The last number is usable, the one after it is an error."""
    full = VersionVector({A: COUNTER_MAX})
    with pytest.raises(ValueError, match="used all"):
        full.with_dot(full.next(A))
