"""Sender keys: every reader reads, nobody else does, and no reader can write in another's name."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keysmith import entropy

from mesh.errors import SealRefused
from mesh.sealing.chains import AHEAD_MAX, Limits
from mesh.sealing.handshake import Peer
from mesh.sealing.reasons import Reason
from mesh.sealing.sender_keys import (
    EPOCHS_KEPT,
    GENERATIONS_KEPT,
    ROTATION_S,
    Ask,
    Grant,
    GroupReceiver,
    GroupSender,
    decode_grants,
    encode_ask,
    encode_grant,
    read_group_header,
)
from transport.wire import pack

ANN, BOB, EVE = Peer("ann", 1), Peer("bob", 1), Peer("eve", 1)
LIMITS = Limits()


def make_sender(group: str = "prices", limits: Limits = LIMITS) -> GroupSender:
    """Zoe's keys."""
    return GroupSender("net", group, "zoe", 7, entropy=entropy(), now=0.0, limits=limits)


def generation_of(sealed: bytes) -> bytes:
    """Which generation it was sealed in."""
    return read_group_header(sealed).session


class Group:
    """A sender and its readers, which ask for what they lack."""

    def __init__(self, *members: Peer, limits: Limits = LIMITS, group: str = "prices") -> None:
        self.sender = make_sender(group, limits)
        self.readers: dict[Peer, GroupReceiver] = {}
        self.members = list(members)
        self.group = group
        self.limits = limits

    def seal(self, body: bytes = b"body", now: float = 0.0) -> bytes:
        """Seal for those who may read now."""
        self.sender.set_readers(self.members)
        return self.sender.seal(32, body, now)

    def read(self, reader: Peer, sealed: bytes, now: float = 0.0) -> bytes:
        """Open, and ask first if need be."""
        receiver = self.readers.setdefault(reader, GroupReceiver("net", self.group, "zoe", 7, limits=self.limits))
        header = read_group_header(sealed)
        if not receiver.holds(header):
            for grant in self.sender.grants(reader, header.session, now):
                said = decode_grants(encode_grant(grant))
                assert isinstance(said, Grant)
                receiver.take(said, now)
        return receiver.open(header, sealed, now)

    def refusal(self, reader: Peer, sealed: bytes, now: float = 0.0) -> str:
        """Why a reader does not open it, with all it can get."""
        with pytest.raises(SealRefused) as refusal:
            self.read(reader, sealed, now)
        return refusal.value.reason


def test_every_reader_reads() -> None:
    """One sealed body opens for all who may read, and each is granted the key once."""
    group = Group(ANN, BOB)
    for number in range(5):
        sealed = group.seal(b"%d" % number)
        assert [group.read(reader, sealed) for reader in (ANN, BOB)] == [b"%d" % number] * 2
    assert group.sender.owed(ANN, 0.0) == []
    assert group.sender.generations == 1


def test_who_may_not_read_is_granted_nothing() -> None:
    """Whoever asks without being a reader gets no answer."""
    group = Group(ANN)
    sealed = group.seal()
    assert group.sender.grants(EVE, generation_of(sealed), 0.0) == []
    assert group.sender.owed(EVE, 0.0) == []
    assert group.refusal(EVE, sealed) == Reason.UNKNOWN_SESSION


def test_who_comes_later_reads_nothing_older() -> None:
    """A new reader is granted the key from there on, however late it asks; the others follow without a new grant."""
    group = Group(ANN)
    before = group.seal(b"before")
    assert group.read(ANN, before) == b"before"
    group.members += [BOB, EVE]
    after = group.seal(b"after")

    assert group.refusal(BOB, before) == Reason.OLD_EPOCH
    assert [group.read(reader, after) for reader in (ANN, BOB, EVE)] == [b"after"] * 3
    assert group.sender.generations == 1


