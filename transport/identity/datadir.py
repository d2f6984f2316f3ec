"""The data tree on disk, and one process's claim on its part of it.

::

    <data_dir>/<network>/default-node-id
    <data_dir>/<network>/ca/{lock, ca.key, ca.crt, invites.json}           shared by the nodes of one machine
    <data_dir>/<network>/<node_id>/{lock, life, identity.key, tls.key, tls.crt, ca.crt, audit.log, control.sock}

Directories are 0700 and files 0600.  A node's directory is locked by the process that runs the node; the shared part
is locked only for the moment of a change.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import stat
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from transport.clock import SystemClock
from transport.errors import DataDirectoryError, InsecureKeyFile, InvalidName, NodeIdInUse
from transport.types import NetworkName, NodeId, network_name, node_id

from .files import ensure_directory, locked, read_optional, remove_temporary, try_lock, write_atomic

#: ``incarnation = life << 16 | refutations`` must stay below 2**53 to be exact in JSON.
LIFE_MAX: Final = 2**37 - 1

#: Names that a node cannot have because the tree uses them.
RESERVED: Final = frozenset({"ca", "default-node-id"})

# sockaddr_un.sun_path holds 108 bytes with its end marker on Linux, 104 on macOS; stay below both.
_SOCKET_PATH_BYTES_MAX: Final = 100
_DEFAULT_NODE_ID: Final = "default-node-id"
_HOST_PART_CHARACTERS_MAX: Final = 48


class NodeDirectory:
    """One node's directory, held by this process until :meth:`release`.

    Attributes:
        network: The network.
        node_id: The node.
        path: ``<data_dir>/<network>/<node_id>``.
        network_path: ``<data_dir>/<network>``.
    """

    __slots__ = ("_lock", "network", "network_path", "node_id", "path")

    def __init__(self, data_dir: Path, network: NetworkName, node: NodeId, lock: int) -> None:
        """Not for callers: use :meth:`open`."""
        self.network = network
        self.node_id = node
        self.network_path = data_dir / network
        self.path = self.network_path / node
        self._lock: int | None = lock

    @classmethod
    def open(cls, data_dir: Path, network: NetworkName, node_id: NodeId) -> NodeDirectory:
        """Create the directory where missing, and lock it.

        Raises:
            InvalidName: The tree uses that name itself.
            NodeIdInUse: Another process (or another part of this one) runs this node.
            DataDirectoryError: The directory cannot be created or written.
            InsecureKeyFile: Others may write in it.
        """
        path = node_path(data_dir, network, node_id)
        ensure_directory(path.parent)
        ensure_directory(path)
        lock = try_lock(path / "lock")
        if lock is None:
            raise NodeIdInUse(
                f"node {node_id!r} of network {network!r} already runs here{_holder(path / 'lock')}",
                hint="stop that process, or give this one another node id (--node-id)",
            )
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)  # for the message above; the lock itself is the kernel's
        except OSError as error:
            os.close(lock)
            raise DataDirectoryError(f"cannot write {path / 'lock'}: {error.strerror}") from error
        remove_temporary(path)
        return cls(data_dir, network, node_id, lock)

    def release(self) -> None:
        """Give the directory up, so that another process may run the node.  Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> NodeDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def next_life(self, *, now: datetime | None = None) -> int:
        """The number of the life that begins now: greater than every earlier one, even if the clock went back.

        Returns:
            Seconds since the Unix epoch, or one more than the last life where that is greater.  It is on disk when
            this returns, so that no crash can make the node use it twice.

        Raises:
            DataDirectoryError: The counter is damaged, exhausted, or cannot be written.
        """
        path = self.path / "life"
        last = self._stored_life()
        clock = int(SystemClock().wall() if now is None else now.timestamp())
        life = max(last + 1, clock)
        if not 0 <= life <= LIFE_MAX:
            raise DataDirectoryError(f"{path} or the clock is far in the future ({life})", hint=f"rm {path}")
        write_atomic(path, f"{life}\n".encode())
        return life

    def record_life(self, life: int) -> None:
        """Make sure that the next life is above ``life``, which others hold to be ours.

        Raises:
            DataDirectoryError: The counter is damaged or cannot be written.
        """
        path = self.path / "life"
        if self._stored_life() < life:
            write_atomic(path, f"{life}\n".encode())

    def _stored_life(self) -> int:
        """The last life on record; -1: none."""
        path = self.path / "life"
        stored = read_optional(path)
        try:
            return -1 if stored is None else int(stored)
        except ValueError:
            raise DataDirectoryError(f"{path} does not hold a number", hint=f"rm {path}") from None

    @property
    def control_socket_path(self) -> Path:
        """Where the node's control socket belongs; see :func:`control_socket_path`."""
        return _socket_path(self.path)


