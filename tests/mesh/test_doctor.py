"""Each trouble is found and named, with what to do."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mesh import doctor
from mesh.config import MeshConfig
from mesh.doctor import Finding, Severity
from transport.identity.credentials import obtain_credentials
from transport.identity.datadir import NodeDirectory
from transport.types import Address, NetworkName, NodeId

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LAB, N1 = NetworkName("lab"), NodeId("n1")


def enrolled(data_dir: Path, now: datetime = NOW) -> None:
    """A tree with a network and a node."""
    with NodeDirectory.open(data_dir, LAB, N1) as directory:
        obtain_credentials(directory, now=now)


def only(findings: list[Finding]) -> Finding:
    """The one thing that was found."""
    (finding,) = findings
    return finding


def test_a_healthy_tree_has_nothing_wrong(tmp_path: Path) -> None:
    """All checks pass on a fresh network."""
    now = datetime.now(UTC)
    enrolled(tmp_path, now)
    findings = doctor.examine(MeshConfig.load(data_dir=tmp_path, network="lab", listen="127.0.0.1:0", mdns=False))
    assert {finding.severity for finding in findings} == {Severity.OK}, findings


def test_packages_of_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of our name from elsewhere is named with its place."""
    assert only(doctor.check_packages()).severity is Severity.OK
    monkeypatch.setattr(doctor, "_PACKAGES", ("json",))
    finding = only(doctor.check_packages())
    assert (finding.check, finding.severity) == ("foreign-package", Severity.ERROR)


def test_data_directory_that_cannot_be(tmp_path: Path) -> None:
    """A file in the way is an error; a directory that can be made is not."""
    assert only(doctor.check_data_dir(tmp_path / "new" / "tree")).severity is Severity.OK
    (tmp_path / "file").write_text("")
    assert only(doctor.check_data_dir(tmp_path / "file" / "tree")).severity is Severity.ERROR
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "looking leaves nothing behind"


def test_readable_key(tmp_path: Path) -> None:
    """The file and the command that mends it are named."""
    enrolled(tmp_path)
    assert only(doctor.check_keys(tmp_path)).severity is Severity.OK
    key = tmp_path / "lab" / "n1" / "identity.key"
    key.chmod(0o644)
    finding = only(doctor.check_keys(tmp_path))
    assert finding.severity is Severity.ERROR
    assert f"chmod 600 {key}" in finding.fix


def test_clock_that_is_behind(tmp_path: Path) -> None:
    """A certificate from the future means a clock in the past."""
    enrolled(tmp_path, datetime.now(UTC))
    assert only(doctor.check_clock(tmp_path, datetime.now(UTC))).severity is Severity.OK
    finding = only(doctor.check_clock(tmp_path, datetime.now(UTC) - timedelta(days=2)))
    assert (finding.check, finding.severity) == ("clock", Severity.ERROR)


def test_expired_certificate(tmp_path: Path) -> None:
    """Harmless where the authority's key is at hand, an error where it is not."""
    enrolled(tmp_path)
    later = NOW + timedelta(days=30)
    assert only(doctor.check_certificates(tmp_path, NOW)).severity is Severity.OK
    assert only(doctor.check_certificates(tmp_path, later)).severity is Severity.OK
    (tmp_path / "lab" / "ca" / "ca.key").unlink()
    finding = only(doctor.check_certificates(tmp_path, later))
    assert (finding.check, finding.severity) == ("certificate-expired", Severity.ERROR)
    assert "mesh invite" in finding.fix


def test_certificate_of_another_network(tmp_path: Path) -> None:
    """A certificate that the authority beside it did not sign is named."""
    enrolled(tmp_path / "one")
    enrolled(tmp_path / "two")
    foreign = tmp_path / "one" / "lab" / "n1" / "tls.crt"
    foreign.write_bytes((tmp_path / "two" / "lab" / "n1" / "tls.crt").read_bytes())
    finding = only(doctor.check_certificates(tmp_path / "one", NOW))
    assert (finding.check, finding.severity) == ("certificate-foreign", Severity.ERROR)
    foreign.write_bytes(b"nonsense")
    assert only(doctor.check_certificates(tmp_path / "one", NOW)).severity is Severity.ERROR


def test_port_in_use(tmp_path: Path) -> None:
    """The port is named, and who holds it where the system says."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        finding = only(doctor.check_port(Address("127.0.0.1", port), tmp_path, LAB))
    assert (finding.check, finding.severity) == ("port-in-use", Severity.ERROR)
    assert str(port) in finding.what
    assert only(doctor.check_port(Address("127.0.0.1", 0), tmp_path, LAB)).severity is Severity.OK


def test_address_that_is_not_here(tmp_path: Path) -> None:
    """An address of another machine cannot be listened on."""
    finding = only(doctor.check_port(Address("192.0.2.1", 7946), tmp_path, LAB))
    assert (finding.check, finding.severity) == ("listen-address", Severity.ERROR)


def test_no_multicast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an interface that takes it, bootstrap is the way out; a warning, not an error."""

    def refused(address: str) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(doctor, "join_multicast", refused)
    finding = only(doctor.check_multicast())
    assert (finding.check, finding.severity) == ("no-multicast", Severity.WARNING)
    assert "--bootstrap" in finding.fix


def test_unreachable_seed() -> None:
    """Nobody listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        seed = Address("127.0.0.1", free.getsockname()[1])
        finding = doctor.check_seed(seed, None, LAB)
    assert (finding.check, finding.severity) == ("seed-unreachable", Severity.ERROR)
    assert doctor.check_seeds((), None, LAB) == []
