"""Members that have sender keys and use them badly: nothing of it is heard, and nobody else pays for it."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hostile_insiders import EAR, Insider, insider, moment
from hostile_nodes import LIFE, Town, closing, town
from support import eventually

from gossip.codec import BroadcastBody, encode_broadcast
from gossip.incarnation import life_of
from gossip.plumtree_codec import Gossip, encode
from mesh.messaging import body
from mesh.sealing.chains import Limits
from mesh.sealing.codec import HEADER_BYTES
from mesh.sealing.handshake import Peer
from mesh.sealing.keyring import EVERYBODY, Keyring
from mesh.sealing.sender_keys import Ask, encode_ask
from mesh.types import AgentMessage, MessageType, Priority
from transport.link import CloseReason
from transport.types import NodeId
from transport.wire import Kind


class Crier:
    """A member that broadcasts, by hand."""

    def __init__(self, there: Town, one: Insider) -> None:
        self._one = one
        self.target = Peer(there.target.node.node_id, life_of(there.target.node.incarnation))
        self._ring = Keyring(
            "default",
            "zed",
            life_of(LIFE),
            readers=lambda _: [self.target],
            entropy=secrets.token_bytes,
            rng=random.Random(1),
            limits=Limits(),
        )
        self._sequence = 0

    def seal(self, text: bytes) -> bytes:
        """A broadcast under the key of this node."""
        return self._ring.seal(EVERYBODY, clear(text), (), moment().monotonic)

    async def cry(self, payload: bytes, origin: str = "zed", incarnation: int = LIFE) -> None:
        """Have it spread, in whose name ever, under a number that nobody has used."""
        self._sequence += 1
        sealed = encode_broadcast(BroadcastBody(NodeId(origin), incarnation, 1_000 + self._sequence, payload))
        await self._one.say(Kind.BROADCAST, encode(Gossip(1, 0, sealed)))

    async def serve(self) -> None:
        """Answer who asks for keys, until cancelled."""
        while True:
            for kind, said in await self._one.read():
                if kind == Kind.GRANTS:
                    self._ring.received(self.target, said, lambda _: True, moment().monotonic)
            for _, grant in self._ring.outgoing:
                await self._one.whisper(Kind.GRANTS, grant)
            self._ring.outgoing.clear()


def clear(text: bytes) -> bytes:
    """A broadcast as it is inside."""
    return body.encode_broadcast([1, int(MessageType.BROADCAST), 5, 0, 0, text, 0], 0, Priority.NORMAL)


class Scene:
    """A town, a crier, and what an agent of the target hears."""

    def __init__(self, there: Town, one: Insider) -> None:
        self.there = there
        self.one = one
        self.crier = Crier(there, one)
        self.heard: list[bytes] = []

    async def hear(self, message: AgentMessage) -> None:
        """Note it."""
        self.heard.append(message.payload)

    def count(self, name: str) -> int:
        """A counter of the target's."""
        counters: dict[str, int] = self.there.target.stats()["sender_keys"]
        return counters.get(name, 0)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """A crier that has been heard once; its link is still up in the end."""
    async with town(folder) as there, insider(there) as one:
        made = Scene(there, one)
        await there.target.register_agent(EAR, handler=made.hear)
        await one.agree()
        serving = asyncio.create_task(made.crier.serve())
        try:
            await made.crier.cry(made.crier.seal(b"hello"))
            await eventually(lambda: made.heard == [b"hello"])
            yield made
            assert NodeId("zed") in there.target._runtime.endpoint.links, "a link was cut for what it passed on"
        finally:
            serving.cancel()
            await asyncio.wait([serving])


@pytest.mark.parametrize(
    ("trick", "reason"),
    [
        ("replayed", "replayed"),
        ("altered", "signature"),
        ("another epoch", "signature"),
        ("truncated", "signature"),
        ("cut short", "malformed"),
        ("as of a group", "malformed"),
        ("in the clear", "clear"),
    ],
)
async def test_what_is_not_as_it_was_sealed_is_dropped_and_nobody_is_cut(
    tmp_path: Path, trick: str, reason: str
) -> None:
    """Each trick under a new number of gossip's: counted, on record, not heard; the next genuine broadcast is."""
    async with scene(tmp_path) as here:
        first, second = here.crier.seal(b"first"), bytearray(here.crier.seal(b"second"))
        await here.crier.cry(first)
        match trick:
            case "replayed":
                second = bytearray(first)
            case "altered":
                second[HEADER_BYTES] ^= 1
            case "another epoch":
                second[13] += 1
            case "truncated":
                del second[-1]
            case "cut short":
                del second[60:]
            case "as of a group":
                second[0] = Kind.GROUP
            case _:
                second = bytearray(clear(b"second"))
        await here.crier.cry(bytes(second))
        await eventually(lambda: here.count(f"refused_{reason}") == 1)
        await here.crier.cry(here.crier.seal(b"third"))
        await eventually(lambda: here.heard == [b"hello", b"first", b"third"])
        path = tmp_path / "default" / "target" / "audit.log"

        def recorded() -> bool:
            return path.exists() and f'"reason": "{reason}"'.replace(" ", "") in path.read_text().replace(" ", "")

        async with asyncio.timeout(5):
            while not await asyncio.to_thread(recorded):
                pass


async def test_a_member_cannot_speak_in_anothers_name(tmp_path: Path) -> None:
    """Under its own key, in the clear, or with another's words under its own number: never heard as the other's."""
    async with scene(tmp_path) as here:
        other = here.there.other
        incarnation = other.node.incarnation
        await other.broadcast_message(b"genuine")
        await eventually(lambda: here.heard == [b"hello", b"genuine"])
        await here.crier.cry(here.crier.seal(b"forged"), "other", incarnation)
        await here.crier.cry(clear(b"forged"), "other", incarnation)
        await eventually(lambda: here.count("refused_clear") == 1 and here.count("parked_now") == 1)
        await eventually(lambda: other.stats()["sender_keys"]["answered"] >= 1, what="the target asks whom it names")
        await other.broadcast_message(b"genuine too")
        await eventually(lambda: len(here.heard) == 3)
        assert here.heard == [b"hello", b"genuine", b"genuine too"]


async def test_a_member_that_does_not_subscribe_gets_no_key_of_a_group(tmp_path: Path) -> None:
    """It may ask; the answer is silence."""
    async with scene(tmp_path) as here:
        await here.there.target.subscribe("news", here.hear)
        await here.there.target.publish("news", b"for subscribers")
        await here.one.whisper(Kind.GRANTS, encode_ask(Ask("news", bytes(8))))
        await eventually(lambda: here.count("unanswered") == 1)
        assert here.count("answered") == 0


async def test_nonsense_about_keys_costs_its_sender_the_link(tmp_path: Path) -> None:
    """It was sealed by the peer itself, so here there is somebody to blame."""
    async with town(tmp_path) as there, insider(there) as one:
        await one.agree()
        await one.whisper(Kind.GRANTS, b"\xc1")
        code, text = await closing(one.connection)
        assert code == CloseReason.PROTOCOL_ERROR
        assert "grant" in text
