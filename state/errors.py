"""The errors of this layer; :mod:`mesh.errors` draws the whole tree."""

from __future__ import annotations

from transport.errors import MeshError, RemoteProtocolError


class StorageError(MeshError):
    """The disk did not do what it must: nothing of the failed call is stored."""


class StorageFull(StorageError):
    """There is no room: on the disk, or within a limit on file sizes.  Nothing of the failed call is stored."""


class StateError(MeshError):
    """Something about replicated state."""


class ClockDrift(StateError):
    """A timestamp is further in the future than clocks may differ; it was not taken."""


class EpochUnknown(StateError):
    """A membership epoch that this replica does not know yet, or no longer."""


class DivergentHistory(StateError):
    """Two histories under one name that cannot be one: neither was changed."""


class TooManyWriters(StateError):
    """A document was written by as many processes as it can know; nothing was changed."""


class ValueRefused(StateError, ValueError):
    """A value that a document cannot hold; nothing was changed.

    Attributes:
        path: Where in the value, as it would be written in Python: ``['tasks'][2]``; empty: the value itself.
    """

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class TransactionTooLarge(StateError):
    """A transaction above the limits on its size; nothing of it was done."""


class TransactionConflict(StateError):
    """Somebody else's change came while a transaction was open; nothing of it was done."""


class UpdateRefused(RemoteProtocolError):
    """Bytes that are no update or state vector which this document may take; nothing was changed."""


class RaftMessageRefused(RemoteProtocolError):
    """A message of the consensus protocol that no correct member of the group would send; nothing was changed."""


class NotInGroup(RaftMessageRefused):
    """A message from a node that has no say in the group; nothing was changed.

    One that was removed a moment ago may still send some, so this is no reason to part with it.
    """
