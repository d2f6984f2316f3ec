"""A mutation loop over everything that reads bytes from a peer.

Run it with ``make fuzz`` (ten minutes) or ``make fuzz-short``; ``tests/fuzz/test_fuzzing.py`` replays the corpus and
runs a moment of it in every test run.  No instrumentation, so that it runs on every Python: an input is kept as
parent of further mutations when it produces an outcome not seen before (the text of the refusal with its numbers
taken out, or the shape of what was decoded), which is feedback enough for decoders that explain themselves.

A target may return or raise :class:`~transport.errors.RemoteProtocolError`; anything else is a finding.  So is an input
that takes more than :data:`SECONDS_MAX`, or more than :data:`BYTES_PER_BYTE_MAX` times its size in memory.
Findings are written to ``tests/fuzz/corpus/<target>/`` so that the next test run replays them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import random
import re
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fuzz_documents
import fuzz_raft
import fuzz_sealing
from fuzz_stateful import COURIER_SEEDS, GOSSIP_SEEDS, SESSION_SEEDS, live_courier, live_gossip, live_session

from gossip import codec, hyparview_codec, plumtree_codec
from gossip.config import GossipConfig
from gossip.discovery import txt
from gossip.discovery.base import Announcement
from gossip.events import Member, MemberState
from mesh.messaging.body import Acks, decode_acks, decode_batch, encode_acks, encode_batch
from mesh.messaging.notices import (
    Credit,
    GivenUp,
    Gone,
    Handled,
    Heard,
    Notices,
    Waiting,
    decode_notices,
    encode_notices,
)
from mesh.profile import NodeProfile, decode_profile, encode_profile
from mesh.types import AgentInfo, Priority
from transport import session, wire
from transport.config import LinkConfig
from transport.errors import MeshError, RemoteProtocolError
from transport.identity import certificates, enrolment_messages, keys
from transport.identity.invites import Token, new_token
from transport.identity.names import node_subject
from transport.types import Address, network_name, node_id

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
SECONDS_MAX = 1.0
BYTES_PER_BYTE_MAX = 64
#: What any input may take on top: a decoder's first allocations do not depend on the input's size.  The wire core
#: documents 8 MiB for an instant (``ENVELOPES_MAX``); twice that.
BYTES_BASE = 16 << 20
INPUT_BYTES_MAX = 1 << 17
POOL_MAX = 512

_OURS = wire.Hello(network_name("fuzz"), node_id("here"), 1)
_THEIRS = wire.Hello(
    network_name("fuzz"), node_id("there"), 1 << 16, (Address("10.0.0.1", 7946), Address("::1", 1)), features=("x",)
)
_MEMBER = Member(node_id("there"), 1 << 16, MemberState.SUSPECT, (Address("10.0.0.1", 7946),), 3, b"meta")


# --- targets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads a peer's bytes, and valid inputs to start from."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def _frame(data: bytes) -> object:
    """Decode a frame; what was accepted must survive being sent on."""
    envelopes = wire.decode_frame(data)
    assert wire.decode_frame(wire.encode_frame(envelopes)) == envelopes
    for envelope in envelopes:
        wire.check_sendable(envelope)
    return [envelope.kind for envelope in envelopes[:8]]


def _session(data: bytes) -> object:
    """Feed a frame's envelopes to a session in each phase of its life; it must stay in its table."""
    states = []
    for early in ((), (wire.encode_hello(_THEIRS),)):
        core = session.Session(_OURS, node_id("there"), None, LinkConfig(), 0.0)
        core.handle(session.Started(), 0.0)
        for envelope in (*early, *wire.decode_frame(data)):
            for effect in core.handle(session.Received(envelope), 1.0):
                if isinstance(effect, session.Send):
                    wire.check_sendable(effect.envelope)
                elif isinstance(effect, session.Judge):
                    core.handle(session.Admitted(), 1.0)
        core.handle(session.Ticked(), 100.0)
        states.append(core.state)
    return states


def _first(data: bytes, read: Callable[[wire.Envelope], object]) -> object:
    return read(wire.Envelope(wire.Kind.HELLO, 0, None, None, data))


