"""The issuing side: who gets a certificate for a token, and who does not."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from enrolment_server import Issuer, ShiftedClock, events, issuer, join
from identities import make_credentials, now, open_directory
from websockets.asyncio.client import connect

from transport.errors import (
    CertificateRejected,
    DataDirectoryError,
    EnrolmentRefused,
    IdentityError,
    TokenExpired,
    TokenUnknown,
    TokenUsed,
    TokenWrongNetwork,
)
from transport.identity import certificates, keys
from transport.identity.credentials import (
    Credentials,
    answer_renewal,
    install_renewal,
    is_enrolled,
    make_renewal_request,
    obtain_credentials,
)
from transport.identity.enrolment_messages import decode_answer, encode_request
from transport.identity.invites import Token, build_invite_leaf
from transport.identity.names import Subject, node_subject, server_name
from transport.identity.tls import TlsContexts, bare_context
from transport.types import NodeId, network_name
from transport.wire import pack


async def refusals(data_dir: Path) -> list[str]:
    """The reasons in the issuer's audit log."""
    found = await asyncio.to_thread(events, data_dir, "issuer")
    return [str(one["fields"]["reason"]) for one in found if one["event"] == "token refused"]  # type: ignore[index]


async def ask(
    desk: Issuer, token_text: str, message: bytes | str | None, *, as_node: Credentials | None = None
) -> bytes | str:
    """Send one message to the desk by hand, as the holder of the token or as a member."""
    token = Token.decode(token_text)
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.der(desk.contexts.credentials.authority_certificate))

    def load() -> None:
        if as_node is not None:
            context.load_cert_chain(as_node.tls_chain_path, as_node.tls_key_path)
            return
        key = keys.new_tls_key()
        path = desk.directory.path / "throw-away"
        path.write_bytes(keys.key_pem(key) + certificates.pem(build_invite_leaf(token, key, now=now())))
        context.load_cert_chain(path)

    await asyncio.to_thread(load)
    name = server_name(token.network)
    address = desk.addresses[0]
    async with connect(
        f"wss://{name}/enrol", host=address.host, port=address.port, ssl=context, server_hostname=name, proxy=None
    ) as connection:
        if message is None:
            return b""
        await connection.send(message)
        return await connection.recv()


def request_for(network: str = "default", node_id: str = "joiner") -> bytes:
    """An enrolment message for a fresh key."""
    subject = node_subject(network_name(network), NodeId(node_id))
    return encode_request(certificates.build_request(keys.new_tls_key(), subject))


async def test_a_token_admits_a_node_from_another_data_directory(tmp_path: Path) -> None:
    """The joiner ends with a certificate of the issuer's authority, and can start again without a token."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        credentials = await join(tmp_path / "b", token)
        assert credentials.authority_fingerprint == desk.contexts.credentials.authority_fingerprint
        assert not credentials.can_issue
        again = await asyncio.to_thread(make_credentials, tmp_path / "b", node_id="joiner")
        assert again.certificate == credentials.certificate
        assert desk.desk.statistics() == {"invites_open": 1, "nodes_enrolled": 1, "enrolments_refused": 0}
    issued = [one["event"] for one in await asyncio.to_thread(events, tmp_path / "a", "issuer")]
    assert issued == ["token issued", "token used", "certificate issued"]
    assert [one["event"] for one in await asyncio.to_thread(events, tmp_path / "b", "joiner")] == ["enrolled"]


async def test_a_second_use_of_a_token_is_refused(tmp_path: Path) -> None:
    """The second node gets TokenUsed, and both sides have it on record."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        await join(tmp_path / "b", token, "first")
        with pytest.raises(TokenUsed):
            await join(tmp_path / "c", token, "second")
        assert await refusals(tmp_path / "a") == ["TokenUsed"]
    failed = await asyncio.to_thread(events, tmp_path / "c", "second")
    assert [one["event"] for one in failed] == ["enrolment failed"]


