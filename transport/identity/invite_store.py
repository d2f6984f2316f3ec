"""The open invites of a network, as its issuing machine keeps them: ``<network>/ca/invites.json``.

Shared by all nodes of the machine, so every access holds the tree's lock, and a change is durable before the function
returns: a token's use is counted before its certificate leaves, whatever crashes in between.  There are no secrets in
the file, only the public certificates of the invite authorities.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from transport.errors import DataDirectoryError, IdentityError, TokenExpired, TokenUnknown, TokenUsed

from . import certificates
from .authority import authority_path, lock_path
from .files import locked, read_optional, write_atomic
from .invites import GRACE

#: Invites that may be open at once: each costs a trust anchor in every handshake.
INVITES_MAX: Final = 256
#: Uses of one invite: each leaves a line that recognises a repeated request.
USES_MAX: Final = 1000

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Invite:
    """One invite that has not been forgotten yet.

    Attributes:
        invite_id: Its id.
        certificate: The invite authority.
        expires_at: When the token ends.
        uses_left: How many more nodes it admits.
        used_by: The requests it admitted (see :func:`InviteStore.take`).
    """

    invite_id: str
    certificate: x509.Certificate
    expires_at: datetime
    uses_left: int
    used_by: tuple[str, ...] = ()


class InviteStore:
    """The file of one network."""

    def __init__(self, network_path: Path) -> None:
        """Touches nothing yet."""
        self._lock_path = lock_path(network_path)
        self._path = authority_path(network_path) / "invites.json"

    def add(self, invite: Invite, *, now: datetime) -> None:
        """Store a new invite; forget those past their grace.

        Raises:
            IdentityError: Too many are open.
            DataDirectoryError: The file is damaged or cannot be written.
        """
        if not 1 <= invite.uses_left <= USES_MAX:
            raise IdentityError(f"an invite can be used 1 to {USES_MAX} times, not {invite.uses_left}")
        with locked(self._lock_path):
            kept = [one for one in self._read() if now <= one.expires_at + GRACE]
            if len(kept) >= INVITES_MAX:
                raise IdentityError(
                    f"{INVITES_MAX} invites are open", hint="let some expire, or make one that admits several nodes"
                )
            self._write([*kept, invite])

    def open_invites(self, *, now: datetime) -> list[Invite]:
        """All that may still complete a handshake, also used and expired ones until their grace is over.

        Raises:
            DataDirectoryError: The file is damaged.
        """
        # No lock: a write replaces the file in one step, so this reads one version or the next.
        return [one for one in self._read() if now <= one.expires_at + GRACE]

    def find(self, invite_id: str, *, now: datetime) -> Invite:
        """One invite.

        Raises:
            TokenUnknown: There is no such invite, or it was forgotten.
            DataDirectoryError: The file is damaged.
        """
        for invite in self.open_invites(now=now):
            if invite.invite_id == invite_id:
                return invite
        raise TokenUnknown(f"invite {invite_id} is not known here", hint=_ASK_AGAIN)

    def take(self, invite_id: str, request: str, *, now: datetime) -> bool:
        """Count one use, durably; of any number of callers in any number of processes, each use goes to one.

        Args:
            invite_id: The invite.
            request: What is admitted (node id and key).  The same request again costs no further use, because the
                first answer may have been lost on its way.
            now: The time.

        Returns:
            Whether this was a new use.

        Raises:
            TokenUnknown: There is no such invite.
            TokenExpired: Its time is over.
            TokenUsed: All its uses are taken.
            DataDirectoryError: The file is damaged or cannot be written; nothing was counted.
        """
        with locked(self._lock_path):
            invites = self._read()
            index, invite = next(
                ((index, one) for index, one in enumerate(invites) if one.invite_id == invite_id), (0, None)
            )
            if invite is None:
                raise TokenUnknown(f"invite {invite_id} is not known here", hint=_ASK_AGAIN)
            check_time(invite, now)
            if request in invite.used_by:
                return False
            if invite.uses_left <= 0:
                raise TokenUsed("the token was already used", hint=_ASK_AGAIN)
            invites[index] = replace(invite, uses_left=invite.uses_left - 1, used_by=(*invite.used_by, request))
            self._write(invites)
            return True

    def _read(self) -> list[Invite]:
        data = read_optional(self._path)
        if data is None:
            return []
        try:
            document = json.loads(data)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            return [_decode(entry) for entry in document["invites"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError) as error:
            raise DataDirectoryError(
                f"{self._path} cannot be read: {error}", hint=f"rm {self._path} (open invites become void)"
            ) from error

    def _write(self, invites: list[Invite]) -> None:
        document = {"version": _VERSION, "invites": [_encode(one) for one in invites]}
        write_atomic(self._path, json.dumps(document, indent=1).encode())


def check_time(invite: Invite, now: datetime) -> None:
    """Check that the token has not expired.

    Raises:
        TokenExpired: It has.
    """
    if now > invite.expires_at:
        raise TokenExpired(f"the token expired at {invite.expires_at:%Y-%m-%dT%H:%M:%SZ}", hint=_ASK_AGAIN)


_ASK_AGAIN: Final = "ask for a new one with `mesh invite`"


def _encode(invite: Invite) -> dict[str, object]:
    return {
        "id": invite.invite_id,
        "certificate": certificates.pem(invite.certificate).decode(),
        "expires_at": int(invite.expires_at.timestamp()),
        "uses_left": invite.uses_left,
        "used_by": list(invite.used_by),
    }


def _decode(entry: dict[str, object]) -> Invite:
    used_by = entry["used_by"]
    if not isinstance(used_by, list):
        raise TypeError("used_by is not a list")
    return Invite(
        invite_id=str(entry["id"]),
        certificate=x509.load_pem_x509_certificate(str(entry["certificate"]).encode()),
        expires_at=datetime.fromtimestamp(int(str(entry["expires_at"])), UTC),
        uses_left=int(str(entry["uses_left"])),
        used_by=tuple(str(one) for one in used_by),
    )
