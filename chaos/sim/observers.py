"""Who watches a world: measurements and checkers have this one shape."""

from __future__ import annotations

from typing import Protocol

from gossip.events import Deliver, Member, Send, Superseded

from .process import Process


class Observers(Protocol):
    """Told about everything that matters, as it happens."""

    def started(self, process: Process) -> None:
        """A process starts; its core has not been told anything yet."""
        ...

    def ended(self, process: Process) -> None:
        """A process ended, in whatever way."""
        ...

    def sent(self, effect: Send) -> None:
        """A core sends a body."""
        ...

    def transition(self, process: Process, before: Member | None, after: Member, now: float) -> None:
        """A core believes something new."""
        ...

    def forgotten(self, process: Process, member: Member) -> None:
        """A core dropped a record."""
        ...

    def delivered(self, process: Process, delivery: Deliver, now: float) -> None:
        """A broadcast reached a node."""
        ...

    def superseded(self, process: Process, notice: Superseded) -> None:
        """A core says that its process must stop."""
        ...

    def violation(self, checker: str, text: str) -> None:
        """Something is wrong, and it is not an observer that found it."""
        ...