async def test_a_token_of_two_uses_admits_two(tmp_path: Path) -> None:
    """Each use admits one node, whichever asks first."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses, uses=2)
        outcomes = await asyncio.gather(
            *(join(tmp_path / f"d{n}", token, f"node-{n}") for n in range(5)), return_exceptions=True
        )
        admitted = [one for one in outcomes if isinstance(one, Credentials)]
        assert len(admitted) == 2, outcomes
        assert all(isinstance(one, (Credentials, TokenUsed)) for one in outcomes)


async def test_an_expired_token_is_refused_by_the_issuer(tmp_path: Path) -> None:
    """Within the grace the issuer still answers, so the refusal is on its record."""
    clock = ShiftedClock()
    async with issuer(tmp_path / "a", clock=clock) as desk:
        token = await desk.desk.invite(desk.addresses, ttl_s=60)
        clock.shift_s = 120.0
        with pytest.raises(TokenExpired):
            await join(tmp_path / "b", token)
        assert await refusals(tmp_path / "a") == ["TokenExpired"]


async def test_a_token_with_another_secret_is_unknown(tmp_path: Path) -> None:
    """Who guesses the id but not the secret does not get through the handshake."""
    async with issuer(tmp_path / "a") as desk:
        real = Token.decode(await desk.desk.invite(desk.addresses))
        forged = Token(
            real.network, real.authority_fingerprint, real.invite_id, bytes(16), real.expires_at, real.addresses
        )
        with pytest.raises(TokenUnknown):
            await join(tmp_path / "b", forged.encode())


async def test_a_joiner_that_leaves_without_a_word_spends_nothing(tmp_path: Path) -> None:
    """The desk goes on for the next one."""
    async with issuer(tmp_path / "a") as desk:
        text = await desk.desk.invite(desk.addresses)
        await ask(desk, text, None)
        assert (await join(tmp_path / "b", text)).node_id == "joiner"
        assert desk.desk.refused == 0


async def test_a_full_disk_at_the_issuer_admits_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a record there is no certificate; once there is space again the same joiner gets in."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)

        def full(*_: object, **__: object) -> None:
            raise DataDirectoryError("cannot write the audit log: no space")

        with monkeypatch.context() as patched:
            patched.setattr(desk.desk._audit, "_append", full)
            with pytest.raises(EnrolmentRefused, match="cannot issue certificates now"):
                await join(tmp_path / "b", token)
        assert (await join(tmp_path / "b", token)).node_id == "joiner"


async def test_the_id_of_a_live_member_is_refused(tmp_path: Path) -> None:
    """The refusal spends no use, so another node id can still join with the token."""
    async with issuer(tmp_path / "a", is_member=lambda node: node == "taken") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(EnrolmentRefused, match="live member"):
            await join(tmp_path / "b", token, "taken")
        assert (await join(tmp_path / "c", token, "free")).node_id == "free"


async def test_the_id_of_a_node_of_the_issuing_machine_is_refused(tmp_path: Path) -> None:
    """A node that shares the issuer's data directory never needs a token, so its name is not given away."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(EnrolmentRefused, match="issuing machine"):
            await join(tmp_path / "b", token, "issuer")


async def test_a_lost_answer_can_be_asked_for_again(tmp_path: Path) -> None:
    """The same request, repeated, is answered without spending another use."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        message = request_for()
        first = decode_answer(await ask(desk, token, message))
        second = decode_answer(await ask(desk, token, message))
        assert first != second
        with pytest.raises(TokenUsed):
            decode_answer(await ask(desk, token, request_for()))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        "text",
        pack([1]),
        pack({"version": 2}),
        pack({"version": 1}),
        encode_request(b"not a request"),
        b"\x90" * 20_000,
        encode_request(
            certificates.build_request(keys.new_tls_key(), Subject.parse("spiffe://default/invite/0011223344556677"))
        ),
        request_for(node_id="ca"),
    ],
    ids=["empty", "garbage", "text", "array", "version", "nothing", "no csr", "long", "invite name", "reserved name"],
)
async def test_a_bad_request_is_refused_and_spends_nothing(tmp_path: Path, message: bytes | str) -> None:
    """Whatever the message is, the answer is EnrolmentRefused and the token is as good as before."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(EnrolmentRefused):
            decode_answer(await ask(desk, token, message))
        assert decode_answer(await ask(desk, token, request_for()))


async def test_a_request_for_another_network_is_refused(tmp_path: Path) -> None:
    """The issuer checks the name in the request, not only the one in the throw-away certificate."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(TokenWrongNetwork):
            decode_answer(await ask(desk, token, request_for(network="home")))


async def test_a_member_cannot_enrol_others(tmp_path: Path) -> None:
    """A node's certificate opens /enrol but is no invite."""
    member = await asyncio.to_thread(make_credentials, tmp_path / "a", node_id="member")
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        with pytest.raises(EnrolmentRefused, match="not an invite"):
            decode_answer(await ask(desk, token, request_for(), as_node=member))


