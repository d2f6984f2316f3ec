"""One node of the demo."""

from __future__ import annotations

from mesh.demo.agent import Ledger
from mesh.types import AgentMessage, MessageType


def _message(number: int, *, sender: int = 1, kind: MessageType = MessageType.COMMAND) -> AgentMessage:
    return AgentMessage(sender, 2, kind, str(number).encode())


def test_the_ledger_tells_copies_from_messages() -> None:
    """A number that comes twice is one message and one duplicate."""
    ledger = Ledger()
    for number in (0, 1, 1, 2):
        ledger.enter(_message(number))
    ledger.enter(_message(0, sender=3))

    report = ledger.report()
    assert (report["messages"], report["duplicates"], report["out_of_order"]) == (4, 1, 0)


def test_the_ledger_sees_messages_that_were_overtaken() -> None:
    """A number below one that the same sender sent before is out of order."""
    ledger = Ledger()
    for number in (0, 2, 1):
        ledger.enter(_message(number))

    assert ledger.report()["out_of_order"] == 1


def test_the_ledger_keeps_broadcasts_apart() -> None:
    """Broadcasts are listed by their numbers and count as messages of nobody."""
    ledger = Ledger()
    ledger.enter(_message(5, sender=0, kind=MessageType.BROADCAST))
    ledger.enter(_message(4, sender=0, kind=MessageType.BROADCAST))

    report = ledger.report()
    assert report["broadcasts"] == [4, 5]
    assert (report["messages"], report["duplicates"]) == (0, 0)
