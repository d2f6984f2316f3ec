"""Members with good certificates and bad manners: each costs itself its link, and nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest
from hostile_nodes import SINK, certified, closing, greeting, member, rss_bytes, town
from support import eventually
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from mesh.messaging.body import encode_batch
from mesh.types import MessageType, Priority
from transport.identity import audit
from transport.link import CloseReason
from transport.wire import ENVELOPES_MAX, Envelope, Kind, encode_frame, encode_hello, pack
from transport.wire import Hello as _Hello

#: What these members say is made by hand, without keys; tests/hostile/test_sealed.py has those with keys.
IN_THE_CLEAR = {"end_to_end": False}


def _one(kind: int, body: bytes) -> bytes:
    return encode_frame([Envelope(kind, 1, None, None, body)])


# --- hello --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (greeting(network="elsewhere"), CloseReason.WRONG_NETWORK),
        (greeting(name="other"), CloseReason.IDENTITY_MISMATCH),
        (greeting(name="target"), CloseReason.IDENTITY_MISMATCH),
        (greeting(version_min=2, version_max=9), CloseReason.UNSUPPORTED_VERSION),
        (_one(Kind.MESSAGES, b"early"), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.HELLO, b"\xdf\xff\xff\xff\xff"), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.HELLO, b"\x81\xa1a" * 5000), CloseReason.PROTOCOL_ERROR),
    ],
    ids=["network", "another node's id", "our own id", "version", "data first", "map bomb", "too large"],
)
async def test_a_wrong_hello_is_refused_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: bytes, code: CloseReason
) -> None:
    """The peer is told code and reason; the statistics and the log know; no member appears."""
    async with town(tmp_path) as there:
        async with certified(there) as connection:
            await connection.send(first)
            got, text = await closing(connection)

        assert (got, bool(text)) == (code, True)
        await eventually(lambda: there.refused(code.name.lower()) == 1)
        assert {node.node_id for node in there.target.members()} == {"target", "other"}
    assert any("connection refused" in record.message and "zed" in record.message for record in caplog.records)


async def test_another_nodes_id_at_hello_goes_on_record(tmp_path: Path) -> None:
    """A valid certificate with another node's id: somebody is not who it says, and the audit log names both."""
    async with town(tmp_path) as there:
        async with certified(there) as connection:
            await connection.send(greeting(name="other"))
            await closing(connection)
        await eventually(lambda: there.refused("identity_mismatch") == 1)

    path = tmp_path / "default" / "target" / "audit.log"
    assert (await asyncio.to_thread(audit.verify, path)).intact
    lines = [json.loads(line) for line in (await asyncio.to_thread(path.read_text)).splitlines()]
    (record,) = [line["fields"] for line in lines if line["event"] == "identity refused"]
    assert record["certified"] == "zed"
    assert "other" in record["message"]


# --- frames -------------------------------------------------------------------------------------------------------

_ARRAYS = b"\xdc\x04\x00" + (b"\xdc\x04\x00" + b"\x91\xc0" * 1024) * 500
_EMPTY_MAPS = b"\xdc\x0f\xa0" + b"\x80" * 4000
_MANY = [[1, 2, 1, SINK, 0, b"", 0]] * 4000


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xc1garbage", CloseReason.PROTOCOL_ERROR),
        (encode_frame([Envelope(Kind.MESSAGES, 1, None, None, b"x" * 100)])[:-7], CloseReason.PROTOCOL_ERROR),
        (b"\x91" * 100_000, CloseReason.PROTOCOL_ERROR),
        (_ARRAYS, CloseReason.PROTOCOL_ERROR),
        (b"\xdd\xff\xff\xff\xff", CloseReason.PROTOCOL_ERROR),
        (pack([[1] * 5] * (ENVELOPES_MAX + 1)), CloseReason.PROTOCOL_ERROR),
        (bytes(4 << 20), CloseReason.MESSAGE_TOO_BIG),
        (_one(Kind.MEMBERSHIP, b"\x91" * 5000), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.MEMBERSHIP, _EMPTY_MAPS), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.BROADCAST, pack(["target", 1, 2])), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.MESSAGES, b"\xc1"), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.MESSAGES, _EMPTY_MAPS), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.MESSAGES, encode_batch(1, 0, Priority.NORMAL, _MANY)[:-3]), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.ACKS, pack([[[SINK, -1]], [], []])), CloseReason.PROTOCOL_ERROR),
        (_one(Kind.RENEWAL, pack("x")), CloseReason.PROTOCOL_ERROR),
        (encode_frame([encode_hello(_Hello("default", "zed", 1))]), CloseReason.PROTOCOL_ERROR),  # type: ignore[arg-type]
    ],
    ids=[
        "garbage",
        "truncated",
        "deep nesting",
        "array bomb",
        "promised array",
        "too many envelopes",
        "oversized",
        "deep membership",
        "membership bomb",
        "short broadcast",
        "garbage message",
        "message bomb",
        "truncated batch",
        "negative credit",
        "renewal of nothing",
        "second hello",
    ],
)
async def test_a_bad_frame_costs_its_sender_the_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, frame: bytes, code: CloseReason
) -> None:
    """Closed with the code, counted, logged; the steady stream of the others loses nothing (:func:`town` checks)."""
    async with town(tmp_path, messages=IN_THE_CLEAR) as there:
        async with member(there) as connection:
            with contextlib.suppress(ConnectionClosed):
                await connection.send(frame)
            got, _ = await closing(connection)

        assert got == code
        await eventually(lambda: there.refused(code.name.lower()) == 1)
        await eventually(lambda: "zed" not in there.target._runtime.endpoint.links)
        assert there.links()["handler_errors"] == 0, "a peer's mistake is not a bug of ours"
    assert any("connection refused" in record.message for record in caplog.records)


