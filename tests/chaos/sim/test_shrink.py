"""Shrinking keeps what fails and drops the rest."""

from __future__ import annotations

from chaos_sim import nodes, plan_of

from chaos.sim.plan import Plan, Step, node_name
from chaos.sim.report import Report
from chaos.sim.runner import Runner
from chaos.sim.shrink import Shrinker
from gossip.events import Effect, Event, LinkLost, MemberChanged, MemberState
from gossip.router import GossipCore


class Rash(GossipCore):
    """Holds itself dead when a link to node 3 breaks, whoever it is."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        if isinstance(event, LinkLost) and event.peer == node_name(3) and not event.wanted:
            me = self.me
            effects.append(MemberChanged(me, type(me)(me.node_id, me.incarnation, MemberState.DEAD)))
        return effects


def rash(plan: Plan) -> Report:
    """Run a plan with rash cores."""
    return Runner(plan, Rash).run()


def test_a_failing_plan_becomes_small() -> None:
    """Of many faults among twelve nodes, the one that matters remains, with the nodes that it needs."""
    steps = [
        Step("start", {"nodes": nodes(12), "seeds": [0]}),
        Step("settle", {"limit_s": 30.0}),
        Step("run", {"seconds": 8.0}),
    ]
    for victim in (7, 3, 9, 5):
        steps += [Step("broadcast", {"nodes": [1]}), Step("kill", {"nodes": [victim]}), Step("run", {"seconds": 4.0})]
    plan = plan_of(*steps)
    told: list[str] = []
    shrinker = Shrinker(rash, frozenset({"self_belief"}), told.append)
    small = shrinker.shrink(plan)

    assert rash(small).violations
    assert [step.args["nodes"] for step in small.steps if step.verb == "kill"] == [[3]]
    assert small.nodes == 2
    assert len(small.steps) <= 4
    assert sum(step.args.get("seconds", 0.0) for step in small.steps) < 8.0
    assert told
    assert shrinker.attempts > 5


def test_what_does_not_fail_stays_as_it_is() -> None:
    """Nothing smaller fails either, so nothing is taken away."""
    plan = plan_of(Step("start", {"nodes": nodes(3), "seeds": [0]}), Step("run", {"seconds": 0.5}))

    assert Shrinker(lambda plan: Runner(plan).run(), frozenset({"bounds"})).shrink(plan) == plan


def test_a_plan_that_makes_no_sense_is_no_failure() -> None:
    """A step without what it needs does not count as the violation that is looked for."""

    def broken(plan: Plan) -> Report:
        if len(plan.steps) < 2:
            raise ValueError
        return rash(plan)

    plan = plan_of(Step("start", {"nodes": nodes(3), "seeds": [0]}), Step("run", {"seconds": 0.5}))

    assert Shrinker(broken, frozenset({"bounds"})).shrink(plan) == plan


def test_shrinking_has_an_end() -> None:
    """Out of time, it hands back the smallest so far."""
    plan = plan_of(Step("start", {"nodes": nodes(3), "seeds": [0]}), Step("run", {"seconds": 0.5}))
    shrinker = Shrinker(rash, frozenset({"self_belief"}), wall_s_max=0.0)

    assert shrinker.shrink(plan) == plan
    assert shrinker.attempts == 0