def _hello(data: bytes) -> object:
    hello = _first(data, wire.decode_hello)
    assert isinstance(hello, wire.Hello)
    return len(hello.addresses), len(hello.features)


def _membership(data: bytes) -> object:
    """Decode a membership body; what was accepted must survive being sent on."""
    body = codec.decode(data, GossipConfig())
    if body is not None:
        assert codec.decode(codec.encode(body), GossipConfig()) == body
    return type(body).__name__


# --- identity: what strangers may send before anybody knows who they are ------------------------------------------

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_AUTHORITY_KEY, _LEAF_KEY = keys.new_tls_key(), keys.new_tls_key()
_AUTHORITY = certificates.build_authority(
    _AUTHORITY_KEY, organisation="peermesh", name="fuzz", not_before=_NOW, not_after=_NOW + timedelta(days=9)
)
_LEAF = certificates.build_leaf(
    _LEAF_KEY.public_key(),
    node_subject(network_name("fuzz"), node_id("there")),
    authority=_AUTHORITY,
    authority_key=_AUTHORITY_KEY,
    not_before=_NOW,
    not_after=_NOW + timedelta(days=9),
)
_REQUEST = certificates.build_request(_LEAF_KEY, node_subject(network_name("fuzz"), node_id("there")))
_TOKEN = new_token(
    network_name("fuzz"), _AUTHORITY, [Address("10.0.0.1", 7946)], now=_NOW, ttl=timedelta(minutes=10)
).encode()
_TXT = txt.encode(
    Announcement(
        network_name("fuzz"),
        node_id("there"),
        1 << 16,
        7946,
        (Address("10.0.0.1", 7946), Address("far.example", 1)),
        "a" * 64,
    )
)


def _typed(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Count any error of ours as a refusal: here the culprit is told by its own type."""

    def refusing(data: bytes) -> object:
        try:
            return read(data)
        except RemoteProtocolError:
            raise
        except (MeshError, txt.BadAnnouncement) as error:
            raise RemoteProtocolError(f"{type(error).__name__} {error}") from error

    return refusing


def _certificate(data: bytes) -> object:
    """A peer's certificate: what is accepted names a node, whatever was changed in it."""
    with warnings.catch_warnings():
        # `cryptography` says of some fields that it will refuse them one day; then that is a refusal like others.
        warnings.simplefilter("ignore")
        certificates.claimed_subject(data)
        node = certificates.verify_peer(data, authority=_AUTHORITY, network=network_name("fuzz"), now=_NOW)
    assert node == "there", f"an altered certificate passed as {node!r}"
    return node


def _request(data: bytes) -> object:
    """A signing request inside an enrolment message."""
    subject, _ = certificates.read_request(enrolment_messages.decode_request(data))
    return subject.role


def _txt(data: bytes) -> object:
    """TXT properties as ``key=value`` separated by NUL."""
    pairs = (part.partition(b"=") for part in data.split(b"\0")[:64])
    claim = txt.decode({key: value if equals else None for key, equals, value in pairs}, 7946)
    return len(txt.dialable(claim, ["10.0.0.2"], loopback=False))


def _token(data: bytes) -> object:
    """A token's bytes under a right checksum, so that mutation gets behind it, and as they are."""
    body = data[4:] if data[:4] == b"pm1." else data
    checksum = hashlib.sha256(b"pm1." + body).digest()[:4]
    text = "pm1." + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")
    return len(Token.decode(text).addresses)


def _token_body() -> bytes:
    text = _TOKEN.removeprefix("pm1.")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4]


def _overlay(data: bytes) -> object:
    """Decode an overlay body; what was accepted must survive being sent on."""
    body = hyparview_codec.decode(data)
    assert body is None or hyparview_codec.decode(hyparview_codec.encode(body)) == body
    return type(body).__name__


def _plumtree(data: bytes) -> object:
    """Decode a body of the broadcast tree; what was accepted must survive being sent on."""
    body = plumtree_codec.decode(data)
    assert body is None or plumtree_codec.decode(plumtree_codec.encode(body)) == body
    return type(body).__name__


