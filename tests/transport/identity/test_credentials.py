"""A node's keys and certificate, through restarts and crashes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from identities import make_credentials, now, open_directory

from transport.errors import CertificateRejected, DataDirectoryError, IdentityError, InsecureKeyFile
from transport.identity import certificates, credentials, keys
from transport.identity.authority import adopt_authority, load_authority
from transport.identity.credentials import (
    Credentials,
    answer_renewal,
    install_chain,
    install_renewal,
    is_enrolled,
    make_renewal_request,
    obtain_credentials,
    renew,
)
from transport.identity.datadir import NodeDirectory
from transport.types import NodeId


def enrolled(tmp_path: Path, node_id: str = "joiner", *, validity: timedelta = timedelta(days=1)) -> Credentials:
    """A node in a tree without the authority's key, as enrolment leaves it."""
    with (
        open_directory(tmp_path / "a", node_id="issuer") as issuer,
        open_directory(tmp_path / "b", node_id=node_id) as directory,
    ):
        authority = obtain_credentials(issuer, now=now()).authority_certificate
        request = make_renewal_request(directory)
        chain = answer_renewal(issuer, request, NodeId(node_id), now=now(), validity=validity)
        adopt_authority(directory.network_path, directory.network, authority)
        return install_chain(directory, chain, authority=authority, now=now())


def load(tmp_path: Path, node_id: str = "joiner", *, later: timedelta = timedelta(0)) -> Credentials:
    """Start that node again."""
    with open_directory(tmp_path / "b", node_id=node_id) as directory:
        return obtain_credentials(directory, now=now() + later)


def test_a_fresh_tree_gives_credentials(tmp_path: Path) -> None:
    """Every file is private, and the certificate is this node's."""
    made = make_credentials(tmp_path, node_id="a")
    assert made.can_issue
    assert certificates.verify_peer(
        certificates.der(made.certificate),
        authority=made.authority_certificate,
        network=made.network,
        now=now(),
        expected=made.node_id,
    )
    assert made.certificate.not_valid_before_utc < made.renew_at < made.expires_at
    for path in (tmp_path / "default").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_identity_outlives_the_tls_key(tmp_path: Path) -> None:
    """Each start has a new TLS key and the old identity."""
    first, second = make_credentials(tmp_path), make_credentials(tmp_path)
    assert first.identity_key.private_bytes_raw() == second.identity_key.private_bytes_raw()
    assert first.certificate.public_key() != second.certificate.public_key()
    assert first.authority_fingerprint == second.authority_fingerprint


def test_private_keys_do_not_show_in_logs(tmp_path: Path) -> None:
    """Their fields are left out of the representation."""
    assert "identity_key" not in repr(make_credentials(tmp_path))


def test_an_enrolled_node_loads_what_it_has(tmp_path: Path) -> None:
    """Without the authority's key it makes nothing new."""
    made = enrolled(tmp_path)
    assert load(tmp_path).certificate == made.certificate
    assert not made.can_issue


def test_an_enrolled_node_runs_without_the_shared_directory(tmp_path: Path) -> None:
    """Its own directory holds all it needs."""
    made = enrolled(tmp_path)
    (tmp_path / "b" / "default" / "ca" / "ca.crt").unlink()
    (tmp_path / "b" / "default" / "ca" / "lock").unlink()
    (tmp_path / "b" / "default" / "ca").rmdir()
    assert load(tmp_path).certificate == made.certificate


