"""Plumtree on random overlays of degree 5 to 8 with links of 10 to 50 ms: the figures that step 2 promises."""

from __future__ import annotations

import random

import pytest
from plumtree_net import Net, Round

from gossip.config import GossipConfig
from gossip.plumtree_codec import Graft, Sync
from transport.types import NodeId

LAST_S_MAX = 0.8
LAST_S_MAX_ONE_SENDER = 0.45


def warmed(nodes: int, seed: int, *, loss: float = 0.0) -> Net:
    """A network that has sent five broadcasts."""
    net = Net(nodes, seed, loss=loss)
    for name in net.rng.sample(list(net.cores), 5):
        net.round(name, 1.5)
    return net


def random_senders(net: Net, rounds: int, duration_s: float = 1.5) -> list[Round]:
    """Broadcasts one after the other, each from anybody."""
    return [net.round(net.rng.choice(list(net.cores)), duration_s) for _ in range(rounds)]


def assert_complete(net: Net, rounds: list[Round]) -> None:
    """Everybody got each of them, once."""
    assert [r.receivers - r.delivered for r in rounds] == [0] * len(rounds)
    assert net.twice == 0


def mean_redundancy(rounds: list[Round]) -> float:
    """Copies per receiver beyond the first."""
    return sum(r.redundancy for r in rounds) / len(rounds)


SIZES = [pytest.param(100), pytest.param(1000, marks=pytest.mark.large)]


@pytest.mark.parametrize(
    ("nodes", "seed"), [(100, 1), (100, 2), (100, 3), pytest.param(1000, 1, marks=pytest.mark.large)]
)
def test_random_senders(nodes: int, seed: int) -> None:
    """Everybody gets everything once, soon, at little more than one copy each."""
    net = warmed(nodes, seed)

    rounds = random_senders(net, 10)

    assert_complete(net, rounds)
    assert mean_redundancy(rounds) <= 0.6
    assert max(r.last_s for r in rounds) <= LAST_S_MAX


@pytest.mark.parametrize("nodes", SIZES)
def test_one_sender(nodes: int) -> None:
    """The tree fits it."""
    net = warmed(nodes, 3)
    name = NodeId("n0")
    net.round(name, 1.5)

    rounds = [net.round(name, 1.5) for _ in range(8)]

    assert_complete(net, rounds)
    assert mean_redundancy(rounds) <= 0.15
    assert max(r.last_s for r in rounds) <= LAST_S_MAX_ONE_SENDER


@pytest.mark.parametrize("nodes", SIZES)
def test_lost_messages_are_fetched(nodes: int) -> None:
    """2 % of all bodies are lost, GRAFTs and PRUNEs among them."""
    net = warmed(nodes, 4, loss=0.02)
    before = net.total("grafts_sent")

    rounds = random_senders(net, 6, 2.0)

    assert_complete(net, rounds)
    assert net.total("grafts_sent") > before
    assert max(r.last_s for r in rounds) <= 2 * LAST_S_MAX


def test_everybody_at_once() -> None:
    """A burst of a hundred broadcasts, on an untrained tree and again on a trained one."""
    net = Net(100, 5)
    for _ in range(2):
        keys = [net.broadcast(name) for name in list(net.cores)]
        net.run(3.0)
        assert [len(net.delivered[key]) for key in keys] == [99] * 100
    assert net.twice == 0
    assert net.waiting_max <= 100


@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_after_many_died_at_once_the_rest_gets_the_next_one(nodes: int, share: float) -> None:
    """All that are still joined by links, within a few repairs."""
    net = warmed(nodes, 6)
    net.kill(net.rng.sample(list(net.cores), int(share * nodes)))
    sender = max(net.cores, key=lambda name: len(net.component(name)))
    component = net.component(sender)

    for _ in range(3):
        assert net.round(sender, 4.0).delivered == len(component) - 1
    assert net.twice == 0