def _calls(data: bytes) -> object:
    """Decode what an asker says of its requests; what was accepted must survive being sent on."""
    notices = decode_notices(data)
    assert decode_notices(encode_notices(notices)) == notices
    moves = (len(column) for column in (notices.handled, notices.waiting, notices.gone, notices.heard))
    return len(notices.given_up), len(notices.credit), *moves


_NODE = hyparview_codec.Peer(node_id("there"), (Address("10.0.0.1", 7946),))
_BROADCAST = plumtree_codec.MessageId(node_id("there"), 1, 4)

_AGENT = AgentInfo(7, "there", ("summarize",), "name", ("gpu",), "1.2", {"zone": "eu"})
_MESSAGES = [[1, 1, 42, 7, 8, b"payload", 0], [2, 2, 42, 7, 8, b"", 5, 9, {"k": "v"}, "group"]]

TARGETS: dict[str, Target] = {
    "document-envelope": Target(fuzz_documents.apply_envelope, fuzz_documents.ENVELOPE_SEEDS),
    "document-live": Target(fuzz_documents.live_update, fuzz_documents.LIVE_SEEDS),
    "document-repair": Target(fuzz_documents.repair, fuzz_documents.REPAIR_SEEDS),
    "document-texts": Target(fuzz_documents.read_texts, fuzz_documents.TEXT_SEEDS),
    "document-values": Target(fuzz_documents.read_values, fuzz_documents.VALUE_SEEDS),
    "document-vectors": Target(fuzz_documents.read_vectors, fuzz_documents.VECTOR_SEEDS),
    "frame": Target(
        _frame,
        (
            wire.encode_frame([wire.encode_hello(_THEIRS), wire.encode_bye(1000, "done")]),
            wire.encode_frame([wire.Envelope(32, 8, "a", "b", b"x" * 300)] * 3),
        ),
    ),
    "session": Target(
        _session,
        tuple(
            wire.encode_frame([wire.encode_hello(_THEIRS), wire.Envelope(kind, 0, None, None, b"12345678"), bye])
            for kind in wire.Kind
            for bye in (wire.encode_bye(1000, "done"),)
        ),
    ),
    "hello": Target(_hello, (wire.encode_hello(_THEIRS).body,)),
    "bye": Target(lambda data: _first(data, wire.decode_bye), (wire.encode_bye(4400, "why").body,)),
    "body": Target(wire.unpack_body, (wire.pack({"a": [1, 2.5, None, True, b"x", {"b": "c"}], "d": -(2**40)}),)),
    "membership": Target(
        _membership,
        tuple(
            codec.encode(body)
            for body in (
                codec.Heartbeat(1 << 16, 1234, 3),
                codec.News((_MEMBER, codec.bare(_MEMBER))),
                codec.States((_MEMBER,)),
                codec.Want((node_id("there"),)),
                codec.Digest("a", "z", (codec.Entry(node_id("m"), 5, MemberState.ALIVE, 1),)),
            )
        ),
    ),
    "broadcast": Target(
        lambda data: type(codec.decode_broadcast(data, GossipConfig())).__name__,
        (codec.encode_broadcast(codec.BroadcastBody(node_id("there"), 1 << 16, 4, b"payload")),),
    ),
    "overlay": Target(
        _overlay,
        tuple(
            hyparview_codec.encode(body)
            for body in (
                hyparview_codec.Join(),
                hyparview_codec.ForwardJoin(3, _NODE),
                hyparview_codec.Neighbor(hyparview_codec.Priority.HIGH, 4),
                hyparview_codec.Reply(accepted=True, degree=3),
                hyparview_codec.Disconnect(_NODE),
                hyparview_codec.Shuffle(2, (node_id("there"), node_id("third")), (_NODE,)),
                hyparview_codec.ShuffleReply((node_id("there"),), (_NODE, _NODE)),
            )
        ),
    ),
    "plumtree": Target(
        _plumtree,
        tuple(
            plumtree_codec.encode(body)
            for body in (
                plumtree_codec.Gossip(2, 17, b"sealed"),
                plumtree_codec.IHave((plumtree_codec.Announcement(_BROADCAST, 5, 2, 300),)),
                plumtree_codec.Graft((_BROADCAST,)),
                plumtree_codec.Prune(),
                plumtree_codec.Sync(answer=False, since_ms=5, after="a", upto="z", summaries=()),
            )
        ),
    ),
    "messages": Target(
        lambda data: len(decode_batch(data).messages), (encode_batch(5, 1_700_000_000_000, Priority.HIGH, _MESSAGES),)
    ),
    "acks": Target(
        lambda data: len(decode_acks(data).delivered), (encode_acks(Acks([(7, 1000)], [(1, 5), (9, 2)], [(6, 1)])),)
    ),
    "calls": Target(
        _calls,
        (
            encode_notices(Notices([GivenUp(1, 2, 3), GivenUp(4, 0, 2**64 - 1)], [Credit(1, 300, 1 << 20)])),
            encode_notices(
                Notices(
                    handled=[Handled(7, 0, 300, 0, 299)],
                    waiting=[Waiting(7, 301, 4), Waiting(7, 310, 1)],
                    gone=[Gone(7, 1, 0, 310, 0, 299)],
                    heard=[Heard(2**64 - 1, 1, 3)],
                )
            ),
        ),
    ),
    "live_session": Target(live_session, SESSION_SEEDS),
    "live_gossip": Target(live_gossip, GOSSIP_SEEDS),
    "live_courier": Target(live_courier, COURIER_SEEDS),
    "sealed": Target(fuzz_sealing.sealed, fuzz_sealing.SEALED_SEEDS),
    "keys": Target(fuzz_sealing.keys, fuzz_sealing.KEYS_SEEDS),
    "grant": Target(fuzz_sealing.grant, fuzz_sealing.GRANT_SEEDS),
    "sealed-group": Target(fuzz_sealing.sealed_for_many, fuzz_sealing.GROUP_SEEDS),
    "certificate": Target(_typed(_certificate), (certificates.der(_LEAF),)),
    "request": Target(_typed(_request), (enrolment_messages.encode_request(_REQUEST),)),
    "answer": Target(_typed(enrolment_messages.decode_answer), (enrolment_messages.encode_answer(b"chain"),)),
    "token": Target(_typed(_token), (_token_body(),)),
    "raft": Target(fuzz_raft.read_message, fuzz_raft.RAFT_SEEDS),
    "live_raft": Target(fuzz_raft.live_member, fuzz_raft.RAFT_SEEDS),
    "txt": Target(_typed(_txt), ("\0".join(f"{key}={value}" for key, value in _TXT.items()).encode(),)),
    "profile": Target(
        lambda data: len(decode_profile(data, "there").agents),
        (encode_profile(NodeProfile(maintenance=True, metadata={"rack": "1"}, agents=(_AGENT,), can_issue=True)),),
    ),
}


