"""Profiles: what a node says of itself is read again, and anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import RegistrationTooLarge
from mesh.profile import AGENTS_MAX, PROFILE_BYTES_MAX, NodeProfile, decode_profile, encode_profile
from mesh.types import AgentInfo
from transport.errors import RemoteProtocolError
from transport.wire import pack

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
MAPS = st.dictionaries(TEXTS, TEXTS, max_size=3)
LISTS = st.lists(TEXTS, max_size=3).map(tuple)
SEALING = {"opens_sealed": st.booleans(), "demands_sealed": st.booleans()}
AGENTS = st.builds(AgentInfo, st.integers(1, 2**64 - 1), st.just("a"), LISTS, TEXTS, LISTS, TEXTS, MAPS)
PROFILES = st.builds(
    NodeProfile, st.booleans(), MAPS, st.lists(AGENTS, max_size=4).map(tuple), st.booleans(), LISTS, **SEALING
)

AGENT: list[Any] = [7, "name", ["cap"], ["tag"], "1", {"k": "v"}]


@given(PROFILES)
def test_a_profile_is_read_as_written(profile: NodeProfile) -> None:
    """Every profile that can be written is read again unchanged."""
    assert decode_profile(encode_profile(profile), "a") == profile


def test_nothing_is_an_empty_profile() -> None:
    """A member that has said nothing yet has no agents and no metadata."""
    assert decode_profile(b"", "a") == NodeProfile()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever the bytes, nothing is raised but RemoteProtocolError."""
    try:
        assert isinstance(decode_profile(data, "a"), NodeProfile)
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "fields",
    [
        7,
        [0, {}, []],
        [0, {}, {}, 0],
        [0, [], [], 0],
        [0, {"k": 1}, [], 0],
        [0, {b"k": "v"}, [], 0],
        [0, {}, [7], 0],
        [0, {}, [AGENT[:5]], 0],
        *([0, {}, [[*AGENT[:i], wrong, *AGENT[i + 1 :]]], 0] for i in range(6) for wrong in (None, b"", [1], {"k": 2})),
    ],
)
def test_a_profile_with_a_wrong_field_is_refused(fields: Any) -> None:
    """Each field has its type; the error names the node."""
    with pytest.raises(RemoteProtocolError, match="node-x"):
        decode_profile(pack(fields), "node-x")


def test_later_fields_are_ignored() -> None:
    """Fields behind the known ones, in a profile and in an agent, are left alone."""
    profile = decode_profile(pack([1, {}, [[*AGENT, "later"]], 1, ["g"], 7, "later"]), "a")

    assert profile == NodeProfile(
        maintenance=True,
        agents=(AgentInfo(7, "a", ("cap",), "name", ("tag",), "1", {"k": "v"}),),
        can_issue=True,
        groups=("g",),
        opens_sealed=True,
        demands_sealed=True,
    )


def test_what_a_node_of_another_version_says_of_sealing_is_understood() -> None:
    """An older one says nothing of it, and of nonsense nothing is believed."""
    for fields in ([1, {}, [], 1], [1, {}, [], 1, ["g"]], [1, {}, [], 1, ["g"], "sealed"]):
        profile = decode_profile(pack(fields), "a")
        assert not profile.opens_sealed
        assert not profile.demands_sealed
    assert decode_profile(pack([0, {}, [], 0]), "a").groups == ()  # as the first version wrote it


def test_a_profile_too_large_is_refused_before_it_leaves() -> None:
    """Beyond its bytes, a profile is refused with its size and what to do."""
    agents = tuple(AgentInfo(i, "a", name="n" * 200) for i in range(1, 2_000))

    with pytest.raises(RegistrationTooLarge, match=str(PROFILE_BYTES_MAX)) as refused:
        encode_profile(NodeProfile(agents=agents))
    assert refused.value.hint


def test_as_many_agents_as_can_be_registered_can_be_read() -> None:
    """The largest number of agents passes; one more is refused here rather than by every peer."""
    agents = tuple(AgentInfo(i, "a") for i in range(1, AGENTS_MAX + 2))

    assert len(decode_profile(encode_profile(NodeProfile(agents=agents[:-1])), "a").agents) == AGENTS_MAX
    with pytest.raises(RegistrationTooLarge, match=str(AGENTS_MAX)):
        encode_profile(NodeProfile(agents=agents))
