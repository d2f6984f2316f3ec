"""Make a failing plan small: fewer steps, fewer nodes, less time, as long as the same checker still complains.

Delta debugging (Zeller and Hildebrandt 2002, "ddmin") over the steps first, because each step gone makes every further
attempt faster; then nodes, by halves; then the length of what runs.  A plan is data and a run depends on nothing else,
so an attempt is one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from .plan import Plan, Step
from .report import Report

#: Steps that only let time pass are shortened, not removed.
_TIMES: Final = {"run": "seconds", "idle": "seconds"}
_SECONDS_MIN: Final = 0.1

Run = Callable[[Plan], Report]


class Shrinker:
    """Tries smaller plans.

    Args:
        run: Runs a plan.
        wanted: The checkers of which one must still complain.
        tell: Told of each success in a sentence.
        wall_s_max: When to stop trying.
    """

    def __init__(
        self, run: Run, wanted: frozenset[str], tell: Callable[[str], None] = lambda _: None, wall_s_max: float = 300.0
    ) -> None:
        self._run = run
        self._wanted = wanted
        self._tell = tell
        self._until = time.monotonic() + wall_s_max
        self.attempts = 0

    def shrink(self, plan: Plan) -> Plan:
        """The smallest plan found that still fails alike."""
        while True:
            before = plan
            plan = self._fewer_steps(plan)
            plan = self._fewer_nodes(plan)
            plan = self._less_time(plan)
            if plan == before or self._out_of_time():
                return plan

    def _fails(self, plan: Plan) -> bool:
        if self._out_of_time():
            return False
        self.attempts += 1
        try:
            report = self._run(plan)
        except (ValueError, IndexError, KeyError):
            return False  # without the step that was left out, a later one makes no sense
        return any(violation.checker in self._wanted for violation in report.violations)

    def _out_of_time(self) -> bool:
        return time.monotonic() >= self._until

    def _fewer_steps(self, plan: Plan) -> Plan:
        parts = 2
        while len(plan.steps) > 1:
            size = -(-len(plan.steps) // parts)
            for start in range(0, len(plan.steps), size):
                fewer = replace(plan, steps=plan.steps[:start] + plan.steps[start + size :])
                if fewer.steps and self._fails(fewer):
                    plan, parts = fewer, max(2, parts - 1)
                    self._tell(f"{len(plan.steps)} steps")
                    break
            else:
                if size == 1 or self._out_of_time():
                    break
                parts = min(len(plan.steps), parts * 2)
        return plan

    def _fewer_nodes(self, plan: Plan) -> Plan:
        size = max(1, plan.nodes // 2)
        while size >= 1 and plan.nodes > 2:
            present = _nodes_of(plan)
            for start in range(0, len(present), size):
                gone = dict.fromkeys(present[start : start + size])
                fewer = _without(plan, gone)
                if 0 < fewer.nodes < plan.nodes and self._fails(fewer):
                    plan = fewer
                    self._tell(f"{plan.nodes} nodes")
                    break
            else:
                if size == 1 or self._out_of_time():
                    break
                size //= 2
            size = min(size, max(1, plan.nodes // 2))
        return plan

    def _less_time(self, plan: Plan) -> Plan:
        for number, step in enumerate(plan.steps):
            name = _TIMES.get(step.verb)
            while name is not None and step.args[name] / 2 >= _SECONDS_MIN:
                step = Step(step.verb, {**step.args, name: step.args[name] / 2})  # noqa: PLW2901 - half, and half again
                shorter = replace(plan, steps=(*plan.steps[:number], step, *plan.steps[number + 1 :]))
                if not self._fails(shorter):
                    break
                plan = shorter
        return plan


def _nodes_of(plan: Plan) -> list[int]:
    """The nodes that a plan starts."""
    started: dict[int, None] = {}
    for step in plan.steps:
        if step.verb == "start":
            started |= dict.fromkeys(step.args["nodes"])
    return list(started)


def _without(plan: Plan, gone: Mapping[int, None]) -> Plan:
    """The plan without some nodes."""

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [kept(item) for item in value if not (isinstance(item, int) and item in gone)]
        return value

    steps = tuple(Step(step.verb, {name: kept(value) for name, value in step.args.items()}) for step in plan.steps)
    # A step that was about nodes and has none left is no step.
    steps = tuple(step for step in steps if "nodes" not in step.args or step.args["nodes"])
    fewer = replace(plan, steps=steps)
    return replace(fewer, nodes=len(_nodes_of(fewer)))
