"""A node's certificate is replaced in time, by the node itself or by a peer that can issue."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from couriers import FakeLink, FixedClock, link_pair
from identities import now, open_directory
from support import eventually

from mesh import renewal as renewal_module
from mesh.renewal import Renewal
from transport.errors import RemoteProtocolError
from transport.identity.credentials import Credentials, obtain_credentials
from transport.identity.datadir import NodeDirectory
from transport.link import CloseReason, Link
from transport.wire import Envelope, Kind, pack


class Node:
    """A renewal with its files, as a link's owner."""

    def __init__(self, directory: NodeDirectory, *, links: list[FakeLink] | None = None) -> None:
        self.directory = directory
        self.credentials = obtain_credentials(directory, now=now())
        self.clock = FixedClock()
        self.clock.wall_s = now().timestamp()
        self.installed: list[Credentials] = []
        self.links: list[FakeLink] = links if links is not None else []
        self.renewal = Renewal(
            directory,
            self.credentials,
            clock=self.clock,
            rng=random.Random(1),
            installed=self.installed.append,
            issuers=lambda: self.links,
        )

    def age(self, days: float) -> None:
        """Let the certificate grow older."""
        self.clock.wall_s = (now() + timedelta(days=days)).timestamp()

    def envelopes_received(self, link: Link, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            self.renewal.received(link, envelope)

    def link_closed(self, link: Link, reason: CloseReason, detail: str) -> None:
        """Nobody here needs to know."""


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Node]:
    """A node on the machine that holds the authority's key."""
    with open_directory(tmp_path / "one", node_id="issuer") as directory:
        yield Node(directory)


@pytest.fixture
def member(tmp_path: Path, issuer: Node) -> Iterator[Node]:
    """A node on another machine, which was enrolled once and has only the authority's certificate."""
    with open_directory(tmp_path / "one", node_id="member") as directory:
        obtain_credentials(directory, now=now())
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("ca.key", "lock", "issuer"))
    with open_directory(tmp_path / "two", node_id="member") as directory:
        yield Node(directory)


def _link(member: Node, issuer: Node) -> tuple[FakeLink, FakeLink]:
    here, there = link_pair("member", "issuer", member, issuer)
    member.links.append(here)
    return here, there


async def test_a_fresh_certificate_is_left_alone(issuer: Node) -> None:
    """Before two thirds of its life nothing happens."""
    issuer.renewal.start()
    await asyncio.sleep(0.02)

    assert issuer.installed == []
    assert timedelta(days=6.9) < issuer.renewal.expires_in < timedelta(days=7.1)
    await issuer.renewal.close()


async def test_a_node_with_the_authority_renews_itself(issuer: Node) -> None:
    """Late in its life the certificate is replaced by one that lasts a whole life longer."""
    issuer.age(days=6)
    issuer.renewal.start()
    await eventually(lambda: issuer.installed)
    await issuer.renewal.close()

    assert issuer.installed[0].expires_at - issuer.credentials.expires_at > timedelta(days=5)
    assert issuer.renewal.renewed == 1
    assert issuer.renewal.expires_in > timedelta(days=6)


async def test_a_member_is_renewed_by_an_issuer(issuer: Node, member: Node) -> None:
    """A node without the key asks a linked member that has it, and runs with the answer."""
    assert not member.credentials.can_issue
    _link(member, issuer)
    for node in (issuer, member):
        node.age(days=6)
    member.renewal.start()
    await eventually(lambda: member.installed)
    await member.renewal.close()
    await issuer.renewal.close()

    assert member.installed[0].node_id == "member"
    assert member.installed[0].expires_at - member.credentials.expires_at > timedelta(days=5)
    assert (member.renewal.renewed, issuer.renewal.issued) == (1, 1)


