"""What a node announces of itself says how far it may travel."""

from __future__ import annotations

import pytest

from gossip.discovery.base import Announcement
from transport.types import Address, NetworkName, NodeId


@pytest.mark.parametrize(
    ("hosts", "listens_on_all", "expected"),
    [
        (("127.0.0.1",), False, True),
        (("127.0.0.1", "::1"), False, True),
        (("127.0.0.1", "10.0.0.1"), False, False),
        (("10.0.0.1",), False, False),
        # It has only loopback for want of a network; the next address is for everybody.
        (("127.0.0.1",), True, False),
        ((), False, False),
    ],
)
def test_only_loopback_by_choice_stays_on_the_machine(
    hosts: tuple[str, ...], listens_on_all: bool, expected: bool
) -> None:
    """A node is private when all its addresses are loopback and it did not ask for more."""
    announcement = Announcement(
        network=NetworkName("default"),
        node_id=NodeId("n1"),
        incarnation=1,
        port=7946,
        addresses=tuple(Address(host, 7946) for host in hosts),
        authority="00",
        listens_on_all=listens_on_all,
    )

    assert announcement.loopback_only is expected
