"""The joining side: from a token to credentials on disk, and every way that does not lead there."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path

import pytest
from enrolment_server import events, issuer, join
from identities import make_credentials, open_directory
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from transport.errors import (
    CertificateRejected,
    DataDirectoryError,
    EnrolmentRefused,
    HandshakeFailed,
    IdentityError,
    PeerUnreachable,
    TokenExpired,
    TokenMalformed,
    TokenWrongNetwork,
)
from transport.identity.invites import Token
from transport.identity.joining import enrol
from transport.types import Address, network_name


async def test_a_token_past_its_grace_is_refused_without_asking(tmp_path: Path) -> None:
    """The issuer has forgotten it, so nobody is asked."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses, ttl_s=60)
        with pytest.raises(TokenExpired):
            await join(tmp_path / "b", token, clock_s=2 * 86_400.0)
        assert desk.handshakes == 0


async def test_a_tampered_token_is_refused(tmp_path: Path) -> None:
    """A changed character shows before anything is dialled."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        tampered = token[:-3] + ("A" if token[-3] != "A" else "B") + token[-2:]
        with pytest.raises(TokenMalformed):
            await join(tmp_path / "b", tampered)
        assert desk.handshakes == 0
    failed = await asyncio.to_thread(events, tmp_path / "b", "joiner")
    assert [one["fields"]["reason"] for one in failed] == ["TokenMalformed"]  # type: ignore[index]


async def test_a_token_of_another_network_is_refused(tmp_path: Path) -> None:
    """A node of network "home" does not take a token of network "default"."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(TokenWrongNetwork):
            await join(tmp_path / "b", token, network="home")
    failed = await asyncio.to_thread(events, tmp_path / "b", "joiner", "home")
    assert [one["fields"]["reason"] for one in failed] == ["TokenWrongNetwork"]  # type: ignore[index]


async def test_a_token_rewritten_for_another_network_is_refused(tmp_path: Path) -> None:
    """With a right checksum but another network name the issuer's certificate does not fit, and nothing is sent."""
    async with issuer(tmp_path / "a") as desk:
        real = Token.decode(await desk.desk.invite(desk.addresses))
        forged = Token(
            network_name("home"),
            real.authority_fingerprint,
            real.invite_id,
            real.secret,
            real.expires_at,
            real.addresses,
        )
        with pytest.raises(TokenWrongNetwork):
            await join(tmp_path / "b", forged.encode(), network="home")


async def test_another_authority_at_the_address_gets_nothing(tmp_path: Path) -> None:
    """The pin is compared before anything is shown; the real issuer further down the list is still found."""
    async with issuer(tmp_path / "a") as desk, issuer(tmp_path / "impostor") as impostor:
        token = await desk.desk.invite(impostor.addresses)
        with pytest.raises(HandshakeFailed):
            await join(tmp_path / "b", token)
        both = await desk.desk.invite((*impostor.addresses, *desk.addresses))
        assert (await join(tmp_path / "b", both)).node_id == "joiner"
        assert impostor.desk.statistics()["enrolments_refused"] == 0


async def test_no_issuer_at_any_address_is_unreachable(tmp_path: Path) -> None:
    """Nobody listens: the error lists every address."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        address = desk.addresses[0]
    with pytest.raises(PeerUnreachable, match=str(address)):
        await join(tmp_path / "b", token)


async def test_an_address_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """A listener that accepts and says nothing costs one timeout, then the next address is tried."""
    release = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite((Address("127.0.0.1", port), *desk.addresses))
        directory = await asyncio.to_thread(open_directory, tmp_path / "b", "default", "joiner")
        try:
            credentials = await enrol(token, directory, timeout_s=0.5)
        finally:
            directory.release()
        assert credentials.node_id == "joiner"
    release.set()
    server.close()
    await server.wait_closed()


async def test_an_address_without_tls_is_passed_over(tmp_path: Path) -> None:
    """Something else uses the port now; the error says so when no other address helps."""

    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite((Address("127.0.0.1", server.sockets[0].getsockname()[1]),))
        with pytest.raises(HandshakeFailed, match="does not speak TLS"):
            await join(tmp_path / "b", token)
    server.close()
    await server.wait_closed()


async def test_a_port_that_does_not_enrol_refuses(tmp_path: Path) -> None:
    """The node of the token answers, but not on this path."""
    async with issuer(tmp_path / "a") as desk:

        def missing(connection: ServerConnection, _request: Request) -> Response:
            return connection.respond(HTTPStatus.NOT_FOUND, "no such path\n")

        async with serve(
            desk.desk.serve,  # type: ignore[arg-type]  # never reached
            "127.0.0.1",
            0,
            ssl=desk.contexts.server,
            process_request=missing,
        ) as server:
            token = await desk.desk.invite((Address("127.0.0.1", next(iter(server.sockets)).getsockname()[1]),))
            with pytest.raises(EnrolmentRefused, match="404 no such path"):
                await join(tmp_path / "b", token)


async def test_a_joiner_whose_clock_is_wrong_is_told_so(tmp_path: Path) -> None:
    """The issuer's certificate is not valid by the joiner's clock: the refusal names both times."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(CertificateRejected, match=r"not valid before .*clocks"):
            await join(tmp_path / "b", token, clock_s=-3600.0)
        assert desk.desk.issued == 0


async def test_a_directory_of_another_network_refuses_the_token(tmp_path: Path) -> None:
    """Two networks of one name are not mixed: the token is not spent and the directory is unchanged."""
    own = await asyncio.to_thread(make_credentials, tmp_path / "b", node_id="older")
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(DataDirectoryError, match="another network"):
            await join(tmp_path / "b", token)
        assert desk.handshakes == 0
    again = await asyncio.to_thread(make_credentials, tmp_path / "b", node_id="older")
    assert again.authority_fingerprint == own.authority_fingerprint


async def test_an_enrolled_node_does_not_spend_its_token_again(tmp_path: Path) -> None:
    """A service started with the same token each time just starts."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        first = await join(tmp_path / "b", token)
        assert (await join(tmp_path / "b", token)).certificate == first.certificate
        assert desk.desk.issued == 1


async def test_a_second_node_of_an_enrolled_machine_needs_its_own_token(tmp_path: Path) -> None:
    """The machine has the authority's certificate but not its key."""
    async with issuer(tmp_path / "a") as desk:
        await join(tmp_path / "b", await desk.desk.invite(desk.addresses))
        with pytest.raises(IdentityError, match="another machine"):
            await asyncio.to_thread(make_credentials, tmp_path / "b", node_id="second")
        await join(tmp_path / "b", await desk.desk.invite(desk.addresses), "second")
        assert (await asyncio.to_thread(make_credentials, tmp_path / "b", node_id="second")).node_id == "second"
