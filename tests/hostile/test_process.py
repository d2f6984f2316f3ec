"""A node as a process of its own: what `openssl s_client` gets from it, its memory, and what a stopped one meets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import identities
import pytest
from hostile_nodes import LIFE, client_with, greeting, join, rss_bytes, say
from support import eventually, require_tools
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from transport.identity import audit
from transport.identity.tls import TlsContexts
from transport.link import CloseReason
from transport.types import Address


@dataclass
class Process:
    """A running `mesh up`."""

    popen: subprocess.Popen[str]
    data_dir: Path
    address: Address


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Process]:
    """A node of its own process in the tree ``a``."""
    command = [sys.executable, "-m", "mesh", "up", "--json", "--no-mdns", "--node-id", "victim"]
    command += ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "a")]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert popen.stdout is not None
    event = json.loads(popen.stdout.readline())
    yield Process(popen, tmp_path / "a", Address("127.0.0.1", event["port"]))
    with contextlib.suppress(ProcessLookupError):
        popen.send_signal(signal.SIGCONT)
    popen.terminate()
    _, errors = popen.communicate(timeout=15)
    assert "Traceback" not in errors, errors


def _s_client(address: Address, *options: str) -> str:
    """What OpenSSL's client says of the node; it sends a request, since TLS 1.3 refuses certificates only then."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", str(address), "-alpn", "peermesh/1", "-ign_eof", *options],
        input="GET /mesh HTTP/1.1\r\nHost: x\r\n\r\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout + done.stderr


def _refused(victim: Process, cause: str) -> int:
    """What the node itself says, through its control socket."""
    command = [sys.executable, "-m", "mesh", "status", "--json", "--data-dir", str(victim.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    document = json.loads(done.stdout)
    links = document.get("stats", document)["links"]
    return int(links.get(f"refused_{cause}", 0))


def _audited(victim: Process) -> str:
    """The messages of the refused certificates in the audit log, which holds together."""
    path = victim.data_dir / "default" / "victim" / "audit.log"
    assert audit.verify(path).intact
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return " ".join(one["fields"]["message"] for one in records if one["event"] == "certificate rejected")


@pytest.mark.system
class TestOpenSsl:
    """The lines of the issue's "Must show"."""

    @pytest.fixture(autouse=True)
    def _tool(self) -> None:
        require_tools("openssl")

    def test_tls_1_2_is_refused(self, victim: Process) -> None:
        """By protocol version, before any certificate."""
        said = _s_client(victim.address, "-tls1_2")

        assert "no peer certificate available" in said
        assert "HTTP/1.1" not in said
        assert _refused(victim, "tls_version") == 1

    def test_no_client_certificate_is_refused(self, victim: Process) -> None:
        """TLS 1.3 lets the client finish first; then comes the end, and never an answer.  (Asyncio drops the alert.)"""
        said = _s_client(victim.address, "-tls1_3")

        assert "HTTP/1.1" not in said
        assert _refused(victim, "no_certificate") == 1

    def test_a_certificate_of_another_authority_is_refused(self, victim: Process, tmp_path: Path) -> None:
        """The other network has the same name."""
        other = identities.make_credentials(tmp_path / "elsewhere", "default", "zed")
        said = _s_client(victim.address, "-cert", str(other.tls_chain_path), "-key", str(other.tls_key_path))

        assert "HTTP/1.1" not in said
        assert _refused(victim, "certificate") == 1
        assert "unable to get local issuer certificate" in _audited(victim)

    def test_an_expired_certificate_is_refused(self, victim: Process) -> None:
        """Of the right authority."""
        expired = identities.make_expired(victim.data_dir, "default", "zed")
        said = _s_client(victim.address, "-cert", str(expired.tls_chain_path), "-key", str(expired.tls_key_path))

        assert "HTTP/1.1" not in said
        assert _refused(victim, "certificate") == 1
        assert "certificate has expired" in _audited(victim)

    def test_a_member_gets_as_far_as_http(self, victim: Process) -> None:
        """The same command with a good certificate: the refusals above are not for another reason."""
        good = identities.make_credentials(victim.data_dir, "default", "zed")
        said = _s_client(victim.address, "-cert", str(good.tls_chain_path), "-key", str(good.tls_key_path))

        assert "Protocol  : TLSv1.3" in said or "TLSv1.3" in said
        assert "426 Upgrade Required" in said


async def test_a_valid_certificate_with_another_nodes_id_is_refused_at_hello(victim: Process) -> None:
    """Against the process: 4402, and the process goes on."""
    credentials = await asyncio.to_thread(identities.make_credentials, victim.data_dir, "default", "zed")
    contexts = await asyncio.to_thread(TlsContexts, credentials)
    async with connect(
        f"wss://{victim.address}/mesh",
        ssl=contexts.client,
        server_hostname="default.peermesh.internal",
        compression=None,
        proxy=None,
        close_timeout=1,
    ) as connection:
        await connection.send(greeting("somebody-else"))
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(5):
                while True:
                    await connection.recv()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseReason.IDENTITY_MISMATCH
    assert victim.popen.poll() is None


@pytest.mark.slow
async def test_memory_and_descriptors_of_a_node_survive_a_siege(victim: Process, tmp_path: Path) -> None:
    """A thousand half-open connections and hundreds of refused handshakes: the process is as small as before."""
    pid = victim.popen.pid
    foreign = await asyncio.to_thread(identities.make_credentials, tmp_path / "elsewhere", "default", "zed")
    context = await asyncio.to_thread(client_with, foreign)
    before = rss_bytes(pid)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count
    writers = []
    for _ in range(1000):
        _, writer = await asyncio.open_connection(victim.address.host, victim.address.port)
        writers.append(writer)
    async with await join(victim.data_dir, "newcomer") as newcomer:
        await newcomer.wait_for_members(2, timeout_s=15)
    during = rss_bytes(pid)
    for writer in writers:
        writer.transport.abort()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
    for _ in range(50):
        await asyncio.gather(
            say(victim.address, os.urandom(300)),
            say(victim.address, b"GET / HTTP/1.1\r\n\r\n"),
            say(victim.address, b"GET /mesh HTTP/1.1\r\n\r\n", context),
        )
    await eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= descriptors + 2, 10)  # noqa: PTH208 - a count

    assert during - before < 24 << 20, f"{(during - before) >> 20} MiB for half-open connections"
    assert rss_bytes(pid) - before < 32 << 20
    assert victim.popen.poll() is None


@pytest.mark.slow
async def test_a_stopped_process_gives_way_to_its_successor(victim: Process, tmp_path: Path) -> None:
    """Its links are open and silent: the newcomer wins after a probe, and the old one ends when it wakes."""
    async with await join(victim.data_dir, "witness") as witness:
        await witness.wait_for_members(2)
        older = witness.member("victim").incarnation
        victim.popen.send_signal(signal.SIGSTOP)
        ignore = shutil.ignore_patterns("*.sock")
        await asyncio.to_thread(shutil.copytree, victim.data_dir, tmp_path / "b", ignore=ignore)
        successor = await join(tmp_path / "b", "victim", bootstrap=witness.addresses)
        try:
            await successor.wait_for_members(2, timeout_s=15)
            await eventually(lambda: witness.member("victim").incarnation // LIFE > older // LIFE, 15)
            victim.popen.send_signal(signal.SIGCONT)
            code = await asyncio.to_thread(victim.popen.wait, 20)
            assert code != 0, "the older process has to say that it was superseded"
            await eventually(lambda: "victim" in witness._runtime.endpoint.links)
        finally:
            await successor.leave_network()