def known_inputs(name: str) -> list[bytes]:
    """The seeds of a target and what is kept of earlier runs."""
    return [*TARGETS[name].seeds, *(path.read_bytes() for path in sorted((CORPUS / name).glob("*.bin")))]


# --- one input --------------------------------------------------------------------------------------------------


class Finding(Exception):
    """An input that a target does not handle."""


def outcome(read: Callable[[bytes], object], data: bytes) -> str:
    """What the target makes of ``data``, without the numbers; equal outcomes mean nothing new was reached.

    Raises:
        Finding: Another error than a refusal, or too slow.
    """
    result, seconds = _timed(read, data)
    if seconds > SECONDS_MAX:
        # The interpreter may collect the fuzzer's own garbage in the midst of any input: slow is what stays slow.
        seconds = min(_timed(read, data)[1] for _ in range(3))
    if seconds > SECONDS_MAX:
        raise Finding(f"took {seconds:.1f} s for {len(data)} bytes")
    return re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "#", result)[:160]


def _timed(read: Callable[[bytes], object], data: bytes) -> tuple[str, float]:
    """What the target answered, and in how many seconds of processor time; a busy machine's clock accuses anyone."""
    started = time.thread_time()
    try:
        result = f"read {read(data)!r}"
    except RemoteProtocolError as error:
        result = f"refused {error.code} {error.message}"
    except Exception as error:  # whatever else it raises is what we are looking for
        raise Finding(f"{type(error).__name__}: {error}") from error
    return result, time.thread_time() - started


