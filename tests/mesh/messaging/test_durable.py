"""Durable messages between couriers in memory, with journals on a real disk: the promise, restarts, moves, failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from couriers import FixedClock, Inbox, World, command
from support import eventually

from mesh.errors import NetworkClosed, OutboxFull, StorageError, UnknownLetter
from mesh.messaging.durable import REDELIVERED, TABLES, DurableCourier
from mesh.messaging.outbox import DurableConfig, OutboxConfig
from mesh.messaging.parcel import Parcel
from mesh.types import AgentMessage, DeliveryStatus, MessageType, Priority
from state.journal import Journal

QUICK = DurableConfig(outbox=OutboxConfig(attempts=3, retry_s=0.001, retry_s_max=0.002, move_grace_s=0.1))


class RunningClock(FixedClock):
    """Its monotonic hand runs with the event loop, which wakes what waits for it; the test may push both ahead."""

    def monotonic(self) -> float:
        """See :class:`transport.clock.Clock`."""
        return asyncio.get_running_loop().time() + self.monotonic_s


class Nodes:
    """Couriers of one world, each with a journal; they can be stopped and started like processes."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.journals: dict[str, Journal] = {}
        self.lives: dict[str, int] = {}

    def __getitem__(self, name: str) -> DurableCourier:
        durable = self.world[name].durable
        assert isinstance(durable, DurableCourier)
        return durable

    async def start(self, name: str, config: DurableConfig = QUICK) -> None:
        """Give a courier its journal."""
        self.lives[name] = life = self.lives.get(name, 0) + 1
        self.journals[name] = await Journal.open(self.folder / f"{name}.db", TABLES)
        await DurableCourier.open(
            self.world[name],
            self.journals[name],
            life,
            clock=self.world.clock,
            rng=random.Random(1),
            config=config,
        )

    async def crash(self, name: str, config: DurableConfig = QUICK) -> None:
        """End a node without a word, and start it again; its agents are gone.

        What was not on disk is not there: the journal is closed, but nobody hears of what it still wrote.
        """
        for (one, _), link in list(self.world.links.items()):
            if one == name and link.is_open:
                link.cut()
        old, journal = self[name], self.journals.pop(name)
        old._closed = True
        for timer in (*old._timers.values(), old._expiry, old._housekeeping):
            if timer is not None:
                timer.cancel()
        self.world[name].durable = None
        for agent in self.world[name].agents.values():
            self.world.places.pop(agent.agent_id, None)
        await self.world[name].close()
        await old._scope.close()
        await journal.close()
        self.world.couriers[name] = self.world.make_courier(name, self.lives[name] + 1)
        await self.start(name, config)

    async def send(self, name: str, payload: bytes, *, to: int = 7, deadline_s: float = 60.0, **kind: Any) -> str:
        """Send from a node; returns the message's id."""
        receipt = await self[name].send(command(to, payload, **kind), deadline_s=deadline_s, timeout_s=1.0)
        assert receipt.status is DeliveryStatus.STORED
        return receipt.message_id

    async def settled(self, name: str) -> None:
        """Wait until nothing waits in a node's outbox."""
        await eventually(lambda: self[name].statistics()["outbox"] == 0, what="an empty outbox")

    def kept(self, name: str) -> list[tuple[bytes, str, int]]:
        """A node's dead letters: payload, reason, failures."""
        return [(one.message.payload, one.reason, one.failures) for one in self[name].dead_letters()]


@asynccontextmanager
async def nodes(folder: Path, *names: str, config: DurableConfig = QUICK) -> AsyncIterator[Nodes]:
    """Started nodes, all linked."""
    unopened = World(*(names or ("a", "b")))
    unopened.clock = RunningClock()
    async with unopened as world:
        made = Nodes(world, folder)
        try:
            for name in world.couriers:
                await made.start(name, config)
            yield made
        finally:
            for courier in world.couriers.values():
                await courier.close()
            for journal in made.journals.values():
                await journal.close()


