"""What logs are made of."""

from __future__ import annotations

from state.raft.configuration import Configuration
from state.raft.types import ENTRY_OVERHEAD_BYTES, Entry, Vote, founded
from transport.types import NodeId


def test_an_entry_weighs_what_it_holds() -> None:
    """Data by its bytes, a configuration by its members, and something for being there."""
    members = Configuration((NodeId("a"), NodeId("b")), (NodeId("c"),))
    assert Entry(1, 1, None).size_bytes == ENTRY_OVERHEAD_BYTES
    assert Entry(1, 1, b"12345").size_bytes == ENTRY_OVERHEAD_BYTES + 5
    assert Entry(1, 1, members).size_bytes == ENTRY_OVERHEAD_BYTES * 4


def test_founders_start_alike() -> None:
    """Their configuration is the first entry, of term 1."""
    members = Configuration((NodeId("a"),))
    stored = founded(members)
    assert stored.vote == Vote(1, None)
    assert stored.entries == (Entry(1, 1, members),)
    assert stored.snapshot.index == 0
