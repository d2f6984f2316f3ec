"""What of documents reads a peer's bytes, for the fuzzer: envelopes on their way into a document, updates, vectors."""

from __future__ import annotations

import random

from hostile_updates import TEXTS, VALUES, history

from state.clocks.codec import decode_vector, encode_vector
from state.clocks.vectors import VersionVector, Writer
from state.documents.document import Document
from state.documents.envelope import decode_envelope, encode_envelope
from state.errors import StateError
from state.guards.updates import TEXT_LIMITS, VALUE_LIMITS, read_state_vector, read_update
from state.replication.codec import Ask, Body, Offer, Page, Same, decode, decode_live, encode, encode_live
from state.replication.repair import Heard, PeerUp, RepairConfig, RepairCore, Take, Taken
from transport.types import NodeId

_HERE, _THERE = Writer(NodeId("here"), 1), Writer(NodeId("there"), 1)


class _Epoch:
    """A clock that stands still, so that seeds are the same bytes each time."""

    def wall(self) -> float:
        return 1_800_000_000.0

    def monotonic(self) -> float:
        return 0.0


def _envelopes() -> tuple[bytes, ...]:
    document = Document("board", _THERE, clock=_Epoch())
    document["key"] = {"a": [1, 2.5, b"x", None]}
    document.text("notes").insert(0, "é😀z")
    with document.transaction():
        document.array("list").append(1, "two")
        document.counter("hits").increment()
        document.set("tags").add("red")
        document.register("leader").set("there")
    return tuple(encode_envelope(envelope) for envelope in document.outgoing())


def apply_envelope(data: bytes) -> object:
    """Decode an envelope and apply it to a document that has the first of the seeds."""
    document = Document("board", _HERE, clock=_Epoch())
    document.apply(decode_envelope(ENVELOPE_SEEDS[0]))
    try:
        outcome = document.apply(decode_envelope(data))
    except StateError as error:
        return type(error).__name__
    assert len(document.digest()) == 16
    return outcome


def read_values(data: bytes) -> object:
    """Walk an update of values."""
    return len(read_update(data, None, VALUE_LIMITS).spans)


def read_texts(data: bytes) -> object:
    """Walk an update of texts."""
    return len(read_update(data, None, TEXT_LIMITS).spans)


def read_vectors(data: bytes) -> object:
    """Read a Yjs state vector, and a version vector of ours."""
    if data[:1] == b"\x93":
        return len(decode_vector(data))
    return len(read_state_vector(data))


class _Knowledge:
    """A replica that has three envelopes of its own."""

    version = VersionVector({_HERE: 3})
    held_count = 0

    def history(self) -> bytes:
        return bytes(16)


def repair(data: bytes) -> object:
    """Read what a replica says, and feed it to another one that is pulling from it; what was read can be said again."""
    body = decode(data)
    if body is None:
        return None
    assert decode(encode(body)) == body
    core = RepairCore("board", bytes(8), _Knowledge(), RepairConfig(), random.Random(1), 0.0)
    core.handle(PeerUp(_THERE.node), 0.0)
    core.handle(Heard(_THERE.node, Offer("board", bytes(8), b"\x01" * 16)), 0.0)
    effects = core.handle(Heard(_THERE.node, body), 0.0)
    for effect in effects:
        if isinstance(effect, Take):
            core.handle(Taken(_THERE.node, fresh=1, refused=False), 0.0)
    return type(body).__name__, [type(effect).__name__ for effect in effects]


def live_update(data: bytes) -> object:
    """Read a live update and the envelopes in it."""
    return [type(decode_envelope(raw)).__name__ for raw in decode_live(data)]


ENVELOPE_SEEDS = _envelopes()
_BODIES: tuple[Body, ...] = (
    Offer("board", bytes(8), bytes(16)),
    Same("board", bytes(8), bytes(16)),
    Ask("board", bytes(8), b"\x01" * 16, VersionVector({_HERE: 1, _THERE: 2})),
    Page("board", bytes(8), b"\x01" * 16, ENVELOPE_SEEDS, more=True),
)
REPAIR_SEEDS = tuple(map(encode, _BODIES))
LIVE_SEEDS = (encode_live(list(ENVELOPE_SEEDS)),)
VALUE_SEEDS = tuple(update for _, update in history(VALUES, 1, 12))
TEXT_SEEDS = tuple(update for _, update in history(TEXTS, 1, 12))
VECTOR_SEEDS = (
    b"\x02\x07\x05" + b"\xff\xff\xff\xff\xff\xff\xff\x0f\x09",
    encode_vector(VersionVector({_HERE: 1, _THERE: 2, Writer(NodeId("a"), 3): 4})),
)
