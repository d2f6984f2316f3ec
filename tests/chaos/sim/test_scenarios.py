"""Scenarios with few nodes end without violations; what they need of many is for `mesh sim` itself."""

from __future__ import annotations

import pytest

from chaos.sim.runner import Runner, run
from chaos.sim.scenarios import SCENARIOS, Options

#: What a few nodes do within a second or two of real time.
QUICK = [name for name in SCENARIOS if name not in {"false-deaths-1", "false-deaths-5", "partition-half", "loss-2"}]


@pytest.mark.parametrize("name", QUICK)
def test_few_nodes_do_nothing_wrong(name: str) -> None:
    """No checker complains, and every figure that a bar names is there."""
    nodes = 20 if "kill-90" in name else 8  # a tenth of them must be able to talk
    report = run(SCENARIOS[name].plan(Options(nodes, 5, warm_s=2.0)), wall_s_max=50.0)

    assert report.violations == ()
    assert [result.bar.metric for result in report.bars if result.value is None] == []


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_a_seed_draws_the_plan(name: str) -> None:
    """The same seed the same plan, and it needs no more nodes than it is given but for new ids."""
    scenario = SCENARIOS[name]

    assert scenario.plan(Options(10, 1)) == scenario.plan(Options(10, 1))
    assert scenario.plan(Options(10, 1)).bars != ()
    assert scenario.about


def test_faults_are_really_drawn() -> None:
    """A simulation without faults proves nothing: each kind leaves its traces."""
    figures = {name: Runner(SCENARIOS[name].plan(Options(12, 2, warm_s=2.0))).run().figures for name in _TRACES}

    for name, traces in _TRACES.items():
        for trace in traces:
            assert (figures[name][trace] or 0) > 0, (name, trace)


_TRACES = {
    "loss-2-tcp": ["wire_late"],
    "unruly": ["wire_duplicated"],
    "mass-kill-50": ["ended_processes"],
    "kill-one-silent": ["wire_links_timed_out", "suspected_p50_s"],
    "frozen-16s": ["inbox_peak", "wire_links_timed_out"],
    "partition-three": ["deaths_across_partitions", "wire_dials_failed"],
    "broken-pair": ["false_suspicions", "core_refutations"],
    "chaos": ["ended_processes", "wire_links_timed_out", "deaths_across_partitions"],
}


def test_a_run_has_an_end_on_the_wall() -> None:
    """Whoever waits for a build gets a violation, not silence."""
    report = run(SCENARIOS["false-deaths-5"].plan(Options(30, 1)), wall_s_max=0.2)

    assert {violation.checker for violation in report.violations} <= {"wall_clock", "convergence"}
    assert "wall_clock" in {violation.checker for violation in report.violations}
