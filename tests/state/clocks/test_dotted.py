"""Dotted registers keep exactly the concurrent values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from state.clocks.dotted import DottedRegister
from state.clocks.vectors import Dot, VersionVector, Writer
from transport.types import NodeId

REPLICAS = [Writer(NodeId(node), 1) for node in ("a", "b", "c")]
A, B, C = REPLICAS

Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(st.sampled_from(["write", "tell", "tell"]), st.integers(0, 2), st.integers(0, 2)), max_size=25
)


def _run(history: list[Step]) -> tuple[list[DottedRegister[int]], list[frozenset[Dot]], dict[Dot, frozenset[Dot]]]:
    """Registers of three replicas after the history, the dots each knows, and what each dot's writer knew before."""
    registers: list[DottedRegister[int]] = [DottedRegister() for _ in REPLICAS]
    known: list[frozenset[Dot]] = [frozenset() for _ in REPLICAS]
    past: dict[Dot, frozenset[Dot]] = {}
    for number, (what, here, there) in enumerate(history):
        if what == "write":
            dot = registers[here].context.next(REPLICAS[here])
            registers[here] = registers[here].write(REPLICAS[here], number)
            past[dot] = known[here]
            known[here] |= {dot}
        else:
            registers[there] = registers[there].join(registers[here])
            known[there] |= known[here]
    return registers, known, past


@given(steps)
def test_siblings_are_exactly_the_concurrent_maximal_writes(history: list[Step]) -> None:
    """A value is held if and only if no known write was made by somebody who had seen it."""
    registers, known, past = _run(history)
    for register, dots in zip(registers, known, strict=True):
        maximal = {dot for dot in dots if not any(dot in past[other] for other in dots)}
        assert set(register.siblings) == maximal


@given(steps)
def test_join_is_a_join(history: list[Step]) -> None:
    """Joining commutes, associates and repeats without effect, whatever the replicas did."""
    (x, y, z), _, _ = _run(history)
    assert x.join(y) == y.join(x)
    assert x.join(y).join(z) == x.join(y.join(z))
    assert x.join(x) == x
    assert hash(x.join(y)) == hash(y.join(x))


def test_a_write_replaces_what_its_reader_saw() -> None:
    """A write that answers an older read leaves the values that came since as its siblings."""
    start = DottedRegister[str]().write(A, "first")
    late = start.write(B, "second").write(C, "third", seen=start.context)
    assert list(late.siblings.values()) == ["second", "third"]
    assert late.write(A, "settled").siblings == {Dot(A, 2): "settled"}


def test_fifty_concurrent_writes_are_fifty_siblings() -> None:
    """Fifty nodes that write without having heard of each other conflict, all fifty, in the same order everywhere."""
    writers = [Writer(NodeId(f"n{number}"), 1) for number in range(50)]
    singles = [DottedRegister[int]().write(writer, number) for number, writer in enumerate(writers)]
    forward: DottedRegister[int] = DottedRegister()
    for single in singles:
        forward = forward.join(single)
    backward: DottedRegister[int] = DottedRegister()
    for single in reversed(singles):
        backward = backward.join(single)
    assert forward == backward
    assert list(forward.siblings) == list(backward.siblings)
    assert sorted(forward.siblings.values()) == list(range(50))


def test_a_register_is_a_value() -> None:
    """Its context covers its values, it prints both, and it equals nothing else."""
    register = DottedRegister({Dot(A, 3): "x"})
    assert register.context == VersionVector({A: 3})
    assert repr(register) == f"DottedRegister({register.siblings!r}, VersionVector(a/1: 3))"
    assert register != "x"
