"""mDNS between real hosts: network namespaces on a bridge."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import avahi
import pytest
from netns import Host, Lan
from printout import Line, Printout
from support import ROOT, require_network_namespaces, require_tools

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

_PROGRAM = Path(__file__).with_name("mdns_node.py")


@pytest.fixture
def lan() -> Iterator[Lan]:
    """A switch; hosts are added by the test."""
    require_network_namespaces()
    with Lan() as made:
        yield made


class _Node:
    """A running mdns_node.py and what it has printed so far."""

    def __init__(self, host: Host, name: str) -> None:
        self.process = host.start([sys.executable, str(_PROGRAM), name], stdout=subprocess.PIPE, cwd=ROOT)
        self._out = Printout(self.process)
        self.events = self._out.lines

    def expect(self, matches: Callable[[Line], bool], *, since: int = 0, timeout_s: float = 30.0) -> float:
        """Wait for an event after the first ``since``; how many seconds that took."""
        begun = time.monotonic()
        return self._out.expect(matches, since=since, timeout_s=timeout_s) - begun

    def wait_ticks(self, count: int) -> None:
        """Wait until it has printed its statistics so often again, which it does each 0.2 s."""
        since = len(self.events)
        self.expect(lambda _: sum(event["event"] == "statistics" for event in self.events[since:]) >= count)

    def wait_available(self) -> None:
        self.expect(lambda event: event.get("available") == 1)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(10.0) == 0
        self._out.close()
        assert self.events[-1]["event"] == "closed"


def _found(node: str, address: str) -> Callable[[Line], bool]:
    return lambda event: event["event"] == "found" and event["node"] == node and f"{address}:7946" in event["addresses"]


def test_two_hosts_find_each_other_and_see_the_goodbye(lan: Lan) -> None:
    """Nothing is configured but the network's name, and no host has a route to anywhere."""
    left, right = lan.host("left"), lan.host("right")
    a, b = _Node(left, "a"), _Node(right, "b")
    took_s = a.expect(_found("b", right.address))
    b.expect(_found("a", left.address))
    assert took_s < 10.0  # 1 s on an idle machine
    b.stop()
    a.expect(lambda event: event == {"event": "lost", "node": "b"})
    a.stop()
    assert not [event for event in a.events if event.get("level") in {"WARNING", "ERROR"}]


def test_a_new_address_reaches_the_neighbours(lan: Lan) -> None:
    """A host that moves to another address is found there without a restart."""
    left, right = lan.host("left"), lan.host("right")
    a, b = _Node(left, "a"), _Node(right, "b")
    a.expect(_found("b", right.address))
    seen = len(a.events)
    right.remove_address(right.address)
    right.add_address("10.77.0.99")
    a.expect(_found("b", "10.77.0.99"), since=seen)
    b.stop()
    a.stop()


def test_a_host_that_announced_itself_behind_a_partition_is_found_after_it(lan: Lan) -> None:
    """zeroconf's own browser would never find it: the browser is renewed while peers are missing."""
    require_tools("nft")
    left, right = lan.host("left"), lan.host("right")
    lan.partition([left], [right])
    a, b = _Node(left, "a"), _Node(right, "b")
    a.wait_available()
    b.wait_available()
    b.wait_ticks(15)  # 3 s, in which all announcements (three within a second) are lost
    assert not [event for event in a.events + b.events if event["event"] == "found"]
    lan.heal()
    a.expect(_found("b", right.address), timeout_s=60.0)
    a.stop()
    b.stop()


def test_a_host_without_a_network_warns_and_joins_when_there_is_one(lan: Lan) -> None:
    """No multicast is never an error; a cable plugged in later is used."""
    alone, right = lan.host("alone", plugged_in=False), lan.host("right")
    a, b = _Node(alone, "a"), _Node(right, "b")
    a.expect(lambda event: event["event"] == "log" and event["text"].startswith("mdns reaches this machine only"))
    a.expect(lambda event: event.get("available") == 0 and event.get("sockets") == 1)
    assert not [event for event in a.events if event.get("level") == "ERROR"]
    alone.plug_in()
    a.expect(_found("b", right.address))
    b.expect(_found("a", alone.address))
    a.stop()
    b.stop()


def test_a_host_without_any_adapter_warns_once_and_runs(lan: Lan) -> None:
    """Not even loopback is up: the node lives, and says what does not work."""
    bare = lan.host("bare", plugged_in=False)
    bare.ip("link", "set", "lo", "down")
    a = _Node(bare, "a")
    a.expect(lambda event: event["event"] == "log" and event["text"].startswith("mdns unavailable"))
    a.wait_ticks(8)
    a.stop()
    assert [event["level"] for event in a.events if event["event"] == "log"] == ["WARNING"]
    assert not any(event.get("available") for event in a.events)


def test_a_taken_port_is_a_warning_and_is_retried(lan: Lan) -> None:
    """Another mDNS program that does not share port 5353 keeps mDNS off until it goes."""
    left = lan.host("left")
    code = """if True:
        import socket, time
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind(("", 5353))
        print("taken", flush=True)
        time.sleep(99)
    """
    taker = left.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert taker.stdout is not None
    taker.stdout.readline()
    a = _Node(left, "a")
    a.expect(lambda event: event["event"] == "log" and "in use" in event["text"])
    taker.terminate()
    a.wait_available()
    a.stop()


def test_avahi_sees_the_service(lan: Lan) -> None:
    """What we announce is standard DNS-SD: another implementation lists and resolves it with its TXT record."""
    avahi.require_avahi()
    left, right = lan.host("left"), lan.host("right")
    a = _Node(left, "planner-1")
    a.wait_available()
    seen = next(avahi.browse(right))
    assert seen.instance.startswith("planner-1-lan-")
    assert seen.host.startswith("planner-1-lan-")
    assert (seen.address, seen.port) == (left.address, 7946)
    assert seen.txt >= {"v=1", "net=lan", "id=planner-1", "inc=1", "port=7946"}
    a.stop()
