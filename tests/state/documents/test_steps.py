"""Keys are found by what stands behind their first colon."""

from __future__ import annotations

import pytest

from state.documents.steps import ending_of


@pytest.mark.parametrize(("key", "ending"), [("a/1.2.0:sx", ":sx"), ("a/1.2.0:sx:y", ":sx:y"), ("a:", ":")])
def test_the_ending_begins_at_the_first_colon(key: str, ending: str) -> None:
    """An element may hold colons itself; what stands before it does not."""
    assert ending_of(key) == ending


def test_a_key_without_colon_is_nobodys() -> None:
    """Its ending begins with no colon, so no search for an element finds it."""
    assert not ending_of("nocolon").startswith(":")
