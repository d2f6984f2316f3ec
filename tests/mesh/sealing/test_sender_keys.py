"""Sender keys: every member reads, nobody else does, and no member can write in another's name."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keysmith import entropy

from mesh.errors import SealRefused
from mesh.sealing.chains import Limits
from mesh.sealing.handshake import Peer
from mesh.sealing.reasons import Reason
from mesh.sealing.sender_keys import Grant, GroupReceiver, GroupSender, decode_grant, encode_grant
from transport.wire import pack

ANN, BOB, EVE = Peer("ann", 1), Peer("bob", 1), Peer("eve", 1)
LIMITS = Limits()


class Group:
    """A sender and its readers."""

    def __init__(self, *members: Peer, limits: Limits = LIMITS, group: str = "prices") -> None:
        self.sender = GroupSender("net", group, "zoe", 7, entropy=entropy(), now=0.0, limits=limits)
        self.readers: dict[Peer, GroupReceiver] = {}
        self.members = list(members)
        self.group = group
        self.limits = limits

    def seal(self, body: bytes = b"body", now: float = 0.0) -> bytes:
        """Hand out what is owed, and seal."""
        for member, grant in self.sender.grants(self.members, now).items():
            reader = self.readers.setdefault(member, GroupReceiver("net", self.group, "zoe", 7, limits=self.limits))
            reader.take(decode_grant(encode_grant(grant)))
        return self.sender.seal(32, body, now)

    def refusal(self, reader: Peer, sealed: bytes) -> str:
        """Why a reader does not open it."""
        with pytest.raises(SealRefused) as refusal:
            self.readers[reader].open(sealed, 0.0)
        return refusal.value.reason


def test_every_member_reads() -> None:
    """One sealed body opens for all who were granted the key, and the grant is sent once."""
    group = Group(ANN, BOB)
    for number in range(5):
        sealed = group.seal(b"%d" % number)
        assert [reader.open(sealed, 0.0) for reader in group.readers.values()] == [(32, b"%d" % number)] * 2
    assert group.sender.grants(group.members, 0.0) == {}


def test_who_comes_later_reads_nothing_older() -> None:
    """A new member is granted the key from there on; the others follow without a new grant."""
    group = Group(ANN)
    before = group.seal(b"before")
    group.members.append(BOB)
    after = group.seal(b"after")

    assert group.refusal(BOB, before) == Reason.OLD_EPOCH
    assert group.readers[BOB].open(after, 0.0) == (32, b"after")
    assert group.readers[ANN].open(after, 0.0) == (32, b"after")
    assert group.readers[ANN].open(before, 0.0) == (32, b"before")


def test_who_left_reads_nothing_newer() -> None:
    """When a member leaves, the others get a new generation, which the one that left was never given."""
    group = Group(ANN, EVE)
    group.seal()
    group.members.remove(EVE)
    assert list(group.sender.grants(group.members, 0.0)) == [ANN]
    group = Group(ANN, EVE)
    group.seal()
    group.members.remove(EVE)
    after = group.seal(b"after")

    assert group.refusal(EVE, after) == Reason.UNKNOWN_SESSION
    assert group.readers[ANN].open(after, 0.0) == (32, b"after")


def test_revocation_changes_the_key_at_once() -> None:
    """After a revocation nothing more is sealed with the old generation, even before membership says so."""
    group = Group(ANN, BOB)
    first = group.seal()
    group.sender.revoke()
    second = group.seal()

    assert first[2:10] != second[2:10]
    assert group.readers[BOB].open(second, 0.0) == (32, b"body")


def test_a_restarted_member_is_granted_again() -> None:
    """Another life of a node has no keys: its old life has left, its new one has joined."""
    group = Group(ANN, BOB)
    group.seal()
    group.members[1] = Peer("bob", 2)
    grants = group.sender.grants(group.members, 0.0)

    assert set(grants) == {ANN, Peer("bob", 2)}


def test_generations_end_by_time_and_count() -> None:
    """Without any change of members there is a new generation after a day, or when epochs run out."""
    group = Group(ANN)
    first = group.seal(now=0.0)
    assert first[2:10] == group.seal(now=86_399.0)[2:10]
    assert first[2:10] != group.seal(now=86_400.0)[2:10]
    short = Group(ANN, limits=dataclasses.replace(LIMITS, epochs=4, epoch_bodies=1))
    generations = [short.seal(b"%d" % n)[2:10] for n in range(6)]
    assert len(set(generations)) == 2


def test_no_member_writes_in_the_senders_name() -> None:
    """A member holds the key that opens, and still cannot make a body that another member takes for the sender's."""
    group = Group(ANN, EVE)
    sealed = group.seal()
    chain, _ = group.readers[EVE]._generations[sealed[2:10]]
    forger = GroupSender("net", "prices", "zoe", 7, entropy=entropy("eve"), now=0.0, limits=LIMITS)
    forger._generation = sealed[2:10]
    forger._chain._session = sealed[2:10]
    forger._chain._epoch = chain._current

    assert group.refusal(ANN, forger.seal(32, b"forged", 0.0)) == Reason.SIGNATURE


