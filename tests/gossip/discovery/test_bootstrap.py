from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable

import pytest
from support import eventually

from gossip.discovery.base import Announcement, Sighting
from gossip.discovery.bootstrap import BootstrapDiscovery
from gossip.discovery.bootstrap_plan import SEEDS_MAX, BootstrapConfig
from transport.errors import HandshakeFailed, PeerRefused, PeerUnreachable
from transport.link import CloseReason
from transport.types import Address, NetworkName, NodeId

_SEED, _OTHER, _SELF = (Address(f"10.0.0.{number}", 7946) for number in (1, 2, 3))
_FAST = BootstrapConfig(
    dial_timeout_s=0.2, resolve_timeout_s=0.2, retry_initial_s=0.01, retry_max_s=0.02, watch_interval_s=0.02
)
_ANNOUNCEMENT = Announcement(NetworkName("default"), NodeId("a"), 1 << 16, 7946, (_SELF,), "0" * 64)


class _Nobody:
    def found(self, sighting: Sighting) -> None:
        raise AssertionError("bootstrap reports nothing")

    def lost(self, node_id: NodeId, source: str) -> None:
        raise AssertionError("bootstrap reports nothing")


class _World:
    """Answers dials as the test says; an address without an answer never answers."""

    def __init__(self) -> None:
        self.answers: dict[Address, Callable[[], None]] = {}
        self.dials: Counter[Address] = Counter()

    async def dial(self, address: Address) -> None:
        self.dials[address] += 1
        answer = self.answers.get(address)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        else:
            answer()

    def fails(self, address: Address, error: Exception) -> None:
        def answer() -> None:
            raise error

        self.answers[address] = answer

    def accepts(self, address: Address) -> None:
        self.answers[address] = lambda: None


def _discovery(world: _World, *seeds: Address, linked: Callable[[Address], bool] | None = None) -> BootstrapDiscovery:
    return BootstrapDiscovery(seeds, world.dial, linked=linked, config=_FAST, rng=random.Random(1))


async def test_seeds_are_dialled_in_parallel_and_the_silent_one_does_not_hold_up_the_other() -> None:
    """The first link does not wait for a host that drops packets."""
    world = _World()
    world.accepts(_OTHER)
    discovery = _discovery(world, _SEED, _OTHER)
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    await eventually(lambda: discovery.statistics()["linked"] == 1)
    assert discovery.statistics()["seeking"] == 1
    await eventually(lambda: discovery.causes().get(_SEED) == f"{_SEED}: no answer within 0.2 s")
    await discovery.close()
    await discovery.close()
    assert discovery.statistics()["available"] == 0


async def test_a_dead_seed_is_found_when_it_comes_back() -> None:
    """Whatever the reason it failed for, the seed is tried again until it answers."""
    world = _World()
    errors = [
        PeerUnreachable("refused"),
        HandshakeFailed("garbage"),
        PeerRefused("full", code=CloseReason.OVERLOADED),
        OSError("no route"),
        KeyError("a bug in the dialler"),
    ]
    world.fails(_SEED, errors[0])
    discovery = _discovery(world, _SEED)
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    for error in errors:
        world.fails(_SEED, error)
        seen = world.dials[_SEED]
        await eventually(lambda seen=seen: world.dials[_SEED] >= seen + 2)  # type: ignore[misc]
    world.accepts(_SEED)
    await eventually(lambda: discovery.statistics()["linked"] == 1)
    assert discovery.causes() == {}
    await discovery.close()


async def test_dialling_oneself_is_noticed_and_not_repeated() -> None:
    """A node that meets itself at a seed remembers the address as its own."""
    world = _World()
    world.fails(_SEED, PeerRefused("that is you", code=CloseReason.SELF))
    discovery = _discovery(world, _SEED, _SELF)
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    await eventually(lambda: discovery.statistics()["own"] == 2)
    await asyncio.sleep(0.1)  # several watch intervals, in which nothing may happen
    assert world.dials == {_SEED: 1}
    await discovery.update(_ANNOUNCEMENT)  # addresses may have moved: find out again
    await eventually(lambda: world.dials[_SEED] == 2)
    await discovery.close()


async def test_a_duplicate_link_counts_as_success() -> None:
    """If both sides dial at once one dial is refused, and the other link is the success."""
    world = _World()
    world.fails(_SEED, PeerRefused("have one", code=CloseReason.DUPLICATE_LINK))
    discovery = _discovery(world, _SEED)
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    await eventually(lambda: discovery.statistics()["linked"] == 1)
    await discovery.close()


async def test_a_linked_seed_is_watched_without_dialling_and_dialled_when_the_link_is_gone() -> None:
    """The watch costs nothing while the link lives, and heals islands when it does not."""
    world = _World()
    world.accepts(_SEED)
    links: set[Address] = set()
    asked = Counter[Address]()

    def linked(address: Address) -> bool:
        asked[address] += 1
        return address in links

    discovery = _discovery(world, _SEED, linked=linked)
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    await eventually(lambda: world.dials[_SEED] == 1)
    links.add(_SEED)
    before = asked[_SEED]
    await eventually(lambda: asked[_SEED] > before + 2)
    assert world.dials[_SEED] <= 2
    links.clear()
    dials = world.dials[_SEED]
    await eventually(lambda: world.dials[_SEED] > dials)
    await discovery.close()


async def test_names_are_resolved_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve yet, or resolves elsewhere now, leads to the node in the end."""
    world = _World()
    world.accepts(_OTHER)
    answers: list[list[str] | Exception] = [
        socket.gaierror(-2, "Name or service not known"),
        UnicodeError("label too long"),
        [],
        ["10.0.0.1"],
        ["10.0.0.2", "10.0.0.2"],
    ]
    world.fails(_SEED, PeerUnreachable("refused"))

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [
            (socket.AF_UNIX, 1, 6, "", ("odd", port)),
            *((socket.AF_INET, 1, 6, "", (literal, port)) for literal in answer),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    discovery = _discovery(world, Address("seed.example", 7946))
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    await eventually(lambda: discovery.statistics()["linked"] == 1)
    assert world.dials[_SEED] == 1
    assert discovery.statistics()["resolves_failed"] == 2
    await discovery.close()


async def test_a_resolver_that_hangs_is_given_up() -> None:
    """A broken resolver delays one round, not the node."""
    world = _World()

    async def never(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    name = Address("seed.example", 7946)
    discovery = _discovery(world, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
        await discovery.start(_ANNOUNCEMENT, _Nobody())
        await eventually(lambda: "timed out" in discovery.causes().get(name, ""))
        await discovery.close()


async def test_a_list_that_is_too_long_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand seeds are a mistake, not a request."""
    world = _World()
    seeds = [Address(f"10.1.{number >> 8}.{number & 255}", 1) for number in range(1, 1000)]
    discovery = _discovery(world, *seeds)
    await discovery.start(_ANNOUNCEMENT, _Nobody())
    assert discovery.statistics()["seeds"] == SEEDS_MAX
    assert "bootstrap list too long" in caplog.text
    await discovery.close()


async def test_closing_before_starting_is_harmless() -> None:
    """A node that fails to start closes what it has."""
    world = _World()
    discovery = _discovery(world, _SEED)
    await discovery.update(_ANNOUNCEMENT)
    await discovery.close()
    assert world.dials == {}