def test_a_right_begins_where_it_began_and_not_where_it_is_used() -> None:
    """Who asks after others have come still gets what was sealed since it came itself."""
    group = Group(ANN)
    group.seal(b"before")
    group.members.append(BOB)
    first = group.seal(b"first")
    group.members.append(EVE)
    second = group.seal(b"second")

    assert group.read(BOB, first) == b"first"
    assert group.read(BOB, second) == b"second"
    assert group.refusal(EVE, first) == Reason.OLD_EPOCH
    assert group.read(EVE, second) == b"second"


def test_a_newcomer_that_asks_before_anything_is_sealed_gets_the_next_epoch() -> None:
    """What was sealed before it came stays closed, though nothing was sealed since."""
    group = Group(ANN)
    before = group.seal(b"before")
    group.sender.set_readers([ANN, BOB])
    assert group.refusal(BOB, before) == Reason.OLD_EPOCH
    group.members.append(BOB)
    assert group.read(BOB, group.seal(b"after")) == b"after"


def test_who_left_reads_nothing_newer() -> None:
    """When one that was granted leaves, the next body is of a generation that it is never given."""
    group = Group(ANN, EVE)
    first = group.seal()
    assert [group.read(reader, first) for reader in (ANN, EVE)] == [b"body"] * 2
    group.members.remove(EVE)
    after = group.seal(b"after", 1.0)

    assert group.refusal(EVE, after, 1.0) == Reason.UNKNOWN_SESSION
    assert group.read(ANN, after, 1.0) == b"after"


def test_one_that_never_asked_leaves_without_a_new_generation() -> None:
    """It holds nothing that would have to be made worthless."""
    group = Group(ANN, EVE)
    group.read(ANN, group.seal())
    group.members.remove(EVE)
    assert group.read(ANN, group.seal(now=1.0)) == b"body"
    assert group.sender.generations == 1


def test_many_who_leave_share_a_generation() -> None:
    """Generations that leaving calls for come no faster than ten grants a second, and none is forgotten."""
    leavers = [Peer(f"n{number}", 1) for number in range(100)]
    group = Group(ANN, *leavers)
    first = group.seal()
    for reader in (ANN, *leavers):
        group.read(reader, first)
    made = []
    for number in range(50):
        group.members.pop()
        sealed = group.seal(now=20.0 + number / 100)
        for reader in group.members:
            group.read(reader, sealed, 20.0 + number / 100)
        made.append(group.sender.generations)
    assert made[0] == 2
    assert made[-1] == 2
    late = group.seal(now=20.0 + ROTATION_S * 100)
    assert group.sender.generations == 3
    assert group.refusal(leavers[-1], late, 30.0) == Reason.UNKNOWN_SESSION


def test_a_restarted_reader_is_granted_again() -> None:
    """Another life of a node has no keys: its old life has left, its new one has come."""
    group = Group(ANN, BOB)
    first = group.seal()
    group.read(BOB, first)
    group.members[1] = Peer("bob", 2)
    second = group.seal(b"again", 1.0)

    assert group.refusal(Peer("bob", 2), first, 1.0) == Reason.UNKNOWN_SESSION
    assert group.read(Peer("bob", 2), second, 1.0) == b"again"
    assert group.refusal(BOB, second, 1.0) == Reason.UNKNOWN_SESSION


_STEPS = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 4)),
    st.tuples(st.just("leave"), st.integers(0, 4)),
    st.tuples(st.just("seal"), st.booleans()),
    st.tuples(st.just("greedy"), st.integers(0, 4)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_STEPS, min_size=5, max_size=40))
