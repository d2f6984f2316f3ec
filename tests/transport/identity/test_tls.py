"""What the TLS contexts let in, tried with openssl itself and with our own client."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import identities
import pytest
from identities import make_credentials, now, open_directory
from support import eventually

from transport.errors import CertificateRejected, DataDirectoryError
from transport.identity import certificates, keys
from transport.identity.credentials import Credentials, obtain_credentials, renew
from transport.identity.datadir import NodeDirectory
from transport.identity.invites import Token, build_invite_authority, build_invite_leaf, new_token
from transport.identity.names import ALPN, server_name
from transport.identity.tls import TlsContexts, bare_context
from transport.types import Address, NodeId


class Server:
    """A TLS server that greets whoever completes the handshake, and keeps what it showed or why it was refused.

    It accepts by itself, because asyncio's servers tell nobody why a handshake failed (nor the client: they drop the
    alert).
    """

    def __init__(self, contexts: TlsContexts) -> None:
        self.contexts = contexts
        self.port = 0
        self.shown: list[bytes] = []
        self.refused: list[str] = []
        self.handshakes = 0

    async def run(self, listener: socket.socket) -> None:
        """Accept until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                connected, _ = await asyncio.get_running_loop().sock_accept(listener)
                group.create_task(self.greet(connected))

    async def greet(self, connected: socket.socket) -> None:
        """Say hello, then wait for the end."""
        self.handshakes += 1
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader), connected, ssl=self.contexts.server
            )
        except ssl.SSLError as error:
            self.refused.append(error.reason)
            return
        except OSError as error:
            self.refused.append(type(error).__name__)
            return
        try:
            self.shown.append(transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
            transport.write(b"hello\n")
            await reader.read()
        except OSError:
            pass  # the client went
        finally:
            transport.abort()


@asynccontextmanager
async def serving(credentials: Credentials) -> AsyncIterator[Server]:
    """Run the server on a free port."""
    server = Server(await asyncio.to_thread(TlsContexts, credentials))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server.port = listener.getsockname()[1]
        task = asyncio.create_task(server.run(listener))
        try:
            yield server
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def greeting(port: int, context: ssl.SSLContext, name: str) -> bytes:
    """What the server says; nothing if it ends the connection."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    except ssl.SSLCertVerificationError:
        raise
    except OSError:
        return b""
    try:
        return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.transport.abort()


async def s_client(port: int, *arguments: str) -> tuple[str, bool]:
    """Run ``openssl s_client``.

    Returns:
        All its output, and whether the server greeted it.
    """
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = b""
    async with asyncio.timeout(20):
        while chunk := await process.stdout.read(4096):
            output += chunk
            if b"\nhello\n" in output:
                process.kill()
        await process.wait()
    return output.decode(errors="replace"), b"\nhello\n" in output


def client_files(credentials: Credentials, tmp_path: Path) -> list[str]:
    """Arguments that make s_client show the credentials and check the server."""
    authority = tmp_path / "authority.pem"
    authority.write_bytes(certificates.pem(credentials.authority_certificate))
    return [
        *("-cert", str(credentials.tls_chain_path), "-key", str(credentials.tls_key_path)),
        *("-CAfile", str(authority), "-verify_return_error", "-x509_strict", "-alpn", ALPN),
    ]


async def test_openssl_with_a_members_certificate_is_served(tmp_path: Path) -> None:
    """TLS 1.3, strict verification and the expected name all hold for an independent client."""
    member = await asyncio.to_thread(make_credentials, tmp_path, node_id="b")
    async with serving(await asyncio.to_thread(make_credentials, tmp_path, node_id="a")) as server:
        files = await asyncio.to_thread(client_files, member, tmp_path)
        name = server_name(member.network, NodeId("a"))
        output, greeted = await s_client(server.port, *files, "-servername", name, "-verify_hostname", name)
        assert greeted, output
        assert "Verification: OK" in output
        assert "New, TLSv1.3" in output
        assert f"ALPN protocol: {ALPN}" in output
        assert "Session-ID:" not in output.partition("hello")[2], "no ticket was sent"


async def test_openssl_with_tls_1_2_is_refused(tmp_path: Path) -> None:
    """Even with a member's certificate."""
    member = await asyncio.to_thread(make_credentials, tmp_path, node_id="b")
    async with serving(await asyncio.to_thread(make_credentials, tmp_path, node_id="a")) as server:
        files = await asyncio.to_thread(client_files, member, tmp_path)
        output, greeted = await s_client(server.port, "-tls1_2", *files)
        assert not greeted
        assert server.refused == ["UNSUPPORTED_PROTOCOL"], output


async def test_openssl_without_a_certificate_is_refused(tmp_path: Path) -> None:
    """Anonymous clients end in the handshake."""
    async with serving(await asyncio.to_thread(make_credentials, tmp_path, node_id="a")) as server:
        output, greeted = await s_client(server.port)
        assert not greeted
        assert server.refused == ["PEER_DID_NOT_RETURN_A_CERTIFICATE"], output
        assert server.shown == []


async def test_openssl_with_another_authoritys_certificate_is_refused(tmp_path: Path) -> None:
    """The same names, signed by somebody else."""
    stranger = await asyncio.to_thread(make_credentials, tmp_path / "elsewhere", node_id="b")
    async with serving(await asyncio.to_thread(make_credentials, tmp_path, node_id="a")) as server:
        arguments = ("-cert", str(stranger.tls_chain_path), "-key", str(stranger.tls_key_path))
        output, greeted = await s_client(server.port, *arguments)
        assert not greeted
        assert server.refused == ["CERTIFICATE_VERIFY_FAILED"], output
        assert server.shown == []


@pytest.mark.parametrize(
    "make",
    [
        identities.make_expired,
        identities.make_not_yet_valid,
        identities.make_of_other_authority,
        identities.make_self_signed,
    ],
)
async def test_bad_certificates_end_in_the_handshake(tmp_path: Path, make: Callable[..., Credentials]) -> None:
    """As a client, the server ends it; as a server, the client does."""
    good = await asyncio.to_thread(make_credentials, tmp_path, node_id="a")
    bad = await asyncio.to_thread(make, tmp_path, node_id="b")
    async with serving(good) as server:
        context = (await asyncio.to_thread(TlsContexts, bad)).client
        assert await greeting(server.port, context, server_name(good.network, good.node_id)) == b""
        assert server.shown == []
        assert server.refused == ["CERTIFICATE_VERIFY_FAILED"]
    async with serving(bad) as server:
        context = (await asyncio.to_thread(TlsContexts, good)).client
        with pytest.raises(ssl.SSLCertVerificationError):
            await greeting(server.port, context, server_name(good.network, bad.node_id))


@pytest.mark.parametrize("make", [identities.make_of_other_network, identities.make_of_wrong_node])
async def test_certificates_with_other_names_are_caught(tmp_path: Path, make: Callable[..., Credentials]) -> None:
    """A client notices in the handshake; a server, which expects nobody in particular, reads the name afterwards."""
    good = await asyncio.to_thread(make_credentials, tmp_path, node_id="a")
    bad = await asyncio.to_thread(make, tmp_path, node_id="b")
    async with serving(bad) as server:
        context = (await asyncio.to_thread(TlsContexts, good)).client
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await greeting(server.port, context, server_name(good.network, bad.node_id))
    async with serving(good) as server:
        context = (await asyncio.to_thread(TlsContexts, bad)).client
        assert await greeting(server.port, context, server_name(good.network, good.node_id)) == b"hello\n"
        with pytest.raises(CertificateRejected):
            certificates.verify_peer(
                server.shown[0],
                authority=good.authority_certificate,
                network=good.network,
                now=now(),
                expected=bad.node_id,
            )


async def test_a_node_can_be_dialled_by_the_networks_name(tmp_path: Path) -> None:
    """For bootstrap addresses, whose node is not known yet."""
    good = await asyncio.to_thread(make_credentials, tmp_path, node_id="a")
    async with serving(good) as server:
        context = (await asyncio.to_thread(TlsContexts, good)).client
        assert await greeting(server.port, context, server_name(good.network)) == b"hello\n"
        with pytest.raises(ssl.SSLCertVerificationError):
            await greeting(server.port, context, "home.peermesh.internal")
        assert server.handshakes == 2


async def test_renewal_changes_new_handshakes_only(tmp_path: Path) -> None:
    """The listener shows the new certificate at once and open connections go on."""

    def again() -> Credentials:
        with open_directory(tmp_path, node_id="a") as directory:
            return renew(directory, now=now())

    old = await asyncio.to_thread(make_credentials, tmp_path, node_id="a")
    async with serving(old) as server:
        contexts = server.contexts
        name = server_name(old.network, old.node_id)

        async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=contexts.client, server_hostname=name
            )
            assert await reader.readline() == b"hello\n"
            return reader, writer, writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

        reader, writer, first = await dial()
        new = await asyncio.to_thread(again)
        await asyncio.to_thread(contexts.reload, new)
        _, other_writer, second = await dial()
        assert first == certificates.der(old.certificate)
        assert second == certificates.der(new.certificate)
        assert server.shown == [first, second]
        assert contexts.credentials is new
        assert not reader.at_eof()
        writer.transport.abort()
        other_writer.transport.abort()