async def test_the_next_issuer_is_asked_when_one_is_of_no_help(
    issuer: Node, member: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not answer in time and one whose answer is useless are passed over."""
    monkeypatch.setattr(renewal_module, "ANSWER_TIMEOUT_S", 0.05)
    silent, _ = _link(member, issuer)
    silent.hold()
    liar, liars_end = _link(member, issuer)
    liar.hold()
    _link(member, issuer)
    for node in (issuer, member):
        node.age(days=6)
    member.renewal.start()
    await eventually(lambda: liar._queue)
    liar.receive([Envelope(Kind.RENEWAL, 1, None, None, pack([1, b"no chain"]))])
    await eventually(lambda: member.installed)
    await member.renewal.close()
    await issuer.renewal.close()

    assert liars_end.refusal is None
    assert member.renewal.renewed == 1


async def test_nobody_helps_and_it_is_tried_again(
    member: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, issuer: Node
) -> None:
    """With no issuer linked, that is logged, and a later round succeeds."""
    monkeypatch.setattr(renewal_module, "RETRY_S", 0.02)
    for node in (issuer, member):
        node.age(days=6)
    member.renewal.start()
    await eventually(lambda: "certificate not renewed" in caplog.text)
    assert "no member that can issue" in caplog.text
    _link(member, issuer)
    await eventually(lambda: member.installed)
    await member.renewal.close()
    await issuer.renewal.close()

    assert member.renewal.renewed == 1


async def test_a_refusal_is_said_with_its_reason(issuer: Node, member: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A node that cannot issue says so, and the asker logs who refused and why."""
    here, there = link_pair("issuer", "member", issuer, member)
    issuer.links.append(here)
    here.send(Envelope(Kind.RENEWAL, 1, None, None, pack([0, b"request"])), 0)  # type: ignore[arg-type]
    await eventually(lambda: "renewal refused" in caplog.text)
    await eventually(lambda: there.kinds_sent == [Kind.RENEWAL])
    _link(member, member)
    member.age(days=6)
    member.renewal.start()
    await eventually(lambda: "issuer refused to renew: this node does not hold" in caplog.text)
    await member.renewal.close()

    assert member.installed == []


async def test_a_request_for_another_node_is_refused(issuer: Node, member: Node) -> None:
    """The name comes from the link, not from the request: a damaged or foreign request gets no certificate."""
    here, there = _link(member, issuer)
    here.send(Envelope(Kind.RENEWAL, 1, None, None, pack([0, b"request"])), 0)  # type: ignore[arg-type]
    await eventually(lambda: there.kinds_sent == [Kind.RENEWAL])
    await issuer.renewal.close()

    assert issuer.renewal.issued == 0


async def test_one_request_a_peer_at_a_time(issuer: Node, member: Node) -> None:
    """Requests that come while the peer's last is being served cost nothing."""
    _, there = _link(member, issuer)
    there.receive([Envelope(Kind.RENEWAL, 1, None, None, pack([0, b"request"]))] * 50)

    assert len(issuer.renewal._scope) == 1
    await eventually(lambda: there.kinds_sent == [Kind.RENEWAL])
    there.receive([Envelope(Kind.RENEWAL, 1, None, None, pack([0, b"request"]))])
    await eventually(lambda: there.kinds_sent == [Kind.RENEWAL] * 2)
    await issuer.renewal.close()


@pytest.mark.parametrize("body", [b"", b"\xc1", pack(7), pack([0]), pack([1, "text"]), pack({}), pack([[], []])])
async def test_nonsense_is_refused(issuer: Node, member: Node, body: bytes) -> None:
    """What is no request and no answer is the peer's protocol error."""
    here, _ = _link(member, issuer)

    with pytest.raises(RemoteProtocolError):
        issuer.renewal.received(here, Envelope(Kind.RENEWAL, 1, None, None, body))


async def test_an_answer_that_nobody_asked_for_is_ignored(issuer: Node, member: Node) -> None:
    """A chain or a refusal out of nowhere, or from another link than was asked, changes nothing."""
    here, _ = _link(member, issuer)
    for step in (1, 2, 9):
        member.renewal.received(here, Envelope(Kind.RENEWAL, 1, None, None, pack([step, b"x"])))

    assert member.installed == []