def test_a_broadcast_that_the_tree_lost_is_found_by_comparing() -> None:
    """Only the origin had it when all its neighbours died; new neighbours are told what they miss."""
    net = Net(60, 7)
    net.round(NodeId("n1"))
    origin = NodeId("n0")
    key = net.broadcast(origin)
    net.kill(list(net.links[origin]))
    net.run(2.0)
    assert net.delivered[key] == {}

    net.connect(origin, next(name for name in net.cores if name != origin))
    net.run(3.0)

    assert len(net.delivered[key]) == len(net.component(origin)) - 1


def test_halves_that_were_apart_compare_when_they_meet() -> None:
    """Broadcasts of both sides, many origins, then one link: nothing made meanwhile is missed."""
    net = Net(40, 8, degree=(7, 10))
    names = list(net.cores)
    cut = net.split(names[:20])
    keys = [net.broadcast(name) for name in names for _ in range(3)]
    net.run(5.0)
    assert all(len(net.delivered[key]) < 20 for key in keys)

    net.connect(*cut[0])
    net.run(8.0)

    joined = net.component(cut[0][0])
    assert len(joined) > 35
    assert {len(net.delivered[key]) for key in keys if key[0] in joined} == {len(joined) - 1}
    assert net.twice == 0


def test_nobody_is_bothered_with_what_was_before_it() -> None:
    """A newcomer gets what is made after its start, and nothing else."""
    net = warmed(30, 9)
    newcomer = net.join(NodeId("new"), [NodeId("n0"), NodeId("n1")])
    net.run(5.0)
    assert all(newcomer not in by for by in net.delivered.values())

    assert net.round(NodeId("n5")).delivered == 30


def test_a_short_ttl_reaches_whoever_is_so_many_links_away() -> None:
    """As with flooding, although the tree is deeper."""
    net = warmed(200, 10)
    origin = NodeId("n0")
    distance = net.distances(origin)

    for ttl in (1, 2, 3, 4, 8):
        before = net.now
        key = net.broadcast(origin, ttl=ttl)
        net.run(5.0)
        within = {name for name, far in distance.items() if 0 < far <= ttl}
        assert set(net.delivered[key]) == within, before


def test_nothing_is_sent_when_nothing_was_broadcast_lately() -> None:
    """Comparing ends some time after the last broadcast, and so do the timers."""
    net = warmed(30, 11)
    net.run(40.0)
    before = dict(net.sent)

    net.run(200.0)

    assert dict(net.sent) == before
    assert net.idle


def test_a_seed_repeats_a_run() -> None:
    """Bodies, times and counters."""

    def run() -> tuple[object, ...]:
        net = warmed(40, 12, loss=0.05)
        random_senders(net, 5)
        return dict(net.sent), net.delivered, [core.counters for core in net.cores.values()]

    assert run() == run()


def test_large_payloads_take_the_tree_only() -> None:
    """A megabyte goes over about one link per receiver; what is lazy carries ids."""
    net = warmed(20, 13)
    name = NodeId("n0")
    for _ in range(3):
        net.round(name)
    before = net.sent[0]

    key = net.broadcast(name, b"x" * GossipConfig().broadcast_bytes_max)
    net.run(3.0)

    assert len(net.delivered[key]) == 19
    assert net.sent[0] - before <= 22


@pytest.mark.parametrize("seed", range(4))
def test_much_loss_and_churn_lose_nothing_that_can_be_had(seed: int) -> None:
    """A fifth of all bodies is lost and links come and go; comparing finds the rest."""
    rng = random.Random(seed)
    net = Net(30, seed, loss=0.2)
    keys = []
    for _ in range(40):
        keys.append(net.broadcast(rng.choice(list(net.cores))))
        net.run(0.2)
        one, other = rng.sample(list(net.cores), 2)
        if other in net.links[one] and len(net.links[one]) > 4 < len(net.links[other]):
            net.disconnect(one, other)
        else:
            net.connect(one, other)
    net.loss = 0.0
    net.run(6.0)

    assert [len(net.delivered[key]) for key in keys] == [29] * 40
    assert net.twice == 0
    assert net.sent_of(Graft) > 0 < net.sent_of(Sync)
