"""Each checker sees what it is there for: a violation is planted, and must be found under its name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from chaos.sim.checkers import Checkers
from chaos.sim.plan import Plan, Step, node_name
from chaos.sim.process import CoreFactory
from chaos.sim.report import Report
from chaos.sim.runner import Runner
from gossip.config import GossipConfig
from gossip.events import (
    Deliver,
    Effect,
    Event,
    Member,
    MemberChanged,
    MemberForgotten,
    MemberState,
    Received,
    Send,
    Superseded,
    TimerFired,
)
from gossip.incarnation import life_of, make_incarnation
from gossip.router import GossipCore
from transport.types import NodeId
from transport.wire import FRAME_BYTES_MAX, Kind

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT
_NODES = list(range(5))
_CALM = (
    Step("start", {"nodes": _NODES, "seeds": [0]}),
    Step("settle", {"limit_s": 10.0, "label": "join"}),
    Step("run", {"seconds": 4.0}),
)

Forge = Callable[[GossipCore], Sequence[Effect]]


class Forger(GossipCore):
    """A core that says something false once, a while after it started."""

    forge: ClassVar[Forge]
    forged = False

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        if now > 3.0 and isinstance(event, TimerFired) and not self.forged and self.me.node_id == node_name(1):
            self.forged = True
            return [*effects, *type(self).forge(self)]
        return effects


def forger(forge: Forge) -> CoreFactory:
    """Cores of which node 1 forges."""
    return type("Planted", (Forger,), {"forge": forge})


def run(core_factory: CoreFactory, *steps: Step, config: dict[str, Any] | None = None) -> Report:
    """Five nodes, in calm, then what the test adds."""
    return Runner(Plan("planted", 1, 5, (*_CALM, *steps), config=config or {}), core_factory).run()


def other(core: GossipCore) -> Member:
    """What the forging core believes of node 2."""
    member = core.member(node_name(2))
    assert member is not None
    return member


def change(before: Member | None, **what: Any) -> list[Effect]:
    """What a core believes of one node is something else now."""
    assert before is not None
    return [MemberChanged(before, replace(before, **what))]


def dead_then(state: MemberState, lower_by: int = 0) -> Forge:
    """A node dies, then is something else."""

    def forge(core: GossipCore) -> list[Effect]:
        member = replace(other(core), incarnation=other(core).incarnation + 5)
        dead = replace(member, state=DEAD)
        back = replace(member, state=state, incarnation=member.incarnation - lower_by)
        return [MemberChanged(other(core), dead), MemberChanged(dead, back)]

    return forge


def left_then(state: MemberState, higher_by: int = 0) -> Forge:
    """A node leaves, then is something else."""

    def forge(core: GossipCore) -> list[Effect]:
        left = replace(other(core), state=LEFT)
        back = replace(left, state=state, incarnation=left.incarnation + higher_by)
        return [MemberChanged(other(core), left), MemberChanged(left, back)]

    return forge


def forgets_and_revives(core: GossipCore) -> list[Effect]:
    """A dead node is forgotten, and back as it was."""
    member = other(core)
    dead = replace(member, state=DEAD)
    return [MemberChanged(member, dead), MemberForgotten(dead), MemberChanged(None, member)]


def suspects_then_relents(core: GossipCore) -> list[Effect]:
    """A suspicion ends without a word of the suspect."""
    suspect = replace(other(core), state=SUSPECT)
    return [MemberChanged(other(core), suspect), MemberChanged(suspect, other(core))]


def goes_up_and_down(core: GossipCore) -> list[Effect]:
    """An incarnation rises and falls."""
    higher = replace(other(core), incarnation=other(core).incarnation + 9)
    return [MemberChanged(other(core), higher), MemberChanged(higher, other(core))]


def goes_back_a_life(core: GossipCore) -> list[Effect]:
    """An earlier process is believed in again."""
    member = other(core)
    return change(member, incarnation=make_incarnation(life_of(member.incarnation) - 1))


#: What is planted, and which checker must see it.
PLANTS: dict[str, tuple[str, Forge]] = {
    "an earlier life": ("incarnation", goes_back_a_life),
    "a before that was not": ("incarnation", lambda core: change(replace(other(core), incarnation=7), incarnation=8)),
    "forgets the living": ("incarnation", lambda core: [MemberForgotten(other(core))]),
    "up and down": ("incarnation", goes_up_and_down),
    "dead, then alive": ("resurrection", dead_then(ALIVE)),
    "dead, then alive below": ("resurrection", dead_then(ALIVE, lower_by=1)),
    "dead, then suspect below": ("resurrection", dead_then(SUSPECT, lower_by=1)),
    "forgotten, then alive": ("resurrection", forgets_and_revives),
    "dead, then suspect": ("illegal_pair", dead_then(SUSPECT)),
    "left, then suspect": ("illegal_pair", left_then(SUSPECT)),
    "left, then dead": ("illegal_pair", left_then(DEAD)),
    "left, then alive above": ("illegal_pair", left_then(ALIVE, higher_by=1)),
    "suspicion taken back by another": ("illegal_pair", suspects_then_relents),
    "own incarnation lowered": ("own_incarnation", lambda core: change(core.me, incarnation=core.me.incarnation - 1)),
    "suspects itself": ("self_belief", lambda core: change(core.me, state=SUSPECT)),
    "buries itself": ("self_belief", lambda core: change(core.me, state=DEAD)),
    "left unasked": ("self_belief", lambda core: change(core.me, state=LEFT)),
    "stops without successor": ("superseded", lambda core: [Superseded(core.me.incarnation, "forged")]),
    "buries a healthy node": ("false_death", lambda core: change(other(core), state=DEAD)),
    "a body for no frame": ("bounds", lambda _: [Send(node_name(2), bytes(FRAME_BYTES_MAX + 1))]),
    "a body that says nothing": ("protocol_error", lambda _: [Send(node_name(2), b"\xc1")]),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_forged_effect_is_found(plant: str) -> None:
    """One core of five says what no core may say; the checker for it complains, and the honest run does not."""
    checker, forge = PLANTS[plant]
    report = run(forger(forge))

    assert checker in {violation.checker for violation in report.violations}


def test_honest_cores_do_nothing_wrong() -> None:
    """The same run without a plant finds nothing, so what is found elsewhere is the plant."""
    report = run(GossipCore, Step("broadcast", {"nodes": _NODES}), Step("run", {"seconds": 2.0}))

    assert report.violations == ()
    assert report.figures["delivered_fraction"] == 1.0


# --- deliveries -------------------------------------------------------------------------------------------------


class Stutterer(GossipCore):
    """Delivers everything twice."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        return [*effects, *(effect for effect in effects if isinstance(effect, Deliver))]


