"""The graph of a group: the same for everybody, connected, small degrees, little changed by whoever comes or goes."""

from __future__ import annotations

import random

import pytest

from gossip.ring import FULL_MESH_MAX, Ring
from transport.types import NodeId


def ring_of(*names: str, group: str = "g") -> Ring:
    """A ring of these nodes."""
    made = Ring(group)
    for name in names:
        made.add(NodeId(name))
    return made


def names(count: int) -> list[str]:
    """So many node ids."""
    return [f"n{number}" for number in range(count)]


def graph(ring: Ring, nodes: list[str]) -> dict[str, set[str]]:
    """Everybody's neighbours."""
    return {name: set(map(str, ring.neighbors(NodeId(name)))) for name in nodes}


def distances(edges: dict[str, set[str]], start: str) -> dict[str, int]:
    """How many hops it is to each node that can be reached."""
    found, edge = {start: 0}, [start]
    while edge:
        edge = [far for near in edge for far in sorted(edges[near]) if far not in found]
        hops = max(found.values()) + 1
        found.update(dict.fromkeys(edge, hops))
    return found


@pytest.mark.parametrize("count", [0, 1, 2, FULL_MESH_MAX, FULL_MESH_MAX + 1, 30, 300, 1000])
def test_the_graph_is_symmetric_connected_and_flat(count: int) -> None:
    """Everybody's neighbours have it as theirs, and nobody is more than a few hops from anybody."""
    nodes = names(count)
    edges = graph(ring_of(*nodes), nodes)

    assert all(name not in near for name, near in edges.items())
    assert all(name in edges[other] for name, near in edges.items() for other in near)
    if count > 1:
        hops = distances(edges, nodes[0])
        assert len(hops) == count
        assert max(hops.values()) <= 10
    if count > FULL_MESH_MAX:
        degrees = [len(near) for near in edges.values()]
        assert sum(degrees) / count <= 6
        assert min(degrees) >= 2
        assert max(degrees) <= 24


def test_the_order_of_joining_does_not_matter_and_groups_differ() -> None:
    """All nodes compute the same graph; the same nodes in another group have another one."""
    nodes = names(40)
    shuffled = random.Random(1).sample(nodes, len(nodes))
    doubled = ring_of(*nodes, *nodes[:5])

    assert graph(ring_of(*nodes), nodes) == graph(ring_of(*shuffled), nodes) == graph(doubled, nodes)
    assert len(doubled) == 40
    assert graph(ring_of(*nodes, group="other"), nodes) != graph(ring_of(*nodes), nodes)


def test_one_who_comes_or_goes_changes_few() -> None:
    """Of 400 nodes, on average no more than ten have other neighbours afterwards; and going undoes coming."""
    nodes = names(400)
    ring = ring_of(*nodes)
    before = graph(ring, nodes)
    changed = 0
    for extra in range(20):
        name = NodeId(f"extra{extra}")
        ring.add(name)
        changed += sum(near - {name} != before[node] for node, near in graph(ring, nodes).items())
        assert name in ring
        ring.discard(name)
        ring.discard(name)
        assert name not in ring
        assert graph(ring, nodes) == before
    assert changed / 20 <= 10


def test_entrances_are_subscribers_near_the_publishers_place() -> None:
    """As many as there are, at most the number asked for, and different ones for different publishers."""
    ring = ring_of(*names(50))
    found = {tuple(ring.entrances(NodeId(f"p{number}"), 2)) for number in range(20)}

    assert len(found) > 10
    assert all(len(set(pair)) == 2 and all(name in ring for name in pair) for pair in found)
    assert ring_of("a").entrances(NodeId("p"), 2) == ["a"]
    assert ring_of().entrances(NodeId("p"), 2) == []
