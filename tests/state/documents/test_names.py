"""Each container has one root, and each root one container."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.documents.names import ROOT_BYTES_MAX, Kind, Name, name_of
from state.errors import ValueRefused

paths = st.lists(st.text(st.sampled_from("ab/~0 1é"), min_size=1, max_size=4), max_size=4).map(tuple)


@given(st.sampled_from(Kind), paths)
def test_roots_tell_containers_apart(kind: Kind, path: tuple[str, ...]) -> None:
    """A container's root leads back to it, whatever its keys are."""
    name = Name(kind, path)
    assert name_of(name.root) == name


@given(st.text(max_size=12))
def test_any_root_is_a_container_or_none(root: str) -> None:
    """What a peer may have named is a container with that very root, or unknown to us."""
    name = name_of(root)
    assert name is None or name.root == root


@pytest.mark.parametrize("root", ["", "m", "x:key", "mkey", "m:a~2b", "m:~"])
def test_other_roots_are_none(root: str) -> None:
    """Kinds of later versions, and names that we would write otherwise, are left alone."""
    assert name_of(root) is None


def test_children() -> None:
    """A child's path is its parent's and its key; keys are text, and paths bounded."""
    name = Name(Kind.MAP).child(Kind.MAP, "a/b").child(Kind.TEXT, "c~")
    assert (name.root, str(name)) == ("t:a~1b/c~0", "text 'a/b/c~'")
    with pytest.raises(ValueRefused, match="keys are str"):
        name.child(Kind.MAP, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueRefused, match="is empty"):
        Name(Kind.MAP).child(Kind.MAP, "")
    with pytest.raises(ValueRefused, match="path of 2 keys is longer"):
        Name(Kind.MAP, ("x" * 600,)).child(Kind.MAP, "y" * 600)
    assert len(Name(Kind.MAP).child(Kind.MAP, "k" * (ROOT_BYTES_MAX - 2)).root) == ROOT_BYTES_MAX