# --- the promise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a", "b"])
async def test_a_message_waits_for_its_agent(tmp_path: Path, place: str) -> None:
    """Nobody knows the agent when it is sent; when it registers, here or elsewhere, it gets it, every field."""
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        parcel = Parcel(7, 42, MessageType.STATE_SYNC, b"x", Priority.HIGH, 5, 1_234, {"k": "v"}, "group")
        receipt = await net["a"].send(parcel, deadline_s=60, timeout_s=1)
        await asyncio.sleep(0.02)
        net.world.agent(place, 7, inbox)
        await eventually(lambda: inbox.seen)
        await net.settled("a")

        assert inbox.seen == [
            AgentMessage(
                42,
                7,
                MessageType.STATE_SYNC,
                b"x",
                receipt.message_id,
                1_234,
                5,
                Priority.HIGH,
                "group",
                {"k": "v"},
                "a",
            )
        ]
        assert receipt.message_id.startswith("a/durable/")
        assert await net.journals["a"].load("outbox") == []


async def test_order_is_kept_and_each_is_handled_once(tmp_path: Path) -> None:
    """Thousands from several senders, some of whose handlers suspend."""
    seen: dict[int, list[int]] = {1: [], 2: [], 3: []}

    async def handle(message: AgentMessage) -> None:
        if random.random() < 0.01:
            await asyncio.sleep(0)
        seen[message.from_agent].append(int(message.payload))

    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, handle)
        await asyncio.gather(
            *(net.send("a", b"%d" % number, from_agent=sender) for number in range(1_000) for sender in seen)
        )
        await net.settled("a")

        assert all(numbers == list(range(1_000)) for numbers in seen.values())
        assert net["b"].statistics()["repeated"] == 0
        assert net["a"].statistics()["journal_transactions"] < 1_000


async def test_the_sender_may_crash(tmp_path: Path) -> None:
    """What was stored is sent by its next process, marked as perhaps sent before; new numbers come after old ones."""
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        first = await net.send("a", b"1")
        await net.crash("a")
        second = await net.send("a", b"2")
        net.world.link("a", "b")
        net.world.agent("b", 7, inbox)
        await net.settled("a")

        assert [(message.message_id, message.payload) for message in inbox.seen] == [(first, b"1"), (second, b"2")]
        assert [message.headers for message in inbox.seen] == [{REDELIVERED: "1"}, {}]


async def test_the_receiver_may_crash(tmp_path: Path) -> None:
    """What it had handled and recorded is not handled again; what was at work is, and says so."""
    before, after = Inbox(), Inbox()
    gate = asyncio.Event()

    async def handle(message: AgentMessage) -> None:
        before.seen.append(message)
        if message.payload == b"2":
            await gate.wait()

    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, handle)
        for number in (b"1", b"2", b"3"):
            await net.send("a", number)
        await eventually(lambda: before.payloads == [b"1", b"2"])
        await eventually(lambda: net["a"].statistics()["outbox"] == 2)
        await net.crash("b")
        net.world.link("a", "b")
        net.world.agent("b", 7, after)
        await net.settled("a")

        assert after.payloads == [b"2", b"3"]
        assert after.seen[0].headers == {REDELIVERED: "1"}
        assert after.seen[0].message_id == before.seen[1].message_id


async def test_a_broken_link_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """What was handled while it broke is recognised when it is sent again."""
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, inbox)
        for round_number in range(10):
            for number in range(20):
                await net.send("a", b"%d" % (round_number * 20 + number))
            net.world.links["a", "b"].cut()
            net.world.link("a", "b")
        await net.settled("a")

        assert inbox.payloads == [b"%d" % number for number in range(200)]


