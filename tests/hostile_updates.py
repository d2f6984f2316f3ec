"""Mutated updates against the validator and, where that lets them pass, against pycrdt, in a process of its own.

``python tests/hostile_updates.py values|texts SEED COUNT FILE`` prints one JSON object.  A crash of pycrdt, or a loop
that does not end, ends this process and not the one that looks at it (``tests/state/guards/test_hostile.py``); the
input that was being applied then is in the file.

``unstable`` counts inputs after which a document reads otherwise when it is rebuilt from its own encoding.  Blocks in
places that no editor would choose can do that; see "What this does not do" in ``docs/protocol/documents.md``.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yjs_bytes as yjs
from pycrdt import Array, Doc, Map, Text

from state.errors import UpdateRefused
from state.guards.updates import TEXT_LIMITS, VALUE_LIMITS, Limits, check_fits, read_state_vector, read_update
from state.guards.values import encode_value

VALUES, TEXTS = "values", "texts"
CORPUS = Path(__file__).parent / "corpus" / "updates"
#: Processor time after which an input counts as one that never ends.
SECONDS_MAX = 5.0
WRITERS = (yjs.CLIENT, 2**53 - 1)
_VALUES: list[Any] = [1, 1.5, "é😀", b"\0", None, True, {"a": [1]}, -(2**70)]

History = list[tuple[int, bytes]]


def history(kind: str, seed: int, rounds: int = 40) -> History:
    """Updates of two writers who hear of each other at once, each with its client."""
    rng = random.Random(seed)
    made: History = []
    docs = {client: Doc[Any](client_id=client) for client in WRITERS}
    for client, doc in docs.items():
        doc.observe(lambda event, client=client: made.append((client, event.update)))
    for number in range(rounds):
        client = rng.choice(WRITERS)
        doc = docs[client]
        with doc.transaction():
            for _ in range(rng.randrange(1, 4)):
                (_edit_text if kind == TEXTS else _edit_values)(doc, rng)
        before = len(made)
        update = made[-1][1]
        for other, copy in docs.items():
            if other != client:
                copy.apply_update(update)
        del made[before:]  # what the copies say about it
        assert number < before
    return made


def _edit_values(doc: Doc[Any], rng: random.Random) -> None:
    entries, items = doc.get("m:", type=Map), doc.get("a:x", type=Array)
    choice = rng.randrange(4)
    key = f"k{rng.randrange(5)}"
    if choice == 0 and key in entries:
        del entries[key]
    elif choice == 1 and len(items):
        del items[0:1]
    elif choice == 2:
        items.insert(rng.randrange(len(items) + 1), encode_value(rng.choice(_VALUES)))
    else:
        entries[key] = encode_value(rng.choice(_VALUES))


def _edit_text(doc: Doc[Any], rng: random.Random) -> None:
    text = doc.get(f"t:{rng.choice('xy')}", type=Text)
    if rng.randrange(3) == 0 and len(text):
        del text[0 : len(str(text)[0].encode())]
    else:
        before = str(text)[: rng.randrange(len(str(text)) + 1)]
        text.insert(len(before.encode()), rng.choice(["a", "é", "😀", "word "]))


# --- mutation -----------------------------------------------------------------------------------------------------

_NUMBERS = [0, 1, 2, 7, 127, 128, 2**16, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**53 - 1, 2**53, 2**63]


def mutate(update: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes, numbers or pieces."""
    data = bytearray(update)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        choice = rng.randrange(7)
        if choice == 0 and data:
            data[at - 1] = rng.randrange(256)
        elif choice == 1 and data:
            data[at - 1] ^= 1 << rng.randrange(8)
        elif choice == 2:
            data[at:at] = yjs.varint(rng.choice(_NUMBERS))
        elif choice == 3:
            data[at : at + rng.randrange(1, 4)] = yjs.varint(rng.choice(_NUMBERS))
        elif choice == 4:
            del data[at : at + rng.randrange(1, 6)]
        elif choice == 5:
            data[at:at] = data[max(0, at - rng.randrange(12)) : at]
        else:
            start = rng.randrange(len(other) + 1)
            data[at:] = other[start:]
    return bytes(data)


