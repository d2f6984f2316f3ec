"""What keeps a node from running or joining, and how to mend it.

Each check is a plain function that looks at one thing and returns what it found; :func:`examine` runs them all.
They only look: the one file that is written is removed again, and a seed is greeted without a certificate.
"""

from __future__ import annotations

import enum
import errno
import importlib.util
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from transport.clock import Clock, SystemClock
from transport.errors import MeshError
from transport.identity.datadir import default_data_dir, known_networks, known_nodes
from transport.types import Address, NetworkName, NodeId

from .config import MeshConfig
from .control.locate import running_nodes

if TYPE_CHECKING:
    from cryptography import x509

#: Our import packages; a stranger of the same name would be imported instead of ours.
_PACKAGES: Final = ("transport", "gossip", "state", "mesh", "chaos")

#: How far clocks may be apart before it is worth a word; certificates are backdated by as much.
CLOCK_TOLERANCE: Final = timedelta(minutes=5)

#: How long a seed may take to answer, each for TCP and for TLS.
_SEED_TIMEOUT_S: Final = 3.0

_MDNS_GROUP: Final = "224.0.0.251"
_MDNS_PORT: Final = 5353


class Severity(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: Which check found it, e.g. ``port-in-use``; stable, for scripts.
        severity: Whether something must be done.
        what: What was found, naming the file, port or host.
        why: Why it matters.
        fix: What to do.
    """

    check: str
    severity: Severity
    what: str
    why: str = ""
    fix: str = ""

    def document(self) -> dict[str, str]:
        """As plain data."""
        return {
            "id": self.check,
            "severity": self.severity.value,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


def examine(config: MeshConfig, *, clock: Clock | None = None) -> list[Finding]:
    """Run every check that fits ``config``; takes a few seconds if seeds do not answer."""
    now = datetime.fromtimestamp((clock or SystemClock()).wall(), UTC)
    try:
        data_dir = config.data_dir or default_data_dir()
    except MeshError as error:
        return [Finding("data-dir", Severity.ERROR, error.message, "a node keeps its keys there", error.hint)]
    checks: list[Callable[[], list[Finding]]] = [
        check_packages,
        lambda: check_data_dir(data_dir),
        lambda: check_keys(data_dir),
        lambda: check_clock(data_dir, now),
        lambda: check_certificates(data_dir, now),
        lambda: check_port(config.listen, data_dir, config.network),
        lambda: check_seeds(config.bootstrap, authority_of(data_dir, config.network), config.network),
    ]
    if config.mdns:
        checks.append(check_multicast)
    return [finding for check in checks for finding in check()]


def check_packages() -> list[Finding]:
    """Whether each of our package names leads to our package."""
    home = Path(__file__).resolve().parent.parent
    strangers = []
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or []]
        if not places and spec is not None and spec.origin:
            places = [Path(spec.origin).resolve()]
        if places and home / name not in places:
            strangers.append((name, places[0]))
    return [
        Finding(
            "foreign-package",
            Severity.ERROR,
            f"the package {name!r} that Python finds is not peermesh's: {place}",
            "peermesh would run a stranger's code, or fail in odd ways",
            f"uninstall the other distribution that brings {name!r}, or use a virtual environment",
        )
        for name, place in strangers
    ] or [Finding("foreign-package", Severity.OK, "the packages are peermesh's own")]


def check_data_dir(data_dir: Path) -> list[Finding]:
    """Whether the data directory, or the place where it will be, can be written."""
    existing = data_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".peermesh-doctor-"):
            pass
    except OSError as error:
        return [
            Finding(
                "data-dir",
                Severity.ERROR,
                f"the data directory {data_dir} cannot be written: {error.strerror} ({existing})",
                "a node keeps its keys, its certificate and its life counter there",
                f"make {existing} writable for this user, free space, or choose another with --data-dir",
            )
        ]
    return [Finding("data-dir", Severity.OK, f"the data directory {data_dir} can be written")]


def check_keys(data_dir: Path) -> list[Finding]:
    """Whether a private key can be read by other users."""
    loose = []
    total = 0
    for path in sorted(data_dir.glob("*/*/*.key")):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        total += 1
        if mode & 0o077:
            loose.append((path, mode & 0o777))
    return [
        Finding(
            "readable-key",
            Severity.ERROR,
            f"others can read the private key {path} (mode {mode:04o})",
            "whoever has it can pass for this node, or admit nodes to the network; nodes refuse to start with it",
            f"chmod 600 {path}; if others may have read it, delete it and enrol again",
        )
        for path, mode in loose
    ] or [Finding("readable-key", Severity.OK, f"private keys are private ({total})")]


def check_clock(data_dir: Path, now: datetime) -> list[Finding]:
    """Whether the clock is behind what certificates and files say it must at least be."""
    evidence: list[tuple[datetime, str]] = []
    for path in sorted(data_dir.glob("*/*/*.crt")):
        certificate = _load(path)
        if certificate is not None:
            evidence.append((certificate.not_valid_before_utc, f"{path} is valid from"))
    for path in sorted(data_dir.glob("*/*/*")):
        try:
            evidence.append((datetime.fromtimestamp(path.stat().st_mtime, UTC), f"{path} was written at"))
        except (OSError, ValueError, OverflowError):
            continue
    late = [(at, what) for at, what in evidence if at > now + CLOCK_TOLERANCE]
    if not late:
        return [Finding("clock", Severity.OK, f"the clock is plausible ({now:%Y-%m-%d %H:%M:%S} UTC)")]
    at, what = max(late)
    return [
        Finding(
            "clock",
            Severity.ERROR,
            f"the clock says {now:%Y-%m-%d %H:%M:%S} UTC, but {what} {at:%Y-%m-%d %H:%M:%S} UTC",
            "certificates and tokens are judged by the clock: peers will be refused as not yet valid, or expired",
            "set the clock (timedatectl set-ntp true)",
        )
    ]


def authority_of(data_dir: Path, network: NetworkName) -> x509.Certificate | None:
    """The authority of a network as this tree knows it; ``None`` if it knows none that can be read."""
    return _load(data_dir / network / "ca" / "ca.crt")


def check_certificates(data_dir: Path, now: datetime) -> list[Finding]:
    """Whether each node's certificate is valid now, its own, and from the authority beside it."""
    found = [
        _certificate_finding(data_dir, network, node, now)
        for network in known_networks(data_dir)
        for node in known_nodes(data_dir, network)
        if (data_dir / network / node / "tls.crt").exists()
    ]
    return found or [Finding("certificate", Severity.OK, "no certificates yet; the first start makes them")]


def _certificate_finding(data_dir: Path, network: NetworkName, node: NodeId, now: datetime) -> Finding:
    from transport.identity.certificates import der, verify_peer  # cryptography is slow to import

    path = data_dir / network / node / "tls.crt"
    certificate = _load(path)
    issues_itself = (data_dir / network / "ca" / "ca.key").exists()
    authority = authority_of(data_dir, network) or _load(data_dir / network / node / "ca.crt")
    renew = (
        f"delete {path.parent} and start the node: it issues itself a new one"
        if issues_itself
        else "make a token with `mesh invite` on a node of the network, then `mesh up --join TOKEN`"
    )
    if certificate is None:
        return Finding("certificate", Severity.ERROR, f"{path} cannot be read", "the node cannot start", renew)
    if authority is None:
        return Finding(
            "certificate",
            Severity.ERROR,
            f"the authority of network {network} is missing or cannot be read",
            "without it no peer can be verified",
            "copy ca.crt from another node of the network, or enrol again",
        )
    if certificate.not_valid_after_utc < now:
        expired = f"the certificate of node {node} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
        if issues_itself:
            return Finding("certificate-expired", Severity.OK, f"{expired}; the next start issues a new one")
        return Finding("certificate-expired", Severity.ERROR, expired, "every peer refuses it", renew)
    try:
        # Judged inside its time, so that a wrong clock, which has its own finding, does not look like a wrong network.
        inside = min(max(now, certificate.not_valid_before_utc), certificate.not_valid_after_utc)
        verify_peer(der(certificate), authority=authority, network=network, now=inside, expected=node)
    except MeshError as error:
        return Finding(
            "certificate-foreign",
            Severity.ERROR,
            f"the certificate of node {node} does not belong to network {network} of this tree: {error.message}",
            "peers refuse it: it is from another authority, network or node",
            renew,
        )
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return Finding("certificate", Severity.OK, f"the certificate of node {node} ({network}) is good until {until}")


def check_port(listen: Address, data_dir: Path, network: NetworkName) -> list[Finding]:
    """Whether the listening address can be bound."""
    if listen.port == 0:
        return [Finding("port-in-use", Severity.OK, "the system picks a free port")]
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as error:
        what, why = f"the name {listen.host!r} cannot be resolved: {error.strerror}", "the node cannot listen there"
        return [Finding("listen-address", Severity.ERROR, what, why, "give an address of this machine, or 0.0.0.0")]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return [_port_in_use(listen, data_dir, network)]
        fix = (
            "choose a port above 1023" if error.errno == errno.EACCES else "give an address of this machine, or 0.0.0.0"
        )
        what = f"cannot listen on {listen}: {error.strerror}"
        return [Finding("listen-address", Severity.ERROR, what, "no peer could reach the node", fix)]
    return [Finding("port-in-use", Severity.OK, f"{listen} is free")]


def _port_in_use(listen: Address, data_dir: Path, network: NetworkName) -> Finding:
    holder, pid = port_holder(listen.port)
    ours = [
        node.node_id
        for node in running_nodes(data_dir, network)
        if pid is not None and _pid_of(node.socket_path) == pid
    ]
    if ours:
        return Finding("port-in-use", Severity.OK, f"{listen} is used by the running node {ours[0]}")
    return Finding(
        "port-in-use",
        Severity.ERROR,
        f"port {listen.port} is in use{f' by {holder}' if holder else ''}",
        "a node cannot start on it",
        "stop that process, or choose another port with --listen HOST:PORT (port 0: any)",
    )


def _pid_of(socket_path: Path) -> int | None:
    from .control.client import ControlClient

    try:
        with ControlClient(socket_path) as client:
            return int(client.call("ping", timeout_s=1.0)["pid"])
    except (MeshError, KeyError, TypeError, ValueError):
        return None


def port_holder(port: int) -> tuple[str, int | None]:
    """Who listens on a TCP port, as far as this user may know: a text for people, and the process id."""
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return "", None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                return "a process of another user", None
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})", connection.pid
            except psutil.Error:
                return f"pid {connection.pid}", connection.pid
    return "", None