def test_who_may_read_when_it_is_sealed_reads_and_nobody_else_ever(steps: list[tuple[str, int]]) -> None:
    """Whoever comes and goes, asks or does not: each opens what was sealed while it was a reader, and nothing more.

    All of them keep every key that they ever get, are handed every body, and try each again at the end.
    """
    nodes = [Peer(f"n{number}", 1) for number in range(5)]
    receivers = {node: GroupReceiver("net", "g", "zoe", 7, limits=LIMITS) for node in nodes}
    sender, readers, now = make_sender("g"), dict[Peer, None](), 0.0
    sealed: list[tuple[bytes, list[Peer]]] = []
    opened: set[tuple[Peer, int]] = set()

    def attempt(node: Peer, number: int) -> None:
        body, _ = sealed[number]
        header = read_group_header(body)
        if not receivers[node].holds(header):
            for grant in sender.grants(node, header.session, now):
                receivers[node].take(grant, now)
        with contextlib.suppress(SealRefused):
            assert receivers[node].open(header, body, now) == b"%d" % number
            opened.add((node, number))

    for what, which in steps:
        now += 1.0  # more than generations have to be apart here
        match what:
            case "join":
                readers[nodes[which]] = None
            case "leave":
                readers.pop(nodes[which], None)
            case "greedy":
                for grant in sender.grants(nodes[which], b"", now):
                    receivers[nodes[which]].take(grant, now)
            case _:
                sealed.append((sender.seal(32, b"%d" % len(sealed), now), list(readers)))
                for node in nodes if which else nodes[::2]:
                    attempt(node, len(sealed) - 1)
        sender.set_readers(readers)
    for node in nodes:
        for number in range(len(sealed)):
            attempt(node, number)

    allowed = {(node, number) for number, (_, may) in enumerate(sealed) for node in may}
    assert opened <= allowed
    # Who left before it asked gets no answer any more; who stayed has got all that was not too long ago.
    recent = {(node, number) for node, number in allowed if number >= len(sealed) - 2 and node in readers}
    assert {one for one in recent if all(one[0] in may for _, may in sealed[-2:])} <= opened


def test_generations_end_by_time_and_count() -> None:
    """Without any change of readers there is a new generation after a day, or when epochs run out."""
    group = Group(ANN)
    first = group.seal(now=0.0)
    assert generation_of(first) == generation_of(group.seal(now=86_399.0))
    assert generation_of(first) != generation_of(group.seal(now=86_400.0))
    short = Group(ANN, limits=dataclasses.replace(LIMITS, epochs=4, epoch_bodies=1))
    assert len({generation_of(short.seal(b"%d" % n)) for n in range(6)}) == 2


def test_what_is_still_under_way_can_be_asked_for() -> None:
    """A body of the generation before opens for one that asks while it may still be on its way, and not after that."""
    group = Group(ANN, BOB, EVE)
    late = group.seal(b"late")
    group.read(EVE, late)
    group.members.remove(EVE)
    newer = group.seal(b"newer", 1.0)
    assert group.read(ANN, late, 1.0 + LIMITS.grace_s / 2) == b"late"
    assert group.read(ANN, newer, 1.0 + LIMITS.grace_s / 2) == b"newer"
    assert group.refusal(BOB, late, 1.0 + LIMITS.grace_s) == Reason.UNKNOWN_SESSION
    assert group.read(BOB, newer, 1.0 + LIMITS.grace_s) == b"newer"


def test_bodies_of_many_epochs_open_in_any_order() -> None:
    """Trees bring late what they lost: each newcomer begins an epoch, and those before still open, each body once."""
    group = Group(ANN)
    bodies = [group.seal(b"0")]
    group.read(ANN, bodies[0])
    for number in range(1, EPOCHS_KEPT):
        group.members.append(Peer(f"n{number}", 1))
        bodies.append(group.seal(b"%d" % number))
    assert group.read(ANN, bodies[-1]) == b"%d" % (EPOCHS_KEPT - 1)
    for number in reversed(range(1, EPOCHS_KEPT - 1)):
        assert group.read(ANN, bodies[number]) == b"%d" % number
        assert group.refusal(ANN, bodies[number]) == Reason.REPLAYED


def test_a_reader_that_fell_far_behind_asks_again() -> None:
    """After more epochs than it can follow, a reader lacks the key as if it had none, and gets what begins there."""
    group = Group(ANN, limits=dataclasses.replace(LIMITS, epoch_bodies=1))
    first = group.seal(b"first")
    assert group.read(ANN, first) == b"first"
    last = first
    for behind in (AHEAD_MAX + 1, 2 * AHEAD_MAX):
        for _ in range(behind):
            last = group.seal(b"last")
        assert not group.readers[ANN].holds(read_group_header(last))
        assert group.read(ANN, last) == b"last"
    assert group.refusal(ANN, last) == Reason.REPLAYED
    assert group.refusal(ANN, first) == Reason.OLD_EPOCH