def compose(kind: str, clocks: dict[int, int], rng: random.Random) -> tuple[int, bytes]:
    """An update that is well-formed, of blocks that stand in odd places and delete at random."""
    client = rng.choice(WRITERS)
    clock = end = clocks.get(client, 0)
    blocks = []
    for _ in range(rng.randrange(1, 4)):
        own = (4, yjs.sized("é😀".encode()), 3) if kind == TEXTS else (8, b"\x02" + yjs.NULL + yjs.TEXT + b"\x01x", 2)
        content, body, length = rng.choice([own, own, (1, b"\x03", 3), (0, b"\x02", 2)])
        if content == 0:
            blocks.append(b"\x00" + body)
        elif rng.random() < 0.7:
            flags = rng.choice([0x80, 0x40, 0xC0])
            places = b"".join(_place(clocks, client, end, rng) for _ in range(2 if flags == 0xC0 else 1))
            blocks.append(bytes([flags | content]) + places + body)
        else:
            root = rng.choice([b"m:", b"a:x", b"t:x", b"t:y", b"r:new", b""])
            blocks.append(yjs.item(content, body, root=root, key=rng.choice([None, b"k1", b""])))
        end += length
    deletes = [
        (writer, [(rng.randrange(known + 1), rng.randrange(1, 9))])
        for writer, known in clocks.items()
        if rng.random() < 0.4
    ]
    return client, yjs.update(blocks, client=client, clock=clock, deletes=deletes)


def _place(clocks: dict[int, int], client: int, end: int, rng: random.Random) -> bytes:
    other = rng.choice(WRITERS)
    upto = end if other == client else clocks.get(other, 0)
    return yjs.reference(other, rng.randrange(max(upto, 1)))


_ROOTS: dict[str, list[tuple[Any, str]]] = {
    VALUES: [(Map, "m:"), (Array, "a:x"), (Map, "r:new"), (Array, ""), (Map, "a:x"), (Array, "m:")],
    TEXTS: [(Text, "t:x"), (Text, "t:y"), (Text, "m:"), (Text, "")],
}

# --- the run --------------------------------------------------------------------------------------------------------


class Run:
    """One process's share: counts, the slowest input, and how memory grew."""

    def __init__(self, kind: str, seed: int, current: Path) -> None:
        self.kind = kind
        self.limits: Limits = TEXT_LIMITS if kind == TEXTS else VALUE_LIMITS
        self.rng = random.Random(seed)
        self.current = current
        self.made = history(kind, seed)
        self.prefixes: list[tuple[bytes, dict[int, int]]] = []
        doc: Doc[Any] = Doc()
        for _, update in self.made:
            self.prefixes.append((doc.get_update(), read_state_vector(doc.get_state())))
            doc.apply_update(update)
        self.accepted = self.refused = self.raised = 0
        self.slowest_ms = 0.0
        self.unstable = 0

    def input(self, number: int) -> tuple[int, bytes, int]:
        """The next input, whom it claims to come from, and after how many true updates it arrives."""
        at = self.rng.randrange(len(self.made))
        client, update = self.made[at]
        if number % 2:
            return *compose(self.kind, self.prefixes[at][1], self.rng), at
        return client, mutate(update, self.rng.choice(self.made)[1], self.rng), at

    def one(self, client: int, data: bytes, at: int) -> None:
        """Validate, and apply what passes to a document in the state that it claims to continue."""
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_MAX)
        before, clocks = self.prefixes[at]
        doc: Doc[Any] = Doc(client_id=1)
        doc.apply_update(before)
        started = time.process_time()
        try:
            shape = read_update(data, client, self.limits)
            check_fits(shape, clocks)
        except UpdateRefused:
            self.refused += 1
        else:
            self.accepted += 1
            self.current.write_bytes(data)
            try:
                doc.apply_update(data)
            except (RuntimeError, ValueError):
                self.raised += 1
        self.slowest_ms = max(self.slowest_ms, (time.process_time() - started) * 1e3)
        self.read(doc)

    def read(self, doc: Doc[Any]) -> None:
        """All that a document does later: reading, writing, encoding, and being rebuilt from its encoding."""
        if self.kind == TEXTS:
            doc.get("t:x", type=Text).insert(0, "x")
        else:
            doc.get("m:", type=Map)["after"] = "it"
            doc.get("a:x", type=Array).insert(0, "x")
        again: Doc[Any] = Doc()
        again.apply_update(doc.get_update())
        for type_, name in _ROOTS[self.kind]:
            if doc.get(name, type=type_).to_py() != again.get(name, type=type_).to_py():
                self.unstable += 1
                return


def main(kind: str, seed: int, count: int, current: str) -> None:
    """Run and print what happened."""
    run = Run(kind, seed, Path(current))
    for number in range(count // 10):  # so that growth is measured from a warm process
        run.one(*run.input(number))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.slowest_ms = 0.0
    for number in range(count):
        run.one(*run.input(number))
    for data in (*yjs.crashers().values(), *(path.read_bytes() for path in sorted(CORPUS.glob("*.bin")))):
        run.one(yjs.CLIENT, data, 0)
    for data in yjs.vector_crashers().values():
        try:
            read_state_vector(data)
        except UpdateRefused:
            run.refused += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    report = {
        "inputs": run.accepted + run.refused,
        "accepted": run.accepted,
        "raised": run.raised,
        "slowest_ms": round(run.slowest_ms, 2),
        "rss_growth_mb": round(grown / (1024 if sys.platform == "linux" else 1024 * 1024), 1),
        "unstable": run.unstable,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