def test_unreadable_files_leave_the_old_contexts_in_use(tmp_path: Path) -> None:
    """A failed reload changes nothing."""
    good = make_credentials(tmp_path, node_id="a")
    contexts = TlsContexts(good)
    client = contexts.client
    keys.write_key(good.tls_key_path, keys.new_tls_key())
    with pytest.raises(DataDirectoryError, match=str(good.tls_chain_path)):
        contexts.reload(good)
    assert contexts.client is client
    good.tls_chain_path.unlink()
    with pytest.raises(DataDirectoryError):
        TlsContexts(good)


def invited(directory: NodeDirectory, path: Path) -> tuple[Token, ssl.SSLContext]:
    """A token and the context of its holder."""
    own = obtain_credentials(directory, now=now())
    token = new_token(
        own.network,
        own.authority_certificate,
        [Address("127.0.0.1", 1)],
        now=now(),
        ttl=timedelta(minutes=1),
    )
    key = keys.new_tls_key()
    path.write_bytes(keys.key_pem(key) + certificates.pem(build_invite_leaf(token, key, now=now())))
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.der(own.authority_certificate))
    context.load_cert_chain(path)
    return token, context


async def test_invite_authorities_come_and_go(tmp_path: Path) -> None:
    """Admitted while the server runs, through a renewal, until it is taken away."""

    def prepare() -> tuple[Token, ssl.SSLContext, Credentials]:
        with open_directory(tmp_path, node_id="a") as directory:
            token, context = invited(directory, tmp_path / "leaf")
            return token, context, obtain_credentials(directory, now=now())

    token, context, own = await asyncio.to_thread(prepare)
    authority = build_invite_authority(token, now=now())
    name = server_name(own.network)
    async with serving(own) as server:
        assert await greeting(server.port, context, name) == b""
        server.contexts.admit_invite_authority(authority)
        server.contexts.admit_invite_authority(authority)
        assert server.contexts.invite_authorities == (authority,)
        assert await greeting(server.port, context, name) == b"hello\n"
        server.contexts.set_invite_authorities([authority])
        await asyncio.to_thread(server.contexts.reload, own)
        assert await greeting(server.port, context, name) == b"hello\n"
        with pytest.raises(CertificateRejected):
            certificates.verify_peer(
                server.shown[-1], authority=own.authority_certificate, network=own.network, now=now()
            )
        server.contexts.set_invite_authorities([])
        assert await greeting(server.port, context, name) == b""
        await eventually(lambda: server.handshakes == 4)


async def test_an_invite_cannot_serve(tmp_path: Path) -> None:
    """Nodes that dial trust the network's authority alone."""

    def prepare() -> tuple[Credentials, ssl.SSLContext]:
        with open_directory(tmp_path, node_id="a") as directory:
            invited(directory, tmp_path / "leaf")
            context = bare_context(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "leaf")
            context.verify_mode = ssl.CERT_NONE
            return obtain_credentials(directory, now=now()), context

    own, context = await asyncio.to_thread(prepare)
    contexts = await asyncio.to_thread(TlsContexts, own)
    server = await asyncio.start_server(lambda _, w: w.transport.abort(), "127.0.0.1", 0, ssl=context)
    try:
        with pytest.raises(ssl.SSLCertVerificationError):
            await greeting(server.sockets[0].getsockname()[1], contexts.client, server_name(own.network))
    finally:
        server.close()
