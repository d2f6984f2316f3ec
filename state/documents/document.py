"""One replica of a document.

What users do is staged, checked, and then done at once; what other replicas did comes in as envelopes through the
guards.  The document talks to nobody itself: :meth:`Document.outgoing` hands out the envelopes to persist and send,
:meth:`Document.apply` takes in those that came, in any order and any number of times.

*Transactions.*  pycrdt has no rollback: an exception within one of its transactions commits what was done so far.  So
within ``with doc.transaction():`` nothing reaches pycrdt.  Each operation is checked and added to a list of steps,
reads see the staged result, and only when the block ends without an exception all steps are done together.  A write
outside of a block is a transaction of its own.  Should somebody else's change arrive while a block is open (it awaited
something), the block ends with :class:`~state.errors.TransactionConflict`, and nothing of it was done.

*One thread.*  A document belongs to the thread that made it, which is the event loop's.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

from state.clocks.codec import WRITER_BYTES_MAX, WRITERS_MAX
from state.clocks.hybrid import DRIFT_MS_MAX, HybridClock, Timestamp
from state.clocks.vectors import Dot, Span, VersionVector, Writer
from state.errors import (
    DivergentHistory,
    StateError,
    TooManyWriters,
    TransactionConflict,
    TransactionTooLarge,
    UpdateRefused,
)
from state.guards.holdback import HoldBack, HoldBackLimits, Parcel, Verdict
from state.guards.updates import TEXT_LIMITS, VALUE_LIMITS, Limits, Shape, check_fits, read_update
from state.guards.values import Value, decode_value
from transport.clock import Clock, SystemClock
from transport.logs import get_logger
from transport.wire import BODY_BYTES_MAX, pack

from .containers import ArrayContainer, Counter, MapContainer, Register, SetContainer, TextContainer
from .engine import Engine, Touched, Updates
from .envelope import DOCUMENT_BYTES_MAX, Envelope, client_of, fingerprint, first_lineage
from .events import Change
from .names import Kind, Name, name_of
from .splices import Splice
from .staging import Staging
from .watching import Changes

log = get_logger("mesh.state")

#: Envelopes that wait to be taken by :meth:`Document.outgoing`: a minute of fast typing by a program that forgot to.
OUTGOING_MAX: Final = 65_536
#: The largest update in a snapshot.
SNAPSHOT_BYTES_MAX: Final = 64 << 20

#: The largest envelope that is made: with what else a body or broadcast has, it still can be sent.
ENVELOPE_BYTES_MAX: Final = BODY_BYTES_MAX - (16 << 10)

_HISTORY_MAX: Final = (1 << 128) - 1

_ROOT: Final = Name(Kind.MAP)


class Outcome(enum.Enum):
    """What became of an envelope."""

    APPLIED = "applied"
    """It is in the content now, and whatever had waited for it."""
    HELD = "held"
    """It waits for others, see :meth:`Document.missing`."""
    DUPLICATE = "duplicate"
    """It was known."""
    OVERFLOW = "overflow"
    """Too much waits already; it was dropped and has to be sent again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of a document: what a late replica starts from."""

    document: str
    lineage: bytes
    version: VersionVector
    history: bytes
    stamp: Timestamp
    values: bytes
    texts: bytes


class _Checked:
    """An envelope whose updates were read."""

    __slots__ = ("client", "envelope", "texts", "values")

    def __init__(self, envelope: Envelope, client: int) -> None:
        self.envelope = envelope
        self.client = client
        self.values = read_update(envelope.values, client, VALUE_LIMITS) if envelope.values else None
        self.texts = read_update(envelope.texts, client, TEXT_LIMITS) if envelope.texts else None


class Document:
    """A replica of a document, written to by one writer.

    Args:
        name: The document's name, at most 255 bytes.
        writer: Who writes through this replica.  A writer must never open a document again without all that it wrote
            before; a new process is a new writer, so only a replica that is closed and opened within one life must
            be restored from its store.
        lineage: Which history of the name; ``None``: the first.
        clock: Where to read the time for stamps.
        drift_ms_max: How far ahead of our clock the stamp of a remote envelope may be.
        limits: How much may wait for what it builds on.
    """

    def __init__(
        self,
        name: str,
        writer: Writer,
        *,
        lineage: bytes | None = None,
        clock: Clock | None = None,
        drift_ms_max: int = DRIFT_MS_MAX,
        limits: HoldBackLimits | None = None,
    ) -> None:
        if not 0 < len(name.encode()) <= DOCUMENT_BYTES_MAX:
            raise StateError(f"document name of {len(name.encode())} bytes is not within 1 to {DOCUMENT_BYTES_MAX}")
        self.name = name
        self.writer = writer
        self.lineage = first_lineage(name) if lineage is None else lineage
        self._clock = clock or SystemClock()
        self._hybrid = HybridClock(drift_ms_max)
        self._limits = limits
        self._client_ids: dict[Writer, int] = {}
        self._engine = Engine(self._client_of(writer))
        self._held: HoldBack[_Checked] = HoldBack(limits=limits)
        self._clients: dict[int, Writer] = {self._client_of(writer): writer}
        # By document of the engine (values, texts): how many clocks of each client are in.
        self._clocks: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._heard: dict[Writer, int] = {}
        self._names: dict[Name, None] = {}
        self._outgoing: list[Envelope] = []
        self._closed = False
        self._committed: Callable[[], None] | None = None
        self._applied: Callable[[Dot], None] | None = None
        self._staging: Staging | None = None
        self._watchers: dict[Callable[[Change], None], None] = {}
        self._revision = 0
        self._history = 0
        self._digest: tuple[int, bytes] = (-1, b"")
        self._map = MapContainer(self, _ROOT)

    # --- content ---

    def __getitem__(self, key: str) -> Value:
        return self._map[key]

    def __setitem__(self, key: str, value: Value) -> None:
        self._map[key] = value

    def __delitem__(self, key: str) -> None:
        del self._map[key]

    def __contains__(self, key: object) -> bool:
        return key in self._map

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    @property
    def root(self) -> MapContainer:
        """The document's own map, which ``doc[key]`` reads and writes."""
        return self._map

    def map(self, key: str) -> MapContainer:
        """The map of this name."""
        return self._map.map(key)

    def array(self, key: str) -> ArrayContainer:
        """The array of this name."""
        return self._map.array(key)

    def text(self, key: str) -> TextContainer:
        """The text of this name."""
        return self._map.text(key)

    def counter(self, key: str) -> Counter:
        """The counter of this name."""
        return self._map.counter(key)

    def set(self, key: str) -> SetContainer:
        """The set of this name."""
        return self._map.set(key)

    def register(self, key: str) -> Register:
        """The register of this name."""
        return self._map.register(key)

    def containers(self) -> list[Name]:
        """Every container that was ever written to, or opened here; sorted by kind and path."""
        return sorted(self._names, key=lambda name: name.root)

    # --- writing ---

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do what the block does at once when it ends, or, if it raises, not at all.

        Raises:
            TransactionConflict: Somebody else's change arrived while the block was open; nothing was done.
            StateError: There is a transaction already; nothing was done.
        """
        if self._staging is not None:
            raise StateError("a transaction of this document is open already", hint="do everything in one block")
        staging = self._staging = Staging(self._engine)
        revision = self._revision
        try:
            yield
        finally:
            self._staging = None
        if self._revision != revision:
            raise TransactionConflict(
                f"document {self.name!r} changed while a transaction was open", hint="do not await within the block"
            )
        self._commit(staging)

    def stage(self, stage: Callable[[Staging], None]) -> None:
        """Have ``stage`` add its steps: to the open transaction, or to one of their own.  For containers."""
        if self._staging is not None:
            stage(self._staging)
            return
        staging = Staging(self._engine)
        stage(staging)
        self._commit(staging)

    def look(self) -> Staging:
        """What reads read: the content, with what the open transaction has staged.  For containers."""
        return self._staging or Staging(self._engine)

    def tick(self) -> Timestamp:
        """A stamp for something written now."""
        return self._hybrid.tick(self._now_ms())

    def next_dot(self) -> Dot:
        """The number that the next envelope of this writer will have."""
        return Dot(self.writer, self._held.counter(self.writer) + 1)

    def _commit(self, staging: Staging) -> None:
        if not staging.steps:
            return
        if self._closed:
            raise StateError(f"document {self.name!r} is closed: this node has left", hint="open it on a running node")
        if len(self._outgoing) >= OUTGOING_MAX:
            raise StateError(f"{OUTGOING_MAX} changes wait to be sent", hint="let the disk catch up: await saved()")
        self._check_writers(self.writer)
        if staging.size_bytes + WRITER_BYTES_MAX * len(self._heard) > ENVELOPE_BYTES_MAX:
            raise TransactionTooLarge(
                f"{staging.size_bytes} bytes and what was heard of {len(self._heard)} writers do not fit one envelope",
                hint="do it in several transactions",
            )
        stamp = self.tick()  # may raise, so before anything is done
        updates, touched = self._engine.commit(staging.steps)
        dot = self.next_dot()
        client = self._client_of(self.writer)
        for clocks, length in zip(self._clocks, staging.clocks, strict=True):
            clocks[client] = clocks.get(client, 0) + length
        envelope = Envelope(
            self.name, self.lineage, dot, VersionVector(self._heard), stamp, updates.values, updates.texts
        )
        self._outgoing.append(envelope)
        if self._committed is not None:
            self._committed()
        self._history = (self._history + fingerprint(envelope)) & _HISTORY_MAX
        self._heard.clear()
        self._held.settle(dot)
        self._changed(touched, self.writer, local=True)

    # --- replication ---

    @property
    def version(self) -> VersionVector:
        """What of each writer is in the content."""
        return self._held.known

    def outgoing(self, count_max: int | None = None) -> list[Envelope]:
        """The envelopes that were made here since the last call, or the first of them: persist them, then send them."""
        taken = self._outgoing[:count_max]
        del self._outgoing[:count_max]
        return taken

    def attach(self, *, committed: Callable[[], None], applied: Callable[[Dot], None]) -> None:
        """Have a store told in which order envelopes come into the content, which is causal.

        Args:
            committed: One more was made here; it is the next of :meth:`outgoing`.
            applied: One of somebody else is in, at once or after it was held.
        """
        self._committed, self._applied = committed, applied

    def close(self) -> None:
        """Refuse every further write; reading goes on."""
        self._closed = True

    def missing(self) -> list[Span]:
        """What keeps held envelopes from being applied."""
        return self._held.missing()

    def holds(self, dot: Dot) -> bool:
        """Whether that envelope waits for others."""
        return self._held.holds(dot)

    @property
    def held_count(self) -> int:
        """How many envelopes wait for others."""
        return len(self._held)

    def apply(self, envelope: Envelope, *, stored: bool = False) -> Outcome:
        """Take in an envelope of an authenticated origin: ``envelope.dot.writer`` is who it says.

        Args:
            envelope: What came.
            stored: It comes from this replica's own store, so its stamp was accepted before, whatever has happened to
                the machine's clock since.

        Raises:
            DivergentHistory: It is of another lineage of this document; nothing was changed.
            TooManyWriters: It is of one more writer than a document can have; nothing was changed.
            ClockDrift: Its stamp is too far in the future; nothing was changed, and it may be sent again later.
            UpdateRefused: No honest writer would have made it, or, if it had waited, one that it released; the bad
                one and what waits behind it is dropped, and what came before is applied.
        """
        if (envelope.document, envelope.lineage) != (self.name, self.lineage):
            raise DivergentHistory(
                f"envelope is of document {envelope.document!r}, lineage {envelope.lineage.hex()}, and this replica is "
                f"of {self.name!r}, lineage {self.lineage.hex()}",
                hint="these are different documents of one name: rename one, or start this replica from the other",
            )
        writer = envelope.dot.writer
        if envelope.dot.counter <= self._held.counter(writer):
            return Outcome.DUPLICATE
        if writer == self.writer:
            raise DivergentHistory(
                f"{writer} has written {envelope.dot.counter} envelopes, and this replica, which is that writer, knows "
                f"{self._held.counter(writer)}",
                hint="its data was restored from an old copy, or copied: start it as a new process",
            )
        client = self._client_of(writer)
        if self._clients.setdefault(client, writer) != writer:
            raise UpdateRefused(f"{writer} has the client id of {self._clients[client]}")
        self._check_writers(writer)
        checked = _Checked(envelope, client)
        if not stored:
            self._hybrid.check(envelope.stamp, self._now_ms())
        needs = tuple(envelope.needs) if len(envelope.needs) else ()
        parcel = Parcel(envelope.dot, needs, envelope.size_bytes, checked)
        verdict = self._held.offer(parcel)
        if verdict is Verdict.READY:
            self._apply_ready(parcel)
            return Outcome.APPLIED
        return _OUTCOMES[verdict]

    def _apply_ready(self, parcel: Parcel[_Checked]) -> None:
        ready = deque([parcel])
        refused: UpdateRefused | None = None
        while ready:
            parcel = ready.popleft()
            try:
                self._apply_one(parcel.content)
            except UpdateRefused as error:
                self._held.forget(parcel.dot.writer)
                refused = refused or error
            else:
                ready.extend(self._held.settle(parcel.dot))
        if refused is not None:
            raise refused

    def _apply_one(self, checked: _Checked) -> None:
        envelope = checked.envelope
        shapes = (checked.values, checked.texts)
        for shape, clocks in zip(shapes, self._clocks, strict=True):
            if shape is not None:
                check_fits(shape, clocks)
        for shape in shapes:
            self._learn_names(shape)
        try:
            touched = self._engine.apply(Updates(envelope.values, envelope.texts))
        except (RuntimeError, ValueError) as error:  # what pycrdt raises about updates; the guards should leave it none
            raise UpdateRefused(f"pycrdt refused an update of {envelope.dot.writer}: {error}"[:300]) from error
        for shape, clocks in zip(shapes, self._clocks, strict=True):
            if shape is not None:
                for client, (_, end) in shape.spans.items():
                    clocks[client] = end
        self._history = (self._history + fingerprint(envelope)) & _HISTORY_MAX
        self._heard[envelope.dot.writer] = envelope.dot.counter
        self._hybrid.take(envelope.stamp)
        if self._applied is not None:
            self._applied(envelope.dot)
        self._changed(touched, envelope.dot.writer, local=False)

    def _learn_names(self, shape: Shape | None) -> None:
        """Note new containers, and open them if somebody watches, so that even their first change is told."""
        for root in shape.roots if shape is not None else ():
            name = name_of(root)
            if name is not None:
                self._names[name] = None
                if self._watchers:
                    self._engine.watch(name)

    # --- snapshots and digests ---

    def snapshot(self) -> Snapshot:
        """Everything that is in the content now; not what is held."""
        updates = self._engine.encoded()
        return Snapshot(
            self.name, self.lineage, self.version, self.history(), self._hybrid.last, updates.values, updates.texts
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot; for a replica that has nothing yet.

        Raises:
            StateError: This replica has content, or the snapshot is of another document.
            UpdateRefused: The snapshot is not well-formed or holds what its version does not cover; nothing was done.
        """
        if len(self.version) or self._held:
            raise StateError("only an empty replica can start from a snapshot")
        if (snapshot.document, snapshot.lineage) != (self.name, self.lineage):
            raise StateError(f"the snapshot is of document {snapshot.document!r}, lineage {snapshot.lineage.hex()}")
        clients = {self._client_of(writer): writer for writer, _ in snapshot.version}
        shapes = []
        for update, limits in ((snapshot.values, VALUE_LIMITS), (snapshot.texts, TEXT_LIMITS)):
            shape = read_update(update, None, _whole(limits)) if update else None
            if shape is not None:
                check_fits(shape, {})
                if any(client not in clients for client in shape.spans):
                    raise UpdateRefused("snapshot has blocks of a writer that its version does not name")
            shapes.append(shape)
        self._clients |= clients
        for shape, clocks in zip(shapes, self._clocks, strict=True):
            self._learn_names(shape)
            if shape is not None:
                clocks.update({client: end for client, (_, end) in shape.spans.items()})
        self._engine.apply(Updates(snapshot.values, snapshot.texts))
        self._held = HoldBack(snapshot.version, self._limits)
        self._history = int.from_bytes(snapshot.history) & _HISTORY_MAX
        self._heard = dict(snapshot.version)
        self._hybrid = HybridClock(self._hybrid.drift_ms_max, max(self._hybrid.last, snapshot.stamp))
        self._changed([], self.writer, local=False)

    def history(self) -> bytes:
        """16 bytes over all envelopes that are in the content: equal when two replicas have applied the same ones.

        Costs nothing to ask, so this is what replicas compare all the time.  It also differs when two envelopes were
        given one number, which version vectors do not show.  It does not look at the content (:meth:`digest` does).
        """
        return self._history.to_bytes(16)

    def digest(self) -> bytes:
        """16 bytes over the whole content: equal on two replicas exactly when they read the same.

        Takes time in proportion to the content, once for each change.
        """
        if self._digest[0] != self._revision:
            self._digest = self._revision, _digest(self._engine, self.containers())
        return self._digest[1]

    # --- watching ---

    def changes(self) -> Changes:
        """Each change from now on, ours and others': ``async for change in doc.changes()``."""
        changes = Changes(lambda ended: self._unwatch(ended.put))
        self._watch(changes.put)
        return changes

    def observe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Have ``callback`` called after each change; it must not write.  Returns what ends it."""
        self._watch(callback)
        return lambda: self._unwatch(callback)

    def _watch(self, watcher: Callable[[Change], None]) -> None:
        self._watchers[watcher] = None
        for name in self._names:
            self._engine.watch(name)

    def _unwatch(self, watcher: Callable[[Change], None]) -> None:
        self._watchers.pop(watcher, None)

    def _changed(self, touched: list[Touched], writer: Writer, *, local: bool) -> None:
        self._revision += 1
        for name, keys, splices in touched:
            self._names[name] = None
            if self._watchers:
                shown = keys if name.kind is Kind.MAP else ()
                change = Change(name, writer, local, shown, tuple(map(_shown, splices)))
                for watcher in list(self._watchers):
                    try:
                        watcher(change)
                    except Exception:
                        # A watcher is somebody else's code; the change is done and stays so.
                        log.exception("document watcher failed", document=self.name, container=str(name))

    # --- odds and ends ---

    def _check_writers(self, writer: Writer) -> None:
        if not self._held.counter(writer) and self._held.writers >= WRITERS_MAX:
            raise TooManyWriters(
                f"document {self.name!r} was written by {WRITERS_MAX} processes and can take no other",
                hint="copy its content into a document of another name",
            )

    def _client_of(self, writer: Writer) -> int:
        client = self._client_ids.get(writer)
        if client is None:
            client = self._client_ids[writer] = client_of(self.name, self.lineage, writer)
        return client

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)


_OUTCOMES: Final = {
    Verdict.HELD: Outcome.HELD,
    Verdict.DUPLICATE: Outcome.DUPLICATE,
    Verdict.OVERFLOW: Outcome.OVERFLOW,
}


def _whole(limits: Limits) -> Limits:
    """The limits for a whole document."""
    return replace(limits, size_bytes_max=SNAPSHOT_BYTES_MAX)


def _digest(engine: Engine, names: list[Name]) -> bytes:
    """A hash over what can be read; empty containers are as good as none."""
    total = blake2b(digest_size=16)
    for name in names:
        content: object
        if name.kind is Kind.TEXT:
            content = engine.string(name)
        elif name.kind is Kind.ARRAY:
            content = engine.items(name)
        else:
            content = list(engine.entries(name).items())
        if content:
            total.update(pack([name.root, content]))
    return total.digest()


def _shown(splice: Splice[Any]) -> Splice[Any]:
    """A splice as users see it: an array's leaves as values."""
    if isinstance(splice.inserted, list):
        return splice._replace(inserted=[decode_value(leaf) for leaf in splice.inserted])
    return splice
