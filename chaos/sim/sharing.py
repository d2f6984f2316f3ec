"""What all simulated nodes would compute alike is computed once.

A simulation runs a thousand nodes on one processor, and most of their work is the same: one body goes to six neighbours
and each decodes it, one member comes to stand in every table.  While a run lasts,

- a body that was encoded is remembered together with its bytes, so that whoever gets the bytes gets the body;
- other bodies that decode alike are decoded once;
- equal members are one object.  Decoded anew at each node, ten thousand tables of ten thousand members take 37 GB;
- a member's part of the table digest is computed once.

All of these are immutable values of what was asked for, so nobody can tell the difference, and the trace is the same
with and without (a test).  That a remembered body is what its bytes say is looked at for one in :data:`CHECKED_PART`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, Final

from gossip import codec, hyparview, members, membership, plumtree, plumtree_codec, swim
from gossip.events import Member

#: Different members that are kept; when there are more, sharing starts anew.
_MEMBERS_MAX: Final = 1 << 20
#: Half of the bodies that are remembered at most, by number and size.  They are of use while they are under way.
_BODIES_MAX: Final = 1 << 16
_BODIES_BYTES_MAX: Final = 64 << 20
#: One in so many remembered bodies is decoded all the same and compared.
CHECKED_PART: Final = 64


class Untrue(Exception):
    """A body does not decode to what was encoded."""


class _Memory:
    """Bodies by their bytes: the younger half, and the elder half that goes next."""

    def __init__(self) -> None:
        self._young: dict[bytes, Any] = {}
        self._elder: dict[bytes, Any] = {}
        self._young_bytes = 0
        self._to_check = 0

    def encoding(self, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """``encode``, but what it encoded is remembered."""

        def remembering(body: Any) -> bytes:
            data = encode(body)
            self._keep(data, body)
            return data

        return remembering

    def decoding(self, decode: Callable[..., Any], *, encoded: bool) -> Callable[..., Any]:
        """``decode``, but of what is remembered; ``encoded``: some of that was never decoded."""

        def remembering(data: bytes, *config: Any) -> Any:
            body = self._young.get(data, self)
            if body is self:
                body = self._elder.get(data, self)
            if body is self:
                body = decode(data, *config)
                self._keep(data, body)
            elif encoded:
                self._to_check = (self._to_check + 1) % CHECKED_PART
                if not self._to_check and decode(data, *config) != body:
                    raise Untrue(f"{body} does not come out of its bytes {data.hex()}")
            return body

        return remembering

    def _keep(self, data: bytes, body: Any) -> None:
        if len(self._young) >= _BODIES_MAX or self._young_bytes >= _BODIES_BYTES_MAX:
            self._elder, self._young, self._young_bytes = self._young, {}, 0
        self._young[data] = body
        self._young_bytes += len(data)


class _Members:
    """One object for equal members."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Member] = {}
        self._hashes: dict[tuple[Any, ...], int] = {}

    def make(self, *fields: Any) -> Member:
        """The member with these fields."""
        found = self._known.get(fields)
        if found is None:
            if len(self._known) >= _MEMBERS_MAX:
                self._known.clear()
            found = self._known[fields] = Member(*fields)
        return found

    def merging(self, merge: Callable[[Member, Member], Member]) -> Callable[[Member, Member], Member]:
        """``merge``, whose results are shared too."""

        def shared(current: Member, claim: Member) -> Member:
            merged = merge(current, claim)
            if merged is current or merged is claim:
                return merged
            return self.make(
                *(merged.node_id, merged.incarnation, merged.state),
                *(merged.addresses, merged.meta_version, merged.meta),
            )

        return shared

    def hashing(self, hash_: Callable[[Member], int]) -> Callable[[Member], int]:
        """``hash_``, remembered."""

        def remembering(member: Member) -> int:
            key = (member.node_id, member.incarnation, member.meta_version)
            found = self._hashes.get(key)
            if found is None:
                if len(self._hashes) >= _MEMBERS_MAX:
                    self._hashes.clear()
                found = self._hashes[key] = hash_(member)
            return found

        return remembering


@contextmanager
def shared_work() -> Iterator[None]:
    """Let all cores share what they would compute alike."""
    known, news, overlay, tree, sealed = _Members(), _Memory(), _Memory(), _Memory(), _Memory()
    with ExitStack() as stack:

        def instead(module: ModuleType, name: str, make: Callable[[Any], Any]) -> None:
            names = vars(module)
            original = names[name]
            stack.callback(names.__setitem__, name, original)
            names[name] = make(original)

        instead(codec, "Member", lambda _: known.make)
        instead(members, "merge", known.merging)
        instead(members, "_hash", known.hashing)
        instead(membership, "encode", news.encoding)
        instead(membership, "decode", lambda decode: news.decoding(decode, encoded=True))
        for module in (plumtree, plumtree_codec):
            instead(module, "encode", tree.encoding)
        instead(plumtree, "decode", lambda decode: tree.decoding(decode, encoded=True))
        instead(plumtree, "encode_broadcast", sealed.encoding)
        instead(plumtree, "decode_broadcast", lambda decode: sealed.decoding(decode, encoded=True))
        instead(hyparview, "encode", overlay.encoding)
        instead(hyparview, "decode", lambda decode: overlay.decoding(decode, encoded=True))
        # A coordinate loses digits on its way, so these are only decoded once.
        instead(swim, "decode_probe", lambda decode: _Memory().decoding(decode, encoded=False))
        yield
