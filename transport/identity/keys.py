"""Private keys: making them, keeping them in files that only their owner can read, reading them back.

P-256 for everything in X.509, because browsers and ``cryptography``'s own verifier refuse Ed25519 chains; Ed25519 for
the node's long-lived identity, because its signatures are small, fast and have no parameters to get wrong.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from transport.errors import DataDirectoryError

from .files import read_optional, write_atomic

CURVE = ec.SECP256R1()


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(CURVE)


def new_identity_key() -> ed25519.Ed25519PrivateKey:
    """A fresh Ed25519 key."""
    return ed25519.Ed25519PrivateKey.generate()


def key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM; the file's mode is what protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    """Store ``key`` durably with mode 0600.

    Raises:
        DataDirectoryError: It cannot be written.
    """
    write_atomic(path, key_pem(key))


def read_tls_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """The P-256 key in ``path``, or ``None`` if there is no such file.

    Raises:
        InsecureKeyFile: Others have rights to it.
        DataDirectoryError: It cannot be read, or holds something else.
    """
    key = _read(path)
    if key is None:
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DataDirectoryError(f"{path} does not hold a P-256 private key", hint=_RESTORE)
    return key


def read_identity_key(path: Path) -> ed25519.Ed25519PrivateKey | None:
    """The Ed25519 key in ``path``, or ``None`` if there is no such file.

    Raises:
        InsecureKeyFile: Others have rights to it.
        DataDirectoryError: It cannot be read, or holds something else.
    """
    key = _read(path)
    if key is None:
        return None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise DataDirectoryError(f"{path} does not hold an Ed25519 private key", hint=_RESTORE)
    return key


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as DER SubjectPublicKeyInfo, for comparing and hashing."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


_RESTORE = "restore it from a backup, or move it away to start afresh"


def _read(path: Path) -> object | None:
    data = read_optional(path, private=True)
    if data is None:
        return None
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataDirectoryError(f"{path} is not a readable private key", hint=_RESTORE) from error
