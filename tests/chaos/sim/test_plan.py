"""Plans are data: they survive being written down, and say when they cannot be read."""

from __future__ import annotations

import json

import pytest

from chaos.sim.plan import VERBS, Bar, Network, Plan, Step, node_name
from chaos.sim.runner import Runner
from chaos.sim.scenarios import SCENARIOS, Options

PLAN = Plan(
    "some",
    7,
    2,
    (Step("start", {"nodes": [0, 1], "seeds": [0]}), Step("run", {"seconds": 1.5})),
    Network(latency_s=(0.001, 0.002), loss=0.5),
    {"suspicion_s": 3.0},
    (Bar("p100_ms", at_most=5.0),),
)


def test_a_plan_survives_being_written_down() -> None:
    """One line of JSON holds all of it."""
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert "\n" not in PLAN.to_json()


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_scenario_survives_being_written_down(name: str) -> None:
    """A failing run of any scenario can be replayed from its log."""
    plan = SCENARIOS[name].plan(Options(10, 3))

    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", json.dumps({**json.loads(PLAN.to_json()), "steps": [{"verb": "explode", "args": {}}]})],
    ids=["empty", "no fields", "a list", "nothing", "unknown verb"],
)
def test_what_is_no_plan(text: str) -> None:
    """One kind of error, whatever is wrong."""
    with pytest.raises(ValueError, match=r"not a plan|unknown verb"):
        Plan.from_json(text)


def test_the_runner_knows_every_verb() -> None:
    """The vocabulary is the runner's, no more and no less."""
    assert sorted(Runner(PLAN)._verbs) == sorted(VERBS)


def test_the_configuration_is_what_differs_from_a_lan() -> None:
    """Fields that the plan does not name are the preset's."""
    assert PLAN.gossip_config().suspicion_s == 3.0
    assert Plan("x", 1, 1, ()).gossip_config().suspicion_s == 2.0


def test_bars() -> None:
    """A bar is met by a figure within its limits; a missing figure meets nothing."""
    assert Bar("x", at_most=1.0).met_by(1.0)
    assert not Bar("x", at_most=1.0).met_by(1.1)
    assert Bar("x", at_least=1.0).met_by(1.0)
    assert not Bar("x", at_least=1.0).met_by(0.9)
    assert not Bar("x", at_most=1.0).met_by(None)
    assert Bar("x", nodes_min=5, nodes_max=9).applies(7)
    assert not Bar("x", nodes_min=5, nodes_max=9).applies(10)


def test_names_sort_as_numbers() -> None:
    """Cores that order by name then order by number."""
    names = [node_name(index) for index in (0, 9, 10, 99, 100, 99_999)]

    assert names == sorted(names)
