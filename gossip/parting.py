"""Closing a link that nobody needs, so that nothing sent is lost.

Links outside the active view are opened for something to say and closed when they have been idle.  A side that just
closed one could lose what the other side is sending at this moment, and a request would fail between two healthy
nodes.  So links are *parted* in two steps, as TCP ends a connection with one FIN from each side:

1. The side to which the link looks idle stops sending on it and says ``OFFER``.  A link is ordered, so whoever reads
   the offer has read all that was sent before it.
2. The other side, if it has something under way or needs the link, says ``STAY``, and both go on.  Otherwise it stops
   sending as well and says ``AGREE``; when that is read everything was read, and the link is closed.

While a side has stopped, its senders wait, as they do for room; they go on over this link (``STAY``) or over the next
one.  Two offers that cross agree with each other.  A side that hears nothing goes on after a while, the one that
agreed later than the one that offered: it must not send again while the other may still close.
"""

# core: no I/O

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from transport.errors import RemoteProtocolError
from transport.types import NodeId

#: How long an offer may stay unanswered; longer than any round trip on a link that its keepalive lets live.
OFFER_S: Final = 5.0
#: How long whoever agreed waits to see the link closed; more than twice as long, see above.
AGREED_S: Final = 15.0


class Step(enum.IntEnum):
    """What one side says about a link; the number is the whole body on the wire."""

    OFFER = 0
    """I have nothing to send on it: may it close?"""
    AGREE = 1
    """It may: I send nothing more either."""
    STAY = 2
    """It is needed."""


class Act(enum.Enum):
    """What to do with the link."""

    NOTHING = enum.auto()
    ASK = enum.auto()
    """Stop sending if nothing is under way, then say AGREE; else say STAY (see :meth:`Partings.agreed`)."""
    STAY = enum.auto()
    """Say STAY: our offer was given up before its answer came."""
    CLOSE = enum.auto()
    RELEASE = enum.auto()
    """Send again."""


@dataclass(slots=True)
class _Parting:
    until: float
    offered: bool
    """Whether we offered; else we agreed."""


def encode(step: Step) -> bytes:
    """The body that says ``step``."""
    return bytes((step,))


def decode(body: bytes) -> Step | None:
    """What a body says; ``None``: something of a later version.

    Raises:
        RemoteProtocolError: It is empty.
    """
    if not body:
        raise RemoteProtocolError("parting: empty body")
    return Step(body[0]) if body[0] <= Step.STAY else None


class Partings:
    """The links of one node on which it has stopped sending.  Bounded by the links."""

    def __init__(self) -> None:
        self._partings: dict[NodeId, _Parting] = {}

    def __len__(self) -> int:
        return len(self._partings)

    def __contains__(self, peer: NodeId) -> bool:
        """Whether we have stopped sending to ``peer``."""
        return peer in self._partings

    def offered(self, peer: NodeId, now: float) -> None:
        """We stopped sending, and say OFFER."""
        self._partings[peer] = _Parting(now + OFFER_S, offered=True)

    def agreed(self, peer: NodeId, now: float) -> None:
        """We stopped sending, and say AGREE."""
        self._partings[peer] = _Parting(now + AGREED_S, offered=False)

    def heard(self, peer: NodeId, step: Step) -> Act:
        """What to do about what ``peer`` says."""
        parting = self._partings.get(peer)
        if parting is None:
            return {Step.OFFER: Act.ASK, Step.AGREE: Act.STAY, Step.STAY: Act.NOTHING}[step]
        if step is Step.STAY:
            return self.forget(peer)
        if parting.offered:
            return Act.CLOSE  # an AGREE, or an offer that crossed ours: neither side sends any more
        return Act.ASK if step is Step.OFFER else Act.NOTHING  # a second offer: the first one was given up

    def data_from(self, peer: NodeId) -> Act:
        """``peer`` sent something that is not gossip: if it had offered, it did not wait for us."""
        parting = self._partings.get(peer)
        return Act.NOTHING if parting is None or parting.offered else self.forget(peer)

    def forget(self, peer: NodeId) -> Act:
        """The link is needed after all, or gone."""
        return Act.NOTHING if self._partings.pop(peer, None) is None else Act.RELEASE

    def expired(self, now: float) -> list[NodeId]:
        """Whom we waited for in vain; they are forgotten."""
        late = [peer for peer, parting in self._partings.items() if parting.until <= now]
        for peer in late:
            del self._partings[peer]
        return late
