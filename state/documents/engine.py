"""The one place that talks to pycrdt, and keeps its habits from everybody else.

Two pycrdt documents, one for values and one for texts (:mod:`state.guards.updates` says why), containers as roots, and
for arrays and texts a *mirror*: their content as a Python list or string, kept up to date from pycrdt's events.
Reading an item of a Yjs array walks to it, and a text's positions must be translated from characters to bytes, so
reading through mirrors is both faster and what makes character indices possible.  Maps have no mirror: they are large,
and reading them costs no walk.

What pycrdt 0.14 does and this module answers (all shown by ``tests/state/documents/test_canaries.py``):

- An exception within a pycrdt transaction commits what was done before it.  So :meth:`Engine.commit` is given a list of
  steps that were checked before, each of which cannot fail.
- ``bytearray`` comes out where ``bytes`` went in.
- The event after an update that filled no hole is empty, so what others send is never taken from events.
- An observer that raises makes the outer transaction raise after it was done; ours only take notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

from pycrdt import Array, ArrayEvent, Doc, Map, MapEvent, Text, TextEvent, TransactionEvent

from state.guards.values import Leaf

from .names import Kind, Name
from .splices import Splice, array_splices, byte_offset, splice_text, text_splices
from .steps import DeleteEntry, DeleteRange, InsertItems, InsertText, SetEntry, Step, ending_of


class Touched(NamedTuple):
    """What one transaction did to one container."""

    name: Name
    keys: tuple[str, ...]
    splices: tuple[Splice[Any], ...]


class Updates(NamedTuple):
    """What a transaction is to others; empty: nothing."""

    values: bytes
    texts: bytes


_EMPTY_UPDATE: Final = b"\x00\x00"


class Engine:
    """The content of one document.

    Args:
        client: The Yjs client id of this replica's writes.
    """

    def __init__(self, client: int) -> None:
        self._values: Doc[Any] = Doc(client_id=client)
        self._texts: Doc[Any] = Doc(client_id=client)
        self._roots: dict[Name, Map[Any] | Array[Any] | Text] = {}
        self._arrays: dict[Name, list[Leaf]] = {}
        self._strings: dict[Name, str] = {}
        self._watched: dict[Name, None] = {}
        # Of maps that are searched by the ends of their keys: keys by ending.
        self._endings: dict[Name, dict[str, dict[str, None]]] = {}
        self._touched: list[Touched] = []
        self._local = False
        self._made = [b"", b""]
        # Kept: dropping a subscription ends it.
        self._subscriptions = [
            self._values.observe(lambda event: self._update_made(0, event)),
            self._texts.observe(lambda event: self._update_made(1, event)),
        ]

    # --- writing ---

    def commit(self, steps: Sequence[Step]) -> tuple[Updates, list[Touched]]:
        """Do all steps, which were checked, in one transaction of each pycrdt document."""
        texts = [step for step in steps if step.name.kind is Kind.TEXT]
        self._made = [b"", b""]
        self._local = True
        try:
            if len(texts) < len(steps):
                self._do_all(self._values, [step for step in steps if step.name.kind is not Kind.TEXT])
            if texts:
                self._do_all(self._texts, texts)
        finally:
            self._local = False
        return Updates(*self._made), _touched(steps)

    def apply(self, updates: Updates) -> list[Touched]:
        """Take in updates that passed the guards."""
        if updates.values:
            self._values.apply_update(updates.values)
        if updates.texts:
            self._texts.apply_update(updates.texts)
        touched, self._touched = self._touched, []
        return touched

    def _do_all(self, doc: Doc[Any], steps: Sequence[Step]) -> None:
        for step in steps:
            self._root(step.name)
        with doc.transaction():
            for step in steps:
                self._do(step)

    def _do(self, step: Step) -> None:
        match step:
            case SetEntry(name, key, leaf):
                self._map(name)[key] = leaf
                self._note_key(name, key, there=True)
            case DeleteEntry(name, key):
                del self._map(name)[key]
                self._note_key(name, key, there=False)
            case InsertItems(name, index, leaves):
                array = self._array(name)
                for offset, leaf in enumerate(leaves):
                    array.insert(index + offset, leaf)
                self._arrays[name][index:index] = leaves
            case InsertText(name, index, text):
                content = self._text(name)
                before = self._strings[name]
                content.insert(byte_offset(before, index), text)
                self._strings[name] = before[:index] + text + before[index:]
            case DeleteRange(name, index, count):
                if name.kind is Kind.ARRAY:
                    array = self._array(name)
                    del array[index : index + count]
                    del self._arrays[name][index : index + count]
                else:
                    content = self._text(name)
                    before = self._strings[name]
                    del content[byte_offset(before, index) : byte_offset(before, index + count)]
                    self._strings[name] = before[:index] + before[index + count :]

    # --- reading ---

    def entry(self, name: Name, key: str) -> Leaf:
        """A map's leaf.

        Raises:
            KeyError: There is none.
        """
        return _leaf(self._map(name)[key])

    def has(self, name: Name, key: str) -> bool:
        """Whether a map has the key."""
        return key in self._map(name)

    def entries(self, name: Name) -> dict[str, Leaf]:
        """All entries of a map, by key."""
        held = cast("dict[str, Leaf | bytearray]", self._map(name).to_py())
        return {key: _leaf(held[key]) for key in sorted(held)}

    def length(self, name: Name) -> int:
        """How many entries a map has."""
        return len(self._map(name))

    def keys_ending(self, name: Name, ending: str) -> list[str]:
        """A map's keys of that :func:`~state.documents.steps.ending_of`; the first call for a map reads all of it."""
        index = self._endings.get(name)
        if index is None:
            index = self._endings[name] = {}
            for key in self.entries(name):
                self._note_key(name, key, there=True)
            self.watch(name)
        return sorted(index.get(ending, ()))

    def items(self, name: Name) -> list[Leaf]:
        """An array's leaves; not to be changed."""
        self._array(name)
        return self._arrays[name]

    def string(self, name: Name) -> str:
        """A text's characters."""
        self._text(name)
        return self._strings[name]

    def watch(self, name: Name) -> None:
        """Have a container's changes by others told from now on."""
        root = self._root(name)
        # Arrays and texts are observed for their mirrors; a map is not until somebody asks, for it costs 5 µs a change.
        if isinstance(root, Map) and name not in self._watched:
            self._watched[name] = None
            self._subscriptions.append(root.observe(lambda event: self._map_changed(name, event)))

    def encoded(self) -> Updates:
        """The whole content."""
        values, texts = self._values.get_update(), self._texts.get_update()
        return Updates(*(b"" if update == _EMPTY_UPDATE else update for update in (values, texts)))

    # --- roots and their events ---

    def _root(self, name: Name) -> Map[Any] | Array[Any] | Text:
        if name.kind is Kind.TEXT:
            return self._text(name)
        return self._array(name) if name.kind is Kind.ARRAY else self._map(name)

    def _map(self, name: Name) -> Map[Any]:
        root = self._roots.get(name)
        if root is None:
            root = self._roots[name] = self._values.get(name.root, type=Map)
        return cast("Map[Any]", root)

    def _array(self, name: Name) -> Array[Any]:
        root = self._roots.get(name)
        if root is None:
            root = self._roots[name] = self._values.get(name.root, type=Array)
            self._arrays[name] = [_leaf(item) for item in root.to_py() or ()]
            self._subscriptions.append(root.observe(lambda event: self._array_changed(name, event)))
        return cast("Array[Any]", root)

    def _text(self, name: Name) -> Text:
        root = self._roots.get(name)
        if root is None:
            root = self._roots[name] = self._texts.get(name.root, type=Text)
            self._strings[name] = str(root)
            self._subscriptions.append(root.observe(lambda event: self._text_changed(name, event)))
        return cast("Text", root)

    def _update_made(self, which: int, event: TransactionEvent) -> None:
        if self._local:
            self._made[which] = event.update

    # Only what others did is taken from events: of our own steps the mirrors know already.

    def _map_changed(self, name: Name, event: MapEvent) -> None:
        if not self._local:
            keys = _said(event).keys
            self._touched.append(Touched(name, tuple(sorted(keys)), ()))
            for key, change in keys.items():
                self._note_key(name, key, there=change["action"] != "delete")

    def _note_key(self, name: Name, key: str, *, there: bool) -> None:
        index = self._endings.get(name)
        if index is None:
            return
        ending = ending_of(key)
        keys = index.setdefault(ending, {})
        if there:
            keys[key] = None
        else:
            keys.pop(key, None)
            if not keys:
                del index[ending]

    def _array_changed(self, name: Name, event: ArrayEvent) -> None:
        if self._local:
            return
        splices = array_splices(_said(event).delta)
        mirror = self._arrays[name]
        for number, (index, removed, items) in enumerate(splices):
            leaves = [_leaf(item) for item in items]
            mirror[index : index + removed] = leaves
            splices[number] = Splice(index, removed, leaves)
        self._touched.append(Touched(name, (), tuple(splices)))

    def _text_changed(self, name: Name, event: TextEvent) -> None:
        if self._local:
            return
        splices = text_splices(self._strings[name], _said(event).delta)
        self._strings[name] = splice_text(self._strings[name], splices)
        self._touched.append(Touched(name, (), tuple(splices)))


def _said(event: object) -> Any:
    """An event, whose attributes pycrdt fills in without declaring them."""
    return event


def _leaf(held: object) -> Leaf:
    """What pycrdt holds, of the type that it was given."""
    return bytes(held) if type(held) is bytearray else cast("Leaf", held)


def _touched(steps: Sequence[Step]) -> list[Touched]:
    """What our own steps did, by container."""
    keys: dict[Name, dict[str, None]] = {}
    splices: dict[Name, list[Splice[Any]]] = {}
    for step in steps:
        match step:
            case SetEntry(name, key, _) | DeleteEntry(name, key):
                keys.setdefault(name, {})[key] = None
            case InsertItems(name, index, leaves):
                splices.setdefault(name, []).append(Splice(index, 0, list(leaves)))
            case InsertText(name, index, text):
                splices.setdefault(name, []).append(Splice(index, 0, text))
            case DeleteRange(name, index, count):
                removed: Splice[Any] = Splice(index, count, "" if name.kind is Kind.TEXT else [])
                splices.setdefault(name, []).append(removed)
    return [Touched(name, tuple(sorted(changed)), ()) for name, changed in keys.items()] + [
        Touched(name, (), tuple(made)) for name, made in splices.items()
    ]
