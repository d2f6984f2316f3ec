"""The join token's text, and what is derived from it."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import CertificateRejected, TokenMalformed
from transport.identity import certificates, keys
from transport.identity.invites import (
    PREFIX,
    Token,
    _base64,
    _checksum,
    build_invite_authority,
    build_invite_leaf,
    derive_invite_key,
    new_token,
)
from transport.types import Address, network_name
from transport.wire import pack

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TOKEN = Token(
    network=network_name("default"),
    authority_fingerprint="ab" * 32,
    invite_id="0011223344556677",
    secret=bytes(range(16)),
    expires_at=NOW + timedelta(minutes=10),
    addresses=(Address("10.0.0.5", 7946), Address("fe80::1", 7947)),
)
GOOD = ["default", b"\xab" * 32, bytes(8), bytes(16), 1_800_000_000, ["10.0.0.5:7946"]]
TOKEN_EXAMPLE = (
    "pm1.lqdkZWZhdWx0xCCrq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq8QIABEiM0RVZnfEEAABAgMEBQYHCA"
    "kKCwwNDg_OawGKGJKtMTAuMC4wLjU6Nzk0Nq5bZmU4MDo6MV06Nzk0N1BPBPM"
)
KEY_EXAMPLE = "dee7d213566f16cee06c5d2dff71fbbe32d8acdeb76155f5e7af833f1ba504ed"


def spelled(fields: object) -> str:
    """A token with these fields and a right checksum."""
    body = pack(fields)
    return PREFIX + _base64(body + _checksum(body))


def test_a_token_survives_its_text() -> None:
    """Spaces round it, as copying adds them, do not matter."""
    text = TOKEN.encode()
    assert text.startswith("pm1.")
    assert Token.decode(f"  {text}\n") == TOKEN
    assert TOKEN.secret.hex() not in repr(TOKEN)


def test_every_single_character_is_protected() -> None:
    """Any other character at any place makes it malformed."""
    text = TOKEN.encode()
    for place, was in enumerate(text):
        for other in string.ascii_letters + string.digits + "-_.=+/ \u00e9":
            if other == was:
                continue
            changed = text[:place] + other + text[place + 1 :]
            if changed.strip() == text:
                continue
            with pytest.raises(TokenMalformed):
                Token.decode(changed)


@given(st.data())
def test_cut_or_extended_tokens_are_malformed(data: st.DataObject) -> None:
    """Wherever the copying stopped."""
    text = TOKEN.encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    more = data.draw(st.text(string.ascii_letters + "=", min_size=1, max_size=8))
    for changed in (text[:cut], text + more):
        with pytest.raises(TokenMalformed):
            Token.decode(changed)


@given(st.text(max_size=200))
def test_text_that_is_no_token_is_malformed(text: str) -> None:
    """Nothing else comes out of the decoder."""
    for candidate in (text, PREFIX + text):
        with pytest.raises(TokenMalformed):
            Token.decode(candidate)


@pytest.mark.parametrize(
    "fields",
    [
        None,
        {},
        GOOD[:5],
        ["Bad Name", *GOOD[1:]],
        [7, *GOOD[1:]],
        ["default", b"short", *GOOD[2:]],
        ["default", "text", *GOOD[2:]],
        [*GOOD[:4], -1, GOOD[5]],
        [*GOOD[:4], 2**60, GOOD[5]],
        [*GOOD[:4], True, GOOD[5]],
        [*GOOD[:4], "soon", GOOD[5]],
        [*GOOD[:5], []],
        [*GOOD[:5], ["a"] * 17],
        [*GOOD[:5], "10.0.0.5"],
        [*GOOD[:5], ["http://x"]],
        [*GOOD[:5], [5]],
    ],
)
def test_wrong_content_is_malformed(fields: object) -> None:
    """A right checksum does not make it right."""
    with pytest.raises(TokenMalformed):
        Token.decode(spelled(fields))


def test_later_versions_may_add_fields() -> None:
    """They are ignored."""
    assert Token.decode(spelled([*GOOD, "more"])).network == "default"


def test_an_endless_token_is_malformed() -> None:
    """It is refused before it is decoded."""
    with pytest.raises(TokenMalformed, match="too long"):
        Token.decode(PREFIX + "A" * 100_000)


def test_the_derived_key_is_fixed() -> None:
    """Another implementation must get this very key (docs/protocol/identity.md gives it as an example)."""
    assert f"{derive_invite_key(TOKEN).private_numbers().private_value:064x}" == KEY_EXAMPLE
    assert TOKEN.encode() == TOKEN_EXAMPLE


def test_the_key_depends_on_every_input() -> None:
    """Secret, network and id."""
    values = {
        derive_invite_key(one).private_numbers().private_value
        for one in (
            TOKEN,
            Token.decode(spelled(GOOD)),
            Token.decode(spelled(["home", *GOOD[1:]])),
            Token.decode(spelled([*GOOD[:2], bytes([1] * 8), *GOOD[3:]])),
        )
    }
    assert len(values) == 4


def test_the_issuer_recognises_the_joiner_whatever_its_clock_says() -> None:
    """The joiner's authority and the issuer's differ in their times, and the chain still holds."""
    authority = build_invite_authority(TOKEN, now=NOW)
    for skew in (timedelta(0), timedelta(hours=-20), timedelta(hours=20), timedelta(days=-300)):
        leaf = build_invite_leaf(TOKEN, keys.new_tls_key(), now=NOW + skew)
        subject = certificates.verify_leaf(certificates.der(leaf), authority=authority, now=NOW)
        assert subject.uri == "spiffe://default/invite/0011223344556677"
    other = Token.decode(spelled(GOOD))
    with pytest.raises(CertificateRejected):
        leaf = build_invite_leaf(other, keys.new_tls_key(), now=NOW)
        certificates.verify_leaf(certificates.der(leaf), authority=authority, now=NOW)


def test_a_new_token_needs_time_and_an_address() -> None:
    """And each has a secret of its own."""
    authority = build_invite_authority(TOKEN, now=NOW)
    make = (TOKEN.network, authority)
    address = [Address("10.0.0.5", 7946)]
    with pytest.raises(ValueError, match="last some time"):
        new_token(*make, address, now=NOW, ttl=timedelta(0))
    with pytest.raises(ValueError, match="address"):
        new_token(*make, [], now=NOW, ttl=timedelta(1))
    first, second = (new_token(*make, address * 20, now=NOW, ttl=timedelta(minutes=1)) for _ in range(2))
    assert first.secret != second.secret
    assert first.invite_id != second.invite_id
    assert len(first.addresses) == 16
    assert Token.decode(first.encode()) == first