async def test_an_answer_that_was_lost_is_given_again(tmp_path: Path) -> None:
    """The link breaks after the message was handled and before the answer: it is answered, not handled, again."""
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, inbox)
        net.world.links["b", "a"].hold()
        await net.send("a", b"1")
        await eventually(lambda: inbox.seen)
        await net.journals["b"].commit([])
        net.world.links["a", "b"].cut()
        net.world.link("a", "b")
        await net.settled("a")

        assert inbox.payloads == [b"1"]
        assert net["b"].statistics()["repeated"] == 1


async def test_credit_holds_the_sender_back(tmp_path: Path) -> None:
    """A slow agent has a window of messages at most; the rest waits in the outbox, and comes when it goes on."""
    gate = asyncio.Event()
    inbox = Inbox()

    async def handle(message: AgentMessage) -> None:
        await gate.wait()
        inbox.seen.append(message)

    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, handle)
        for number in range(100):
            await net.send("a", b"%02d" % number + bytes(50_000))
        await asyncio.sleep(0.05)
        assert net["a"].statistics()["sent"] < 30
        gate.set()
        await net.settled("a")

        assert [int(payload[:2]) for payload in inbox.payloads] == list(range(100))


async def test_the_reader_of_an_inbox_says_what_it_has_handled(tmp_path: Path) -> None:
    """A message counts as handled when the next one is asked for."""
    async with nodes(tmp_path) as net:
        agent = net.world.agent("b", 7)
        for number in (b"1", b"2"):
            await net.send("a", number)
        reader = agent.messages()
        assert (await anext(reader)).payload == b"1"
        await net.journals["b"].commit([])
        assert net["a"].statistics()["outbox"] == 2
        assert (await anext(reader)).payload == b"2"
        await eventually(lambda: net["a"].statistics()["outbox"] == 1)

        await net.crash("b")
        net.world.link("a", "b")
        again = net.world.agent("b", 7).messages()
        assert (await anext(again)).payload == b"2"


# --- moves ------------------------------------------------------------------------------------------------------


async def test_an_agent_may_move(tmp_path: Path) -> None:
    """From node to node under traffic: nothing is lost or handled twice, and order is kept."""
    inbox = Inbox()
    async with nodes(tmp_path, "a", "b", "c") as net:
        agent = net.world.agent("b", 7, inbox)
        numbers = iter(range(10_000))
        for place in "cbcbc":
            sends = [asyncio.ensure_future(net.send("a", b"%d" % next(numbers))) for _ in range(100)]
            await asyncio.sleep(0.005)
            await net.world.remove(agent)
            agent = net.world.agent(place, 7, inbox)
            await asyncio.gather(*sends)
        await net.settled("a")

        assert inbox.payloads == [b"%d" % number for number in range(500)]


async def test_a_node_that_no_longer_runs_the_agent_refuses(tmp_path: Path) -> None:
    """The sender, which has not heard of the move, is told and looks again."""
    inbox = Inbox()
    async with nodes(tmp_path, "a", "b", "c") as net:
        agent = net.world.agent("b", 7)
        await net.world.remove(agent, forget=False)
        await net.send("a", b"1")
        await eventually(lambda: net["b"].counters["received"] == 0 and net["a"].counters["sent"] == 1)
        await eventually(lambda: net["a"].counters["sent_again"] >= 1)
        net.world.agent("c", 7, inbox)
        await net.settled("a")

        assert inbox.payloads == [b"1"]


async def test_a_handler_that_is_stopped_has_not_handled(tmp_path: Path) -> None:
    """Its message goes to the agent's next place."""
    started = asyncio.Event()
    inbox = Inbox()

    async def hang(message: AgentMessage) -> None:
        started.set()
        await asyncio.Event().wait()

    async with nodes(tmp_path, "a", "b", "c") as net:
        agent = net.world.agent("b", 7, hang)
        for number in (b"1", b"2"):
            await net.send("a", number)
        await started.wait()
        await net.world.remove(agent)
        net.world.agent("c", 7, inbox)
        await net.settled("a")

        assert inbox.payloads == [b"1", b"2"]
        assert REDELIVERED in inbox.seen[0].headers


