"""What a run found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkers import Violation
from .plan import Bar


@dataclass(frozen=True, slots=True)
class BarResult:
    """Whether one figure is good enough."""

    bar: Bar
    value: float | None

    @property
    def met(self) -> bool:
        """See :meth:`Bar.met_by`."""
        return self.bar.met_by(self.value)

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        limits = {"at_most": self.bar.at_most, "at_least": self.bar.at_least}
        return {
            "metric": self.bar.metric,
            "value": self.value,
            **{name: limit for name, limit in limits.items() if limit is not None},
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """One run's result.

    Attributes:
        scenario: Its name.
        seed: What drew it.
        nodes: How many nodes the plan starts.
        figures: Every measured figure by name; see ``docs/simulation.md``.
        violations: The first of what checkers found.
        violation_count: How many there were.
        bars: The plan's bars that apply.
        trace_digest: Equal for equal runs.
        sim_s: Simulated seconds.
        wall_s: Real seconds.
        events: Events that cores handled.
    """

    scenario: str
    seed: int
    nodes: int
    figures: Mapping[str, float | int | None]
    violations: tuple[Violation, ...]
    violation_count: int
    bars: tuple[BarResult, ...]
    trace_digest: str
    sim_s: float
    wall_s: float
    events: int

    @property
    def bars_met(self) -> bool:
        """Whether every bar is met."""
        return all(result.met for result in self.bars)

    def to_json(self) -> dict[str, Any]:
        """The document that ``mesh sim --json`` prints."""
        first = ("delivered_fraction", "redundancy", "p50_ms", "p100_ms", "false_positives", "detected_p50_s")
        head = {name: self.figures.get(name) for name in (*first, "detected_p99_s")}
        return {
            "seed": self.seed,
            "nodes": self.nodes,
            "scenario": self.scenario,
            **head,
            "violations": [{"checker": v.checker, "at_s": v.at_s, "text": v.text} for v in self.violations],
            "violation_count": self.violation_count,
            "bars": [result.to_json() for result in self.bars],
            "bars_met": self.bars_met,
            "figures": {name: value for name, value in self.figures.items() if name not in head},
            "trace_digest": self.trace_digest,
            "sim_s": round(self.sim_s, 3),
            "wall_s": round(self.wall_s, 2),
            "events": self.events,
        }
