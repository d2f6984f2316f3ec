"""Entries of vectors go only by epochs that were agreed on, and never take a history with them."""

from __future__ import annotations

import pytest

from state.clocks.epochs import Epoch, Epochs
from state.clocks.vectors import Span, VersionVector, Writer
from state.errors import DivergentHistory, EpochUnknown
from transport.types import NodeId

A, B, C = (Writer(NodeId(node), 1) for node in "abc")


def _committed(*epochs: Epoch, markers_max: int = 8) -> Epochs:
    ledger = Epochs(markers_max=markers_max)
    for epoch in epochs:
        ledger.commit(epoch)
    return ledger


def test_an_epoch_takes_out_the_retired_writers() -> None:
    """Vectors of any former epoch become vectors of the latest one, without the writers that left."""
    epochs = _committed(Epoch(1, {A: 3}), Epoch(2, {B: 1}))
    full = VersionVector({A: 3, B: 1, C: 7})
    assert epochs.number == 2
    assert epochs.trim(full, 0) == VersionVector({C: 7})
    assert epochs.trim(full.without({A: 3}), 1) == VersionVector({C: 7})
    assert epochs.trim(VersionVector({C: 7}), 2) == VersionVector({C: 7})


def test_writes_that_were_not_agreed_are_reported() -> None:
    """A vector that knows more of a retired writer than the epoch says is another history."""
    epochs = _committed(Epoch(1, {A: 3}))
    with pytest.raises(DivergentHistory, match="4 writes of a/1"):
        epochs.trim(VersionVector({A: 4}), 0)


def test_what_is_lacking_of_a_retired_writer_can_be_fetched() -> None:
    """A replica that slept learns which of the retired writers' writes it must have first."""
    epochs = _committed(Epoch(1, {B: 2, A: 3}))
    assert epochs.lacks(VersionVector({A: 1, B: 2}), 0) == [Span(A, 2, 3)]
    assert epochs.lacks(VersionVector({A: 3, B: 2}), 0) == []


def test_epochs_come_in_order() -> None:
    """A repeated epoch changes nothing; a gap is an error that changes nothing."""
    epochs = _committed(Epoch(1, {A: 3}))
    epochs.commit(Epoch(1, {B: 9}))
    assert epochs.trim(VersionVector({A: 1, B: 10}), 0) == VersionVector({B: 10})
    with pytest.raises(EpochUnknown, match="epoch 3 follows 2"):
        epochs.commit(Epoch(3, {}))
    assert epochs.number == 1


def test_a_replica_from_before_the_markers_must_start_afresh() -> None:
    """Markers are bounded: who slept through more than are kept, or speaks of the future, is told so."""
    epochs = _committed(*(Epoch(number, {}) for number in range(1, 5)), markers_max=2)
    assert epochs.trim(VersionVector({A: 1}), 2) == VersionVector({A: 1})
    with pytest.raises(EpochUnknown, match="too long ago"):
        epochs.trim(VersionVector(), 1)
    with pytest.raises(EpochUnknown, match="not known yet"):
        epochs.lacks(VersionVector(), 5)
    assert Epochs(7).trim(VersionVector({A: 1}), 7) == VersionVector({A: 1})
