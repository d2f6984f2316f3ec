"""The issuing side of joining: makes tokens, and answers those who come with one.

The desk sits behind the path ``/enrol`` of the node's one port.  Whoever gets there holds a certificate that TLS
accepted: a member's, or that of an invite.  The desk decides from the certificate itself, and only a certificate
signed by the very invite that it names counts.

Order matters where a crash may fall in between.  Everything that can refuse is checked first; then the use is counted,
durably; then it is recorded; only then a certificate is made and sent.  So a token never admits more nodes than it
says, and a joiner whose answer was lost repeats the same request without spending another use.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from transport.clock import Clock
from transport.errors import (
    CertificateRejected,
    EnrolmentRefused,
    IdentityError,
    InvalidName,
    MeshError,
    TokenError,
    TokenWrongNetwork,
)
from transport.logs import get_logger
from transport.tasks import TaskScope
from transport.types import Address, NodeId

from . import certificates, keys
from .audit import AuditLog
from .authority import Authority, load_authority
from .certificates import LEAF_VALIDITY
from .datadir import NodeDirectory, node_path
from .enrolment_messages import decode_request, encode_answer, encode_refusal
from .invite_store import Invite, InviteStore, check_time
from .invites import build_invite_authority, new_token
from .names import Role, Subject
from .tls import TlsContexts

log = get_logger("mesh.identity")

#: The longest life of a token: a secret that lies about for longer ought to be made anew.
TTL_S_MAX: Final = 30 * 86_400.0

# Joiners answered at once; the rest wait for the handshake's own timeout.  Each takes a thread for milliseconds.
_SERVED_MAX: Final = 8
# Invites that another node of this machine made become valid here within this.
_REFRESH_S: Final = 30.0
_REQUEST_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Case:
    """A request that passed every check that spends nothing."""

    invite: Invite
    node: NodeId
    public_key: ec.EllipticCurvePublicKey

    @property
    def request_id(self) -> str:
        """Recognises a repetition: the same node with the same key."""
        return f"{self.node} {hashlib.sha256(keys.public_bytes(self.public_key)).hexdigest()}"


class EnrolmentDesk:
    """Makes and honours invites for one node.

    Args:
        directory: The node's directory; its tree holds the authority's key, or else nothing can be issued.
        contexts: Where invite authorities are admitted to handshakes.
        clock: Wall time for expiry.
        is_member: Whether a node id is taken by a live member; called on the loop.
        audit: The log for decisions; by default the node's own.
        validity: How long issued certificates last.
    """

    def __init__(
        self,
        directory: NodeDirectory,
        contexts: TlsContexts,
        *,
        clock: Clock,
        is_member: Callable[[NodeId], bool],
        audit: AuditLog | None = None,
        validity: timedelta = LEAF_VALIDITY,
    ) -> None:
        self._directory = directory
        self._contexts = contexts
        self._clock = clock
        self._is_member = is_member
        self._audit = audit or AuditLog(directory.path / "audit.log", clock=clock)
        self._validity = validity
        self._store = InviteStore(directory.network_path)
        self._scope = TaskScope("enrolment")
        # Between reading the store and changing the contexts nobody else may do the same.
        self._refreshing = asyncio.Lock()
        self._serving = asyncio.Semaphore(_SERVED_MAX)
        self.issued = 0
        self.refused = 0

    async def start(self) -> None:
        """Admit the invites that are open, and keep up with those that other nodes of this machine make.

        Raises:
            DataDirectoryError: The stored invites cannot be read.
        """
        await self.refresh()
        self._scope.spawn(self._keep_fresh(), name="refresh")

    async def close(self) -> None:
        """Stop keeping up."""
        await self._scope.close()

    def statistics(self) -> dict[str, int]:
        """Counters since the start."""
        return {
            "invites_open": len(self._contexts.invite_authorities),
            "nodes_enrolled": self.issued,
            "enrolments_refused": self.refused,
        }

    async def invite(self, addresses: Sequence[Address], *, ttl_s: float = 600.0, uses: int = 1) -> str:
        """Make a token.

        Args:
            addresses: Where joiners can dial this node, best first.
            ttl_s: How long the token is good for.
            uses: How many nodes it admits.

        Returns:
            The token's text.  It is a secret: whoever has it can join.

        Raises:
            IdentityError: This machine cannot issue certificates, too many invites are open, or an argument is out of
                range.
            DataDirectoryError: The invite or its audit record cannot be stored.
        """
        if not 1.0 <= ttl_s <= TTL_S_MAX:
            raise IdentityError(f"an invite can last 1 s to {TTL_S_MAX:g} s, not {ttl_s:g} s")
        if not addresses:
            raise IdentityError(
                "this node has no address that others could dial", hint="listen on another address, or advertise one"
            )
        async with self._refreshing:
            text, invite = await asyncio.to_thread(self._make, addresses, timedelta(seconds=ttl_s), uses)
            self._contexts.admit_invite_authority(invite.certificate)
        log.info("invite made", invite=invite.invite_id, uses=uses, expires=str(invite.expires_at))
        return text

    async def refresh(self) -> None:
        """Admit exactly the invites that are stored and not forgotten.

        Raises:
            DataDirectoryError: They cannot be read; nothing was changed.
        """
        async with self._refreshing:
            invites = await asyncio.to_thread(self._store.open_invites, now=self._now())
            self._contexts.set_invite_authorities(invite.certificate for invite in invites)

    async def serve(self, connection: ServerConnection, leaf_der: bytes) -> None:
        """Answer one joiner; errors go to it and to the log, never to the caller.

        Args:
            connection: Open, on path ``/enrol``; the caller closes it.
            leaf_der: The certificate that the joiner showed in TLS.
        """
        remote = str((connection.remote_address or ("?",))[0])
        try:
            async with self._serving:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    message = await connection.recv()
                answer = await self._answer(leaf_der, message, remote)
            await connection.send(answer)
        except (ConnectionClosed, TimeoutError) as error:
            # If the answer was under way, the joiner repeats its request and gets it.
            log.warning("enrolment broken off", remote=remote, error=str(error) or "timeout")

    async def _answer(self, leaf_der: bytes, message: bytes | str, remote: str) -> bytes:
        """Decide, record, and word the answer."""
        try:
            case = await asyncio.to_thread(self._examine, leaf_der, message)
            if self._is_member(case.node):
                raise EnrolmentRefused(
                    f"node id {case.node!r} is taken by a live member", hint="choose another node id (--node-id)"
                )
            chain = await asyncio.to_thread(self._certify, case, remote)
        except TokenError as error:
            return await self._refuse(error, leaf_der, remote)
        except MeshError as error:
            # Our own trouble (disk, clock, authority): its details are for our log, not for a stranger.
            log.warning("enrolment failed", remote=remote, error=str(error))
            refusal = EnrolmentRefused("the issuing node cannot issue certificates now", hint="its log says why")
            return await self._refuse(refusal, leaf_der, remote)
        self.issued += 1
        log.info("node enrolled", node=case.node, remote=remote, invite=case.invite.invite_id)
        return encode_answer(chain)

    def _make(self, addresses: Sequence[Address], ttl: timedelta, uses: int) -> tuple[str, Invite]:
        now = self._now()
        token = new_token(self._directory.network, self._authority().certificate, addresses, now=now, ttl=ttl)
        invite = Invite(
            invite_id=token.invite_id,
            certificate=build_invite_authority(token, now=now),
            expires_at=token.expires_at,
            uses_left=uses,
        )
        self._store.add(invite, now=now)
        self._audit.append("token issued", invite=invite.invite_id, uses=uses, expires_at=invite.expires_at.isoformat())
        return token.encode(), invite

    def _examine(self, leaf_der: bytes, message: bytes | str) -> _Case:
        """Every check that spends nothing."""
        now = self._now()
        try:
            claimed = certificates.claimed_subject(leaf_der)
            if claimed.role is not Role.INVITE:
                raise EnrolmentRefused(
                    f"{claimed.uri} is not an invite", hint="a member needs no token: it renews over its links"
                )
            self._check_network(claimed)
            invite = self._store.find(claimed.name, now=now)
            certificates.verify_leaf(leaf_der, authority=invite.certificate, now=now)
            check_time(invite, now)
            wanted, public_key = certificates.read_request(decode_request(message))
            self._check_network(wanted)
            if wanted.role is not Role.NODE:
                raise EnrolmentRefused(f"a certificate of {wanted.uri} cannot be asked for")
            self._check_free(NodeId(wanted.name))
        except (CertificateRejected, InvalidName) as error:
            raise EnrolmentRefused(error.message, hint=error.hint) from error
        return _Case(invite, NodeId(wanted.name), public_key)

    def _check_network(self, subject: Subject) -> None:
        if subject.network != self._directory.network:
            raise TokenWrongNetwork(
                f"the request is for network {subject.network!r}, and this is {self._directory.network!r}"
            )

    def _check_free(self, node: NodeId) -> None:
        """Nodes of this machine need no token, so nobody who brings one is one of them, running or not."""
        path = node_path(self._directory.network_path.parent, self._directory.network, node)
        if (path / "identity.key").exists():
            raise EnrolmentRefused(
                f"node id {node!r} belongs to a node of the issuing machine",
                hint="choose another node id (--node-id)",
            )

    def _certify(self, case: _Case, remote: str) -> bytes:
        """Spend a use, record it, issue; in this order."""
        now = self._now()
        authority = self._authority()
        invite, node = case.invite.invite_id, case.node
        first_time = self._store.take(invite, case.request_id, now=now)
        self._audit.append("token used", invite=invite, node=node, remote=remote, repeated=not first_time)
        leaf = authority.issue(case.public_key, node, now=now, validity=self._validity)
        self._audit.append(
            "certificate issued",
            node=node,
            serial=f"{leaf.serial_number:x}",
            expires_at=leaf.not_valid_after_utc.isoformat(),
            invite=invite,
        )
        return authority.chain_pem(leaf)

    async def _refuse(self, error: TokenError, leaf_der: bytes, remote: str) -> bytes:
        self.refused += 1
        reason = type(error).__name__
        log.warning("enrolment refused", remote=remote, reason=reason, error=error.message)
        try:
            await asyncio.to_thread(self._record_refusal, error, leaf_der, remote)
        except MeshError as failure:
            # Refusing needs no record to be safe; the log above has it.
            log.warning("audit log not written", error=str(failure))
        return encode_refusal(error)

    def _record_refusal(self, error: TokenError, leaf_der: bytes, remote: str) -> None:
        try:
            claimed = certificates.claimed_subject(leaf_der).uri
        except CertificateRejected:
            claimed = ""
        self._audit.append(
            "token refused", reason=type(error).__name__, message=error.message, claimed=claimed, remote=remote
        )

    def _authority(self) -> Authority:
        authority = load_authority(self._directory.network_path, self._directory.network)
        if authority is None:
            raise IdentityError(
                f"the authority's key of network {self._directory.network!r} is not on this machine",
                hint="run `mesh invite` on the machine that created the network",
            )
        return authority

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self.refresh()
            except MeshError as error:
                log.warning("invites not refreshed", error=str(error))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)
