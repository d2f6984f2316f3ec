"""Errors of the state layer say what they are about."""

from __future__ import annotations

from state.errors import StorageError, StorageFull, ValueRefused
from transport.errors import MeshError


def test_a_full_disk_is_a_storage_error() -> None:
    """Whoever catches what the disk does catches that it is full."""
    assert issubclass(StorageFull, StorageError)
    assert issubclass(StorageError, MeshError)


def test_a_refused_value_names_its_place() -> None:
    """The path to it within the document."""
    assert ValueRefused("no", path="a/b").path == "a/b"