def test_keys_whose_time_is_over_are_erased() -> None:
    """An idle sender ends its epoch and forgets old ones; an idle reader forgets generations that others followed."""
    group = Group(ANN, EVE)
    first = group.seal()
    for reader in (ANN, EVE):
        group.read(reader, first)
    group.sender.sweep(LIMITS.epoch_s)
    assert [kept.grant.epoch for kept in group.sender._kept] == [0, 1]
    group.sender.sweep(LIMITS.epoch_s + LIMITS.grace_s)
    assert [kept.grant.epoch for kept in group.sender._kept] == [1]
    group.members.remove(EVE)
    second = group.seal(now=361.0)
    group.read(ANN, second, 361.0)
    receiver = group.readers[ANN]
    assert receiver.holds(read_group_header(first))
    receiver.sweep(362.0)
    assert not receiver.holds(read_group_header(first))
    assert receiver.holds(read_group_header(second))
    assert receiver.used_at == 361.0


def test_no_member_writes_in_the_senders_name() -> None:
    """A member holds the key that opens, and still cannot make a body that another member takes for the sender's."""
    group = Group(ANN, EVE)
    sealed = group.seal()
    for reader in (ANN, EVE):
        group.read(reader, sealed)
    chain = group.readers[EVE]._generations[sealed[2:10]].chain
    forger = GroupSender("net", "prices", "zoe", 7, entropy=entropy("eve"), now=0.0, limits=LIMITS)
    forger._generation = sealed[2:10]
    forger._chain._session = sealed[2:10]
    forger._chain._epoch = chain._current
    forged = forger.seal(32, b"forged", 0.0)

    assert group.refusal(ANN, forged) == Reason.SIGNATURE
    # Nor does it use up the number of what the sender seals next.
    group.seal()
    assert group.read(ANN, group.seal(b"genuine")) == b"genuine"


@settings(max_examples=20)
@given(st.integers(1, 255))
def test_each_flipped_byte_is_noticed(flip: int) -> None:
    """Not one byte of header, ciphertext, tag or signature can be changed."""
    group = Group(ANN)
    sealed = group.seal()
    group.read(ANN, group.seal())
    for position in range(len(sealed)):
        forged = bytearray(sealed)
        forged[position] ^= flip
        with pytest.raises(SealRefused):
            group.read(ANN, bytes(forged))
    assert group.read(ANN, sealed) == b"body"


def test_truncated_extended_and_replayed_bodies_are_refused() -> None:
    """A body opens once, in its full length."""
    group = Group(ANN)
    sealed = group.seal()
    for length in range(len(sealed)):
        with pytest.raises(SealRefused):
            group.read(ANN, sealed[:length])
    assert group.refusal(ANN, sealed + b"\0") == Reason.SIGNATURE
    assert group.read(ANN, sealed) == b"body"
    assert group.refusal(ANN, sealed) == Reason.REPLAYED


def test_granting_again_makes_no_replay_possible() -> None:
    """A grant that comes twice does not make a reader forget what it has opened."""
    group = Group(ANN)
    sealed = group.seal()
    group.read(ANN, sealed)
    (grant,) = group.sender.grants(ANN, generation_of(sealed), 0.0)
    group.readers[ANN].take(grant, 0.0)
    assert group.refusal(ANN, sealed) == Reason.REPLAYED


@pytest.mark.parametrize(
    ("network", "group", "sender", "life"),
    [("other", "prices", "zoe", 7), ("net", "prices", "ann", 7), ("net", "prices", "zoe", 8)],
)
def test_a_body_belongs_to_one_sender(network: str, group: str, sender: str, life: int) -> None:
    """The same key does not open it as another network's, sender's or life's."""
    made = make_sender()
    made.set_readers([ANN])
    (grant,) = made.owed(ANN, 0.0)
    reader = GroupReceiver(network, group, sender, life, limits=LIMITS)
    reader.take(grant, 0.0)
    sealed = made.seal(32, b"body", 0.0)
    with pytest.raises(SealRefused) as refusal:
        reader.open(read_group_header(sealed), sealed, 0.0)
    assert refusal.value.reason == Reason.SIGNATURE


