"""Reasons for refusals: errors that break a link and name a word for counters."""

from __future__ import annotations

from mesh.errors import SealRefused
from mesh.sealing.reasons import Reason, refused
from transport.errors import RemoteProtocolError


def test_a_refusal_names_its_reason() -> None:
    """The error blames the peer, says why in words, and carries the word that is counted."""
    error = refused(Reason.REPLAYED, "seen before")

    assert isinstance(error, SealRefused)
    assert isinstance(error, RemoteProtocolError)
    assert (str(error), error.reason, error.code) == ("seen before", "replayed", 4400)


def test_each_reason_is_one_word() -> None:
    """Reasons are names of counters: lower case, no two alike."""
    assert all(reason.value.replace("_", "").isalpha() and reason.value.islower() for reason in Reason)
    assert len({reason.value for reason in Reason}) == len(Reason)
