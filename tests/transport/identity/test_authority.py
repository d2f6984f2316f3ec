"""One authority per network, whatever happens while it is made."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from identities import make_credentials, now, open_directory

from transport.errors import CertificateRejected, DataDirectoryError, IdentityError, InsecureKeyFile
from transport.identity import authority as module
from transport.identity import certificates, keys
from transport.identity.authority import adopt_authority, ensure_authority, load_authority
from transport.identity.credentials import obtain_credentials
from transport.types import network_name

NETWORK = network_name("default")


def own(tmp_path: Path, name: str = "default") -> tuple[Path, Path]:
    """The authority's key and certificate files."""
    return tmp_path / name / "ca" / "ca.key", tmp_path / name / "ca" / "ca.crt"


def test_eight_processes_on_an_empty_tree_make_one_authority(tmp_path: Path) -> None:
    """Each gets a certificate of its own from it."""
    code = (
        "import sys,pathlib; sys.path.insert(0, sys.argv[3]); from identities import make_credentials;"
        "print('ready', flush=True); sys.stdin.readline();"
        "print(make_credentials(pathlib.Path(sys.argv[1]), node_id=sys.argv[2]).authority_fingerprint)"
    )
    tests = str(Path(__file__).parents[2])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), f"node-{number}", tests],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all imports are done: they start within a millisecond
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    found = {child.communicate(timeout=60)[0] for child in children}
    assert len(found) == 1, found
    assert len(found.pop().strip()) == 64


def test_a_creation_cut_short_after_the_key_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key that is there."""

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", crash)
        with pytest.raises(KeyboardInterrupt):
            make_credentials(tmp_path)
    key_path, certificate_path = own(tmp_path)
    key = key_path.read_bytes()
    assert not certificate_path.exists()
    assert make_credentials(tmp_path).can_issue
    assert key_path.read_bytes() == key


def test_a_lost_authority_is_not_replaced(tmp_path: Path) -> None:
    """Nodes that trust the old one exist: a second authority would split the network."""
    make_credentials(tmp_path)
    key_path, certificate_path = own(tmp_path)
    saved = certificate_path.read_bytes()
    certificate_path.unlink()
    for _ in range(2):
        with pytest.raises(DataDirectoryError, match=r"ca\.crt is missing although .*restore"):
            make_credentials(tmp_path, node_id="other")
        key_path.unlink(missing_ok=True)
    certificate_path.write_bytes(saved)
    with pytest.raises(IdentityError, match="another machine"):
        make_credentials(tmp_path, node_id="other")


def test_a_lost_key_leaves_members_running(tmp_path: Path) -> None:
    """They load what they have; only new ones cannot be made here."""
    before = make_credentials(tmp_path)
    own(tmp_path)[0].unlink()
    after = make_credentials(tmp_path)
    assert after.certificate == before.certificate
    assert not after.can_issue


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_damaged_files_are_named_and_left_alone(tmp_path: Path, which: int, content: bytes) -> None:
    """The error says which file; nothing is overwritten."""
    make_credentials(tmp_path)
    path = own(tmp_path)[which]
    path.write_bytes(content)
    with pytest.raises(DataDirectoryError, match=str(path)):
        make_credentials(tmp_path)
    assert path.read_bytes() == content


def test_a_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    """As a half restored backup leaves it."""
    make_credentials(tmp_path)
    keys.write_key(own(tmp_path)[0], keys.new_tls_key())
    with pytest.raises(DataDirectoryError, match="not the key of"):
        make_credentials(tmp_path)


def test_a_tree_moved_to_another_network_is_refused(tmp_path: Path) -> None:
    """The authority is of one network only."""
    make_credentials(tmp_path)
    (tmp_path / "default").rename(tmp_path / "home")
    with pytest.raises(DataDirectoryError, match="network 'default', not of 'home'"):
        make_credentials(tmp_path, network="home")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Whoever read it could admit anybody."""
    make_credentials(tmp_path)
    path = own(tmp_path)[0]
    path.chmod(0o640)
    with pytest.raises(InsecureKeyFile, match=f"chmod 600 {path}"):
        make_credentials(tmp_path)


def test_a_clock_before_the_authority_is_named(tmp_path: Path) -> None:
    """Nothing is issued that nobody would accept."""
    make_credentials(tmp_path)
    with open_directory(tmp_path) as directory, pytest.raises(CertificateRejected, match="clock"):
        obtain_credentials(directory, now=now() - timedelta(days=2))


def test_a_tree_adopts_one_authority_only(tmp_path: Path) -> None:
    """Again and again the same; another one is refused, also while its own is half made."""
    foreign = make_credentials(tmp_path / "a").authority_certificate
    other = make_credentials(tmp_path / "b").authority_certificate
    tree = tmp_path / "c" / "default"
    adopt_authority(tree, NETWORK, foreign)
    adopt_authority(tree, NETWORK, foreign)
    with pytest.raises(DataDirectoryError, match="another network"):
        adopt_authority(tree, NETWORK, other)
    assert ensure_authority(tree, NETWORK, now=now()) is None
    assert load_authority(tree, NETWORK) is None
    (tree / "ca" / "ca.crt").unlink()
    keys.write_key(tree / "ca" / "ca.key", keys.new_tls_key())
    with pytest.raises(DataDirectoryError, match="another network"):
        adopt_authority(tree, NETWORK, foreign)


def test_the_chain_ends_with_the_authority(tmp_path: Path) -> None:
    """A joining node finds its pin there."""
    credentials = make_credentials(tmp_path)
    chain = credentials.tls_chain_path.read_bytes()
    assert chain == certificates.pem(credentials.certificate, credentials.authority_certificate)
