"""Dials of the gossip shell: several addresses, bounded in number and rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from support import eventually

from gossip.dialling import STAGGER_S, Dialler
from transport.errors import PeerRefused, PeerUnreachable
from transport.link import CloseReason, Link
from transport.tasks import TaskScope
from transport.types import Address, NodeId

HERE, CLOSED = Address("here", 1), Address("closed", 1)
PEER = NodeId("peer")


class Endpoint:
    """Answers dials as each address's name says."""

    def __init__(self) -> None:
        self.addresses = (HERE,)
        self.links: dict[NodeId, Link] = {}
        self.dialled: list[str] = []
        self.link: Link = object()  # type: ignore[assignment]
        self.running = self.running_max = 0

    async def dial(self, address: Address, expected: NodeId | None = None) -> Link:
        self.dialled.append(address.host)
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            match address.host:
                case "good":
                    return self.link
                case "silent":
                    await asyncio.Event().wait()
                case "closed":
                    raise PeerUnreachable("nobody") from ConnectionRefusedError()
                case "taken":
                    raise PeerRefused("you are another", code=CloseReason.DUPLICATE_NODE)
                case "broken":
                    raise ZeroDivisionError
                case "cancelled":
                    raise asyncio.CancelledError
                case _:
                    await asyncio.sleep(0)
            raise PeerUnreachable("no answer")
        finally:
            self.running -= 1


class Dials:
    """A dialler, its endpoint, and its results."""

    def __init__(self) -> None:
        self.endpoint = Endpoint()
        self.scope = TaskScope("test")
        self.results: list[tuple[NodeId | None, Link | None, bool]] = []
        self.taken: list[str] = []
        self.dialler = Dialler(self.endpoint, self, self.scope, time.monotonic)  # type: ignore[arg-type]

    def dial_done(self, peer: NodeId | None, link: Link | None, *, refused: bool) -> None:
        self.results.append((peer, link, refused))

    def node_id_taken(self, detail: str) -> None:
        self.taken.append(detail)

    async def result_of(self, *hosts: str, peer: NodeId | None = PEER) -> tuple[Link | None, bool]:
        self.dialler.request(peer, tuple(Address(host, 1) for host in hosts))
        await eventually(lambda: self.results)
        found = self.results.pop()
        assert found[0] == peer
        return found[1:]


@pytest.fixture
async def dials() -> AsyncIterator[Dials]:
    """Closed in the end, with nothing left running."""
    made = Dials()
    yield made
    made.dialler.close()
    await made.scope.close()
    assert made.endpoint.running == 0


async def test_silent_addresses_do_not_hold_up_the_good_one(dials: Dials) -> None:
    """The next address is tried after a moment, the first link wins and the other attempts end."""
    started = time.monotonic()

    assert await dials.result_of("silent", "good", "never") == (dials.endpoint.link, False)

    assert time.monotonic() - started >= STAGGER_S * 0.9
    assert dials.endpoint.dialled == ["silent", "good"]


async def test_a_failed_address_is_followed_by_the_next_at_once(dials: Dials) -> None:
    """No stagger after an answer."""
    started = time.monotonic()

    assert await dials.result_of("closed", "nobody", "good") == (dials.endpoint.link, False)

    assert time.monotonic() - started < STAGGER_S


async def test_refused_means_refused_everywhere(dials: Dials) -> None:
    """One silent failure is enough to be unsure."""
    assert await dials.result_of("closed") == (None, True)
    assert await dials.result_of("closed", "nobody") == (None, False)


@pytest.mark.parametrize("host", ["broken", "cancelled"])
async def test_whatever_a_dial_ends_with_there_is_a_result(dials: Dials, host: str) -> None:
    """The overlay must never wait for ever."""
    assert await dials.result_of(host) == (None, False)
    assert await dials.result_of(host, "good") == (dials.endpoint.link, False)


async def test_our_own_addresses_are_skipped(dials: Dials) -> None:
    """With none left there is nothing to dial."""
    assert await dials.result_of("here") == (None, False)
    assert await dials.result_of("here", "good", peer=None) == (dials.endpoint.link, False)
    assert dials.endpoint.dialled == ["good"]


async def test_an_open_link_needs_no_dial(dials: Dials) -> None:
    """It came while the request waited."""
    dials.endpoint.links[PEER] = dials.endpoint.link

    assert await dials.result_of("good") == (dials.endpoint.link, False)
    assert dials.endpoint.dialled == []


async def test_a_taken_node_id_is_reported(dials: Dials) -> None:
    """The peer said that another live process is us."""
    assert await dials.result_of("taken") == (None, False)
    assert dials.taken == ["you are another"]


async def test_dials_are_rationed(dials: Dials, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many at once and per second; more than can wait are answered as failed."""
    monkeypatch.setattr("gossip.dialling.CONCURRENT_MAX", 2)
    monkeypatch.setattr("gossip.dialling.RATE_PER_S", 20.0)
    monkeypatch.setattr("gossip.dialling.WAITING_MAX", 30)
    started = time.monotonic()
    for index in range(40):
        dials.dialler.request(NodeId(f"n{index}"), (Address(f"nobody{index}", 1),))

    await eventually(lambda: len(dials.results) == 40)

    assert dials.dialler.counters["dial_requests_dropped"] == 8
    assert dials.endpoint.running_max == 2
    assert time.monotonic() - started >= (32 - 20) / 20 * 0.8


async def test_closing_forgets_what_waits(dials: Dials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it waits for its turn by the clock."""
    monkeypatch.setattr("gossip.dialling.RATE_PER_S", 1.0)
    dials.dialler.request(NodeId("a"), (CLOSED,))
    dials.dialler.request(NodeId("b"), (CLOSED,))
    await eventually(lambda: len(dials.results) == 1)

    dials.dialler.close()

    assert dials.endpoint.dialled == ["closed"]


async def test_the_nodes_of_one_loop_share_their_dials(dials: Dials, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many nodes a loop has, so many of its dials are under way; whoever waited comes next."""
    monkeypatch.setattr("gossip.dialling.CONCURRENT_MAX", 2)
    others = [Dials() for _ in range(3)]
    for other in others:
        other.endpoint = dials.endpoint
        other.dialler._endpoint = dials.endpoint  # type: ignore[assignment]
    for index in range(40):
        (dials, *others)[index % 4].dialler.request(NodeId(f"n{index}"), (Address(f"nobody{index}", 1),))
    others[2].dialler.close()

    await eventually(lambda: [len(one.results) for one in (dials, *others)] == [10, 10, 10, 0])

    assert dials.endpoint.running_max == 2
    for other in others:
        other.dialler.close()
        await other.scope.close()


async def test_a_slow_dial_does_not_hold_up_other_nodes(dials: Dials, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not answer costs the loop nothing, so after a while its dial no longer counts."""
    monkeypatch.setattr("gossip.dialling.CONCURRENT_MAX", 1)
    monkeypatch.setattr("gossip.dialling.SLOW_S", 0.05)
    other = Dials()
    dials.dialler.request(NodeId("mute"), (Address("silent", 1),))

    assert await other.result_of("good") == (other.endpoint.link, False)

    assert dials.endpoint.running == 1
    other.dialler.close()
    await other.scope.close()
