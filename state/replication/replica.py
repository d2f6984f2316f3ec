"""One document of one node, alive: its content, its log on disk, its group, and its repair.

What is done here is in the content at once, then written, and published when it is on disk.  What others did goes
through the guards, into the content, and to disk.  Both go to disk in one row, the order in which they came into the
content, so the log needs no hold-back when it is replayed, holds nothing that the guards refused, and never has an
envelope of ours before what it builds on.  Nobody is sent anything that is not on disk here.

Nothing here awaits: the journal calls back for each transaction, and what was received is applied in slices of a few
milliseconds, between which the loop runs.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from state.clocks.vectors import Dot, Span, Writer
from state.documents.document import Document, Outcome
from state.documents.envelope import Envelope, decode_envelope, encode_envelope
from state.errors import ClockDrift, DivergentHistory, StateError, StorageError, TooManyWriters, UpdateRefused
from state.store import DocumentLog
from transport.clock import Clock
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import NodeId

from .codec import Body, Page, decode_live, encode_live
from .repair import (
    Diverged,
    Heard,
    PeerDown,
    PeerUp,
    RepairConfig,
    RepairCore,
    RepairEvent,
    Say,
    Serve,
    Take,
    Taken,
    Ticked,
    Unsent,
    Waiting,
)

log = get_logger("mesh.state")

#: How long one slice of work may take: a tenth of what would be felt.
SLICE_S: Final = 0.005
#: What was received and waits to be applied, of one document; more is dropped, and comes again by repair.
INBOX_BYTES_MAX: Final = 8 << 20
#: One page of envelopes, unless a single one is larger: some milliseconds of applying.
PAGE_BYTES: Final = 128 << 10
PAGE_ENVELOPES: Final = 256
#: One live update, likewise.
LIVE_BYTES: Final = 48 << 10
LIVE_ENVELOPES: Final = 256
#: What one submission to the disk holds.
BATCH_ENVELOPES: Final = 512
#: After the disk refused: how soon it is tried again.
DISK_RETRY_S: Final = 1.0
#: Changes of others that wait for the disk before no more are applied.
UNSAVED_MAX: Final = 65_536


class Surroundings(Protocol):
    """What a replica needs of the node."""

    def say(self, peer: NodeId, body: Body) -> None:
        """Send a body to a peer, or forget it."""
        ...

    def publish(self, document: str, payload: bytes) -> None:
        """Send a live update to the document's group.

        Raises:
            LocalProtocolError: It cannot go.
        """
        ...

    def cut(self, peer: NodeId, reason: str) -> None:
        """Close the link to a peer that does not keep to the protocol."""
        ...


class _Arrived(NamedTuple):
    """An envelope to be applied."""

    raw: bytes
    envelope: Envelope
    page_of: NodeId | None
    """Who sent it on request; ``None``: a live update."""


class _PageEnd(NamedTuple):
    """All of a page was applied."""

    peer: NodeId


class _Entry(NamedTuple):
    """What goes to disk next."""

    dot: Dot
    raw: bytes
    local: bool


class Replica:
    """A document that is stored and replicated; open it by :meth:`load`.

    Args:
        document: Empty; nobody else may take its outgoing envelopes or apply any.
        store: Its log.
        around: The node.
        clock: Monotonic time.
        rng: Of repair.
        config: Of repair.
    """

    def __init__(
        self,
        document: Document,
        store: DocumentLog,
        around: Surroundings,
        *,
        clock: Clock,
        rng: random.Random,
        config: RepairConfig,
    ) -> None:
        self.document = document
        self._log = store
        self._around = around
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._scope = TaskScope(f"document {document.name}")
        self._core = RepairCore(document.name, document.lineage, document, config, rng, clock.monotonic())
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        # Where in the log each writer's envelopes are: that of counter n at n - 1.  Eight bytes an envelope.
        self._places: dict[Writer, array[int]] = {}
        self._next_number = 0
        # What the log holds that could not be applied yet when it was replayed, because a record before it was damaged.
        self._stranded: dict[Dot, int] = {}
        # The bytes of envelopes that the document holds back, or is applying.
        self._raw: dict[Dot, bytes] = {}
        # What came into the content and is not on its way to disk: of others with the bytes, of ours a mark that the
        # next outgoing envelope stands here.  Bounded by UNSAVED_MAX and by the document's own OUTGOING_MAX.
        self._unsaved: deque[tuple[Dot, bytes] | None] = deque()
        self._saving: list[_Entry] = []
        self._save_scheduled = False
        self._made = self._saved = 0
        self._savers: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._inbox: deque[_Arrived | _PageEnd] = deque()
        self._inbox_bytes = 0
        self._drain_scheduled = False
        # Of the pages that are being applied.
        self._page_refused: dict[NodeId, None] = {}
        self._page_fresh: dict[NodeId, int] = {}
        self._serving: dict[NodeId, None] = {}
        self._settlers: list[asyncio.Future[None]] = []
        self._reported_at: dict[str, float] = {}
        names = ("local", "applied", "held", "duplicates", "overflow", "refused", "drifted", "forged", "divergent")
        self.counters = dict.fromkeys((*names, "inbox_dropped", "pages_sent", "live_sent", "disk_failures"), 0)

    # --- opening and closing ------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the log into the document, in slices, and begin to note what comes.

        Raises:
            StorageError: The disk refused.
        """
        self.document.attach(committed=self._committed, applied=self._replayed)
        after = -1
        while page := await self._log.replay(after):
            began = self._clock.monotonic()
            for number, raw in page:
                after = number
                self._replay(number, raw)
                if self._clock.monotonic() - began > SLICE_S:
                    await asyncio.sleep(0)
                    began = self._clock.monotonic()
        self._next_number = after + 1
        self.document.attach(committed=self._committed, applied=self._applied)
        if self._stranded:
            log.error("document has a hole", document=self.document.name, waiting=len(self._stranded))
            self._feed(Waiting())
        self._reschedule()

    def _replay(self, number: int, raw: bytes) -> None:
        try:
            envelope = decode_envelope(raw)
            dot = envelope.dot
            if dot in self._stranded or dot.counter <= len(self._places.get(dot.writer, ())):
                return
            self._stranded[dot] = number
            if self.document.apply(envelope, stored=True) is Outcome.HELD:
                self._raw[dot] = raw
        except (StateError, RemoteProtocolError) as error:
            # It was sound when it was written: either the store was tampered with, or a record before it is missing.
            self.counters["refused"] += 1
            self._report("stored envelope refused", reason=error.message)

    def _replayed(self, dot: Dot) -> None:
        """In replay, an envelope is in its place already."""
        self._place(dot, self._stranded.pop(dot))
        self._raw.pop(dot, None)

    async def close(self) -> None:
        """Save what is done and stop; what the disk refuses then is lost, as :meth:`saved` has told or would tell."""
        if self._closed:
            return
        self.document.close()
        try:
            await self.saved()
        except StorageError:
            log.exception("changes of a document are lost", document=self.document.name)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._scope.close()
        for future in self._settlers:
            future.cancel()

    # --- saving -------------------------------------------------------------------------------------------------

    def _committed(self) -> None:
        self.counters["local"] += 1
        self._unsaved.append(None)
        self._noted()

    def _applied(self, dot: Dot) -> None:
        self.counters["applied"] += 1
        self._unsaved.append((dot, self._raw.pop(dot)))
        self._noted()

    def _noted(self) -> None:
        self._made += 1
        if not self._save_scheduled and not self._saving:
            self._save_scheduled = True
            self._loop.call_soon(self._save)

    def _save(self) -> None:
        """Give the disk what has come since it was last given something."""
        self._save_scheduled = False
        if not self._saving:
            self._saving = self._take_unsaved()
        if not self._saving:
            return
        put = [(self._next_number + offset, entry.raw) for offset, entry in enumerate(self._saving)]
        take = [self._stranded[entry.dot] for entry in self._saving if entry.dot in self._stranded]
        self._log.submit(put, take, self._written)

    def _take_unsaved(self) -> list[_Entry]:
        taken = [self._unsaved.popleft() for _ in range(min(BATCH_ENVELOPES, len(self._unsaved)))]
        ours = iter(self.document.outgoing(taken.count(None)))
        entries = []
        for entry in taken:
            if entry is None:
                envelope = next(ours)
                entries.append(_Entry(envelope.dot, encode_envelope(envelope), local=True))
            else:
                entries.append(_Entry(*entry, local=False))
        return entries

    def _written(self, error: StorageError | None) -> None:
        if error is not None:
            self.counters["disk_failures"] += 1
            self._report("document not saved", reason=error.message)
            while self._savers:
                _settle(self._savers.popleft()[1], error)
            if not self._closed:
                self._save_scheduled = True
                self._loop.call_later(DISK_RETRY_S, self._save)
            return
        written, self._saving = self._saving, []
        for entry in written:
            self._stranded.pop(entry.dot, None)
            self._place(entry.dot, self._next_number)
            self._next_number += 1
        self._saved += len(written)
        if self._unsaved:
            self._save()
        while self._savers and self._savers[0][0] <= self._saved:
            _settle(self._savers.popleft()[1], None)
        if self._inbox:
            self._schedule_drain()
        self._publish([entry.raw for entry in written if entry.local])

    def _place(self, dot: Dot, number: int) -> None:
        places = self._places.setdefault(dot.writer, array("Q"))
        assert len(places) == dot.counter - 1, "envelopes of a writer are applied in order"
        places.append(number)

    async def saved(self) -> None:
        """Return when all that is done so far is on disk.

        Raises:
            StorageError: The disk refused; it is tried again all the same, so this may be asked again.
        """
        if self._saved < self._made:
            future: asyncio.Future[None] = self._loop.create_future()
            self._savers.append((self._made, future))
            await future

    def _publish(self, raws: list[bytes]) -> None:
        """Send to the group what is on disk now."""
        unsent = False
        for batch in _batches(raws, LIVE_BYTES, LIVE_ENVELOPES):
            try:
                self._around.publish(self.document.name, encode_live(batch))
                self.counters["live_sent"] += len(batch)
            except LocalProtocolError as error:
                self._report("live update not sent", reason=error.message)
                unsent = True
        if unsent:
            self._feed(Unsent())

    # --- receiving ----------------------------------------------------------------------------------------------

    def live_received(self, payload: bytes, origin: NodeId, life: int) -> None:
        """A live update came by the document's group.

        Raises:
            RemoteProtocolError: It is none, or of another writer than its origin.
        """
        if self._closed:
            return
        arrived = [self._read(raw, None) for raw in decode_live(payload)]
        for item in arrived:
            if item.envelope.dot.writer != Writer(origin, life):
                self.counters["forged"] += 1
                raise RemoteProtocolError(f"{origin} published an envelope of {item.envelope.dot.writer}")
        size_bytes = sum(len(item.raw) for item in arrived)
        if self._inbox_bytes + size_bytes > INBOX_BYTES_MAX:
            self.counters["inbox_dropped"] += len(arrived)
            return
        self._inbox.extend(arrived)
        self._inbox_bytes += size_bytes
        self._schedule_drain()

    def heard(self, peer: NodeId, body: Body) -> None:
        """A peer compares itself with this replica, or sends what was asked for."""
        if body.lineage != self.document.lineage:
            self.counters["divergent"] += 1
            self._report("document of another lineage", peer=peer, lineage=body.lineage.hex())
            return
        self._feed(Heard(peer, body))

    def _take(self, peer: NodeId, raws: Sequence[bytes]) -> None:
        """A page that was asked for: at most one of each peer, so bounded."""
        try:
            arrived = [self._read(raw, peer) for raw in raws]
        except RemoteProtocolError as error:
            self._feed(Taken(peer, fresh=0, refused=True))
            self._around.cut(peer, error.message)
            return
        self._inbox.extend(arrived)
        self._inbox.append(_PageEnd(peer))
        self._inbox_bytes += sum(map(len, raws))
        self._schedule_drain()

    def _read(self, raw: bytes, peer: NodeId | None) -> _Arrived:
        envelope = decode_envelope(raw)
        if (envelope.document, envelope.lineage) != (self.document.name, self.document.lineage):
            raise RemoteProtocolError(f"an envelope of {envelope.document!r} among those of {self.document.name!r}")
        return _Arrived(raw, envelope, peer)

    def _schedule_drain(self) -> None:
        if not self._drain_scheduled:
            self._drain_scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Apply what has come, for a few milliseconds."""
        self._drain_scheduled = False
        if self._closed:
            return
        until = self._clock.monotonic() + SLICE_S
        while self._inbox and len(self._unsaved) < UNSAVED_MAX:  # else the next transaction that is done goes on here
            item = self._inbox.popleft()
            if isinstance(item, _PageEnd):
                refused = self._page_refused.pop(item.peer, False) is None
                self._feed(Taken(item.peer, self._page_fresh.pop(item.peer, 0), refused))
            else:
                self._inbox_bytes -= len(item.raw)
                self._apply(item)
            if self._clock.monotonic() >= until:
                if self._inbox:
                    self._schedule_drain()
                break
        if self.document.held_count:
            self._feed(Waiting())

    def _apply(self, item: _Arrived) -> None:
        dot, document = item.envelope.dot, self.document
        ours = self._raw.setdefault(dot, item.raw) is item.raw
        try:
            outcome = document.apply(item.envelope)
        except ClockDrift as error:
            self.counters["drifted"] += 1
            self._report("document envelope from the future", writer=str(dot.writer), reason=error.message)
        except DivergentHistory as error:
            self._page_is_refused(item)
            self.counters["divergent"] += 1
            self._report("document with two histories", writer=str(dot.writer), reason=error.message)
        except TooManyWriters as error:
            self.counters["refused"] += 1
            self._report("document is full", reason=error.message)
        except UpdateRefused as error:
            self._page_is_refused(item)
            self.counters["refused"] += 1
            self._report("document update refused", writer=str(dot.writer), peer=item.page_of, reason=error.message)
            # Whatever waited behind it is forgotten, too.
            self._raw = {held: raw for held, raw in self._raw.items() if document.holds(held)}
        else:
            if item.page_of is not None and outcome is Outcome.APPLIED:
                self._page_fresh[item.page_of] = self._page_fresh.get(item.page_of, 0) + 1
            if outcome is Outcome.HELD:
                self.counters["held"] += 1
                return
            if outcome is Outcome.DUPLICATE:
                self.counters["duplicates"] += 1
            elif outcome is Outcome.OVERFLOW:
                self.counters["overflow"] += 1
        if ours and not document.holds(dot):
            self._raw.pop(dot, None)

    def _page_is_refused(self, item: _Arrived) -> None:
        if item.page_of is not None:
            self._page_refused[item.page_of] = None

    # --- repair -------------------------------------------------------------------------------------------------

    def peer_up(self, peer: NodeId) -> None:
        """There is a link to another replica."""
        self._feed(PeerUp(peer))

    def peer_down(self, peer: NodeId) -> None:
        """There is none any more."""
        self._feed(PeerDown(peer))

    @property
    def peers(self) -> list[NodeId]:
        """The replicas with which this one is compared."""
        return self._core.peers

    def is_using(self, peer: NodeId) -> bool:
        """Whether something is under way between this replica and that of a peer."""
        return self._core.is_pulling_from(peer) or peer in self._serving

    @property
    def is_settled(self) -> bool:
        """Whether nothing is missing here that a linked replica had when it was compared; there must be one."""
        return bool(self._core.peers) and self._core.is_settled

    async def settled(self, expected: Callable[[], object] = lambda: True) -> None:
        """Return when :attr:`is_settled`, or when no other replica is ``expected`` any more; see :meth:`look`."""
        while expected() and not self.is_settled:
            future: asyncio.Future[None] = self._loop.create_future()
            self._settlers.append(future)
            await future

    def look(self) -> None:
        """Have those who wait look again."""
        settlers, self._settlers = self._settlers, []
        for future in settlers:
            _settle(future, None)

    def _feed(self, event: RepairEvent) -> None:
        if self._closed:
            return
        for effect in self._core.handle(event, self._clock.monotonic()):
            match effect:
                case Say(peer, body):
                    self._around.say(peer, body)
                case Serve(peer, spans):
                    self._serve(peer, spans)
                case Take(peer, envelopes):
                    self._take(peer, envelopes)
                case Diverged(peer):
                    self.counters["divergent"] += 1
                    self._report("document with two histories", peer=peer, version=str(self.document.version))
        if self._settlers and self.is_settled:
            self.look()
        self._reschedule()

    def _reschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, self._core.due - self._clock.monotonic())
        self._timer = self._loop.call_later(delay_s, self._feed, Ticked())

    def _serve(self, peer: NodeId, spans: Sequence[Span]) -> None:
        if peer not in self._serving:  # who asks twice is answered once
            self._serving[peer] = None
            self._scope.spawn(self._send_page(peer, spans), name=f"page for {peer}")

    async def _send_page(self, peer: NodeId, spans: Sequence[Span]) -> None:
        try:
            if self._saved < self._made:
                # The peer may ask for what is on its way to disk; what the disk refuses it does not get.
                with suppress(StorageError):
                    await self.saved()
            # In the order of the log, not writer by writer, so that the receiver can apply all of it.
            runs = [self._places.get(span.writer, array("Q"))[span.first - 1 : span.last] for span in spans]
            numbers = list(itertools.islice(heapq.merge(*runs), PAGE_ENVELOPES))
            raws = await self._log.read(numbers)
            page = next(_batches(raws, PAGE_BYTES, PAGE_ENVELOPES), [])
            more = len(page) < len(raws) or len(numbers) < sum(map(len, runs))
            document = self.document
            body = Page(document.name, document.lineage, document.history(), tuple(page), more)
        except StorageError as error:
            self._report("document not read", reason=error.message)
            return
        finally:
            self._serving.pop(peer, None)
        self.counters["pages_sent"] += 1
        self._around.say(peer, body)

    # --- introspection ------------------------------------------------------------------------------------------

    def _report(self, event: str, **fields: object) -> None:
        """Log a trouble, at most once a second for each kind."""
        now = self._clock.monotonic()
        if now - self._reported_at.get(event, -1.0) >= 1.0:
            self._reported_at[event] = now
            log.warning(event, document=self.document.name, **fields)

    def statistics(self) -> dict[str, int]:
        """Counters since it was opened, and what waits."""
        return {
            **self.counters,
            **self._core.counters,
            "writers": len(self._places),
            "envelopes": sum(map(len, self._places.values())),
            "waiting": self.document.held_count,
            "unsaved": self._made - self._saved,
            "replicas_linked": len(self._core.peers),
        }


def _batches(raws: Sequence[bytes], bytes_max: int, count_max: int) -> Iterator[list[bytes]]:
    """Runs of envelopes that fit a body, each of one at least."""
    batch: list[bytes] = []
    size_bytes = 0
    for raw in raws:
        if batch and (size_bytes + len(raw) > bytes_max or len(batch) >= count_max):
            yield batch
            batch, size_bytes = [], 0
        batch.append(raw)
        size_bytes += len(raw)
    if batch:
        yield batch


def _settle(future: asyncio.Future[None], error: StorageError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