def check_multicast() -> list[Finding]:
    """Whether mDNS can work: an interface that is up, and the group can be joined on it."""
    from gossip.discovery.advertise import multicast_adapters
    from gossip.discovery.interfaces import read_interfaces

    why = "nodes on the local network will not find each other by themselves"
    fix = "give --bootstrap wss://HOST:PORT, or run with --no-mdns if that is intended"
    try:
        adapters = multicast_adapters(read_interfaces())
    except OSError as error:
        return [Finding("no-multicast", Severity.WARNING, f"network interfaces cannot be read: {error}", why, fix)]
    joined, refused = [], []
    for adapter in adapters:
        address = next((one for one in adapter.addresses if ":" not in one), None)
        if address is None:
            continue
        try:
            join_multicast(address)
            joined.append(adapter.name)
        except OSError as error:
            refused.append(f"{adapter.name} ({error.strerror})")
    if not joined:
        tried = f": {', '.join(refused)}" if refused else ": no interface with an IPv4 address is up"
        return [Finding("no-multicast", Severity.WARNING, f"no interface takes multicast{tried}", why, fix)]
    if all(name in {"lo", "lo0"} for name in joined):
        return [Finding("no-multicast", Severity.WARNING, "only the loopback interface is up", why, fix)]
    return [Finding("no-multicast", Severity.OK, f"the multicast group can be joined on {', '.join(joined)}")]


