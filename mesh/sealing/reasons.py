"""Why something sealed, or something said about keys, is refused: the words that counters and the audit log use."""
# core: no I/O

from __future__ import annotations

import enum

from mesh.errors import SealRefused


class Reason(enum.StrEnum):
    """What was wrong.  One word for each check that can fail."""

    MALFORMED = "malformed"
    """The bytes are no such body or statement."""
    SUITE = "suite"
    """No common set of algorithms."""
    WRONG_PEER = "wrong_peer"
    """It names another network, node or life than those of the two sides."""
    CERTIFICATE = "certificate"
    """The certificate does not make its holder that node: authority, validity, network or name."""
    SIGNATURE = "signature"
    """The statement was not signed by the certificate's key."""
    KEY_AGREEMENT = "key_agreement"
    """A key share that no honest side makes, or one that does not fit ours."""
    UNEXPECTED = "unexpected"
    """An answer to an offer that is not ours, or no longer."""
    FLOODED = "flooded"
    """More offers than anybody needs."""
    CLEAR = "clear"
    """A body in the clear where only sealed ones are taken."""
    UNKNOWN_SESSION = "unknown_session"
    """Sealed under a session that this side does not hold."""
    OLD_EPOCH = "old_epoch"
    """Sealed under an epoch whose key is erased, or one too far ahead."""
    REPLAYED = "replayed"
    """That counter was opened before, or is too old to tell."""
    FORGED = "forged"
    """The body or its header is not what was sealed, or not for us, or not by that sender."""
    EXPIRED = "expired"
    """The session may not be used any more: its time or a certificate's is over."""


def refused(reason: Reason, text: str) -> SealRefused:
    """The error that says so."""
    return SealRefused(text, reason=reason)
