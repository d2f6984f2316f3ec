"""Keeps the node's certificate fresh while it runs.

A node on a machine that holds the authority's key certifies itself anew; any other asks a member that says it can
issue, over the link that already authenticates both.  The exchange is one ``RENEWAL`` envelope each way:
``[0, request]`` and ``[1, chain]`` or ``[2, reason]`` (``docs/protocol/messages.md``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from transport.clock import Clock
from transport.errors import MeshError, RemoteProtocolError
from transport.identity.credentials import (
    Credentials,
    answer_renewal,
    install_renewal,
    make_renewal_request,
    renew,
)
from transport.identity.datadir import NodeDirectory
from transport.link import Link
from transport.logs import get_logger
from transport.tasks import TaskScope, in_thread
from transport.types import Lane
from transport.wire import Envelope, Kind, pack, unpack_body

log = get_logger("mesh.identity")

_ASK: Final = 0
_CHAIN: Final = 1
_REFUSED: Final = 2

# An issuer that does not answer within this is passed over.
ANSWER_TIMEOUT_S: Final = 10.0
# After a round in which nobody helped; well below the third of the certificate's life that is left.
RETRY_S: Final = 60.0
#: How long, and in how many looks, a link to an issuer may take to open.
LINK_TRY_S: Final = 0.25
LINK_TRIES: Final = 12


class Renewal:
    """The certificate's keeper.

    Args:
        directory: This node's files.
        credentials: What it runs with now.
        clock: Wall time decides when to renew.
        rng: Jitter, so that a network made in one minute does not renew in one minute.
        installed: Called with the new credentials, on the loop.
        issuers: Open links to members that can issue, best first.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        credentials: Credentials,
        *,
        clock: Clock,
        rng: random.Random,
        installed: Callable[[Credentials], None],
        issuers: Callable[[], Sequence[Link]],
    ) -> None:
        self._directory = directory
        self._credentials = credentials
        self._clock = clock
        self._rng = rng
        self._installed = installed
        self._issuers = issuers
        self._answer: tuple[Link, asyncio.Future[bytes]] | None = None
        # Peers that are being served: one request each at a time, since each costs a thread and a signature.
        self._serving: dict[str, None] = {}
        self._scope = TaskScope("renewal")
        self.renewed = 0
        self.issued = 0

    def start(self) -> None:
        """Begin to watch the certificate's age."""
        self._scope.spawn(self._run(), name="watch")

    async def _run(self) -> None:
        while True:
            credentials = self._credentials
            slack = (credentials.expires_at - credentials.renew_at) * self._rng.uniform(0.0, 0.25)
            # A long sleep would not notice that the machine slept or its clock was set.
            while self._now() < credentials.renew_at + slack:
                left_s = (credentials.renew_at + slack - self._now()).total_seconds()
                await asyncio.sleep(min(left_s + 0.01, 60.0))
            try:
                self._credentials = await self._renew()
            except (MeshError, TimeoutError) as error:
                log.warning("certificate not renewed", error=str(error), expires=str(credentials.expires_at))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.0))
                continue
            self.renewed += 1
            log.info("certificate renewed", expires=str(self._credentials.expires_at))
            self._installed(self._credentials)

    async def _renew(self) -> Credentials:
        if self._credentials.can_issue:
            return await in_thread(renew, self._directory, now=self._now())
        request = await in_thread(make_renewal_request, self._directory)
        failure: Exception = MeshError("no member that can issue certificates is linked")
        for link in await self._linked_issuers():
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._answer = (link, future)
            link.send(_envelope(_ASK, request), Lane.CONTROL)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    chain = await future
                return await in_thread(install_renewal, self._directory, chain, now=self._now())
            except (MeshError, TimeoutError) as error:
                failure = error
            finally:
                self._answer = None
        raise failure

    async def _linked_issuers(self) -> Sequence[Link]:
        """Links to members that can issue; where there is none, asking for them has one opened."""
        for _ in range(LINK_TRIES):
            if links := self._issuers():
                return links
            await asyncio.sleep(LINK_TRY_S)
        return ()

    def received(self, link: Link, envelope: Envelope) -> None:
        """A ``RENEWAL`` envelope arrived.

        Raises:
            RemoteProtocolError: It is not a request or an answer.
        """
        fields = unpack_body(envelope.body, nodes_max=16)
        if type(fields) is not list or len(fields) < 2 or type(fields[1]) is not bytes:
            raise RemoteProtocolError("renewal: not an array of a step and bytes")
        step, content = fields[:2]
        if step == _ASK:
            peer = link.peer.node_id
            if peer not in self._serving:
                self._serving[peer] = None
                self._scope.spawn(self._issue(link, content), name=f"issue for {peer}")
        elif self._answer is not None and self._answer[0] is link and not self._answer[1].done():
            if step == _CHAIN:
                self._answer[1].set_result(content)
            else:
                reason = content.decode(errors="replace")[:200]
                self._answer[1].set_exception(MeshError(f"{link.peer.node_id} refused to renew: {reason}"))

    async def _issue(self, link: Link, request: bytes) -> None:
        try:
            if not self._credentials.can_issue:
                raise MeshError("this node does not hold the authority's key")
            chain = await in_thread(answer_renewal, self._directory, request, link.peer.node_id, now=self._now())
        except MeshError as error:
            log.warning("renewal refused", peer=link.peer.node_id, reason=error.message)
            link.send(_envelope(_REFUSED, error.message.encode(errors="replace")), Lane.CONTROL)
            return
        finally:
            self._serving.pop(link.peer.node_id, None)
        self.issued += 1
        link.send(_envelope(_CHAIN, chain), Lane.CONTROL)

    def is_using(self, link: Link) -> bool:
        """Whether an answer is to come, or to go, over ``link``."""
        return link.peer.node_id in self._serving or (self._answer is not None and self._answer[0] is link)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)

    @property
    def expires_in(self) -> timedelta:
        """How long the certificate in use is still valid."""
        return self._credentials.expires_at - self._now()

    async def close(self) -> None:
        """Stop watching."""
        await self._scope.close()


def _envelope(step: int, content: bytes) -> Envelope:
    return Envelope(Kind.RENEWAL, 1, None, None, pack([step, content]))