async def test_an_invite_never_passes_for_a_node(tmp_path: Path) -> None:
    """TLS lets the throw-away certificate in; verify_peer does not, whatever it names."""
    async with issuer(tmp_path / "a") as desk:
        token = Token.decode(await desk.desk.invite(desk.addresses))
        leaf = build_invite_leaf(token, keys.new_tls_key(), now=now())
        authority = desk.contexts.credentials.authority_certificate
        with pytest.raises(CertificateRejected):
            certificates.verify_peer(certificates.der(leaf), authority=authority, network=token.network, now=now())


async def test_an_enrolled_machine_cannot_make_invites(tmp_path: Path) -> None:
    """Only the holder of the authority's key can."""
    async with issuer(tmp_path / "a") as desk:
        await join(tmp_path / "b", await desk.desk.invite(desk.addresses), "issuer-2")
        async with issuer(tmp_path / "b", node_id="issuer-2") as other:
            with pytest.raises(IdentityError, match="not on this machine"):
                await other.desk.invite(other.addresses)


@pytest.mark.parametrize(("ttl_s", "uses"), [(0.0, 1), (1e9, 1), (60.0, 0), (60.0, 10_000)])
async def test_an_invite_out_of_range_is_refused(tmp_path: Path, ttl_s: float, uses: int) -> None:
    """A token has to end, in time and in uses."""
    async with issuer(tmp_path / "a") as desk:
        with pytest.raises(IdentityError, match="an invite can"):
            await desk.desk.invite(desk.addresses, ttl_s=ttl_s, uses=uses)


async def test_an_invite_without_an_address_is_refused(tmp_path: Path) -> None:
    """A token that nobody can use is not made."""
    async with issuer(tmp_path / "a") as desk:
        with pytest.raises(IdentityError, match="no address"):
            await desk.desk.invite(())


async def test_invites_outlive_the_issuer_and_are_seen_by_its_neighbours(tmp_path: Path) -> None:
    """After a restart, and at another node of the machine after a refresh, an open token still works."""
    async with issuer(tmp_path / "a", node_id="one") as one, issuer(tmp_path / "a", node_id="two") as two:
        text = await one.desk.invite(two.addresses)
        with pytest.raises(TokenUnknown):
            await join(tmp_path / "b", text)
        await two.desk.refresh()
        assert (await join(tmp_path / "b", text)).node_id == "joiner"
        text = await one.desk.invite(one.addresses)
    async with issuer(tmp_path / "a", node_id="one") as restarted:
        real = Token.decode(text)
        moved = Token(
            real.network,
            real.authority_fingerprint,
            real.invite_id,
            real.secret,
            real.expires_at,
            restarted.addresses,
        )
        assert (await join(tmp_path / "c", moved.encode(), "joiner-2")).node_id == "joiner-2"


async def test_forgotten_invites_cannot_open_a_connection(tmp_path: Path) -> None:
    """After the grace the invite authority leaves the trust store."""
    clock = ShiftedClock()
    async with issuer(tmp_path / "a", clock=clock) as desk:
        token = await desk.desk.invite(desk.addresses, ttl_s=60)
        clock.shift_s = 2 * 86_400.0
        await desk.desk.refresh()
        assert desk.contexts.invite_authorities == ()
        with pytest.raises(TokenUnknown):
            await join(tmp_path / "b", token)


async def test_our_own_trouble_is_not_told_to_strangers(tmp_path: Path) -> None:
    """When the store is damaged the joiner hears only that the issuer cannot issue."""
    async with issuer(tmp_path / "a") as desk:
        token = await desk.desk.invite(desk.addresses)
        path = tmp_path / "a" / "default" / "ca" / "invites.json"
        await asyncio.to_thread(path.write_text, "{")
        with pytest.raises(EnrolmentRefused) as caught:
            await join(tmp_path / "b", token)
        assert str(tmp_path) not in str(caught.value)


async def test_an_enrolled_node_renews_through_a_peer(tmp_path: Path) -> None:
    """Request, answer and installation give it a new certificate for a new key."""
    async with issuer(tmp_path / "a") as desk:
        old = await join(tmp_path / "b", await desk.desk.invite(desk.addresses))

        def renew_through_peer() -> Credentials:
            with open_directory(tmp_path / "b", node_id="joiner") as directory:
                assert is_enrolled(directory)
                request = make_renewal_request(directory)
                chain = answer_renewal(desk.directory, request, directory.node_id, now=now())
                new = install_renewal(directory, chain, now=now())
                assert obtain_credentials(directory, now=now()).certificate == new.certificate
                TlsContexts(old).reload(new)
                return new

        new = await asyncio.to_thread(renew_through_peer)
        assert new.certificate.public_key() != old.certificate.public_key()
