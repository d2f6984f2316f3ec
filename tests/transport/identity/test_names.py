"""The names in certificates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import InvalidName
from transport.identity.names import Role, Subject, node_subject, server_name
from transport.types import network_name, node_id

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(network=labels, name=labels, role=st.sampled_from(Role))
def test_a_subject_survives_its_uri(network: str, name: str, role: Role) -> None:
    """Parsing what was written gives the same subject."""
    subject = Subject(network_name(network), role, name)
    assert Subject.parse(subject.uri) == subject


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://default/node",
        "spiffe://default/node/a/b",
        "spiffe://default/node/a/",
        "spiffe://default/admin/a",
        "spiffe://default/NODE/a",
        "spiffe://Default/node/a",
        "spiffe://default/node/A",
        "spiffe://default/node/a\n",
        "spiffe://default/node/a?x=1",
        "SPIFFE://default/node/a",
        "https://default/node/a",
        " spiffe://default/node/a",
    ],
)
def test_anything_else_is_refused(uri: str) -> None:
    """There is exactly one way to write a name."""
    with pytest.raises(InvalidName):
        Subject.parse(uri)


def test_tls_can_demand_one_node_or_any() -> None:
    """The dialler chooses the name by what it knows."""
    network, node = network_name("default"), node_id("a")
    assert server_name(network, node) == "a.default.peermesh.internal"
    assert server_name(network) == "default.peermesh.internal"
    assert node_subject(network, node).uri == "spiffe://default/node/a"