def node_path(data_dir: Path, network: NetworkName, node_id: NodeId) -> Path:
    """The directory of a node.

    Raises:
        InvalidName: The tree uses that name itself.
    """
    if node_id in RESERVED:
        raise InvalidName(f"node id {node_id!r} is reserved", hint="choose another")
    return data_dir / network / node_id


def control_socket_path(data_dir: Path, network: NetworkName, node_id: NodeId) -> Path:
    """Where the control socket of a node is, without opening its directory.

    ``<node directory>/control.sock``; where that is too long for a UNIX socket address, a name made from its hash in
    a directory of this user (0700) under the system's directory for temporary files.

    Raises:
        InvalidName: The node id is reserved.
        InsecureKeyFile: The fallback directory belongs to somebody else or is open to others.
    """
    return _socket_path(node_path(data_dir, network, node_id))


def _socket_path(directory: Path) -> Path:
    path = directory.absolute() / "control.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        return path
    shared = Path(tempfile.gettempdir())
    name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}.sock"
    own = shared / f"peermesh-{os.getuid()}"
    if len(os.fsencode(own / name)) > _SOCKET_PATH_BYTES_MAX:
        own = Path("/tmp") / own.name  # noqa: S108 - checked below: ours, 0700, not a link
    ensure_directory(own)
    status = own.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InsecureKeyFile(f"{own} is not a private directory of this user", hint="remove it, or set TMPDIR")
    return own / name


def known_nodes(data_dir: Path, network: NetworkName) -> list[NodeId]:
    """The nodes that have a directory in this tree, sorted; running or not."""
    found = []
    with suppress(OSError):  # no tree, or not ours: no nodes
        for path in sorted((data_dir / network).iterdir()):
            with suppress(InvalidName):
                if path.name not in RESERVED and path.is_dir():
                    found.append(node_id(path.name))
    return found


def known_networks(data_dir: Path) -> list[NetworkName]:
    """The networks that have a directory in this tree, sorted."""
    found = []
    with suppress(OSError):  # no tree, or not ours: no networks
        for path in sorted(data_dir.iterdir()):
            with suppress(InvalidName):
                if path.is_dir():
                    found.append(network_name(path.name))
    return found


def default_data_dir() -> Path:
    """``$XDG_STATE_HOME/peermesh``, by default ``~/.local/state/peermesh``.

    Raises:
        DataDirectoryError: This user has no home directory.
    """
    # The XDG specification says that a relative value is to be ignored.
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():
        return state / "peermesh"
    try:
        return Path.home() / ".local" / "state" / "peermesh"
    except RuntimeError as error:
        raise DataDirectoryError("this user has no home directory", hint="give --data-dir") from error


def default_node_id(data_dir: Path, network: NetworkName) -> NodeId:
    """The node id to use when none is given: the host's name and a short random suffix, chosen once and kept.

    Raises:
        DataDirectoryError: The stored name is damaged, or a new one cannot be stored.
    """
    directory = data_dir / network
    path = directory / _DEFAULT_NODE_ID
    stored = read_optional(path)
    if stored is None:
        ensure_directory(directory)
        ensure_directory(directory / "ca")
        with locked(directory / "ca" / "lock"):
            stored = read_optional(path)
            if stored is None:
                stored = f"{_host_label()}-{secrets.token_hex(2)}\n".encode()
                write_atomic(path, stored)
    try:
        return node_id(stored.decode().strip())
    except (InvalidName, UnicodeDecodeError) as error:
        raise DataDirectoryError(f"{path} does not hold a node id", hint=f"rm {path}, or give --node-id") from error


def _host_label() -> str:
    """The host's name as (the beginning of) a DNS label."""
    host = socket.gethostname().partition(".")[0].lower()
    label = re.sub(r"[^a-z0-9]+", "-", host).strip("-")[:_HOST_PART_CHARACTERS_MAX].strip("-")
    return label or "node"


def _holder(lock: Path) -> str:
    try:
        pid = lock.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" (process {pid})" if pid.isdigit() else ""
