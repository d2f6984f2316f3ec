"""Members that have keys and use them badly: each trick with sealed bodies costs the link, and goes on record."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hostile_insiders import EAR, Insider, insider, moment
from hostile_nodes import Town, closing, town
from identities import make_credentials
from support import eventually

from mesh.messaging.body import encode_batch
from mesh.sealing.codec import HEADER_BYTES
from mesh.sealing.links import identity_of
from mesh.types import AgentMessage, Priority
from transport.link import CloseReason
from transport.types import Lane
from transport.wire import Kind


def _records(there: Town) -> list[dict[str, object]]:
    path = there.data_dir / "default" / "target" / "audit.log"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["fields"] for line in lines if line["event"] == "end-to-end refusal"]


async def _check_refused(there: Town, one: Insider, reason: str) -> None:
    """The link is closed for a breach, the reason counted and on record; :func:`town` checks the others."""
    code, text = await closing(one.connection)
    assert (code, bool(text)) == (CloseReason.PROTOCOL_ERROR, True)
    assert there.target.stats()["end_to_end"][f"refused_{reason}"] == 1

    records: list[dict[str, object]] = []
    async with asyncio.timeout(5):
        while not records:
            records = await asyncio.to_thread(_records, there)
    assert [(record["peer"], record["reason"]) for record in records] == [("zed", reason)]


async def test_a_member_with_keys_is_heard_and_its_replays_are_not(tmp_path: Path) -> None:
    """A sealed message is handled once; the same bytes again end the link."""
    heard: list[bytes] = []

    async def hear(message: AgentMessage) -> None:
        heard.append(message.payload)

    async with town(tmp_path) as there:
        await there.target.register_agent(EAR, handler=hear)
        async with insider(there) as one:
            await one.agree()
            sealed = one.seal(b"hello")
            await one.say(Kind.SEALED, sealed)
            await eventually(lambda: heard == [b"hello"])
            await one.say(Kind.SEALED, sealed)
            await _check_refused(there, one, "replayed")
    assert heard == [b"hello"]


@pytest.mark.parametrize(
    "trick", ["altered", "another stream", "another epoch", "truncated", "in the clear", "no session"]
)
async def test_what_is_not_as_it_was_sealed_is_refused(tmp_path: Path, trick: str) -> None:
    """Altered, moved, truncated, unsealed or sealed under keys of nobody: refused, counted, recorded, and not heard."""
    heard: list[bytes] = []

    async def hear(message: AgentMessage) -> None:
        heard.append(message.payload)

    async with town(tmp_path) as there:
        await there.target.register_agent(EAR, handler=hear)
        async with insider(there) as one:
            await one.agree()
            sealed = bytearray(one.seal(b"hello"))
            reason, kind = "forged", Kind.SEALED
            match trick:
                case "altered":
                    sealed[HEADER_BYTES] ^= 1
                case "another stream":
                    sealed[1] = Lane.URGENT
                case "another epoch":
                    sealed[13] += 1
                case "truncated":
                    del sealed[-1]
                case "in the clear":
                    reason, kind = "clear", Kind.MESSAGES
                    sealed = bytearray(encode_batch(1, 0, Priority.NORMAL, [[1, 1, 1, EAR, 0, b"hello", 0]]))
                case _:
                    reason = "unknown_session"
                    sealed[2] ^= 1
            await one.say(kind, bytes(sealed))
            await _check_refused(there, one, reason)
    assert heard == []


async def test_a_member_cannot_agree_on_keys_in_anothers_name(tmp_path: Path) -> None:
    """An offer under another node's name or life, or signed by another, gets no session."""
    async with town(tmp_path) as there, insider(there) as one:
        credentials = await asyncio.to_thread(make_credentials, there.data_dir, "default", "zod")
        one.pairing._identity = lambda: identity_of(credentials, 1)
        one.pairing.want(moment())
        ((kind, body),) = one.pairing.take_outgoing()
        await one.say(kind, body)
        await _check_refused(there, one, "wrong_peer")


async def test_a_member_that_offers_and_offers_is_cut(tmp_path: Path) -> None:
    """Key agreement costs the node signatures, so a member gets a ration of it."""
    async with town(tmp_path) as there, insider(there) as one:
        for _ in range(40):
            one.pairing._offer = None
            one.pairing._make_offer(moment().monotonic)
            ((kind, body),) = one.pairing.take_outgoing()
            await one.say(kind, body)
        await _check_refused(there, one, "flooded")
