"""Sharing saves memory and changes nothing."""

from __future__ import annotations

import pytest

from chaos.sim import sharing
from chaos.sim.plan import node_name
from chaos.sim.sharing import shared_members
from gossip import codec
from gossip.codec import News, decode, encode
from gossip.config import GossipConfig
from gossip.events import Member, MemberState

MEMBER = Member(node_name(1), 5, MemberState.ALIVE, (), 1, b"meta")
BODY = encode(News((MEMBER,)))


def decoded() -> Member:
    """The member, from its bytes."""
    body = decode(BODY, GossipConfig())
    assert isinstance(body, News)
    return body.claims[0]


def test_equal_members_are_one_while_it_lasts() -> None:
    """Inside they are one object, outside each is its own, and always equal."""
    with shared_members():
        assert decoded() is decoded()
        assert decoded() == MEMBER

    assert decoded() is not decoded()
    assert vars(codec)["Member"] is Member


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound sharing starts anew."""
    monkeypatch.setattr(sharing, "_MEMBERS_MAX", 1)
    with shared_members():
        first = decoded()
        decode(encode(News((Member(node_name(2), 5, MemberState.ALIVE, (), 1, b""),))), GossipConfig())

        assert decoded() is not first


def test_an_error_inside_ends_it() -> None:
    """A failing run leaves the codec as it was."""
    with pytest.raises(KeyError), shared_members():
        raise KeyError

    assert vars(codec)["Member"] is Member