class Narcissist(GossipCore):
    """Delivers its own broadcasts to itself."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        before = self.sequence
        effects = super().handle(event, now)
        if self.sequence != before:
            effects.append(Deliver(self.me.node_id, self.me.incarnation, self.sequence, b"mine"))
        return effects


class Absentminded(GossipCore):
    """Node 3 loses every broadcast."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.me.node_id == node_name(3) and isinstance(event, Received) and event.kind == Kind.BROADCAST:
            return []
        return super().handle(event, now)


@pytest.mark.parametrize(
    ("checker", "core"),
    [("exactly_once", Stutterer), ("exactly_once", Narcissist), ("missing_delivery", Absentminded)],
    ids=["twice", "to itself", "not at all"],
)
def test_wrong_deliveries_are_found(checker: str, core: CoreFactory) -> None:
    """A broadcast that arrives twice, at its own origin, or not at all."""
    report = run(core, Step("broadcast", {"nodes": [0]}), Step("run", {"seconds": 2.0}))

    assert {violation.checker for violation in report.violations} == {checker}


def test_a_missing_delivery_with_a_reason_is_none() -> None:
    """The receiver ended, stands still, was cut off, or the origin died with its words: nobody promised more."""
    explained = [
        (Step("broadcast", {"nodes": [0]}), Step("kill", {"nodes": [3]})),
        (
            Step("freeze", {"nodes": [3], "freeze_s": 60.0}),
            Step("run", {"seconds": 0.1}),
            Step("broadcast", {"nodes": [0]}),
        ),
        (
            Step("block", {"left": [3], "right": [0, 1, 2, 4], "islands": [[3], [0, 1, 2, 4]]}),
            Step("broadcast", {"nodes": [0]}),
        ),
        (Step("broadcast", {"nodes": [0]}), Step("kill", {"nodes": [0]})),
    ]
    for steps in explained:
        assert run(Absentminded, *steps, Step("run", {"seconds": 2.0})).violations == (), steps


# --- bounds and convergence ---------------------------------------------------------------------------------------


class Hoarder(GossipCore):
    """Says that it holds more than its bounds allow."""

    shown: dict[str, int]

    def statistics(self) -> dict[str, int | float]:
        return {**super().statistics(), **self.shown}


