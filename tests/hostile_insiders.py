"""Members that have a good certificate and keys, and whose frames are made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from hostile_nodes import LIFE, Town, certified, greeting
from identities import make_credentials
from websockets.asyncio.client import ClientConnection

from gossip.incarnation import life_of
from mesh.messaging.body import encode_batch
from mesh.sealing.chains import Limits
from mesh.sealing.codec import CONFIRM
from mesh.sealing.handshake import Moment, Peer
from mesh.sealing.links import FEATURE, identity_of
from mesh.sealing.pairing import Pairing
from mesh.types import MessageType, Priority
from transport.clock import SystemClock
from transport.types import Lane
from transport.wire import Envelope, Kind, decode_frame, decode_hello, encode_frame

#: Hears what the hostile member says.
EAR = 9


class Insider:
    """A member with a good certificate and a session; its frames are made by hand."""

    def __init__(self, connection: ClientConnection, pairing: Pairing) -> None:
        self.connection = connection
        self.pairing = pairing

    async def say(self, kind: int, body: bytes) -> None:
        """Send one envelope."""
        with contextlib.suppress(Exception):  # the node may have hung up; closing() tells
            await self.connection.send(encode_frame([Envelope(kind, 1, None, None, body)]))

    def seal(self, text: bytes, number: int = 1) -> bytes:
        """A sealed message to the ear."""
        message = [number, int(MessageType.COMMAND), 1, EAR, 0, text, 0]
        sealed = self.pairing.seal(
            Kind.MESSAGES, Lane.NORMAL, encode_batch(1, 0, Priority.NORMAL, [message]), moment().monotonic
        )
        assert sealed is not None
        return sealed

    async def agree(self) -> None:
        """Agree on keys with the node."""
        self.pairing.want(moment())
        while True:
            for kind, body in self.pairing.take_outgoing():
                await self.say(kind, body)
            if self.pairing.is_ready:
                return
            await self.read()

    async def read(self) -> list[tuple[int, bytes]]:
        """Take in one frame; what was sealed in it, with its kind."""
        frame = await self.connection.recv()
        assert isinstance(frame, bytes)
        opened = []
        for envelope in decode_frame(frame):
            if envelope.kind == Kind.KEYS:
                self.pairing.keys_received(envelope.body, moment())
            elif envelope.kind == Kind.SEALED:
                opened.append(self.pairing.open(envelope.body, moment().monotonic))
        return [(kind, body) for kind, body in opened if kind != CONFIRM]

    async def whisper(self, kind: int, body: bytes) -> None:
        """Send something sealed."""
        sealed = self.pairing.seal(kind, Lane.CONTROL, body, moment().monotonic)
        assert sealed is not None
        await self.say(Kind.SEALED, sealed)


def moment() -> Moment:
    """Now."""
    clock = SystemClock()
    return Moment(clock.monotonic(), clock.wall())


@contextlib.asynccontextmanager
async def insider(there: Town, name: str = "zed") -> AsyncIterator[Insider]:
    """Somebody who was let in and has keys."""
    credentials = await asyncio.to_thread(make_credentials, there.data_dir, "default", name)
    async with certified(there, name) as connection:
        await connection.send(greeting(name, features=(FEATURE,)))
        await connection.send(encode_frame([Envelope(Kind.ACCEPT, 0, None, None, b"")]))
        first = await connection.recv()
        assert isinstance(first, bytes)
        hello = decode_hello(decode_frame(first)[0])
        identity = identity_of(credentials, life_of(LIFE))
        peer = Peer(hello.node_id, life_of(hello.incarnation))
        pairing = Pairing(lambda: identity, peer, None, entropy=secrets.token_bytes, now=moment(), limits=Limits())
        yield Insider(connection, pairing)