@settings(max_examples=20)
@given(st.integers(1, 255))
def test_each_flipped_byte_is_noticed(flip: int) -> None:
    """Not one byte of header, ciphertext, tag or signature can be changed."""
    group = Group(ANN)
    sealed = group.seal()
    for position in range(len(sealed)):
        forged = bytearray(sealed)
        forged[position] ^= flip
        with pytest.raises(SealRefused):
            group.readers[ANN].open(bytes(forged), 0.0)
    assert group.readers[ANN].open(sealed, 0.0) == (32, b"body")


def test_truncated_extended_and_replayed_bodies_are_refused() -> None:
    """A body opens once, in its full length."""
    group = Group(ANN)
    sealed = group.seal()
    for length in range(len(sealed)):
        with pytest.raises(SealRefused):
            group.readers[ANN].open(sealed[:length], 0.0)
    assert group.refusal(ANN, sealed + b"\0") == Reason.SIGNATURE
    group.readers[ANN].open(sealed, 0.0)
    assert group.refusal(ANN, sealed) == Reason.REPLAYED


def test_granting_again_makes_no_replay_possible() -> None:
    """A grant that comes twice does not make a reader forget what it has opened."""
    group = Group(ANN)
    (grant,) = group.sender.grants(group.members, 0.0).values()
    reader = GroupReceiver("net", "prices", "zoe", 7, limits=LIMITS)
    reader.take(grant)
    sealed = group.sender.seal(32, b"body", 0.0)
    reader.open(sealed, 0.0)
    reader.take(grant)
    with pytest.raises(SealRefused) as refusal:
        reader.open(sealed, 0.0)
    assert refusal.value.reason == Reason.REPLAYED


@pytest.mark.parametrize(
    ("network", "group", "sender", "life"),
    [("other", "prices", "zoe", 7), ("net", "prices", "ann", 7), ("net", "prices", "zoe", 8)],
)
def test_a_body_belongs_to_one_sender(network: str, group: str, sender: str, life: int) -> None:
    """The same key does not open it as another network's, sender's or life's."""
    made = Group(ANN)
    (grant,) = made.sender.grants(made.members, 0.0).values()
    reader = GroupReceiver(network, group, sender, life, limits=LIMITS)
    reader.take(grant)
    with pytest.raises(SealRefused) as refusal:
        reader.open(made.sender.seal(32, b"body", 0.0), 0.0)
    assert refusal.value.reason == Reason.SIGNATURE


def test_a_grant_belongs_to_one_group() -> None:
    """A grant for one group is not taken for another."""
    group = Group(ANN)
    (grant,) = group.sender.grants(group.members, 0.0).values()
    reader = GroupReceiver("net", "weather", "zoe", 7, limits=LIMITS)
    with pytest.raises(SealRefused) as refusal:
        reader.take(grant)
    assert refusal.value.reason == Reason.WRONG_PEER


def test_few_generations_are_kept() -> None:
    """A sender cannot fill a reader's memory with generations; the one before the last still opens."""
    group = Group(ANN)
    bodies = []
    for _ in range(4):
        bodies.append(group.seal())
        group.sender.revoke()

    assert group.refusal(ANN, bodies[1]) == Reason.UNKNOWN_SESSION
    assert group.readers[ANN].open(bodies[2], 0.0) == (32, b"body")
    assert group.readers[ANN].open(bodies[3], 0.0) == (32, b"body")


_GRANTS = st.builds(
    Grant,
    st.text(max_size=50),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)


@given(_GRANTS)
def test_grants_come_back_as_they_went(grant: Grant) -> None:
    """A grant is read as it was written."""
    assert decode_grant(encode_grant(grant)) == grant


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        pack([]),
        pack(["g", bytes(8), 0, bytes(32)]),
        pack(["g" * 1_025, bytes(8), 0, bytes(32), bytes(32)]),
        pack([b"g", bytes(8), 0, bytes(32), bytes(32)]),
        pack(["g", bytes(7), 0, bytes(32), bytes(32)]),
        pack(["g", bytes(8), -1, bytes(32), bytes(32)]),
        pack(["g", bytes(8), 2**32, bytes(32), bytes(32)]),
        pack(["g", bytes(8), True, bytes(32), bytes(32)]),
        pack(["g", bytes(8), 0, bytes(31), bytes(32)]),
        pack(["g", bytes(8), 0, bytes(32), bytes(33)]),
    ],
)
def test_what_is_no_grant_is_refused(body: bytes) -> None:
    """Each field of a grant has its type and range."""
    with pytest.raises(SealRefused) as refusal:
        decode_grant(body)
    assert refusal.value.reason == Reason.MALFORMED
