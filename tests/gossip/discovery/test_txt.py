from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.discovery.base import Announcement
from gossip.discovery.txt import (
    ADDRESSES_MAX,
    BadAnnouncement,
    authority_prefix,
    decode,
    dialable,
    encode,
    label,
    record_addresses,
)
from transport.types import Address, NetworkName, NodeId

_AUTHORITY = "0123456789abcdef" * 4


def _announcement(
    node: str = "planner-1",
    network: str = "default",
    addresses: tuple[Address, ...] = (Address("10.0.0.5", 7946),),
    authority: str = _AUTHORITY,
) -> Announcement:
    return Announcement(NetworkName(network), NodeId(node), 7 << 16, 7946, addresses, authority)


def _wire(announcement: Announcement) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in encode(announcement).items()}


def test_what_is_encoded_decodes_to_the_same_claim() -> None:
    """A TXT record says who the node is, of which network and authority, and nothing is lost on the way."""
    claim = decode(_wire(_announcement()), 7946)
    assert (claim.network, claim.node_id, claim.incarnation) == ("default", "planner-1", 7 << 16)
    assert claim.authority == authority_prefix(_AUTHORITY)
    assert claim.port == 7946
    assert claim.further_addresses == ()


def test_addresses_that_records_cannot_say_travel_in_the_txt() -> None:
    """Host names and mapped ports go into `at`; literal addresses on the port become A and AAAA records."""
    addresses = (
        Address("10.0.0.5", 7946),
        Address("edge.example", 7000),
        Address("10.0.0.5", 17946),
        Address("fe80::1%2", 7946),
        Address("10.0.0.5", 7946),
    )
    announcement = _announcement(addresses=addresses)
    assert record_addresses(announcement) == ["10.0.0.5", "fe80::1"]
    claim = decode(_wire(announcement), 7946)
    assert claim.further_addresses == (Address("edge.example", 7000), Address("10.0.0.5", 17946))


def test_further_addresses_that_do_not_fit_are_left_out() -> None:
    """A TXT string holds 255 bytes; the addresses that would be tried last are the ones to go."""
    addresses = tuple(Address(f"host-{number:02}.{'x' * 60}.example", 7000) for number in range(9))
    properties = encode(_announcement(addresses=addresses))
    assert len(f"at={properties['at']}") <= 255
    assert decode(_wire(_announcement(addresses=addresses)), 7946).further_addresses == addresses[:3]


def test_names_contain_node_and_network() -> None:
    """Instance and host name tell the node and the network, and are one DNS label."""
    name = label(_announcement())
    assert name.startswith("planner-1-default-")
    assert "." not in name


def test_names_of_the_longest_ids_fit_a_dns_label_and_stay_apart() -> None:
    """Ids of 63 characters are cut, and the hash keeps two that begin alike apart."""
    names: set[str] = set()
    for node in ("n" * 62 + "a", "n" * 62 + "b"):
        for network in ("w" * 62 + "a", "w" * 62 + "b"):
            name = label(_announcement(node=node, network=network))
            assert len(name.encode()) <= 63
            names.add(name)
    assert len(names) == 4


def test_names_that_join_to_the_same_text_stay_apart() -> None:
    """Node a-b of network c is not node a of network b-c."""
    assert label(_announcement(node="a-b", network="c")) != label(_announcement(node="a", network="b-c"))


def test_names_differ_between_authorities() -> None:
    """Two networks of one name on one LAN do not fight over instance names."""
    assert label(_announcement()) != label(_announcement(authority="f" * 64))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (b"v", None, "v: missing"),
        (b"v", b"2", "v: '2'"),
        (b"net", b"Not A Name", "net or id"),
        (b"id", b"", "net or id"),
        (b"id", b"x" * 64, "net or id"),
        (b"id", b"x" * 256, "id: too long"),
        (b"id", b"caf\xc3\xa9", "not ASCII"),
        (b"net", b"\xff\xfe", "not ASCII"),
        (b"fp", b"zz", "fp"),
        (b"fp", _AUTHORITY.encode(), "fp"),
        (b"inc", b"-1", "inc"),
        (b"inc", b"1.5", "inc"),
        (b"inc", "٣".encode(), "inc"),
        (b"inc", b"9" * 200, "inc"),
        (b"inc", str(2**53).encode(), "inc"),
        (b"port", b"0", "port"),
        (b"port", b"65536", "port"),
        (b"port", b"7947", "7947 in TXT, 7946 in SRV"),
        (b"at", b"http://evil/", "at"),
        (b"at", b"host:99999", "at"),
        (b"at", b",,,", "at"),
    ],
)
def test_a_bad_field_is_refused_by_name(key: bytes, value: bytes | None, said: str) -> None:
    """Whoever reads the debug log learns which field of which service is nonsense."""
    properties = _wire(_announcement())
    properties[key] = value
    with pytest.raises(BadAnnouncement, match=said):
        decode(properties, 7946)


def test_a_service_without_port_is_refused() -> None:
    """The SRV record may be missing; the TXT alone is not enough."""
    with pytest.raises(BadAnnouncement, match="None in SRV"):
        decode(_wire(_announcement()), None)


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"net", b"id", b"inc", b"fp", b"port", b"at", b"other"]),
        st.none() | st.binary(max_size=300) | st.sampled_from([b"1", b"default", b"a", b"7946", b"0" * 32]),
    ),
    st.none() | st.integers(0, 70_000),
)
def test_any_txt_is_read_or_refused(properties: dict[bytes, bytes | None], port: int | None) -> None:
    """Nothing that a neighbour writes raises anything else, and what is read keeps its bounds."""
    try:
        claim = decode(properties, port)
    except BadAnnouncement:
        return
    assert len(claim.further_addresses) <= ADDRESSES_MAX
    assert claim.port == port


def test_only_addresses_worth_dialling_remain() -> None:
    """Loopback, multicast, unspecified and broadcast addresses of a neighbour are not dialled."""
    claim = decode(_wire(_announcement(addresses=(Address("localhost", 1), Address("a.example", 1)))), 7946)
    literals = ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.251", "255.255.255.255", "10.0.0.5", "fe80::1%2"]
    expected = (Address("10.0.0.5", 7946), Address("fe80::1%2", 7946), Address("a.example", 1))
    assert dialable(claim, literals, loopback=False) == expected


def test_loopback_is_dialled_when_looking_at_this_machine() -> None:
    """Nodes that stay on the machine find each other there."""
    claim = decode(_wire(_announcement()), 7946)
    assert dialable(claim, ["127.0.0.1"], loopback=True) == (Address("127.0.0.1", 7946),)


def test_scopes_that_are_not_plain_are_refused() -> None:
    """A scope ends up in system calls and logs, so it is a name or a number."""
    claim = decode(_wire(_announcement()), 7946)
    assert dialable(claim, ["fe80::1%../x", "host%1"], loopback=False) == ()


def test_a_service_with_a_thousand_addresses_is_cut() -> None:
    """One announcement cannot make us dial a thousand hosts."""
    claim = decode(_wire(_announcement()), 7946)
    literals = [f"10.0.{number >> 8}.{number & 255}" for number in range(1, 1000)]
    assert len(dialable(claim, literals, loopback=False)) == ADDRESSES_MAX
