"""When which address of the bootstrap list is resolved and dialled: the schedule, without the dialling.

The list holds *seeds*: addresses at which somebody of the network may be found.  Each seed lives by itself::

        ┌────────────── timer ─────────────┐
        v                                  │
    (resolve, if it is a name)             │
        │                                  │
    dial all results at once, each with a short timeout
        ├── one answered   -> LINKED:  look again at a slow constant rate
        ├── all are ours   -> OWN:     look again at the same slow rate (addresses move)
        └── otherwise      -> SEEKING: decorrelated exponential backoff, for ever

- Names are resolved anew in each round: the address behind one changes when its container is replaced.
- A seed is never given up, and one that answered once is still watched: after a partition that outlived every
  tombstone, the bootstrap list is what brings two islands together again.  The watch costs a dial only when the seed's
  node is not linked; otherwise the caller answers from what it knows.
- An address that turns out to be this node's own is remembered and skipped until this node's addresses change.

All seeds begin at once, without jitter: a person waits for the first link.  Every later round is jittered.
"""

# core: no I/O

from __future__ import annotations

import enum
import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gossip.events import SetTimer, Started, TimerFired
from transport.backoff import Backoff
from transport.types import Address

#: More seeds than this help nobody; the rest of the list is ignored (and the shell says so).
SEEDS_MAX: Final = 256

#: Of one name; a round-robin name of a large cluster need not be tried in full.
RESULTS_MAX: Final = 32

#: Addresses known to be this node's own; more than any host has, few enough not to matter.
_OWN_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """How eagerly seeds are tried.  The defaults suit a LAN."""

    dial_timeout_s: float = 5.0
    """For one dial, TLS included: longer than a handshake with a busy machine, shorter than a person's patience."""
    resolve_timeout_s: float = 5.0
    retry_initial_s: float = 0.5
    retry_max_s: float = 30.0
    """Upper bound of the backoff: how long a repaired seed may stay unnoticed."""
    watch_interval_s: float = 30.0
    """How often a seed that answered is looked at again."""


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolved:
    """The name of a seed stands for these addresses now; empty if it does not resolve."""

    seed: Address
    results: tuple[Address, ...]


class Outcome(enum.Enum):
    """What became of a dial."""

    LINKED = "linked"
    """Somebody of the network answered and there is a link."""
    OWN = "own"
    """We answered ourselves."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Dialled:
    """A dial that the plan asked for ended."""

    seed: Address
    address: Address
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """This node is reachable at exactly these; what was learned about own addresses before is void."""

    addresses: tuple[Address, ...]


Event = Started | Resolved | Dialled | OwnAddresses | TimerFired

# --- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look the name of the seed up and answer with :class:`Resolved`."""

    seed: Address


@dataclass(frozen=True, slots=True)
class DialSeed:
    """Dial and answer with :class:`Dialled`.  If the node there is known to be linked, answer so without dialling."""

    seed: Address
    address: Address


@dataclass(frozen=True, slots=True)
class SeedChanged:
    """Tell people: what is known of a seed changed."""

    seed: Address
    state: SeedState


Effect = Resolve | DialSeed | SetTimer | SeedChanged

# --- the plan -------------------------------------------------------------------------------------------------


class SeedState(enum.Enum):
    """What the last complete round of a seed said."""

    SEEKING = "seeking"
    LINKED = "linked"
    OWN = "own"


@dataclass(slots=True)
class _Seed:
    address: Address
    is_name: bool
    backoff: Backoff
    state: SeedState | None = None
    token: int = 0
    resolving: bool = False
    pending: list[Address] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


class BootstrapPlan:
    """The schedule of all seeds.  Feed it events, execute its effects in order."""

    def __init__(self, seeds: Sequence[Address], config: BootstrapConfig, *, rng: random.Random) -> None:
        """Plan for ``seeds``; repetitions and what exceeds :data:`SEEDS_MAX` are ignored."""
        self._config = config
        self._rng = rng
        self._own: dict[Address, None] = {}
        self._next_token = 1
        self._seeds = {
            seed: _Seed(seed, not _is_literal(seed), _backoff(config, rng))
            for seed in list(dict.fromkeys(seeds))[:SEEDS_MAX]
        }

    @property
    def states(self) -> dict[Address, SeedState | None]:
        """What the last complete round of each seed said; ``None`` before the first."""
        return {seed.address: seed.state for seed in self._seeds.values()}

    @property
    def own_addresses(self) -> tuple[Address, ...]:
        """The addresses known to be this node's own."""
        return tuple(self._own)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in ``event`` and say what to do.  ``now`` is not needed: all delays are relative."""
        del now
        if isinstance(event, Started):
            return [effect for seed in self._seeds.values() for effect in self._begin(seed)]
        if isinstance(event, OwnAddresses):
            self._own = dict.fromkeys(event.addresses[:_OWN_MAX])
            return []
        if isinstance(event, TimerFired):
            due = next((seed for seed in self._seeds.values() if seed.token == event.token), None)
            return self._begin(due) if due is not None else []
        seed = self._seeds.get(event.seed)
        if seed is None:
            return []
        return self._resolved(seed, event) if isinstance(event, Resolved) else self._dialled(seed, event)

    def _begin(self, seed: _Seed) -> list[Effect]:
        if seed.resolving or seed.pending:
            return []  # the previous round still runs; it sets the next timer itself
        seed.token = 0
        if seed.is_name and seed.address not in self._own:
            seed.resolving = True
            return [Resolve(seed.address)]
        return self._dial(seed, (seed.address,))

    def _resolved(self, seed: _Seed, event: Resolved) -> list[Effect]:
        if not seed.resolving:
            return []
        seed.resolving = False
        return self._dial(seed, event.results[:RESULTS_MAX])

    def _dial(self, seed: _Seed, results: Sequence[Address]) -> list[Effect]:
        distinct = list(dict.fromkeys(results))
        seed.pending = [address for address in distinct if address not in self._own]
        seed.outcomes = [Outcome.OWN for address in distinct if address in self._own]
        if not seed.pending:
            return self._finish(seed)
        return [DialSeed(seed.address, address) for address in seed.pending]

    def _dialled(self, seed: _Seed, event: Dialled) -> list[Effect]:
        if event.address not in seed.pending:
            return []
        seed.pending.remove(event.address)
        seed.outcomes.append(event.outcome)
        if event.outcome is Outcome.OWN and len(self._own) < _OWN_MAX:
            self._own[event.address] = None
        return [] if seed.pending else self._finish(seed)

    def _finish(self, seed: _Seed) -> list[Effect]:
        if Outcome.LINKED in seed.outcomes:
            state = SeedState.LINKED
        elif seed.outcomes and all(outcome is Outcome.OWN for outcome in seed.outcomes):
            state = SeedState.OWN
        else:
            state = SeedState.SEEKING
        if state is SeedState.SEEKING:
            delay_s = seed.backoff.next_s()
        else:
            seed.backoff.reset()
            # Jittered so that a thousand nodes that started together do not look at one seed together.
            delay_s = self._config.watch_interval_s * self._rng.uniform(0.75, 1.25)
        effects: list[Effect] = []
        if state is not seed.state:
            seed.state = state
            effects.append(SeedChanged(seed.address, state))
        seed.token, self._next_token = self._next_token, self._next_token + 1
        effects.append(SetTimer(seed.token, delay_s))
        return effects


def _is_literal(address: Address) -> bool:
    try:
        ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return False
    return True


def _backoff(config: BootstrapConfig, rng: random.Random) -> Backoff:
    return Backoff(rng, first_s=config.retry_initial_s, max_s=config.retry_max_s)
