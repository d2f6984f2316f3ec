"""Test support: Avahi, another implementation of mDNS, as a witness of what we announce."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from netns import Host
from support import require_tools

# A private /run, bus and daemon; all of it goes with the shell's process group.
_SCRIPT = """
    mount -t tmpfs tmpfs /run && mkdir -p /run/dbus /run/avahi-daemon && chown avahi:avahi /run/avahi-daemon
    dbus-daemon --system --nofork --nopidfile &
    for i in $(seq 100); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.05; done
    avahi-daemon --no-chroot --no-rlimits >/dev/null 2>&1 &
    for i in $(seq 60); do
        avahi-browse --parsable --resolve --terminate _peermesh._tcp 2>/dev/null
        sleep 0.25
    done
"""


class Seen(NamedTuple):
    """One service as avahi-browse resolved it."""

    instance: str
    host: str
    address: str
    port: int
    txt: frozenset[str]
    """``key=value`` strings."""


def require_avahi() -> None:
    """Go on only where :func:`browse` can work."""
    require_tools("avahi-daemon", "avahi-browse", "dbus-daemon", "unshare", "mount")


def browse(host: Host) -> Iterator[Seen]:
    """What avahi-browse, run on ``host``, resolves of our service over IPv4, again and again for some 15 s or more."""
    shell = host.start(["unshare", "--mount", "sh", "-c", _SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert shell.stdout is not None
    for line in shell.stdout:
        fields = line.rstrip("\n").split(";")
        if fields[0] == "=" and fields[2] == "IPv4":
            strings = frozenset(text.strip('"') for text in fields[9].split(" "))
            yield Seen(fields[3], fields[6], fields[7], int(fields[8]), strings)
