"""Everything that reads bytes from a peer survives what the fuzzer knows, and a moment of what it does not."""

from __future__ import annotations

import random
import time

import fuzzing
import pytest
from fuzzing import TARGETS, Finding, check_memory, known_inputs, mutate, outcome, run

from transport.errors import RemoteProtocolError


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_is_handled(name: str) -> None:
    """Each seed and each former finding is read or refused, within its bounds of time and memory."""
    for data in known_inputs(name):
        check_memory(TARGETS[name].read, data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_seeds_are_valid(name: str) -> None:
    """Mutation starts from inputs that are accepted, so that it reaches what lies behind the first check."""
    refused = [seed for seed in TARGETS[name].seeds if outcome(TARGETS[name].read, seed).startswith("refused")]

    assert refused == []


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_moment_of_mutation_finds_nothing(name: str) -> None:
    """A few thousand mutated inputs, the same in each run as far as the machine's speed allows."""
    report = run(name, 0.3, seed=1, keep=False)

    assert report.findings == []
    assert report.inputs > 0


def test_an_unexpected_error_is_a_finding() -> None:
    """The fuzzer tells a crash from a refusal."""

    def crash(data: bytes) -> object:
        raise IndexError("planted")

    def refuse(data: bytes) -> object:
        raise RemoteProtocolError("planted 17")

    with pytest.raises(Finding, match="IndexError: planted"):
        outcome(crash, b"")
    assert outcome(refuse, b"") == "refused # planted #"


def test_only_what_stays_slow_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow reading may be a collection of the fuzzer's own garbage; slow each time is the decoder."""
    monkeypatch.setattr(fuzzing, "SECONDS_MAX", 0.01)
    slow_readings = 1

    def read(data: bytes) -> object:
        nonlocal slow_readings
        slow_readings -= 1
        ends = time.thread_time() + (0.02 if slow_readings >= 0 else 0.0)
        while time.thread_time() < ends:
            pass
        return "done"

    assert outcome(read, b"") == "read #"

    slow_readings = 1_000
    with pytest.raises(Finding, match="took"):
        outcome(read, b"")


def test_an_amplifying_decoder_is_a_finding() -> None:
    """The fuzzer notices memory out of proportion to the input."""
    with pytest.raises(Finding, match="allocated"):
        check_memory(lambda data: bytearray(24 << 20), b"x")


def test_mutation_is_repeatable() -> None:
    """The same seed makes the same inputs."""
    first = [mutate(b"some input", b"other", random.Random(seed)) for seed in range(50)]
    second = [mutate(b"some input", b"other", random.Random(seed)) for seed in range(50)]

    assert first == second
    assert len(set(first)) > 40
