"""Agents' states over real nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from networks import Networks, networks
from support import eventually

from mesh import ConsistencyLevel, ConsistencyUnsupported, DistributedState, InvalidMessage, UnknownState


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


async def test_a_state_is_read_where_it_was_never_seen(join: Networks) -> None:
    """With its agent, version, clock, and where else it is."""
    a, b = await join.several("a", "b")
    written = await a.sync_state(DistributedState("plan", agent_id=7, data={"step": 1, "tags": ["x"]}))
    assert (written.version, written.agent_id, written.replicas) == (1, 7, ())
    await eventually(lambda: b._runtime.view.subscribers("\0document:state:plan"))
    read = await b.get_state("plan")
    assert (read.data, read.agent_id, read.version) == ({"step": 1, "tags": ["x"]}, 7, 1)
    assert read.vector_clock == written.vector_clock
    assert read.replicas == ("a",)
    assert read.consistency_level is ConsistencyLevel.EVENTUAL
    await b.sync_state(DistributedState("plan", agent_id=8, data={"step": 2}))

    document = await a.document("state:plan")
    await eventually(lambda: document.map("data").to_dict() == {"step": 2, "tags": ["x"]})
    assert (await a.get_state("plan")).agent_id == 8


async def test_keys_are_deleted_only_by_who_has_seen_them(join: Networks) -> None:
    """A clock that covers what is here says so; one that is older, or none, does not."""
    a = await join("a")
    first = await a.sync_state(DistributedState("plan", data={"one": 1, "same": True}))
    second = await a.sync_state(DistributedState("plan", data={"two": 2}))
    assert second.data == {"one": 1, "same": True, "two": 2}
    first.data = {"two": 3}
    assert (await a.sync_state(first)).data == {"one": 1, "same": True, "two": 3}
    third = await a.get_state("plan")
    third.data = {"same": 1}
    fourth = await a.sync_state(third)
    assert fourth.data == {"same": 1}
    assert type(fourth.data["same"]) is int
    assert (await a.sync_state(fourth)).version == fourth.version  # nothing to write


async def test_what_is_not_there_or_not_built_is_told(join: Networks) -> None:
    """Before anything is done."""
    a = await join("a")
    with pytest.raises(UnknownState):
        await a.get_state("plan", timeout=0.1)
    for level in ConsistencyLevel:
        if level is not ConsistencyLevel.EVENTUAL:
            with pytest.raises(ConsistencyUnsupported, match="not supported yet"):
                await a.sync_state(DistributedState("other", data={"k": 1}, consistency_level=level))
    with pytest.raises(UnknownState):
        await a.get_state("other", timeout=0.1)


@pytest.mark.parametrize("name", ["", "x" * 201, b"board", None, "\ud800"])
async def test_names_are_checked(join: Networks, name: object) -> None:
    """Documents' and states', each with what is wrong."""
    a = await join("a")
    with pytest.raises(InvalidMessage):
        await a.document(name)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage):
        await a.get_state(name)  # type: ignore[arg-type]


async def test_groups_of_documents_are_no_groups_of_messages(join: Networks) -> None:
    """Nobody publishes into a document by accident; both kinds are announced side by side."""
    a, b = await join.several("a", "b")
    with pytest.raises(InvalidMessage, match="documents"):
        await a.subscribe("\0document:board")
    await a.document("board")
    await a.subscribe("news")
    await a.document("other")
    groups = ["\0document:board", "\0document:other", "news"]
    await eventually(lambda: all(b._runtime.view.subscribers(group) == ["a"] for group in groups))
