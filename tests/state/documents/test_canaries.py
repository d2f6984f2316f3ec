"""The defects of pycrdt that the guards are for, each shown at pycrdt itself.

When a test here fails after an upgrade, that defect is mended or has changed: read what the guard does about it
(``docs/protocol/documents.md``, "Known defects"), decide whether it is still needed, and only then change the test.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yjs_bytes as yjs
from pycrdt import Array, Doc, Map, Text


def _recorded(client: int = 1) -> tuple[Doc[Any], list[bytes]]:
    doc: Doc[Any] = Doc(client_id=client)
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    return doc, updates


def test_the_version_is_the_one_that_was_studied() -> None:
    """Everything here is known of 0.14.13 and later 0.14; another minor version must be studied first."""
    assert version("pycrdt").startswith("0.14.")


def test_updates_out_of_order_lose_data() -> None:
    """One writer's a=1, a=2, b=3 applied in another order: a is gone.  Guard: hold-back (y-crdt issue 632)."""
    doc, updates = _recorded()
    held = doc.get("m", type=Map)
    held["a"], held["a"], held["b"] = 1, 2, 3
    other: Doc[Any] = Doc()
    for number in (1, 2, 0):
        other.apply_update(updates[number])
    assert other.get("m", type=Map).to_py() == {"b": 3.0}


def test_the_event_of_an_update_behind_a_hole_is_empty() -> None:
    """What was applied behind a hole is not in the event.  Guard: envelopes are relayed, events never."""
    doc, updates = _recorded()
    doc.get("m", type=Map)["a"] = 1
    doc.get("m", type=Map)["b"] = 2
    other, relayed = _recorded(2)
    other.apply_update(updates[1])
    assert relayed == [b"\x00\x00"]


def test_types_are_lost() -> None:
    """Integers come back as floats, bytes as bytearrays, tuples as lists.  Guard: value codec."""
    held = Doc[Any]().get("m", type=Map)
    held["i"], held["b"], held["t"] = 1, b"x", (1,)
    assert [type(held[key]) for key in "ibt"] == [float, bytearray, list]


@pytest.mark.parametrize("value", [2**63, {1: 2}, "\ud800"])
def test_values_can_panic(value: Any) -> None:
    """Large integers, keys that are no text and lone surrogates raise what no ``except Exception`` sees."""
    held = Doc[Any]().get("m", type=Map)
    with pytest.raises(BaseException) as caught:
        held["v"] = value
    assert not isinstance(caught.value, Exception)


def test_a_failed_transaction_is_committed() -> None:
    """What was done before an exception stays.  Guard: staging."""
    doc: Doc[Any] = Doc()
    held = doc.get("m", type=Map)
    with pytest.raises(ZeroDivisionError), doc.transaction():
        held["a"] = True
        raise ZeroDivisionError
    assert held["a"] is True


def test_text_is_counted_in_bytes() -> None:
    """Positions within a character destroy it.  Guard: positions are translated."""
    text = Doc[Any]().get("t", type=Text)
    text.insert(0, "é😀z")
    assert len(text) == 7
    del text[0:1]
    assert str(text) != "😀z"


def test_a_root_of_another_type_is_silently_empty() -> None:
    """Nobody says that a map is opened as an array.  Guard: the type is part of the root's name."""
    doc: Doc[Any] = Doc()
    doc.get("x", type=Map)["k"] = 1
    assert len(doc.get("x", type=Array)) == 0


def test_bytes_behind_an_update_are_ignored() -> None:
    """Trailing bytes pass.  Guard: validator."""
    doc, updates = _recorded()
    doc.get("m", type=Map)["a"] = 1
    Doc[Any]().apply_update(updates[0] + b"garbage")
    assert updates


def test_anybody_may_write_as_anybody() -> None:
    """Blocks of any client pass.  Guard: client ids are computed from the authenticated writer."""
    doc: Doc[Any] = Doc(client_id=1)
    doc.apply_update(yjs.update([yjs.entry(b"\x78")], client=1))
    assert doc.get("m:", type=Map).to_py() == {"k": True}


_CRASH = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (3, 4))
from pycrdt import Array, Doc, Map
doc = Doc(client_id=9)
doc.get("a:x", type=Array).append("z")
for path in sys.argv[1:]:
    doc.apply_update(open(path, "rb").read())
doc.get("a:x", type=Array).to_py()
doc.get("m:", type=Map)["k"] = 1
doc.get("m:", type=Map).to_py()
"""


def _crash(folder: Path, *updates: bytes) -> int:
    """How a process ends that applies these."""
    paths = []
    for number, data in enumerate(updates):
        paths.append(folder / f"{number}.bin")
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", _CRASH, *map(str, paths)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


def test_deep_values_end_the_process(tmp_path: Path) -> None:
    """80 KB of nested arrays overflow the stack.  Guard: validator."""
    assert _crash(tmp_path, yjs.crashers()["depth-40000-arrays"]) in {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS}


def test_text_in_an_array_is_read_for_ever(tmp_path: Path) -> None:
    """An array that has a text's block with "é" in it is read for ever.  Guard: texts are kept apart."""
    block = yjs.item(4, yjs.sized("é".encode()), root=b"a:x", key=None)
    assert _crash(tmp_path, yjs.update([block])) in {-signal.SIGXCPU, -signal.SIGKILL}


def test_harmless_updates_do_not(tmp_path: Path) -> None:
    """The harness of the two tests above ends well with an ordinary update."""
    assert _crash(tmp_path, yjs.update([yjs.entry(b"\x78")])) == 0
