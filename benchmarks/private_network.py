"""A network of this process's own (Linux), in which the loopback counters count nothing but what is measured.

``enter`` starts the program again inside a new network namespace.  Everything that it starts then lives in there,
whatever protocol it speaks is counted the same way, and it disturbs nobody's ports.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

_INSIDE: Final = "PEERMESH_PRIVATE_NETWORK"
_COUNTERS: Final = Path("/proc/self/net/dev")


class Traffic(NamedTuple):
    """What loopback has carried: packets with their IP headers, and 14 bytes each that stand for Ethernet's."""

    bytes: int
    packets: int


def enter() -> bool:
    """Go on in a network of our own; does not return if it has to start the program again for that.

    Returns:
        Whether this process has one.  Without privileges, or on another system, it goes on where it is.
    """
    if os.environ.get(_INSIDE) == str(os.getpid()):
        return True
    command = _unshare()
    if command is None:
        return False
    # The loopback adapter of a new namespace is down.
    script = f'export {_INSIDE}=$$; ip link set lo up && exec "$@"'
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    again = [*command, "sh", "-c", script, "sh", sys.executable, *sys.orig_argv[1:]]
    return os.execvpe(again[0], again, environment)  # noqa: S606 - ourselves


def _unshare() -> list[str] | None:
    """The command that makes a network namespace, if it may be made here."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return None
    for command in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        probe = [*command, "sh", "-c", "PATH=$PATH:/usr/sbin:/sbin ip link set lo up"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return command
    return None


def traffic() -> Traffic | None:
    """What loopback has carried so far; ``None`` outside of a network of our own, where others use it too."""
    if os.environ.get(_INSIDE) is None:
        return None
    for line in _COUNTERS.read_text(encoding="ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            fields = numbers.split()
            return Traffic(int(fields[8]), int(fields[9]))  # what was sent; received is the same again
    return None
