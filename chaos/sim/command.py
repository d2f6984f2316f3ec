"""``mesh sim``: the simulator on the command line (entry point group ``peermesh.commands``)."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .plan import Plan
    from .report import Report

_SEED_MAX = 1 << 32


def sim(
    scenario: Annotated[
        str, typer.Option("--scenario", help="What happens; see --list. `all`: every one.")
    ] = "steady-random",
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, max=100_000, help="How many nodes.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="As many nodes as the bars are meant for, mostly 1,000.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Repeats a run exactly; default: a new one.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Run so many seeds, counting up.")] = 1,
    warm: Annotated[float | None, typer.Option("--warm", min=0, help="Seconds of quiet before things happen.")] = None,
    wall_limit: Annotated[float, typer.Option("--wall-limit", min=1, help="Give a run up after these seconds.")] = 600,
    events: Annotated[Path | None, typer.Option("--events", help="Write the plan and every event to FILE.")] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="Run the plan that FILE begins with.")] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Make a failing plan small; needs --events or prints it.")
    ] = False,
    bars: Annotated[bool, typer.Option("--bars", help="Fail as well if a figure misses its bar.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the scenarios.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Simulate a network of many nodes in virtual time, break it, and check what the protocol promises.

    Exits with 1 if anything happened that must not.

    Example: mesh sim --nodes 100 --seed 1 --scenario partition-half
    """
    if list_:
        _list(as_json=as_json)
        return
    first = secrets.randbelow(_SEED_MAX) if seed is None else seed
    plans = (
        [_read(replay)] if replay is not None else _plans(scenario, nodes, range(first, first + seeds), warm, full=full)
    )
    reports = []
    for plan in plans:
        report = _run(plan, events, wall_limit)
        if not as_json:
            _print(report)
        if shrink and report.violation_count:
            _shrink(plan, report, events, wall_limit, say=_say)
        reports.append(report)
    if as_json:
        documents = [report.to_json() for report in reports]
        print(json.dumps(documents[0] if len(documents) == 1 else {"runs": documents}, indent=2))
    if any(report.violation_count or (bars and not report.bars_met) for report in reports):
        raise typer.Exit(1)


def _list(*, as_json: bool) -> None:
    from .scenarios import SCENARIOS

    if as_json:
        entries = [{"name": s.name, "about": s.about, "nodes": s.nodes, "full": s.full} for s in SCENARIOS.values()]
        print(json.dumps({"scenarios": entries}, indent=2))
    else:
        for entry in SCENARIOS.values():
            print(f"{entry.name:20} {entry.nodes:5} nodes  {entry.about}")


def _plans(name: str, nodes: int | None, seeds: range, warm_s: float | None, *, full: bool = False) -> list[Plan]:
    from .scenarios import SCENARIOS, Options

    entries = list(SCENARIOS.values()) if name == "all" else [SCENARIOS[name]] if name in SCENARIOS else []
    if not entries:
        raise typer.BadParameter(f"there is no scenario {name!r}; mesh sim --list shows them")
    return [
        entry.plan(Options(nodes or (entry.full if full else entry.nodes), seed, warm_s))
        for entry in entries
        for seed in seeds
    ]


def _read(path: Path) -> Plan:
    from .plan import Plan

    try:
        with path.open(encoding="utf-8") as file:
            return Plan.from_json(file.readline())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be replayed: {error}") from None


def _run(plan: Plan, events: Path | None, wall_limit_s: float) -> Report:
    from .runner import Runner

    with ExitStack() as stack:
        log = None if events is None else stack.enter_context(events.open("w", encoding="utf-8"))
        return Runner(plan, log=log, wall_s_max=wall_limit_s).run()


def _shrink(plan: Plan, report: Report, events: Path | None, wall_limit_s: float, say: Callable[[str], None]) -> None:
    """Shrink, say how to repeat the result, and write it where the events go."""
    from .runner import run
    from .shrink import Shrinker

    wanted = frozenset(violation.checker for violation in report.violations)
    shrinker = Shrinker(lambda smaller: run(smaller, wall_s_max=wall_limit_s), wanted, say)
    small = shrinker.shrink(plan)
    say(f"shrunk to {small.nodes} nodes and {len(small.steps)} steps in {shrinker.attempts} runs")
    if events is None:
        say(small.to_json())
    else:
        path = events.with_suffix(".small" + events.suffix)
        _run(small, path, wall_limit_s)
        say(f"repeat with: mesh sim --replay {path}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(report: Report) -> None:
    document: dict[str, Any] = report.to_json()
    print(f"{report.scenario}: {report.nodes} nodes, seed {report.seed}")
    shown = {name: value for name, value in {**document, **document["figures"]}.items() if _is_figure(value)}
    for name, value in shown.items():
        print(f"  {name:26} {value}")
    for bar in document["bars"]:
        limit = " and ".join(f"{word} {bar[key]}" for key, word in _LIMITS.items() if key in bar)
        print(f"  {'met   ' if bar['met'] else 'MISSED'} {bar['metric']} = {bar['value']}, wanted {limit}")
    for violation in report.violations:
        print(f"  VIOLATION at {violation.at_s:.3f} s: {violation.checker}: {violation.text}")
    if report.violation_count > len(report.violations):
        print(f"  and {report.violation_count - len(report.violations)} more violations")


_LIMITS = {"at_most": "at most", "at_least": "at least"}


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
