"""A session: two directions that cannot be mixed up, and the end of its time."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.errors import SealRefused
from mesh.sealing.chains import Limits
from mesh.sealing.codec import read_header
from mesh.sealing.reasons import Reason
from mesh.sealing.session import Session

SECRET = bytes(range(32))
LIMITS = Limits(epoch_s=10.0, grace_s=5.0, renew_s=100.0, session_s=1_000.0)


def _session(*, initiator: bool, limits: Limits = LIMITS, lasts_s: float = 1e9, secret: bytes = SECRET) -> Session:
    return Session(
        secret,
        initiator=initiator,
        contexts=(b"i to r", b"r to i"),
        now=0.0,
        wall=5_000.0,
        expires_s=5_000.0 + lasts_s,
        limits=limits,
    )


def _open(session: Session, sealed: bytes, now: float = 0.0) -> bytes:
    return session.open(read_header(sealed), sealed, now)


def test_each_side_opens_what_the_other_sealed() -> None:
    """Both directions work, under one session id."""
    initiator, responder = _session(initiator=True), _session(initiator=False)

    assert initiator.id == responder.id
    assert _open(responder, initiator.sealing.seal(32, 3, b"to the responder", 0.0)) == b"to the responder"
    assert _open(initiator, responder.sealing.seal(33, 0, b"to the initiator", 0.0)) == b"to the initiator"


def test_a_body_cannot_be_reflected() -> None:
    """What a side sealed it does not open itself."""
    initiator = _session(initiator=True)
    with pytest.raises(SealRefused) as refusal:
        _open(initiator, initiator.sealing.seal(32, 3, b"mine", 0.0))
    assert refusal.value.reason == Reason.FORGED


def test_other_secrets_make_other_sessions() -> None:
    """The session's id comes from its secret and says nothing about it."""
    assert _session(initiator=True).id != _session(initiator=True, secret=bytes(32)).id
    assert _session(initiator=True).id not in SECRET


def test_a_session_ends_with_its_time() -> None:
    """After its time nothing is sealed, and a little later nothing is opened."""
    initiator, responder = _session(initiator=True), _session(initiator=False)
    assert not initiator.is_spent(999.9)
    last = initiator.sealing.seal(32, 3, b"last", 999.9)
    late = initiator.sealing.seal(32, 3, b"late", 999.9)
    assert initiator.is_spent(1_000.0)
    assert _open(responder, last, 1_059.0) == b"last"
    with pytest.raises(SealRefused) as refusal:
        _open(responder, late, 1_060.0)
    assert refusal.value.reason == Reason.EXPIRED


def test_a_session_ends_with_the_first_certificate() -> None:
    """It is not used beyond what vouched for it, and is renewed well before."""
    session = _session(initiator=True, lasts_s=90.0)

    assert session.is_spent(90.0)
    assert not session.is_spent(89.9)
    assert session.renew_at == pytest.approx(60.0)
    assert _session(initiator=True).renew_at == 100.0


def test_a_session_ends_with_its_last_epoch() -> None:
    """There is no sealing in the last epoch, so the numbers never run out."""
    session = _session(initiator=True, limits=dataclasses.replace(LIMITS, epochs=3))
    for now in (0.0, 10.0):
        session.sealing.seal(32, 3, b"body", now)
    session.sealing.seal(32, 3, b"body", 20.0)
    assert session.epochs == (2, 0)
    assert session.is_spent(20.0)


def test_sweeping_an_idle_session_changes_its_key() -> None:
    """An idle side erases a key that sealed something when its time is over, and says that the other should follow."""
    initiator, responder = _session(initiator=True), _session(initiator=False)
    _open(responder, initiator.sealing.seal(32, 3, b"body", 0.0))
    assert not initiator.sweep(9.9)
    assert initiator.sweep(10.0)
    assert not initiator.sweep(50.0)
    assert initiator.epochs == (1, 0)
    _open(responder, initiator.sealing.seal(0, 0, b"", 11.0), 11.0)
    assert responder.epochs == (0, 1)
    assert responder._opening._previous
    responder.sweep(16.0)
    assert responder._opening._previous == []


def test_sweeping_a_spent_session_leaves_it() -> None:
    """What may not seal any more needs no new key."""
    session = _session(initiator=True)
    session.sealing.seal(32, 3, b"body", 0.0)
    assert not session.sweep(1_000.0)
