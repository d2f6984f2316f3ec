"""Walks in bytes become splices in characters."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from state.documents.splices import Splice, array_splices, byte_offset, splice_text, text_splices

texts = st.text(st.sampled_from("abé😀"), max_size=8)


@given(st.lists(st.tuples(st.sampled_from(["retain", "delete", "insert"]), texts), max_size=6), texts)
def test_splices_do_what_the_walk_did(walk: list[tuple[str, str]], rest: str) -> None:
    """Applying the splices to the old text gives the new one, whatever characters there are."""
    old = "".join(piece for what, piece in walk if what != "insert") + rest
    new = "".join(piece for what, piece in walk if what != "delete") + rest
    delta: list[dict[str, Any]] = [
        {what: piece if what == "insert" else len(piece.encode())} for what, piece in walk if piece
    ]
    assert splice_text(old, text_splices(old, delta)) == new


@given(texts, st.integers(0, 8))
def test_byte_offsets(text: str, index: int) -> None:
    """The offset of a character is what stands before it in UTF-8."""
    assert text.encode()[: byte_offset(text, index)].decode() == text[:index] or index > len(text)


def test_arrays_are_counted_in_items() -> None:
    """Insertions, deletions and what is kept between them."""
    delta: list[dict[str, Any]] = [{"retain": 2}, {"insert": [b"x", None]}, {"delete": 1}, {"retain": 1}, {"delete": 2}]
    assert array_splices(delta) == [Splice(2, 0, [b"x", None]), Splice(4, 1, []), Splice(5, 2, [])]