async def test_frames_of_a_good_length_that_never_end_are_cut(tmp_path: Path) -> None:
    """A WebSocket message in endless empty fragments."""
    async with town(tmp_path) as there:
        async with member(there) as connection:
            fragments = Frame(Opcode.BINARY, b"", False).serialize(mask=True)
            fragments += Frame(Opcode.CONT, b"", False).serialize(mask=True) * 20_000
            connection.transport.write(fragments)
            got, _ = await closing(connection)

        assert got == CloseReason.MESSAGE_TOO_BIG
        await eventually(lambda: there.refused("message_too_big") == 1)


# --- floods -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_pings_whose_pongs_nobody_reads_cost_no_memory(tmp_path: Path) -> None:
    """WebSocket's own pings are answered by the library past every buffer: the answers must end somewhere."""
    async with town(tmp_path) as there:
        async with member(there) as connection:
            transport = connection.transport
            transport.pause_reading()
            pings = Frame(Opcode.PING, b"x" * 125, True).serialize(mask=True) * 500
            alive = Frame(Opcode.BINARY, _one(200, b""), True).serialize(mask=True)
            before = rss_bytes()
            for _ in range(300):
                if transport.is_closing():
                    break
                transport.write(pings + alive)
                while transport.get_write_buffer_size() > 1 << 20 and not transport.is_closing():  # noqa: ASYNC110 - a transport has no event for it
                    await asyncio.sleep(0.001)
            unsent = [made.transport.get_write_buffer_size() for made in there.target._runtime.endpoint._connections]
            grown = rss_bytes() - before
            transport.abort()

        assert max(unsent) < 2 << 20
        assert grown < 12 << 20


@pytest.mark.slow
async def test_a_member_that_ignores_its_credit_is_cut(tmp_path: Path) -> None:
    """16 MiB to an agent that takes nothing, without waiting for credit: a breach, not a memory leak."""
    async with town(tmp_path, messages=IN_THE_CLEAR) as there:

        async def stuck(_: object) -> None:
            await asyncio.Event().wait()

        handle = await there.target.register_agent(9, handler=stuck)
        before = rss_bytes()
        async with member(there) as connection:
            with contextlib.suppress(ConnectionClosed):
                for number in range(256):
                    message = [number + 1, int(MessageType.COMMAND), 1, 9, 0, b"x" * 65_536, 0]
                    await connection.send(_one(Kind.MESSAGES, encode_batch(1, 0, Priority.NORMAL, [message])))
            got, text = await closing(connection)

        assert (got, "credit" in text) == (CloseReason.PROTOCOL_ERROR, True)
        assert rss_bytes() - before < 24 << 20
        await handle.deregister()


@pytest.mark.slow
async def test_a_member_that_asks_and_never_reads_is_bounded(tmp_path: Path) -> None:
    """Queries to nobody, whose refusals are never read: what waits for the peer is bounded, the others go on."""
    async with town(tmp_path, messages=IN_THE_CLEAR) as there:
        async with member(there) as connection:
            connection.transport.pause_reading()
            before = rss_bytes()
            queries = [[number + 1, int(MessageType.QUERY), 1, 404, 0, b"", 0] for number in range(250)]
            frame = _one(Kind.MESSAGES, encode_batch(1, 0, Priority.NORMAL, queries))
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(3):
                    for _ in range(400):
                        await connection.send(frame)
            grown = rss_bytes() - before
            connection.transport.abort()

        assert grown < 96 << 20


@pytest.mark.slow
async def test_a_member_that_invents_members_fills_no_memory(tmp_path: Path) -> None:
    """30,000 invented nodes: the table stays within its bound, and the real members in it."""
    async with town(tmp_path, gossip={"members_max": 1000}) as there:
        async with member(there) as connection:
            before = rss_bytes()
            for start in range(0, 30_000, 500):
                claims = [[f"n{n}", 1 << 16, 0, 1, [["192.0.2.1", 1]], b"x" * 64] for n in range(start, start + 500)]
                await connection.send(_one(Kind.MEMBERSHIP, pack([1, claims])))
            await eventually(lambda: there.target.stats()["gossip"]["members"] >= 900, what="the table is full")
            grown = rss_bytes() - before

        stats = there.target.stats()["gossip"]
        assert stats["members"] + stats["members_gone"] <= 1001
        assert grown < 48 << 20
