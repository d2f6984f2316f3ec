"""The checker tells linearizable histories from others: known ones, and against trying every order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.linearizable import (
    UNKNOWN,
    Acquire,
    Append,
    AppendList,
    Lock,
    Operation,
    Read,
    Register,
    Release,
    Swap,
    TooHard,
    Write,
    check,
)

Done = tuple[str, object, object, float, float]


def history(*done: Done, key: str = "x") -> list[Operation]:
    """Operations of one key from (client, asked, answered, begun, ended)."""
    return [Operation(client, key, asked, answered, begun, ended) for client, asked, answered, begun, ended in done]


GOOD: dict[str, tuple[Done, ...]] = {
    "nothing": (),
    "a read of nothing": (("a", Read(), None, 0, 1),),
    "one after the other": (("a", Write(1), True, 0, 1), ("b", Read(), 1, 2, 3)),
    "a read during a write sees the old or the new": (
        ("a", Write(1), True, 0, 9),
        ("b", Read(), None, 1, 2),
        ("c", Read(), 1, 3, 4),
    ),
    "a write without an answer happens late": (
        ("a", Write(1), UNKNOWN, 0, 1),
        ("b", Read(), None, 2, 3),
        ("b", Read(), 1, 4, 5),
    ),
    "a write without an answer never happens": (("a", Write(1), UNKNOWN, 0, 1), ("b", Read(), None, 2, 3)),
    "a swap without an answer explains a value": (
        ("a", Write(1), True, 0, 1),
        ("b", Swap(1, 2), UNKNOWN, 2, 3),
        ("c", Swap(2, 3), True, 4, 5),
        ("c", Read(), 3, 6, 7),
    ),
    "of two swaps at once one is done": (
        ("a", Swap(None, 1), True, 0, 5),
        ("b", Swap(None, 2), False, 0, 5),
        ("c", Read(), 1, 6, 7),
    ),
    "what begins as another ends may come before it": (("a", Write(1), True, 0, 5), ("b", Read(), None, 5, 6)),
}

BAD: dict[str, tuple[Done, ...]] = {
    "a read of what nobody wrote": (("a", Read(), 7, 0, 1),),
    "a stale read": (("a", Write(1), True, 0, 1), ("a", Write(2), True, 2, 3), ("b", Read(), 1, 4, 5)),
    "new, then old": (("a", Write(1), True, 0, 9), ("b", Read(), 1, 1, 2), ("c", Read(), None, 3, 4)),
    "a lost write": (("a", Write(1), True, 0, 1), ("b", Read(), None, 2, 3)),
    "two swaps of one value": (
        ("a", Write(0), True, 0, 1),
        ("a", Swap(0, 1), True, 2, 9),
        ("b", Swap(0, 2), True, 2, 9),
    ),
    "a swap that should have been done": (("a", Swap(None, 1), False, 0, 1),),
    "a write before it was asked for": (("b", Read(), 1, 0, 1), ("a", Write(1), UNKNOWN, 2, 3)),
    "a write without an answer that happens twice": (
        ("a", Write(1), UNKNOWN, 0, 1),
        ("b", Read(), 1, 2, 3),
        ("c", Write(2), True, 4, 5),
        ("b", Read(), 1, 6, 7),
    ),
    "split brain: both sides acknowledge": (
        ("a", Swap(None, 1), True, 0, 5),
        ("b", Swap(None, 2), True, 1, 6),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    """Registers under concurrency and without answers."""
    assert check(history(*GOOD[name]), Register()) is None


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_found(name: str) -> None:
    """Stale, lost, invented and doubled writes."""
    violation = check(history(*BAD[name]), Register())
    assert violation is not None
    assert violation.stuck_at in history(*BAD[name])
    assert "not linearizable" in str(violation)


def test_keys_are_searched_alone() -> None:
    """What is bad about one is told of that one."""
    good = history(*GOOD["one after the other"], key="good")
    bad = history(*BAD["a lost write"], key="bad")
    violation = check(good + bad, Register())
    assert violation is not None
    assert violation.key == "bad"
    assert violation.explained == (bad[0],)


def test_lists_are_appended_in_one_order() -> None:
    """Two readers must see one order, and nothing that was acknowledged may be missing."""
    appends = (("a", Append(1), True, 0, 5), ("b", Append(2), True, 0, 5))
    assert check(history(*appends, ("c", Read(), (2, 1), 6, 7)), AppendList()) is None
    assert check(history(*appends, ("c", Read(), (2,), 6, 7)), AppendList()) is not None
    split = (("c", Read(), (1,), 1, 2), ("d", Read(), (2,), 1, 2))
    assert check(history(*appends, *split), AppendList()) is not None


def test_a_lock_has_one_holder_and_rising_tokens() -> None:
    """Who is told that it has the lock has it alone; an old token gives nothing back."""
    got, back = ("a", Acquire("a"), 5, 0, 1), ("a", Release("a", 5), True, 4, 5)
    assert check(history(got, ("b", Acquire("b"), None, 2, 3), back, ("b", Acquire("b"), 6, 6, 7)), Lock()) is None
    assert check(history(got, ("b", Acquire("b"), 6, 2, 3)), Lock()) is not None
    assert check(history(got, back, ("b", Acquire("b"), 5, 6, 7)), Lock()) is not None
    assert check(history(got, ("a", Release("a", 4), False, 2, 3), back), Lock()) is None
    assert check(history(got, ("a", Release("a", 4), True, 2, 3)), Lock()) is not None
    assert check(history(("a", Acquire("a"), UNKNOWN, 0, 1), ("b", Acquire("b"), None, 2, 3)), Lock()) is None


def test_an_end_before_the_beginning_is_a_mistake() -> None:
    """Of whoever recorded the history."""
    with pytest.raises(ValueError, match="before it begins"):
        check(history(("a", Read(), None, 2, 1)), Register())


def test_a_search_can_be_given_up() -> None:
    """Rather than never ending; that is no verdict."""
    with pytest.raises(TooHard):
        check(history(*GOOD["one after the other"]), Register(), steps_max=1)


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """Up to five operations on two values, with any answers."""
    done = []
    for number in range(draw(st.integers(0, 5))):
        asked = draw(st.sampled_from((Read(), Write(1), Write(2), Swap(1, 2), Swap(None, 1))))
        answers: tuple[object, ...] = (None, 1, 2) if isinstance(asked, Read) else (True, False)
        answered = draw(st.sampled_from((*answers, UNKNOWN) if not isinstance(asked, Write) else (True, UNKNOWN)))
        begun = draw(st.integers(0, 8))
        done.append((str(number), asked, answered, begun, begun + draw(st.integers(0, 4))))
    return history(*done)


@settings(max_examples=400)
@given(small_histories())
def test_the_verdict_is_that_of_trying_every_order(operations: list[Operation]) -> None:
    """The clever search and the obvious one agree."""
    assert (check(operations, Register()) is None) == _some_order_explains(operations)


def _some_order_explains(operations: list[Operation]) -> bool:
    open_ended = [operation for operation in operations if operation.answered is UNKNOWN]
    answered = [operation for operation in operations if operation.answered is not UNKNOWN]
    return any(
        _explains(order)
        for count in range(len(open_ended) + 1)
        for chosen in itertools.combinations(open_ended, count)
        for order in itertools.permutations([*answered, *chosen])
    )


def _explains(order: tuple[Operation, ...]) -> bool:
    state: object = None
    for at, operation in enumerate(order):
        if any(later.answered is not UNKNOWN and later.ended_s < operation.begun_s for later in order[at + 1 :]):
            return False
        match operation.asked:
            case Read():
                fits = operation.answered in (UNKNOWN, state)
            case Write(value=value):
                fits, state = True, value
            case Swap(expected=expected, value=value):
                done = state == expected
                fits, state = operation.answered in (UNKNOWN, done), value if done else state
            case _:
                raise AssertionError(operation)
        if not fits:
            return False
    return True


@pytest.mark.parametrize("seed", range(5))
def test_long_histories_of_a_real_register_pass_and_a_stale_read_among_them_is_found(seed: int) -> None:
    """A thousand operations of five clients, drawn from a register that was really there."""
    rng = random.Random(seed)
    state: Hashable = None
    operations: list[Operation] = []
    free_at = dict.fromkeys("abcde", 0.0)
    now = 0.0
    for number in range(1_000):
        now += 1.0  # the instant at which it happens
        client = min(free_at, key=lambda name: free_at[name])
        asked = rng.choice((Read(), Write(number), Swap(state, number), Swap(-1, number)))
        answered: object = state if isinstance(asked, Read) else True
        if isinstance(asked, Swap):
            answered = asked.expected == state
        if isinstance(asked, Write) or (isinstance(asked, Swap) and answered):
            state = asked.value
        begun, ended = max(free_at[client], now - rng.random() * 4), now + rng.random() * 4
        free_at[client] = ended
        now = max(now, begun)
        answered = UNKNOWN if rng.random() < 0.005 else answered
        operations.append(Operation(client, "x", asked, answered, begun, ended))
    assert check(operations, Register()) is None

    late = Operation("f", "x", Read(), 1_000_000, now + 50, now + 51)
    assert check([*operations, late], Register()) is not None