# --- failures ---------------------------------------------------------------------------------------------------


async def test_a_failing_message_becomes_a_dead_letter_and_can_be_replayed(tmp_path: Path) -> None:
    """After three attempts; the one behind it waits for that and is handled; a crash changes nothing of it."""
    inbox = Inbox()
    mended = False

    async def handle(message: AgentMessage) -> None:
        if message.payload == b"bad" and not mended:
            raise ValueError("no such thing")
        inbox.seen.append(message)

    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, handle)
        await net.send("a", b"bad")
        await net.send("a", b"good")
        await net.settled("a")

        assert inbox.payloads == [b"good"]
        assert net.kept("a") == [(b"bad", "failed", 3)]
        await net.crash("a")
        net.world.link("a", "b")
        (dead,) = net["a"].dead_letters()
        assert (dead.detail, dead.is_uncertain) == ("ValueError: no such thing", False)
        mended = True
        receipt = await net["a"].replay(dead.letter_id, deadline_s=60, timeout_s=1)
        await net.settled("a")

        assert inbox.payloads == [b"good", b"bad"]
        assert receipt.message_id == inbox.seen[1].message_id != dead.message.message_id
        assert net["a"].dead_letters() == []
        assert await net.journals["a"].load("dead") == []
        with pytest.raises(UnknownLetter):
            await net["a"].replay(dead.letter_id, deadline_s=60, timeout_s=1)


async def test_a_dead_letter_can_be_dropped(tmp_path: Path) -> None:
    """It is gone for good, also from the disk."""
    async with nodes(tmp_path) as net:
        await net.send("a", b"late", deadline_s=0.01)
        net.world.clock.wall_s += 1.0
        await eventually(lambda: net.kept("a") == [(b"late", "expired", 0)])
        (dead,) = net["a"].dead_letters()
        assert not dead.is_uncertain
        await net["a"].drop(dead.letter_id)

        assert net["a"].dead_letters() == []
        assert await net.journals["a"].load("dead") == []
        with pytest.raises(UnknownLetter, match="mesh dead-letters"):
            await net["a"].drop(dead.letter_id)


async def test_a_message_can_expire_while_it_waits_at_its_agent(tmp_path: Path) -> None:
    """Its agent is busy with the one before it; the one behind it is handled."""
    gate = asyncio.Event()
    inbox = Inbox()

    async def handle(message: AgentMessage) -> None:
        await gate.wait()
        inbox.seen.append(message)

    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, handle)
        await net.send("a", b"1")
        await net.send("a", b"2", deadline_s=5.0)
        await net.send("a", b"3")
        await eventually(lambda: net["b"].counters["received"] == 3)
        net.world.clock.monotonic_s += 6.0
        gate.set()
        await net.settled("a")

        assert inbox.payloads == [b"1", b"3"]
        assert net.kept("a") == [(b"2", "expired", 0)]


async def test_a_full_outbox_makes_callers_wait_and_then_says_so(tmp_path: Path) -> None:
    """Nothing is stored; with room again there is no error."""
    inbox = Inbox()
    small = replace(QUICK, outbox=OutboxConfig(bytes_max=2_100))
    async with nodes(tmp_path, config=small) as net:
        await net.send("a", bytes(1_500))
        with pytest.raises(OutboxFull, match="1 durable messages"):
            await net["a"].send(command(7, bytes(1_500)), deadline_s=60, timeout_s=0.05)
        waiting = asyncio.ensure_future(net.send("a", b"2"))
        waiting2 = asyncio.ensure_future(net.send("a", bytes(1_700)))
        await asyncio.wait_for(waiting, 5)
        net.world.agent("b", 7, inbox)
        await waiting2
        await net.settled("a")

        assert [len(payload) for payload in inbox.payloads] == [1_500, 1, 1_700]


