from __future__ import annotations

import pytest
from support import eventually

from gossip.discovery.advertise import Adapter, Interfaces
from gossip.discovery.interfaces import InterfaceWatcher, read_interfaces

_ONE = Interfaces((Adapter("eth0", 2, ("10.0.0.1",)),))
_TWO = Interfaces((Adapter("eth0", 2, ("10.0.0.2",)),))
_HALF = Interfaces((Adapter("eth0", 2, ()),))


class _Machine:
    """Adapters that a test can change; ``script`` is read before ``now``."""

    def __init__(self) -> None:
        self.now = _ONE
        self.script: list[Interfaces | OSError] = []

    def read(self) -> Interfaces:
        reading = self.script.pop(0) if self.script else self.now
        if isinstance(reading, OSError):
            raise reading
        return reading


def _watcher(machine: _Machine) -> InterfaceWatcher:
    return InterfaceWatcher(interval_s=0.005, settle_s=0.005, read=machine.read)


def test_this_machine_has_a_loopback_adapter() -> None:
    """Reading the real adapters works and finds 127.0.0.1 up."""
    adapters = read_interfaces().adapters
    assert any("127.0.0.1" in adapter.addresses and adapter.is_up for adapter in adapters)


async def test_a_change_reaches_every_subscriber_once() -> None:
    """One subscriber that raises does not keep the news from the next; who unsubscribed hears nothing."""
    machine = _Machine()
    seen: list[Interfaces] = []
    watcher = _watcher(machine)

    def broken(interfaces: Interfaces) -> None:
        raise ValueError("a bug")

    watcher.subscribe(broken)
    watcher.subscribe(seen.append)
    silent: list[Interfaces] = []
    unsubscribe = watcher.subscribe(silent.append)
    unsubscribe()
    unsubscribe()
    await watcher.start()
    assert watcher.interfaces == _ONE
    machine.now = _TWO
    await eventually(lambda: seen)
    readings = watcher.statistics()["readings"]
    await eventually(lambda: watcher.statistics()["readings"] > readings + 3)
    await watcher.close()
    assert seen == [_TWO]
    assert silent == []
    assert watcher.interfaces == _TWO
    assert watcher.statistics()["changes"] == 1


async def test_a_flicker_is_not_a_change() -> None:
    """An adapter that loses its address for one look does not make the node re-advertise itself."""
    machine = _Machine()
    seen: list[Interfaces] = []
    machine.script = [_ONE, _HALF, _ONE, _HALF, _TWO, _ONE]
    watcher = _watcher(machine)
    watcher.subscribe(seen.append)
    await watcher.start()
    await eventually(lambda: watcher.statistics()["readings"] > 8)
    await watcher.close()
    assert seen == []


async def test_a_failing_reading_keeps_the_last_one() -> None:
    """Not being able to look does not mean that the addresses are gone."""
    machine = _Machine()
    machine.script = [_ONE, OSError("no"), OSError("no")]
    watcher = _watcher(machine)
    await watcher.start()
    await eventually(lambda: watcher.statistics()["failures"] == 2)
    await watcher.close()
    assert watcher.interfaces == _ONE


async def test_starting_and_closing_twice_is_harmless() -> None:
    """A watcher is shared; its users need not know who began."""
    machine = _Machine()
    machine.script = [OSError("not even at first")]
    watcher = _watcher(machine)
    await watcher.close()
    await watcher.start()
    await watcher.start()
    assert watcher.interfaces == Interfaces(())
    await watcher.close()
    await watcher.close()


async def test_the_nodes_of_one_process_share_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters are the same for all of them, so a reading of this moment is not taken again."""
    monkeypatch.setattr(InterfaceWatcher, "_latest", None)
    one, other = InterfaceWatcher(), InterfaceWatcher()
    await one.start()
    await other.start()
    try:
        assert other.interfaces is one.interfaces
    finally:
        await one.close()
        await other.close()
