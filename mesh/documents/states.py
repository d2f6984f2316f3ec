"""Documents and agents' states in the hands of a network's user; a state is a small map on a document of its own.

``version`` is the number of transactions that are in a state, and ``vector_clock`` how many of each writer: equal
clocks mean equal content, and one that is covered by another is older.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from mesh.errors import ConsistencyUnsupported, InvalidMessage, UnknownState
from mesh.types import ConsistencyLevel, DistributedState
from state.replication.groups import NAME_CHARS_MAX

if TYPE_CHECKING:
    from mesh.runtime import Runtime

    from .shared import SharedDocument

#: The documents of states.
STATE_PREFIX: Final = "state:"
#: Where a state's data is in its document, and what is said of it.
_DATA: Final = "data"
_ABOUT: Final = "about"
_AGENT: Final = "agent_id"


class HoldsState:
    """What the handle of a network offers of documents and states."""

    _runtime: Runtime

    async def document(self, name: str) -> SharedDocument:
        """Replicate a document on this node from now on, and return it; whoever names it the same shares it.

        It comes as this node's disk has it; :meth:`SharedDocument.synced` waits for what others have.

        Args:
            name: 1 to 200 characters.

        Raises:
            StorageError: This node's disk cannot be read or written.
            StateError: There are too many documents.
            RegistrationTooLarge, InvalidMessage, NetworkClosed: As :meth:`register_agent`.
        """
        self._runtime.check_running()
        _check_name(name)
        return await self._runtime.documents.open(name)

    def documents(self) -> list[str]:
        """The names of the documents that this node replicates, sorted."""
        return self._runtime.documents.names()

    async def sync_state(self, state: DistributedState) -> DistributedState:
        """Write a state: its data merge, key by key, with what other nodes write at the same time.

        Keys that ``state.data`` does not have are deleted only if ``state.vector_clock`` (of an earlier read) covers
        what this node has; otherwise they stay, for somebody else may just have written them.

        Returns:
            The state as it is on this node's disk; other nodes that hold it have it soon.

        Raises:
            ConsistencyUnsupported: ``state.consistency_level`` is not EVENTUAL.
            ValueRefused, TransactionTooLarge: The data cannot be held.
            StorageError, StateError, NetworkClosed, InvalidMessage: As :meth:`document`.
        """
        check_level(state.consistency_level)
        document = await self.document(document_name(state.state_id))
        return await write_state(document, state)

    async def get_state(self, state_id: str, *, timeout: float = 5.0) -> DistributedState:
        """Read a state; the first time on this node, after it was fetched from a node that holds it.

        Args:
            state_id: Which.
            timeout: How long to wait for other nodes that hold it, seconds; then it is what this node has.

        Raises:
            UnknownState: Nobody has written it, as far as this node knows.
            StorageError, StateError, NetworkClosed, InvalidMessage: As :meth:`document`.
        """
        document = await self.document(document_name(state_id))
        try:
            return read_state(document, state_id)
        except UnknownState:
            with contextlib.suppress(TimeoutError):
                await document.synced(timeout=timeout)
        return read_state(document, state_id)


def document_name(state_id: object) -> str:
    """The name of a state's document."""
    if not isinstance(state_id, str) or not state_id:
        raise InvalidMessage(f"state id {state_id!r:.80} is not a text")
    return STATE_PREFIX + state_id


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX:
        raise InvalidMessage(f"document name {name!r:.80} is not text of 1 to {NAME_CHARS_MAX} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f"document name {name!r:.80} cannot be encoded as UTF-8") from None


def check_level(level: object) -> None:
    """Refuse what is not built yet, before anything is done.

    Raises:
        ConsistencyUnsupported: It is another level than EVENTUAL.
    """
    if level is not ConsistencyLevel.EVENTUAL:
        raise ConsistencyUnsupported(
            f"consistency level {level!s} is not supported yet", hint="use ConsistencyLevel.EVENTUAL"
        )


async def write_state(document: SharedDocument, state: DistributedState) -> DistributedState:
    """Bring a state's data into its document, as one transaction, and return what it holds once that is on disk.

    Keys that are not in ``state.data`` are deleted only if ``state.vector_clock`` tells that all that is here had been
    seen; otherwise somebody else may just have added them.
    """
    data, about = document.map(_DATA), document.map(_ABOUT)
    before = data.to_dict()
    seen = all(state.vector_clock.get(writer, 0) >= counter for writer, counter in document.version.items())
    with document.transaction():
        for key, value in state.data.items():
            if key not in before or not _is_same(before[key], value):
                data[key] = value
        for key in before if seen else ():
            if key not in state.data:
                del data[key]
        if about.get(_AGENT) != state.agent_id:
            about[_AGENT] = state.agent_id
    await document.saved()
    return read_state(document, state.state_id)


def read_state(document: SharedDocument, state_id: str) -> DistributedState:
    """What a state's document holds.

    Raises:
        UnknownState: Nobody has written it, as far as this replica knows.
    """
    clock = document.version
    if not clock:
        raise UnknownState(f"nobody has written state {state_id!r}, as far as this node knows")
    agent = document.map(_ABOUT).get(_AGENT)
    return DistributedState(
        state_id=state_id,
        agent_id=agent if type(agent) is int else 0,
        data=document.map(_DATA).to_dict(),
        version=sum(clock.values()),
        vector_clock=clock,
        replicas=document.replicas,
        consistency_level=ConsistencyLevel.EVENTUAL,
    )


def _is_same(a: object, b: object) -> bool:
    """Whether two values are the same to a document: 1, 1.0 and True are not, wherever they stand."""
    return a == b and repr(a) == repr(b)
