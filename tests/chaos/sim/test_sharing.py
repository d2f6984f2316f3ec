"""Sharing saves time and memory and changes nothing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from chaos.sim import sharing
from chaos.sim.plan import node_name
from chaos.sim.runner import run
from chaos.sim.scenarios import SCENARIOS, Options
from chaos.sim.sharing import CHECKED_PART, Untrue, shared_work
from gossip import codec, members, membership
from gossip.codec import News, States, Want, decode, encode
from gossip.config import GossipConfig
from gossip.events import Member, MemberState

MEMBER = Member(node_name(1), 5, MemberState.ALIVE, (), 1, b"meta")
BODY = encode(News((MEMBER,)))
CONFIG = GossipConfig()


def decoded() -> Member:
    """The member, from its bytes."""
    body = decode(BODY, CONFIG)
    assert isinstance(body, News)
    return body.claims[0]


def test_equal_members_are_one_while_it_lasts() -> None:
    """Inside they are one object, outside each is its own, and always equal."""
    with shared_work():
        assert decoded() is decoded()
        assert decoded() == MEMBER

    assert decoded() is not decoded()
    assert vars(codec)["Member"] is Member


def test_merged_members_are_one() -> None:
    """What two nodes conclude from the same claims is one object; what is no new conclusion stays what it was."""
    suspect = Member(MEMBER.node_id, MEMBER.incarnation, MemberState.SUSPECT)
    with shared_work():
        merge = vars(members)["merge"]

        assert merge(MEMBER, suspect) is merge(MEMBER, suspect)
        assert merge(MEMBER, MEMBER) is MEMBER

    assert merge(MEMBER, suspect).meta == b"meta"


@pytest.mark.parametrize("bound", ["_MEMBERS_MAX", "_BODIES_MAX"])
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Beyond the bound sharing starts anew."""
    monkeypatch.setattr(sharing, bound, 1)
    other = Member(node_name(2), 5, MemberState.ALIVE, (), 1, b"")
    with shared_work():
        if bound == "_MEMBERS_MAX":
            first: object = decoded()
            decode(encode(News((other,))), CONFIG)
            assert decoded() is not first
            hash_ = vars(members)["_hash"]
            assert [hash_(MEMBER), hash_(other)] == [hash_(MEMBER), hash_(other)]
        else:
            send, read = vars(membership)["encode"], vars(membership)["decode"]
            first = States((MEMBER,))
            data = send(first)
            assert read(data, CONFIG) is first
            for number in range(2):
                send(Want((node_name(number),)))
            assert read(data, CONFIG) == first
            assert read(data, CONFIG) is not first


def test_a_body_that_is_not_what_its_bytes_say_is_found() -> None:
    """One in so many is decoded all the same."""
    with shared_work():
        send, read = vars(membership)["encode"], vars(membership)["decode"]
        data = send(News((MEMBER,), [()]))  # type: ignore[arg-type]  # a list where decoding makes a tuple

        with pytest.raises(Untrue):
            for _ in range(CHECKED_PART):
                read(data, CONFIG)


def test_the_trace_is_the_same_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one event of a run differs."""
    plan = SCENARIOS["chaos"].plan(Options(8, 1, 1.0))
    shared = run(plan).trace_digest
    monkeypatch.setattr("chaos.sim.runner.shared_work", nullcontext)

    assert run(plan).trace_digest == shared


def test_an_error_inside_ends_it() -> None:
    """A failing run leaves the cores as they were."""
    before = vars(membership)["decode"]
    with pytest.raises(KeyError), shared_work():
        raise KeyError

    assert vars(codec)["Member"] is Member
    assert vars(membership)["decode"] is before