def test_a_body_of_one_group_does_not_open_in_another() -> None:
    """Moved to another group, a body is as good as forged, even where both keys are held."""
    prices, weather = make_sender("prices"), make_sender("weather")
    # The same entropy: the keys are the same, only the names differ.
    prices.set_readers([ANN])
    weather.set_readers([ANN])
    reader = GroupReceiver("net", "weather", "zoe", 7, limits=LIMITS)
    (grant,) = weather.owed(ANN, 0.0)
    reader.take(grant, 0.0)
    sealed = prices.seal(32, b"body", 0.0)
    with pytest.raises(SealRefused) as refusal:
        reader.open(read_group_header(sealed), sealed, 0.0)
    assert refusal.value.reason == Reason.SIGNATURE


def test_a_grant_belongs_to_one_group() -> None:
    """A grant for one group is not taken for another."""
    made = make_sender()
    made.set_readers([ANN])
    (grant,) = made.owed(ANN, 0.0)
    reader = GroupReceiver("net", "weather", "zoe", 7, limits=LIMITS)
    with pytest.raises(SealRefused) as refusal:
        reader.take(grant, 0.0)
    assert refusal.value.reason == Reason.WRONG_PEER


def test_few_generations_are_kept() -> None:
    """A sender cannot fill a reader's memory with generations; those before the last still open."""
    group = Group(ANN, EVE)
    bodies = []
    for number in range(GENERATIONS_KEPT + 1):
        group.members = [ANN, Peer("eve", number)]
        bodies.append(group.seal(now=number))
        for reader in group.members:
            group.read(reader, bodies[-1], number)
    kept = [group.readers[ANN].holds(read_group_header(body)) for body in bodies]
    assert kept == [False] + [True] * GENERATIONS_KEPT


_NAMES = st.text(max_size=50)
_IDS = st.binary(min_size=8, max_size=8)
_KEYS = st.binary(min_size=32, max_size=32)


@given(st.builds(Grant, _NAMES, _IDS, st.integers(0, 2**32 - 1), _KEYS, _KEYS))
def test_grants_come_back_as_they_went(grant: Grant) -> None:
    """A grant is read as it was written."""
    assert decode_grants(encode_grant(grant)) == grant


@given(st.builds(Ask, _NAMES, _IDS))
def test_questions_come_back_as_they_went(ask: Ask) -> None:
    """A question is read as it was written."""
    assert decode_grants(encode_ask(ask)) == ask


def test_what_later_versions_say_is_ignored() -> None:
    """Other statements, and further fields, are no breach."""
    assert decode_grants(pack([3, "anything"])) is None
    assert decode_grants(pack([1, "g", bytes(8), "more"])) == Ask("g", bytes(8))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        pack([]),
        pack({}),
        pack(["g", bytes(8)]),
        pack([True, "g", bytes(8)]),
        pack([0, "g", bytes(8)]),
        pack([1, "g"]),
        pack([1, "g" * 1_025, bytes(8)]),
        pack([1, b"g", bytes(8)]),
        pack([1, "g", bytes(7)]),
        pack([2, "g", bytes(8), 0, bytes(32)]),
        pack([2, "g", bytes(8), -1, bytes(32), bytes(32)]),
        pack([2, "g", bytes(8), 2**32, bytes(32), bytes(32)]),
        pack([2, "g", bytes(8), True, bytes(32), bytes(32)]),
        pack([2, "g", bytes(8), 0, bytes(31), bytes(32)]),
        pack([2, "g", bytes(8), 0, bytes(32), bytes(33)]),
    ],
)
def test_what_is_no_grant_is_refused(body: bytes) -> None:
    """Each field has its type and range."""
    with pytest.raises(SealRefused) as refusal:
        decode_grants(body)
    assert refusal.value.reason == Reason.MALFORMED
