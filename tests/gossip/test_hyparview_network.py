"""Many active views together: one component, bounded degrees, both sides agreed, whatever happens to the nodes."""

from __future__ import annotations

import pytest
from overlaynet import OverlayNet

from gossip.config import GossipConfig

CONFIG = GossipConfig()


def quiet(net: OverlayNet) -> bool:
    """Whether all is as it should be when nothing happens."""
    degrees = net.degrees()
    target = min(len(degrees) - 1, CONFIG.active_view_min)
    return net.connected() and not net.one_sided() and target <= degrees[0] and degrees[-1] <= CONFIG.active_view_max


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_few_nodes_are_a_full_mesh(count: int) -> None:
    """As long as all others fit an active view, everybody is everybody's neighbour, and then no more is dialled."""
    net = OverlayNet(config=CONFIG)
    net.bootstrap(count, 0.1)

    assert net.degrees() == [count - 1] * count
    dials = net.dials
    net.run(600)
    assert net.dials == dials


@pytest.mark.parametrize("count", [10, 12, 20, 100])
def test_more_nodes_keep_bounded_views(count: int) -> None:
    """One component, degrees within the limits, agreed on by both sides; idle links are closed."""
    net = OverlayNet(count)
    net.bootstrap(count, 2.0)
    net.run(60, until=lambda: quiet(net))
    net.run(120)
    net.run(60, until=lambda: quiet(net))

    sizes = [len(node.links) for node in net.live]
    assert sum(sizes) / count < 12
    assert all(node.view.neighbors == tuple(node.up) for node in net.live)
    assert all(len(node.view.passive) <= CONFIG.passive_view for node in net.live)


def test_a_clique_that_grows_lets_newcomers_in() -> None:
    """Nine full nodes make room by sending neighbours to the newcomers."""
    net = OverlayNet()
    net.bootstrap(9, 0.1)
    for index in range(9, 20):
        net.start(f"n{index:04}", "n0000")

    assert net.run(30, until=lambda: quiet(net)) < 15


@pytest.mark.parametrize("seed", [1, 2])
def test_a_hundred_at_once_make_no_islands(seed: int) -> None:
    """All dial the same seed in the same moment."""
    net = OverlayNet(seed)
    net.bootstrap(100, 0.0, settle_s=0.0)

    took = net.run(10, until=lambda: len(net.live) == 100 and quiet(net))

    assert took < 8


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("percent", [50, 80, 90])
def test_the_survivors_of_a_mass_failure_are_one_again(percent: int, *, warm: bool, silent: bool) -> None:
    """Within seconds where connections were reset, within keepalive and dial timeouts where machines vanished."""
    net = OverlayNet(percent)
    net.bootstrap(100, 2.0, settle_s=3.0)
    net.run(300 if warm else 1)
    victims = net.rng.sample([node.name for node in net.live], percent)
    net.kill(victims, silent=silent)

    assert net.run(60, until=net.connected) < (20 if silent else 3)
    net.run(60, until=lambda: quiet(net))


def test_a_split_heals_by_itself() -> None:
    """Halves that hold each other dead meet again, and many neighbours cross the old border soon after."""
    net = OverlayNet(3)
    net.bootstrap(60, 2.0)
    left = [node.name for node in net.live][::2]
    net.split(left)
    net.run(600)
    assert net.components() == [30, 30]

    net.heal()

    net.run(60, until=net.connected)
    net.run(60)
    crossing = sum(name not in left for node in net.live if node.name in left for name in node.up)
    assert crossing >= 20


def test_islands_that_know_each_other_merge() -> None:
    """Two live halves without an edge between them, which no failure detector complains about."""
    net = OverlayNet(4)
    net.bootstrap(40, 2.0)
    left = [node.name for node in net.live][::2]
    for node in net.live:
        for peer in list(node.links.values()):
            if (node.name in left) != (peer.name in left):
                net._break(node, peer, wanted=True)

    assert net.run(60, until=net.connected) < 30


def test_lost_envelopes_leave_no_half_edges() -> None:
    """What one request's loss breaks the next claim mends."""
    net = OverlayNet(5, loss=0.05)
    net.bootstrap(60, 2.0)
    assert net.connected()
    net.run(300)

    net._loss = 0.0
    net.run(120, until=lambda: quiet(net))


def test_neighbours_become_nearer() -> None:
    """And the network stays one."""
    net = OverlayNet(6)
    net.bootstrap(60, 2.0)

    def mean_s() -> float:
        delays = [net.delay_s(node.name, name) for node in net.live for name in node.up]
        return sum(delays) / len(delays)

    before_s = mean_s()
    net.run(1200)

    assert mean_s() < 0.85 * before_s
    assert net.connected()


def test_equal_seeds_give_equal_runs() -> None:
    """The seed decides all."""
    runs = []
    for _ in range(2):
        net = OverlayNet(7)
        net.bootstrap(40, 1.0)
        runs.append((net.sends, net.bytes, net.dials, [list(node.up) for node in net.live]))

    assert runs[0] == runs[1]


@pytest.mark.large
@pytest.mark.timeout(300)
def test_a_thousand_nodes() -> None:
    """Join within ten seconds, lose nine of ten right after, and be one again."""
    net = OverlayNet(8)
    net.bootstrap(1000, 10.0, settle_s=5.0)
    assert net.connected()
    net.run(60, until=lambda: quiet(net))
    net.kill(net.rng.sample([node.name for node in net.live], 900))

    assert net.run(10, until=net.connected) < 5
    net.run(30, until=lambda: quiet(net))
