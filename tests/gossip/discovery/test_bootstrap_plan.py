from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from gossip.discovery.bootstrap_plan import (
    RESULTS_MAX,
    SEEDS_MAX,
    BootstrapConfig,
    BootstrapPlan,
    Dialled,
    DialSeed,
    Effect,
    Outcome,
    OwnAddresses,
    Resolve,
    Resolved,
    SeedChanged,
    SeedState,
)
from gossip.events import SetTimer, Started, TimerFired
from transport.types import Address

_A, _B = Address("10.0.0.1", 7946), Address("10.0.0.2", 7946)
_NAME = Address("seed.example", 7946)


def _plan(*seeds: Address) -> BootstrapPlan:
    return BootstrapPlan(seeds, BootstrapConfig(), rng=random.Random(1))


def _timer(effects: Sequence[Effect]) -> SetTimer:
    (timer,) = [effect for effect in effects if isinstance(effect, SetTimer)]
    return timer


def test_all_seeds_begin_at_once() -> None:
    """Literal addresses are dialled and names looked up together, without waiting for each other."""
    plan = _plan(_A, _NAME, _B, _A)
    assert plan.handle(Started(), 0.0) == [DialSeed(_A, _A), Resolve(_NAME), DialSeed(_B, _B)]
    assert plan.states == {_A: None, _NAME: None, _B: None}


def test_every_result_of_a_name_is_dialled() -> None:
    """A name may stand for several nodes; the round ends when the last of them has answered or not."""
    plan = _plan(_NAME)
    plan.handle(Started(), 0.0)
    assert plan.handle(Resolved(_NAME, (_A, _B, _A)), 0.0) == [DialSeed(_NAME, _A), DialSeed(_NAME, _B)]
    assert plan.handle(Dialled(_NAME, _A, Outcome.LINKED), 1.0) == []
    effects = plan.handle(Dialled(_NAME, _B, Outcome.FAILED), 5.0)
    assert effects[0] == SeedChanged(_NAME, SeedState.LINKED)
    assert 22.5 <= _timer(effects).delay_s <= 37.5


def test_a_dead_seed_is_retried_for_ever_with_growing_bounded_pauses() -> None:
    """Nobody has to restart a node because its seed was away for a week."""
    plan = _plan(_A)
    effects = plan.handle(Started(), 0.0)
    delays = []
    for _round in range(50):
        assert DialSeed(_A, _A) in effects
        effects = plan.handle(Dialled(_A, _A, Outcome.FAILED), 0.0)
        delays.append(_timer(effects).delay_s)
        effects = plan.handle(TimerFired(_timer(effects).token), 0.0)
    assert all(0.5 <= delay_s <= 30.0 for delay_s in delays)
    assert delays[0] <= 1.5
    assert sum(delays[-20:]) > 100.0


def test_a_seed_that_answered_is_still_watched() -> None:
    """The watch is what heals two islands; after a loss the pauses begin small again."""
    plan = _plan(_A)
    plan.handle(Started(), 0.0)
    effects = plan.handle(Dialled(_A, _A, Outcome.LINKED), 0.0)
    assert plan.handle(TimerFired(_timer(effects).token), 30.0) == [DialSeed(_A, _A)]
    effects = plan.handle(Dialled(_A, _A, Outcome.LINKED), 30.0)
    assert effects == [_timer(effects)], "no news, no report"
    plan.handle(TimerFired(_timer(effects).token), 60.0)
    effects = plan.handle(Dialled(_A, _A, Outcome.FAILED), 60.0)
    assert effects == [SeedChanged(_A, SeedState.SEEKING), _timer(effects)]
    assert _timer(effects).delay_s <= 1.5


def test_a_name_is_resolved_again_in_each_round() -> None:
    """The address behind a name moves when its container is replaced."""
    plan = _plan(_NAME)
    plan.handle(Started(), 0.0)
    effects = plan.handle(Resolved(_NAME, ()), 0.0)
    assert effects[0] == SeedChanged(_NAME, SeedState.SEEKING)
    assert plan.handle(TimerFired(_timer(effects).token), 1.0) == [Resolve(_NAME)]
    assert plan.handle(Resolved(_NAME, (_B,)), 1.0) == [DialSeed(_NAME, _B)]


