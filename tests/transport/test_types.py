"""Names, addresses and priorities: what is accepted, and what the refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import InvalidAddress, InvalidName
from transport.types import DEFAULT_PORT, Address, Lane, Priority, network_name, node_id

GOOD_NAMES = ["a", "0", "planner-1", "a--b", "x" * 63]
BAD_NAMES = ["", "-a", "a-", "A", "a.b", "a_b", "x" * 64, "ä", "a\n", " a", "a/b", "a\0"]


@pytest.mark.parametrize("text", GOOD_NAMES)
def test_dns_labels_are_names(text: str) -> None:
    """Whatever can stand in a certificate's DNS name can name a node and a network."""
    assert node_id(text) == text
    assert network_name(text) == text


@pytest.mark.parametrize("text", [*BAD_NAMES, None, 7, b"a"])
def test_other_names_are_refused(text: str) -> None:
    """Everything else is refused with the text and the rule."""
    for check, what in ((node_id, "node id"), (network_name, "network name")):
        with pytest.raises(InvalidName, match=what) as refused:
            check(text)
        assert repr(text) in str(refused.value)
        assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("wss://10.0.0.5:7946", "10.0.0.5", 7946),
        ("wss://seed.example:1/", "seed.example", 1),
        ("10.0.0.5", "10.0.0.5", DEFAULT_PORT),
        ("seed:0", "seed", 0),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", DEFAULT_PORT),
        ("::1", "::1", DEFAULT_PORT),
        ("fe80::1%eth0", "fe80::1%eth0", DEFAULT_PORT),
        ("  localhost:5 ", "localhost", 5),
        ("wss://[fe80::1%25eth0]:5", "fe80::1%25eth0", 5),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, host: str, port: int) -> None:
    """With or without scheme, port and brackets."""
    assert Address.parse(text) == Address(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "ws://a:1",
        "http://a",
        "a:b",
        "a:65536",
        "a:-1",
        "wss://",
        "wss://:5",
        "a:1/path",
        "a:1?q",
        "a:1#f",
        "user@a:1",
        "a b:1",
        "[::1",
        "wss://[nonsense]:1",
        None,
        7,
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    """What cannot be dialled is refused with the text and how to write it."""
    with pytest.raises(InvalidAddress, match="address") as refused:
        Address.parse(text)
    assert refused.value.hint


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No text raises anything else."""
    try:
        address = Address.parse(text)
    except InvalidAddress:
        return
    assert address.host
    assert 0 <= address.port < 65_536


@given(st.sampled_from(["10.0.0.5", "::1", "seed.example", "fe80::1"]), st.integers(0, 65_535))
def test_an_address_is_read_as_it_is_written(host: str, port: int) -> None:
    """Both the text and the URL of an address give the address again."""
    address = Address(host, port)

    assert Address.parse(str(address)) == address
    assert Address.parse(address.url) == address


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("10.0.0.1", False),
     ("fe80::1%eth0", False), ("seed.example", False), ("0.0.0.0", False)],
)  # fmt: skip
def test_loopback_is_recognised(host: str, is_loopback: bool) -> None:
    """Only addresses that no other machine can reach are loopback."""
    assert Address(host, 1).is_loopback is is_loopback


def test_a_default_port_can_be_given() -> None:
    """A bare host takes the caller's port, zero included."""
    assert Address.parse("a", default_port=9).port == 9
    assert Address.parse("a:0", default_port=9).port == 0


def test_each_priority_has_its_lane_below_control() -> None:
    """More urgent messages take more urgent lanes, and none of them is the mesh's own."""
    lanes = [Lane.of(priority) for priority in sorted(Priority)]

    assert lanes == [Lane.LOW, Lane.NORMAL, Lane.HIGH, Lane.URGENT]
    assert min(lanes) > Lane.CONTROL
