"""`mesh sim` reads its arguments, prints, and exits as it says."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import chaos.sim.command
import mesh.cli.app
from chaos.sim.command import _plans
from chaos.sim.scenarios import SCENARIOS


@pytest.fixture(autouse=True)
def entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """As installed, whether or not this checkout is."""
    point = EntryPoint("sim", "chaos.sim.command:sim", mesh.cli.app.COMMANDS_GROUP)
    monkeypatch.setattr(mesh.cli.app, "entry_points", lambda *, group: [point])


def mesh_sim(*arguments: str, code: int = 0) -> str:
    """What the command prints to stdout."""
    result = CliRunner().invoke(mesh.cli.app.app, ["sim", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout


SMALL = ("--nodes", "5", "--warm", "0", "--scenario", "leave")


def test_the_command_is_found_and_listed() -> None:
    """`mesh` itself does not know it, but help and the command are there, with what the promise asks for."""
    runner = CliRunner()
    assert "sim" in runner.invoke(mesh.cli.app.app, ["--help"]).stdout
    assert runner.invoke(mesh.cli.app.app, ["sim", "--help"]).exit_code == 0
    assert "Example: " in (chaos.sim.command.sim.__doc__ or "")
    assert runner.invoke(mesh.cli.app.app, ["nonsense"]).exit_code == 2


def test_added_groups_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point may name a Typer with sub-commands; one of our names cannot be taken."""
    group = typer.Typer(no_args_is_help=True)
    group.command("hello")(lambda: typer.echo("hello"))
    group.command("bye")(lambda: typer.echo("bye"))

    class Point(EntryPoint):
        def load(self) -> object:
            return group

    points = [Point("extra", "x:y", "g"), Point("version", "x:y", "g")]
    monkeypatch.setattr(mesh.cli.app, "entry_points", lambda *, group: points)
    runner = CliRunner()

    assert runner.invoke(mesh.cli.app.app, ["extra", "hello"]).stdout == "hello\n"
    assert "peermesh" in runner.invoke(mesh.cli.app.app, ["version"]).stdout


def test_the_list_is_complete() -> None:
    """For people a line each, for programs a document."""
    listed = json.loads(mesh_sim("--list", "--json"))["scenarios"]

    assert [entry["name"] for entry in listed] == list(SCENARIOS)
    assert len(mesh_sim("--list").splitlines()) == len(SCENARIOS)


def test_json_has_what_is_promised_and_a_seed_repeats() -> None:
    """The fields that scripts rely on; the same seed gives the same digest."""
    first = json.loads(mesh_sim(*SMALL, "--seed", "3", "--json"))
    again = json.loads(mesh_sim(*SMALL, "--seed", "3", "--json"))

    promised = (
        *("seed", "nodes", "scenario", "delivered_fraction", "redundancy", "p50_ms", "p100_ms", "false_positives"),
        *("detected_p50_s", "detected_p99_s", "violations", "trace_digest", "wall_s", "events"),
    )
    assert [name for name in promised if name not in first] == []
    assert (first["seed"], first["nodes"], first["scenario"]) == (3, 5, "leave")
    assert first["trace_digest"] == again["trace_digest"]


def test_text_names_the_seed_and_the_bars() -> None:
    """A person can repeat what went wrong, and sees what was wanted."""
    text = mesh_sim(*SMALL)

    assert "seed " in text.splitlines()[0]
    assert "all_know_p99_s" in text
    assert "wanted at most 1.5" in text


def test_several_seeds_are_several_runs() -> None:
    """They count up from the first."""
    document = json.loads(mesh_sim(*SMALL, "--seed", "10", "--seeds", "2", "--json"))

    assert [run["seed"] for run in document["runs"]] == [10, 11]


def test_a_run_is_replayed_from_its_log(tmp_path: Path) -> None:
    """The log begins with the plan; replaying it gives the same trace."""
    log = tmp_path / "run.jsonl"
    first = json.loads(mesh_sim(*SMALL, "--seed", "4", "--json", "--events", str(log)))
    again = json.loads(mesh_sim("--replay", str(log), "--json"))

    assert again["trace_digest"] == first["trace_digest"]
    assert len(log.read_text().splitlines()) > first["events"]


def test_all_scenarios_can_be_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`all` is every scenario with every seed."""
    wanted = {name: SCENARIOS[name] for name in ("leave", "join-at-once")}
    monkeypatch.setattr(chaos.sim.scenarios, "SCENARIOS", wanted)
    document = json.loads(mesh_sim("--nodes", "4", "--seed", "1", "--seeds", "2", "--scenario", "all", "--json"))

    runs = [(run["scenario"], run["seed"]) for run in document["runs"]]
    assert runs == [("leave", 1), ("leave", 2), ("join-at-once", 1), ("join-at-once", 2)]


@pytest.mark.parametrize("arguments", [("--scenario", "nonsense"), ("--replay", "missing.jsonl")], ids=str)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    """What cannot be run is a usage error."""
    assert mesh_sim(*arguments, code=2) == ""


def test_violations_and_missed_bars_are_failures(tmp_path: Path) -> None:
    """Exit code 1, the violation in the text, and with --shrink a small plan beside the log."""
    plan = tmp_path / "plan.jsonl"
    steps = [
        {"verb": "start", "args": {"nodes": [0, 1, 2, 3], "seeds": [0]}},
        {"verb": "settle", "args": {"limit_s": 20.0}},
        {"verb": "remember", "args": {"nodes_max": 1}},
    ]
    bars = [{"metric": "p50_ms", "at_most": 1.0, "at_least": None, "nodes_min": 0, "nodes_max": 100}]
    network = json.loads(SCENARIOS["leave"].plan(chaos_options()).to_json())["network"]
    written = {"scenario": "x", "seed": 1, "nodes": 4, "steps": steps, "network": network, "config": {}, "bars": bars}
    plan.write_text(json.dumps(written))
    log = tmp_path / "events.jsonl"
    text = mesh_sim("--replay", str(plan), "--events", str(log), "--shrink", code=1)

    assert "VIOLATION" in text
    assert "MISSED p50_ms" in text
    small = json.loads((tmp_path / "events.small.jsonl").read_text().splitlines()[0])
    assert small["nodes"] == 2
    mesh_sim("--replay", str(tmp_path / "events.small.jsonl"), code=1)
    written["steps"] = steps[:2]
    plan.write_text(json.dumps(written))
    mesh_sim("--replay", str(plan))
    mesh_sim("--replay", str(plan), "--bars", code=1)


def chaos_options() -> chaos.sim.scenarios.Options:
    """Of a small network."""
    return chaos.sim.scenarios.Options(4, 1)


def test_full_size_is_what_the_bars_are_meant_for() -> None:
    """Unless a number of nodes is given, which wins."""
    sizes = {entry["name"]: entry["full"] for entry in json.loads(mesh_sim("--list", "--json"))["scenarios"]}
    assert (sizes["steady-random"], sizes["frozen-4s"], sizes["idle"]) == (1000, 128, 256)

    document = json.loads(mesh_sim("--scenario", "leave", "--full", "--nodes", "4", "--warm", "0", "--json"))

    assert document["nodes"] == 4
    assert [plan.nodes for plan in _plans("idle", None, range(1), None, full=True)] == [256]
