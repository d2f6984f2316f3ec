"""Many real nodes: the short form of ``make cluster`` and ``make beside-serf``, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from support import ROOT, require_network_namespaces, require_tools

from benchmarks.beside_serf import detection, ratios
from benchmarks.cluster import timing
from mesh.config import MeshConfig
from mesh.processes import worker_environment


@pytest.mark.large
@pytest.mark.timeout(240)
def test_forty_nodes_see_each_other_and_each_loss() -> None:
    """Complete views, broadcasts to all, requests to strangers, a kill, a freeze and a killed process of many."""
    document = _run("cluster", "--nodes", "40", "--seconds", "2", "--rounds", "4", "--requests", "40", seconds=200)

    assert document["processes"] == 6
    assert document["timing"] == {"preset": "lan"}
    assert document["all_views_complete_s"] > 0
    assert document["broadcast"]["reached"] == document["broadcast"]["receivers"] == 39
    asked = document["requests"]
    assert asked["new_link"]["requests"] > 0
    assert asked["new_link"]["answered"] == asked["new_link"]["requests"]
    assert asked["linked"]["answered"] == asked["linked"]["requests"] == 40
    for loss, victims in (("killed_node", 1), ("frozen_node", 1), ("killed_process", 9)):
        assert document[loss]["victims"] == victims
        assert document[loss]["know"] == document[loss]["survivors"]
    assert document["frozen_node"]["back_everywhere_s"] is not None
    assert document["broadcast_after"]["reached"] == document["broadcast_after"]["receivers"] == 29
    assert document["idle"]["links_per_node"] >= 5
    assert document["log"]["errors"] == []
    assert document["cleaned_up"] is True


@pytest.mark.large
@pytest.mark.system
@pytest.mark.timeout(240)
def test_ours_and_serf_in_one_run() -> None:
    """Both are detected, both deliver to all, and their traffic is counted in the same way."""
    require_tools("serf", "unshare")
    require_network_namespaces()
    arguments = ("--nodes", "12", "--kills", "2", "--events", "2", "--seconds", "3")
    document = _run("beside_serf", *arguments, seconds=200)

    for system in ("mesh", "serf"):
        assert document[system]["broadcast"]["reached"] == document[system]["broadcast"]["receivers"] == 11
        assert document[system]["detection"]["everybody_knew"] is True
        assert document[system]["idle"]["wire_bytes_per_s_per_node"] > 0
    assert document["mesh"]["errors"] == []
    assert None not in document["ratio_mesh_to_serf"].values()


def test_a_machine_that_is_too_small_is_said_so() -> None:
    """Before anything is started."""
    done = _start("cluster", "--nodes", "300000", seconds=30)

    assert done.returncode == 1
    assert done.stdout == ""
    assert "nodes need about" in done.stderr


@pytest.mark.parametrize(("nodes", "cores"), [(40, 2), (200, 2), (256, 2), (1000, 2), (1000, 16)])
def test_timing_is_what_the_nodes_take(nodes: int, cores: int) -> None:
    """Few nodes for each core run with LAN timing; more with longer intervals that suit each other."""
    chosen = timing(nodes, cores)

    config = MeshConfig.load(**chosen).gossip_config()
    assert (chosen["preset"] == "lan") == (nodes <= 100 * cores)
    assert config.suspicion_s > 10 * config.flush_delay_s
    assert config.suspicion_refused_s <= config.suspicion_s


def test_medians_and_ratios() -> None:
    """Over the kills; a figure that one side lacks has no ratio."""
    loss = {"know": 3, "survivors": 3, "first_dead_s": 1.0, "all_know_p50_s": 1.0}
    losses: list[dict[str, Any]] = [
        {**loss, "first_suspect_s": 0.1, "all_know_last_s": 1.0},
        {**loss, "first_suspect_s": None, "all_know_last_s": 3.0},
    ]
    mine = detection(losses)
    assert (mine["kills"], mine["everybody_knew"], mine["first_suspect_s"], mine["all_know_last_s"]) == (
        2,
        True,
        0.1,
        2.0,
    )

    found = ratios(
        {"detection": mine, "broadcast": {"p50_ms": 1.0}, "idle": {}},
        {"detection": {"all_know_last_s": 4.0}, "broadcast": {"p50_ms": 4.0}, "idle": {}},
    )
    assert found["detection.all_know_last_s"] == 0.5
    assert found["broadcast.p50_ms"] == 0.25
    assert found["idle.cpu_percent_per_node"] is None


def _run(program: str, *arguments: str, seconds: float) -> dict[str, Any]:
    done = _start(program, *arguments, seconds=seconds)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _start(program: str, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{program}.py"), *arguments],
        capture_output=True,
        text=True,
        env=worker_environment(),
        timeout=seconds,
    )
