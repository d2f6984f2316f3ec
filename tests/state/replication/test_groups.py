"""The names of documents' groups."""

from __future__ import annotations

from state.replication.groups import document_of, group_of


def test_groups_and_documents_name_each_other() -> None:
    """And other groups are no documents'."""
    assert document_of(group_of("board")) == "board"
    assert document_of("board") is None