def check_memory(read: Callable[[bytes], object], data: bytes) -> None:
    """Read ``data`` and compare the peak of what was allocated with its bound.

    Raises:
        Finding: It was more.
    """
    tracemalloc.start()
    try:
        outcome(read, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > BYTES_BASE + BYTES_PER_BYTE_MAX * len(data):
        raise Finding(f"allocated {peak} bytes for {len(data)}")


# --- mutation ---------------------------------------------------------------------------------------------------

# Headers of MessagePack that promise much, and edges of its integers.
_NASTY = (
    *(bytes([first]) for first in (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x91, 0x9F, 0xA0, 0xC0, 0xC1, 0xC4, 0xD9, 0xE0, 0xFF)),
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdc\x04\x00",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\x00" * 7,
    b"\xcb\x7f\xf8" + b"\x00" * 6,
    b"\xa4\xff\xfe\xed\xa0",
    b"\x91" * 40,
    b"\x81\xa1a" * 40,
)


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A few random edits of ``data``, now and then with a piece of ``other``."""
    edited = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(edited) + 1)
        match rng.randrange(8):
            case 0 if at < len(edited):
                edited[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(edited):
                edited[at] = rng.randrange(256)
            case 2:
                del edited[at : at + rng.randrange(1, 9)]
            case 3:
                edited[at:at] = rng.choice(_NASTY)
            case 4:
                piece = rng.choice(_NASTY)
                edited[at : at + len(piece)] = piece
            case 5:
                begin = rng.randrange(len(other) + 1)
                edited[at:at] = other[begin : begin + rng.randrange(1, 65)]
            case 6:
                begin = rng.randrange(len(edited) + 1)
                edited[at:at] = edited[begin : begin + rng.randrange(1, 33)] * rng.choice((1, 2, 16, 300))
            case _:
                del edited[at:]
    return bytes(edited[:INPUT_BYTES_MAX])


# --- the loop ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """What a run did."""

    inputs: int = 0
    outcomes: int = 0
    findings: list[str] = field(default_factory=list)


def run(name: str, seconds: float, seed: int, *, keep: bool = True) -> Report:
    """Mutate inputs of one target for a while.

    Args:
        name: Which of :data:`TARGETS`.
        seconds: For how long.
        seed: Draws everything; printed by :func:`main`.
        keep: Whether findings are written to the corpus.
    """
    rng = random.Random(seed)
    read = TARGETS[name].read
    pool = known_inputs(name)
    seen: set[str] = set()
    report = Report()
    deadline = time.monotonic() + seconds
    waiting: Iterable[bytes] = tuple(pool)
    while time.monotonic() < deadline and len(report.findings) < 10:
        for data in waiting:
            report.inputs += 1
            try:
                if report.inputs % 50 == 0:
                    check_memory(read, data)
                reached = outcome(read, data)
            except Finding as finding:
                report.findings.append(f"{name}: {finding}{_keep(name, data) if keep else ''}")
                continue
            if reached not in seen:
                seen.add(reached)
                if len(pool) >= POOL_MAX:
                    pool[rng.randrange(POOL_MAX)] = data
                else:
                    pool.append(data)
        waiting = [mutate(rng.choice(pool), rng.choice(pool), rng) for _ in range(64)]
    report.outcomes = len(seen)
    return report


def _keep(name: str, data: bytes) -> str:
    path = CORPUS / name / f"finding-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f" ({path.relative_to(CORPUS.parent.parent.parent)})"


def main() -> int:
    """Divide the time among the targets, print what happened and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn and printed")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    names = options.target or sorted(TARGETS)
    print(f"fuzz: seed {seed}, {options.seconds:g} s over {', '.join(names)}", flush=True)
    failed = 0
    for name in names:
        report = run(name, options.seconds / len(names), seed)
        failed += len(report.findings)
        counts = f"{report.inputs:>9} inputs {report.outcomes:>5} outcomes {len(report.findings)} findings"
        print(f"  {name:<12} {counts}", flush=True)
        for finding in report.findings:
            print(f"    {finding}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
