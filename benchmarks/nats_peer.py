"""The yardstick: nats-server between two nats-py processes, with the same mutual TLS that the mesh has.

NATS is what one would take otherwise for messages between agents on a few machines.  It has a server in the middle
and keeps nothing; we measure it as its documentation shows it, with its limits on slow consumers raised so that
nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.bench.pair import WorkerPair
from mesh.processes import Workers
from transport.errors import MeshError

_START_S = 10.0
_STOP_S = 5.0


def nats_server() -> str | None:
    """Where the server is installed; ``None`` if it is not (Debian package ``nats-server``)."""
    return shutil.which("nats-server", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


_AUTHORITY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def write_certificates(folder: Path) -> None:
    """Write ``ca.crt`` and, for server and client, ``tls.crt`` and ``tls.key``: P-256, as the mesh has them."""
    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark authority")])
    times = (now - dt.timedelta(minutes=5), now + dt.timedelta(days=1))
    ca = (
        x509.CertificateBuilder(ca_name, ca_name, ca_key.public_key(), x509.random_serial_number(), *times)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(_AUTHORITY_USAGE, critical=True)  # Python 3.13 verifies strictly, and misses it otherwise
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    alternative = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    leaf = (
        x509.CertificateBuilder(ca_name, name, key.public_key(), x509.random_serial_number(), *times)
        .add_extension(alternative, critical=False)
        .add_extension(usages, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "tls.crt").write_bytes(leaf.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(private)


@dataclass(frozen=True, slots=True)
class NatsPair:
    """A running server and the two processes it connects.

    Attributes:
        pair: The processes.
        version: The server's.
        server: Its process.
    """

    pair: WorkerPair
    version: str
    server: psutil.Process

    def server_cpu_s(self) -> float:
        """CPU time that the server has used."""
        times = self.server.cpu_times()
        return float(times.user + times.system)


@contextlib.asynccontextmanager
async def start_nats_pair(workers: Workers) -> AsyncIterator[NatsPair]:
    """Start a server and two processes that are connected to it; the server ends with the context.

    Raises:
        MeshError: The server is not installed, or something did not start.
    """
    program = nats_server()
    if program is None:
        raise MeshError("nats-server is not installed", hint="apt-get install nats-server")
    folder = workers.path / "nats"
    folder.mkdir()
    await asyncio.to_thread(write_certificates, folder)
    port = _free_port()
    configuration = folder / "server.conf"
    configuration.write_text(_configuration(folder, port), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(configuration), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _wait_listening(port, process)
        settings = {"url": f"tls://127.0.0.1:{port}", "folder": str(folder)}
        receiver = await workers.start("nats receiver", "benchmarks.nats_worker", settings)
        sender = await workers.start("nats sender", "benchmarks.nats_worker", settings)
        tls = (await receiver.call("listen"))["tls"]
        pair = WorkerPair(receiver, sender, f"{tls}, both sides authenticated")
        yield NatsPair(pair, await _version(program), psutil.Process(process.pid))
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def _configuration(folder: Path, port: int) -> str:
    # JSON is a subset of the server's own syntax.
    return json.dumps(
        {
            "listen": f"127.0.0.1:{port}",
            "max_pending": 1 << 30,  # a slow consumer is waited for, not cut off
            "write_deadline": "30s",
            "tls": {
                "cert_file": str(folder / "tls.crt"),
                "key_file": str(folder / "tls.key"),
                "ca_file": str(folder / "ca.crt"),
                "verify": True,
            },
        }
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _wait_listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START_S):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return
    raise MeshError(f"nats-server ended with {process.returncode}")


async def _version(program: str) -> str:
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()
