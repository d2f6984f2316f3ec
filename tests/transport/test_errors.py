"""Errors say what failed, what to do, and whether anything changed."""

from __future__ import annotations

import pytest

from transport import errors as m


def test_the_hint_is_part_of_the_text() -> None:
    """People see the hint, programs can take both apart."""
    error = m.ListenError("port 1 is in use", hint="choose another")

    assert str(error) == "port 1 is in use (choose another)"
    assert (error.message, error.hint) == ("port 1 is in use", "choose another")
    assert str(m.ListenError("no hint")) == "no hint"


def test_errors_say_whether_anything_changed() -> None:
    """Each class has its answer, and an instance may know better."""
    assert not m.DialError("x").changed
    assert m.LinkClosed("x").changed
    assert not m.LinkClosed("x", changed=False).changed
    assert m.DialError("x", changed=True).changed
    assert not m.DialError("y").changed


def test_protocol_errors_know_their_culprit() -> None:
    """A peer's mistake has a close code, ours has not, and neither is taken for the other."""
    remote = m.RemoteProtocolError("bad frame")

    assert remote.code == 4400
    assert m.RemoteProtocolError("too long", code=1009).code == 1009
    assert not isinstance(remote, m.LocalProtocolError)
    assert isinstance(remote, m.ProtocolError)


def test_a_refusal_has_its_code() -> None:
    """The close code that the peer gave is kept beside its words."""
    refused = m.PeerRefused("wrong network", code=4401, hint="check --network")

    assert (refused.code, refused.hint) == (4401, "check --network")
    assert isinstance(refused, m.DialError)


@pytest.mark.parametrize("error", [m.InvalidName, m.InvalidAddress])
def test_wrong_arguments_are_value_errors(error: type[m.MeshError]) -> None:
    """Who knows only Python's own errors catches ours as well."""
    assert issubclass(error, ValueError)