async def test_a_disk_that_refuses_is_the_callers_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is sent; later ones are."""
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, inbox)
        monkeypatch.setattr(net.journals["a"], "_write", lambda *_: StorageError("full"))
        with pytest.raises(StorageError, match="full"):
            await net.send("a", b"1")
        monkeypatch.undo()
        await net.send("a", b"2")
        await net.settled("a")

        assert inbox.payloads == [b"2"]
        assert net["a"].statistics()["outbox_bytes"] == 0


async def test_nothing_more_is_handed_over_while_it_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver's disk refuses: it goes on when the disk does, and nothing is handled twice."""
    monkeypatch.setattr("mesh.messaging.durable._DISK_RETRY_S", 0.02)
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, inbox)
        monkeypatch.setattr(net.journals["b"], "_write", lambda *_: StorageError("full"))
        for number in range(5):
            await net.send("a", b"%d" % number)
            await eventually(lambda: net["b"].counters["disk_errors"] > 0)
        assert inbox.payloads == [b"0"]
        monkeypatch.delattr(net.journals["b"], "_write")
        await net.settled("a")

        assert inbox.payloads == [b"%d" % number for number in range(5)]


async def test_the_senders_disk_may_refuse_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was handled is taken away when the disk works again."""
    monkeypatch.setattr("mesh.messaging.durable._DISK_RETRY_S", 0.02)
    inbox = Inbox()
    async with nodes(tmp_path) as net:
        await net.send("a", b"1")
        monkeypatch.setattr(net.journals["a"], "_write", lambda *_: StorageError("full"))
        net.world.agent("b", 7, inbox)
        await net.settled("a")
        assert len(await net.journals["a"].load("outbox")) == 1
        monkeypatch.delattr(net.journals["a"], "_write")
        await asyncio.wait_for(net["a"]._saved.wait(), 5)

        assert await net.journals["a"].load("outbox") == []


async def test_records_of_a_later_version_are_left_alone(tmp_path: Path) -> None:
    """They are counted, and stay where they are."""
    async with nodes(tmp_path) as net:
        await net.journals["a"].commit([("outbox", 5, b"\x90"), ("dead", 6, b"\x90"), ("marks", b"\x90", b"\x90")])
        await net.crash("a")

        assert net["a"].statistics()["unreadable"] == 3
        assert [key for key, _ in await net.journals["a"].load("outbox")] == [5]


async def test_old_marks_and_dead_letters_are_forgotten(tmp_path: Path) -> None:
    """When the house is kept: marks after their deadline and an hour, dead letters after their time."""
    async with nodes(tmp_path) as net:
        net.world.agent("b", 7, Inbox())
        await net.send("a", b"1")
        await net.send("a", b"2", to=8, deadline_s=1.0)
        await eventually(lambda: net["a"].statistics()["outbox"] == 1)
        net.world.clock.wall_s += 8 * 86_400
        net["a"]._expire()
        assert net.kept("a") == [(b"2", "expired", 0)]
        net.world.clock.wall_s += 8 * 86_400
        for name in "ab":
            old = net[name]._housekeeping
            net[name]._keep_house()
            assert old is not None
            old.cancel()
            await asyncio.wait_for(net[name]._saved.wait(), 5)

        assert net.kept("a") == []
        assert await net.journals["a"].load("dead") == []
        assert await net.journals["b"].load("marks") == []


async def test_a_node_that_left_takes_nothing(tmp_path: Path) -> None:
    """Callers are told, those that wait for room as well."""
    small = replace(QUICK, outbox=OutboxConfig(bytes_max=2_100))
    async with nodes(tmp_path, config=small) as net:
        await net.send("a", bytes(1_700))
        waiting = asyncio.ensure_future(net.send("a", bytes(1_700)))
        await asyncio.sleep(0)
        await net.world["a"].close()

        with pytest.raises(NetworkClosed):
            await waiting
        with pytest.raises(NetworkClosed):
            await net.send("a", b"")