def test_the_own_address_is_remembered_and_skipped() -> None:
    """One list can serve all nodes: each finds out which entry it is itself, once."""
    plan = _plan(_A)
    plan.handle(Started(), 0.0)
    effects = plan.handle(Dialled(_A, _A, Outcome.OWN), 0.0)
    assert effects[0] == SeedChanged(_A, SeedState.OWN)
    assert plan.own_addresses == (_A,)
    effects = plan.handle(TimerFired(_timer(effects).token), 30.0)
    assert effects == [_timer(effects)], "looked at, not dialled"


@pytest.mark.parametrize("seed", [_A, _NAME])
def test_an_announced_address_is_never_dialled(seed: Address) -> None:
    """What the node says is its own needs no dial to find out, be it a literal or a name."""
    plan = _plan(seed)
    plan.handle(OwnAddresses((seed,)), 0.0)
    effects = plan.handle(Started(), 0.0)
    assert effects[0] == SeedChanged(seed, SeedState.OWN)


def test_a_seed_is_tried_again_when_the_node_moved_away_from_its_address() -> None:
    """After an address change the old address may be somebody else's."""
    plan = _plan(_A)
    plan.handle(Started(), 0.0)
    effects = plan.handle(Dialled(_A, _A, Outcome.OWN), 0.0)
    assert plan.handle(OwnAddresses((_B,)), 1.0) == []
    assert plan.handle(TimerFired(_timer(effects).token), 30.0) == [DialSeed(_A, _A)]


def test_a_name_that_is_partly_us_is_still_sought() -> None:
    """A name that lists us and a dead node has not led to anybody yet."""
    plan = _plan(_NAME)
    plan.handle(OwnAddresses((_A,)), 0.0)
    plan.handle(Started(), 0.0)
    assert plan.handle(Resolved(_NAME, (_A, _B)), 0.0) == [DialSeed(_NAME, _B)]
    effects = plan.handle(Dialled(_NAME, _B, Outcome.FAILED), 0.0)
    assert effects[0] == SeedChanged(_NAME, SeedState.SEEKING)


def test_stale_and_unknown_events_change_nothing() -> None:
    """Late answers, old timers and strangers' seeds are ignored."""
    plan = _plan(_A, _NAME)
    plan.handle(Started(), 0.0)
    assert plan.handle(TimerFired(99), 0.0) == []
    assert plan.handle(TimerFired(0), 0.0) == []
    assert plan.handle(Dialled(_B, _B, Outcome.LINKED), 0.0) == []
    assert plan.handle(Dialled(_A, _B, Outcome.LINKED), 0.0) == []
    assert plan.handle(Resolved(_A, (_B,)), 0.0) == []
    effects = plan.handle(Dialled(_A, _A, Outcome.FAILED), 0.0)
    assert plan.handle(Dialled(_A, _A, Outcome.LINKED), 0.0) == []
    assert plan.handle(Started(), 0.0) == [DialSeed(_A, _A)], "the name still resolves, the other begins"
    assert plan.handle(TimerFired(_timer(effects).token), 0.0) == [], "its timer was superseded"


def test_long_lists_and_names_are_bounded() -> None:
    """However long the list and however many records a name has, memory and dials are limited."""
    plan = _plan(*(Address(f"10.0.{number >> 8}.{number & 255}", 1) for number in range(1000)))
    assert len(plan.states) == SEEDS_MAX
    plan = _plan(_NAME)
    plan.handle(Started(), 0.0)
    results = tuple(Address(f"10.0.{number >> 8}.{number & 255}", 1) for number in range(1000))
    assert len(plan.handle(Resolved(_NAME, results), 0.0)) == RESULTS_MAX
    plan = _plan(*results[:SEEDS_MAX], _NAME)
    plan.handle(OwnAddresses(results), 0.0)
    assert len(plan.own_addresses) == 256
    plan.handle(Started(), 0.0)
    plan.handle(Resolved(_NAME, (_B,)), 0.0)
    plan.handle(Dialled(_NAME, _B, Outcome.OWN), 0.0)
    assert len(plan.own_addresses) == 256