def join_multicast(interface_address: str) -> None:
    """Join the mDNS group on an interface and leave it again.

    Raises:
        OSError: It cannot be joined, the port cannot be shared, there is no route to the group, or a packet filter
            forbids it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("", _MDNS_PORT))
        membership = socket.inet_aton(_MDNS_GROUP) + socket.inet_aton(interface_address)
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface_address))
        probe.connect((_MDNS_GROUP, _MDNS_PORT))  # asks the kernel for a route
        probe.send(bytes(12))  # an empty question, which everybody passes over: only sending asks the packet filter


def check_seeds(seeds: Sequence[Address], authority: x509.Certificate | None, network: NetworkName) -> list[Finding]:
    """Whether each seed answers over TCP, then TLS, with a certificate of this network's authority."""
    if not seeds:
        return []
    with ThreadPoolExecutor(max_workers=min(16, len(seeds)), thread_name_prefix="mesh-doctor") as pool:
        return list(pool.map(lambda seed: check_seed(seed, authority, network), seeds))


def check_seed(seed: Address, authority: x509.Certificate | None, network: NetworkName) -> Finding:
    """See :func:`check_seeds`."""
    why = "this node cannot join through it"
    try:
        connection = socket.create_connection((seed.host, seed.port), timeout=_SEED_TIMEOUT_S)
    except socket.gaierror as error:
        what, fix = f"the seed {seed} has a name that does not resolve: {error.strerror}", "correct the name, or DNS"
        return Finding("seed-unreachable", Severity.ERROR, what, why, fix)
    except OSError as error:
        reason = error.strerror or "no answer in time"
        fix = "check that a node runs there, the port, and firewalls between here and there"
        return Finding("seed-unreachable", Severity.ERROR, f"the seed {seed} cannot be reached: {reason}", why, fix)
    with connection:
        try:
            presented = _greet(connection)
        except (OSError, ssl.SSLError) as error:
            what = f"something answers at the seed {seed}, but not TLS 1.3: {error}"
            return Finding("seed-tls", Severity.ERROR, what, why, "check the port: that is not a peermesh node")
    return _seed_finding(seed, presented, authority, network)