def test_an_expired_certificate_asks_for_a_token(tmp_path: Path) -> None:
    """And names the clock as the other suspect."""
    enrolled(tmp_path)
    with pytest.raises(CertificateRejected, match=r"expired at .*clock.*mesh invite"):
        load(tmp_path, later=timedelta(days=2))
    with pytest.raises(CertificateRejected, match=r"not valid before .*clock"):
        load(tmp_path, later=timedelta(days=-2))


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt", "identity.key"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    """Each of the node's files."""
    enrolled(tmp_path)
    path = tmp_path / "b" / "default" / "joiner" / name
    path.write_bytes(b"garbage")
    with pytest.raises(IdentityError, match=str(path)):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tls.key", "ca.crt"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    """The rest of the set cannot replace them."""
    enrolled(tmp_path)
    path = tmp_path / "b" / "default" / "joiner" / name
    path.unlink()
    with pytest.raises(DataDirectoryError, match=str(path)):
        load(tmp_path)


@pytest.mark.parametrize("name", ["tls.key", "identity.key"])
def test_keys_open_to_others_are_refused(tmp_path: Path, name: str) -> None:
    """Both of them."""
    enrolled(tmp_path)
    path = tmp_path / "b" / "default" / "joiner" / name
    path.chmod(0o644)
    with pytest.raises(InsecureKeyFile, match=str(path)):
        load(tmp_path)


def test_a_chain_of_one_is_refused(tmp_path: Path) -> None:
    """Leaf and authority belong together."""
    made = enrolled(tmp_path)
    made.tls_chain_path.write_bytes(certificates.pem(made.certificate))
    with pytest.raises(CertificateRejected, match="1 certificates instead of 2"):
        load(tmp_path)


def test_another_authority_in_the_shared_directory_is_refused(tmp_path: Path) -> None:
    """Two networks of one name in one tree."""
    enrolled(tmp_path)
    other = make_credentials(tmp_path / "c")
    shared = tmp_path / "b" / "default" / "ca" / "ca.crt"
    shared.write_bytes(certificates.pem(other.authority_certificate))
    with pytest.raises(DataDirectoryError, match="two networks"):
        load(tmp_path)


@pytest.mark.parametrize("step", ["write_atomic", "move_durably"])
def test_a_crash_during_renewal_leaves_a_working_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the certificate is stored the old pair is good; after it the new pair is completed."""
    old = enrolled(tmp_path)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with (
        open_directory(tmp_path / "a", node_id="issuer") as issuer,
        open_directory(tmp_path / "b", node_id="joiner") as directory,
    ):
        chain = answer_renewal(issuer, make_renewal_request(directory), directory.node_id, now=now())
        with monkeypatch.context() as patched:
            patched.setattr(credentials, step, crash)
            with pytest.raises(KeyboardInterrupt):
                install_renewal(directory, chain, now=now())
    back = load(tmp_path)
    assert (back.certificate == old.certificate) is (step == "write_atomic")
    key = keys.read_tls_key(back.tls_key_path)
    assert key is not None
    assert key.public_key() == back.certificate.public_key()
    assert load(tmp_path).certificate == back.certificate


def test_asking_again_uses_the_same_key(tmp_path: Path) -> None:
    """So that a lost answer can be answered again."""
    enrolled(tmp_path)
    with open_directory(tmp_path / "b", node_id="joiner") as directory:
        first, second = (certificates.read_request(make_renewal_request(directory)) for _ in range(2))
        assert first == second


def test_only_the_asker_is_certified(tmp_path: Path) -> None:
    """A member cannot renew itself into somebody else."""
    enrolled(tmp_path)
    with (
        open_directory(tmp_path / "a", node_id="issuer") as issuer,
        open_directory(tmp_path / "b", node_id="joiner") as directory,
    ):
        request = make_renewal_request(directory)
        with pytest.raises(CertificateRejected, match="node 'other' asked for a certificate of"):
            answer_renewal(issuer, request, NodeId("other"), now=now())
        with pytest.raises(CertificateRejected):
            answer_renewal(issuer, b"garbage", NodeId("joiner"), now=now())
        with pytest.raises(IdentityError, match="not on this machine"):
            answer_renewal(directory, request, NodeId("joiner"), now=now())
        with pytest.raises(IdentityError, match="not on this machine"):
            renew(directory, now=now())


def test_only_the_right_answer_is_installed(tmp_path: Path) -> None:
    """From the right authority, for this node, for the waiting key; otherwise everything stays as it was."""
    made = enrolled(tmp_path)

    def chain_for(issuer: NodeDirectory, node: str) -> bytes:
        authority = load_authority(issuer.network_path, issuer.network)
        assert authority is not None
        return authority.chain_pem(authority.issue(keys.new_tls_key().public_key(), NodeId(node), now=now()))

    make_credentials(tmp_path / "c", node_id="issuer")
    with (
        open_directory(tmp_path / "a", node_id="issuer") as right,
        open_directory(tmp_path / "c", node_id="issuer") as wrong,
        open_directory(tmp_path / "b", node_id="joiner") as directory,
    ):
        with pytest.raises(DataDirectoryError, match="ask for the certificate again"):
            install_renewal(directory, chain_for(right, "joiner"), now=now())
        make_renewal_request(directory)
        with pytest.raises(CertificateRejected, match="another key"):
            install_renewal(directory, chain_for(right, "joiner"), now=now())
        for chain in (chain_for(wrong, "joiner"), chain_for(right, "other"), b"", b"garbage"):
            with pytest.raises(CertificateRejected):
                install_renewal(directory, chain, now=now())
    assert load(tmp_path).certificate == made.certificate


def test_enrolment_is_known(tmp_path: Path) -> None:
    """By a certificate of its own or by the authority's key."""
    with open_directory(tmp_path, node_id="a") as directory:
        assert not is_enrolled(directory)
        obtain_credentials(directory, now=now())
        assert is_enrolled(directory)
    with open_directory(tmp_path, node_id="b") as directory:
        assert is_enrolled(directory)
