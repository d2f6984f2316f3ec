"""Test support: a made-up local network of hosts, each a network namespace, joined by a bridge.

The bridge lives in a namespace of its own, the *switch*, so that faults are made there (nft in the bridge family)
without touching the hosts, and so that nothing of it shows up in the machine's own network::

    with Lan() as lan:
        a, b = lan.host("a"), lan.host("b")            # 10.77.0.1, 10.77.0.2
        process = a.start([sys.executable, "-m", "mesh", "up"], stdout=subprocess.PIPE)
        lan.partition([a], [b]); lan.heal()

Leaving the ``with`` ends the processes by their ids and removes the namespaces, whatever happened.  Names contain
the id of this process; what a killed test run left behind is removed by the next one.

All calls block (they run ``ip`` and ``nft``): make the network in a plain fixture, or call through
``asyncio.to_thread`` inside a test.  Ask :func:`support.require_network_namespaces` first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_PREFIX = "pmt"
_NAMESPACES = Path("/run/netns")
_numbers = itertools.count(1)
_COMMAND_TIMEOUT_S = 20.0
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def _run(*command: str, stdin: str | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False, env=_ENVIRONMENT
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Host:
    """One host of the made-up network.  Use :meth:`Lan.host`."""

    def __init__(self, lan: Lan, name: str, number: int) -> None:
        """Make its namespace, with loopback up and no other adapter."""
        self.name = name
        self.number = number
        self.namespace = f"{lan.prefix}-{name}"
        self.address = lan.address(number)
        self.port = f"p{number}"
        """Its plug in the switch."""
        self._lan = lan
        self._processes: list[subprocess.Popen[str]] = []
        _run("ip", "netns", "add", self.namespace)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` inside and return what it prints."""
        return _run("ip", "-n", self.namespace, *arguments)

    def plug_in(self, *, address: bool = True) -> None:
        """Give it ``eth0`` on the switch, with :attr:`address` unless told otherwise."""
        make = ("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        self._lan.switch_ip(*make)
        self._lan.switch_ip("link", "set", self.port, "master", "br0", "up")
        if address:
            self.add_address(self.address)
        self.ip("link", "set", "eth0", "up")

    def add_address(self, address: str, prefix_length: int = 24) -> None:
        """Add an IPv4 address to ``eth0``."""
        self.ip("address", "add", f"{address}/{prefix_length}", "dev", "eth0")

    def remove_address(self, address: str, prefix_length: int = 24) -> None:
        """Remove an IPv4 address from ``eth0``."""
        self.ip("address", "del", f"{address}/{prefix_length}", "dev", "eth0")

    def cable(self, *, plugged: bool) -> None:
        """Pull or plug the cable, at the switch's end."""
        self._lan.switch_ip("link", "set", self.port, "up" if plugged else "down")

    def nft(self, rules: str) -> None:
        """Apply an nft script to its own packet filter."""
        _run(*self.command(["nft", "-f", "-"]), stdin=rules)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs ``command`` inside.

        nsenter instead of ``ip netns exec``, which would hide /sys/fs/cgroup.  It replaces itself with the command, so
        signals reach it.
        """
        return ["nsenter", f"--net={_NAMESPACES / self.namespace}", "--", *command]

    def run(self, command: Sequence[str], *, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run ``command`` inside to its end."""
        return subprocess.run(
            self.command(command), capture_output=True, text=True, timeout=timeout_s, check=False, env=_ENVIRONMENT
        )

    def start(
        self,
        command: Sequence[str],
        *,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start ``command`` inside, in a process group of its own; it ends with the host at the latest."""
        process = subprocess.Popen(
            self.command(command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env={**_ENVIRONMENT, **(env or {})},
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End its processes and remove it."""
        for process in self._processes:
            # The group, because a shell's children would keep the namespace alive.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        _run("ip", "netns", "delete", self.namespace, check=False)


class Lan:
    """A switch and the hosts plugged into it."""

    def __init__(self, subnet: str = "10.77.0") -> None:
        """Prepare; nothing is made before ``with``.

        Args:
            subnet: The first three bytes of every host's address.  Namespaces are apart, so tests may share it.
        """
        self.prefix = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._subnet = subnet
        self._hosts: dict[str, Host] = {}
        self._switch = f"{self.prefix}-switch"
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        remove_leftovers()
        try:
            _run("ip", "netns", "add", self._switch)
            # Without a querier on the network a snooping bridge would drop multicast after a while.
            self.switch_ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            self.switch_ip("link", "set", "br0", "up")
        except BaseException:  # whatever went wrong, Ctrl-C too: no namespace may be left behind
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def hosts(self) -> list[Host]:
        """The hosts, in the order they were made."""
        return list(self._hosts.values())

    def address(self, number: int) -> str:
        """The address of the host with that number."""
        return f"{self._subnet}.{number}"

    def host(self, name: str, *, plugged_in: bool = True, address: bool = True) -> Host:
        """Make a host; without ``plugged_in`` it has only loopback, without ``address`` an adapter without one."""
        with self._lock:
            assert name not in self._hosts, f"there is a host {name} already"
            assert re.fullmatch(r"[a-z0-9-]{1,40}", name), f"{name} cannot name a namespace"
            host = self._hosts[name] = Host(self, name, len(self._hosts) + 1)
        if plugged_in:
            host.plug_in(address=address)
        return host

    def switch_ip(self, *arguments: str) -> str:
        """Run ``ip`` in the switch."""
        return _run("ip", "-n", self._switch, *arguments)

    def nft(self, rules: str) -> None:
        """Apply an nft script in the switch, as one transaction."""
        _run("ip", "netns", "exec", self._switch, "nft", "-f", "-", stdin=rules)

    def partition(self, left: Iterable[Host], right: Iterable[Host], *, one_way: bool = False) -> None:
        """Drop every IPv4 packet from ``left`` to ``right``, and back unless ``one_way``; replaces the last one."""
        from_, to = ", ".join(h.address for h in left), ", ".join(h.address for h in right)
        rules = [f"ip saddr {{ {from_} }} ip daddr {{ {to} }} drop"]
        # Multicast has no single destination: cut it by the port that it would leave from.
        rules += [f'oifname "{h.port}" ip saddr {{ {from_} }} drop' for h in self.hosts if h.address in to.split(", ")]
        if not one_way:
            rules.append(f"ip saddr {{ {to} }} ip daddr {{ {from_} }} drop")
            cut = from_.split(", ")
            rules += [f'oifname "{h.port}" ip saddr {{ {to} }} drop' for h in self.hosts if h.address in cut]
        body = "\n  ".join(rules)
        self.heal()
        self.nft(
            "table bridge faults {\n chain cut {\n  type filter hook forward priority 0; policy accept;\n"
            f"  {body}\n }}\n}}\n"
        )

    def heal(self) -> None:
        """Undo :meth:`partition`."""
        self.nft("table bridge faults\ndelete table bridge faults\n")

    def close(self) -> None:
        """Remove everything.  Safe to call twice."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        _run("ip", "netns", "delete", self._switch, check=False)


def remove_leftovers() -> None:
    """Remove the namespaces of test runs that did not come to their end."""
    if not _NAMESPACES.is_dir():
        return
    for entry in _NAMESPACES.iterdir():
        found = re.match(rf"{_PREFIX}(\d+)-", entry.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            _run("ip", "netns", "delete", entry.name, check=False)