@pytest.mark.parametrize(
    "shown",
    [
        {"members": 10**6},
        {"members_gone": 10**6},
        {"tombstones": 10**6},
        {"meta_bytes": 10**12},
        {"broadcast_origins": 10**6},
        {"lazy_queue": 11, "lazy_queue_max": 10},
    ],
    ids=lambda shown: next(iter(shown)),
)
def test_what_grows_too_large_is_found(shown: dict[str, int]) -> None:
    """Tables have the configuration's bounds; a queue has the bound that the core itself names."""
    report = run(type("Planted", (Hoarder,), {"shown": shown}))

    assert "bounds" in {violation.checker for violation in report.violations}


def test_ghosts_are_found() -> None:
    """Whoever remembers more nodes than the scenario allows for has ghosts."""
    report = run(GossipCore, Step("remember", {"nodes_max": 4}))

    assert {violation.checker for violation in report.violations} == {"bounds"}


class Deaf(GossipCore):
    """Node 4 believes nothing it hears once it has joined."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.me.node_id == node_name(4) and now > 2.0 and isinstance(event, Received):
            return []
        return super().handle(event, now)


def test_calm_without_agreement_is_found() -> None:
    """A node that missed a restart for good makes the final look complain."""
    steps = Step("kill", {"nodes": [2]}), Step("settle", {"limit_s": 20.0, "label": "calm"})
    plan = Plan("planted", 1, 6, (Step("start", {"nodes": [0, 1, 2, 3, 4, 5], "seeds": [0]}), *_CALM[1:], *steps))

    class Blind(Deaf):
        """Nor does it notice lost links."""

        def handle(self, event: Event, now: float) -> list[Effect]:
            effects = super().handle(event, now)
            return [] if self.me.node_id == node_name(4) and now > 2.0 else effects

        @property
        def digest(self) -> int:
            return super().digest ^ (self.me.node_id == node_name(4) and 1)

    assert "convergence" in {violation.checker for violation in Runner(plan, Blind).run().violations}
    assert Runner(plan).run().violations == ()


def test_islands_are_found() -> None:
    """Views may agree while no link connects two parts; the next change would divide them."""
    steps = [Step("start", {"nodes": _NODES, "seeds": []}), Step("settle", {"limit_s": 3.0})]

    class Hermit(GossipCore):
        """Says that it knows all, and is linked to nobody."""

        @property
        def digest(self) -> int:
            return 1

        def members(self) -> list[Member]:
            return [Member(node_name(index), 1, ALIVE) for index in _NODES]

    report = Runner(Plan("planted", 1, 5, tuple(steps)), Hermit).run()

    assert [violation.checker for violation in report.violations] == ["convergence"]
    assert "5 islands" in report.violations[0].text


# --- what is not a violation --------------------------------------------------------------------------------------


def test_deaths_at_sick_nodes_are_counted_apart() -> None:
    """A node that stood still may believe nonsense for a while; the figure says how often."""
    steps = (
        Step("freeze", {"nodes": [1], "freeze_s": 1.0}),
        Step("run", {"seconds": 2.5}),
    )

    def accuse(core: GossipCore) -> list[Effect]:
        return change(other(core), state=DEAD)

    class Late(Forger):
        forge: ClassVar[Forge] = accuse

        def handle(self, event: Event, now: float) -> list[Effect]:
            return super().handle(event, now) if now > 5.9 else GossipCore.handle(self, event, now)

    report = run(Late, *steps)

    assert report.violations == ()
    assert report.figures["false_positives_sick"] == 1
    assert report.figures["false_positives"] == 0


def test_violations_are_counted_beyond_what_is_kept() -> None:
    """A run that goes wrong everywhere does not fill the memory with complaints."""
    checkers = Checkers(GossipConfig(), lambda: 1.0)
    for number in range(1000):
        checkers.violate("bounds", str(number))

    assert checkers.violation_count == 1000
    assert len(checkers.violations) == 100
    assert checkers.violations[0].at_s == 1.0


def test_cores_get_their_own_randomness() -> None:
    """Two nodes never draw the same numbers."""
    drawn: dict[NodeId, float] = {}

    class Drawing(GossipCore):
        def __init__(self, me: Member, config: GossipConfig, rng: random.Random) -> None:
            super().__init__(me, config, rng)
            drawn[me.node_id] = rng.random()

    run(Drawing)

    assert len(set(drawn.values())) == 5