def _greet(connection: socket.socket) -> bytes:
    """Shake hands without a certificate, to see the other end's; it will refuse us, and that is all right."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only to look at it; it is judged by `verify_leaf`, and nothing is sent
    context.set_alpn_protocols(["peermesh/1"])
    connection.settimeout(_SEED_TIMEOUT_S)
    with context.wrap_socket(connection, server_hostname=None) as secured:
        return secured.getpeercert(binary_form=True) or b""


def _seed_finding(seed: Address, presented: bytes, authority: x509.Certificate | None, network: NetworkName) -> Finding:
    if authority is None:
        what = f"the seed {seed} answers; whether it is of network {network} is only known after joining"
        return Finding("seed-unreachable", Severity.OK, what)
    from transport.identity.certificates import verify_peer

    now = datetime.fromtimestamp(SystemClock().wall(), UTC)
    try:
        peer = verify_peer(presented, authority=authority, network=network, now=now, expected=None)
    except MeshError as error:
        return Finding(
            "seed-foreign",
            Severity.ERROR,
            f"the seed {seed} is not of this network: {error.message}",
            "both sides refuse each other",
            "join its network with a token from `mesh invite`, or correct the address",
        )
    return Finding("seed-unreachable", Severity.OK, f"the seed {seed} answers: it is node {peer}")


def _load(path: Path) -> x509.Certificate | None:
    from cryptography import x509  # slow to import

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError, IndexError):
        return None
