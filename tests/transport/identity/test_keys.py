"""Private keys on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from transport.errors import DataDirectoryError, InsecureKeyFile
from transport.identity import keys


def test_keys_come_back_from_their_files(tmp_path: Path) -> None:
    """Both kinds, each by its own reader; no file is no key."""
    tls, identity = keys.new_tls_key(), keys.new_identity_key()
    keys.write_key(tmp_path / "tls", tls)
    keys.write_key(tmp_path / "identity", identity)
    read = keys.read_tls_key(tmp_path / "tls")
    assert read is not None
    assert read.private_numbers() == tls.private_numbers()
    back = keys.read_identity_key(tmp_path / "identity")
    assert back is not None
    assert back.private_bytes_raw() == identity.private_bytes_raw()
    assert keys.read_tls_key(tmp_path / "none") is None
    assert keys.read_identity_key(tmp_path / "none") is None


def test_the_wrong_kind_of_key_is_refused(tmp_path: Path) -> None:
    """Also a P-384 key where P-256 belongs."""
    keys.write_key(tmp_path / "tls", keys.new_tls_key())
    keys.write_key(tmp_path / "identity", keys.new_identity_key())
    keys.write_key(tmp_path / "p384", ec.generate_private_key(ec.SECP384R1()))
    for name in ("identity", "p384"):
        with pytest.raises(DataDirectoryError, match="P-256"):
            keys.read_tls_key(tmp_path / name)
    with pytest.raises(DataDirectoryError, match="Ed25519"):
        keys.read_identity_key(tmp_path / "tls")


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    """And never a new key in its place."""
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DataDirectoryError, match=str(path)):
        keys.read_tls_key(path)
    assert path.read_bytes() == content


def test_an_encrypted_key_is_an_error(tmp_path: Path) -> None:
    """Nobody is there to type a passphrase."""
    path = tmp_path / "key"
    pem = keys.new_tls_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(DataDirectoryError):
        keys.read_tls_key(path)


def test_a_key_open_to_others_is_refused(tmp_path: Path) -> None:
    """Whatever it holds."""
    path = tmp_path / "key"
    keys.write_key(path, keys.new_tls_key())
    path.chmod(0o644)
    with pytest.raises(InsecureKeyFile):
        keys.read_tls_key(path)
