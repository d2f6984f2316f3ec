"""What must never happen, looked for at every transition, and what must have happened in the end.

Each checker has a name, which a violation carries; ``tests/chaos/sim/test_checkers.py`` plants a violation for each.

==================  ================================================================================================
name                what it watches
==================  ================================================================================================
incarnation         the life believed of a node never goes back, nor its incarnation within a life (but for LEFT,
                    which is final whatever its number); what the core calls "before" is what it believed before
resurrection        nobody gone returns at an incarnation that is not higher, unless its tombstone's time was over
illegal_pair        no transition that the merge rules exclude (:data:`ILLEGAL_SAME_INCARNATION`)
own_incarnation     what a node says of itself never goes back
self_belief         no running node holds itself suspect or dead
superseded          no process is told to stop unless it has a successor or left
false_death         no healthy node holds a healthy node dead that it could reach by some way
exactly_once        no node delivers a broadcast twice, nor its own
missing_delivery    whoever ran all the time got every broadcast of an origin that went on running
bounds              tables, tombstones, queues and bodies stay within their bounds
convergence         calm ends in one view: every live node believes exactly the live nodes alive, and links connect all
==================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gossip.config import GossipConfig
from gossip.events import Deliver, Member, MemberState, Superseded
from gossip.incarnation import life_of
from transport.types import NodeId
from transport.wire import FRAME_BYTES_MAX

from .measure import Broadcast
from .process import Process

if TYPE_CHECKING:
    from .world import World

_ALIVE, _SUSPECT, _DEAD, _LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT

#: (before, after) that no evidence allows while the incarnation stays the same.
ILLEGAL_SAME_INCARNATION: Final = frozenset(
    {(_SUSPECT, _ALIVE), (_DEAD, _ALIVE), (_DEAD, _SUSPECT), (_LEFT, _ALIVE), (_LEFT, _SUSPECT), (_LEFT, _DEAD)}
)
#: Processes whose beliefs are also remembered here, to compare with what their cores say (memory grows with N * N).
SHADOWS_MAX: Final = 256
#: How long after a partition its deaths may still spread before they are refuted.
REUNION_GRACE_S: Final = 60.0
#: An origin that ends so soon after it sent explains what others miss.
ORIGIN_GRACE_S: Final = 5.0
#: Violations that are kept; more are only counted.
VIOLATIONS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    checker: str
    at_s: float
    text: str


class Checkers:
    """All checkers of one run."""

    def __init__(self, config: GossipConfig, now: Callable[[], float]) -> None:
        self._config = config
        self._now = now
        self._world: World | None = None
        self._shadows: dict[int, dict[NodeId, Member]] = {}
        self._buried: dict[int, dict[NodeId, tuple[Member, float]]] = {}
        self._own: dict[int, int] = {}
        self.violations: list[Violation] = []
        self.violation_count = 0
        self.false_deaths = 0
        """Healthy nodes that held a healthy, reachable node dead."""
        self.false_deaths_sick = 0
        """The same at nodes that stood still, or had just done so: expected, but counted."""
        self.false_suspicions = 0
        self.deaths_explained = 0
        """Healthy nodes held dead across a partition."""

    def watch(self, world: World) -> None:
        """Look at this world from now on."""
        self._world = world

    def violate(self, checker: str, text: str) -> None:
        """Note a violation."""
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(checker, round(self._now(), 6), text))

    # --- transitions ------------------------------------------------------------------------------------------

    def started(self, process: Process) -> None:
        """A process starts with nothing but itself."""
        me = process.core.me
        if len(self._shadows) < SHADOWS_MAX:
            self._shadows[process.uid] = {me.node_id: me}
            self._buried[process.uid] = {}
        self._own[process.uid] = me.incarnation

    def ended(self, process: Process) -> None:
        """A process ended, and its beliefs with it."""
        self._shadows.pop(process.uid, None)
        self._buried.pop(process.uid, None)
        self._own.pop(process.uid, None)

    def transition(self, process: Process, before: Member | None, after: Member) -> None:
        """One belief changed."""
        if before is not None:
            self._pair(process, before, after)
        if (shadow := self._shadows.get(process.uid)) is not None:
            self._compare(process, shadow, before, after)
        if after.node_id == process.name:
            self._about_self(process, after)
        elif after.state is _DEAD:
            self._death(process, after)
        elif after.state is _SUSPECT and self._is_healthy(process, after):
            self.false_suspicions += 1

    def _pair(self, process: Process, before: Member, after: Member) -> None:
        told = f"{process.name} believed {_told(before)}, then {_told(after)}"
        if before.incarnation == after.incarnation:
            if (before.state, after.state) in ILLEGAL_SAME_INCARNATION:
                gone = before.state in {_DEAD, _LEFT} and after.state in {_ALIVE, _SUSPECT}
                self.violate("resurrection" if gone and after.state is _ALIVE else "illegal_pair", told)
            return
        lives = life_of(before.incarnation), life_of(after.incarnation)
        if lives[1] < lives[0]:
            self.violate("incarnation", told)
        elif lives[0] == lives[1]:
            if before.state is _LEFT and after.state is not _LEFT:
                self.violate("illegal_pair", told)
            elif after.incarnation < before.incarnation and after.state is not _LEFT:
                gone = before.state is _DEAD and after.state in {_ALIVE, _SUSPECT}
                self.violate("resurrection" if gone else "incarnation", told)

    def _compare(self, process: Process, shadow: dict[NodeId, Member], before: Member | None, after: Member) -> None:
        known = shadow.get(after.node_id)
        shadow[after.node_id] = after
        if known != before:
            was = "nothing" if before is None else _told(before)
            is_ = "nothing" if known is None else _told(known)
            self.violate("incarnation", f"{process.name} says that it believed {was} of {after.node_id}; it was {is_}")
            return
        grave = self._buried[process.uid].pop(after.node_id, None)
        if before is None and grave is not None and after.state in {_ALIVE, _SUSPECT}:
            member, since = grave
            if after.incarnation <= member.incarnation and self._now() < since + self._config.tombstone_s:
                self.violate("resurrection", f"{process.name} forgot {_told(member)}, then believed {_told(after)}")

    def forgotten(self, process: Process, member: Member) -> None:
        """A record was dropped."""
        if member.state not in {_DEAD, _LEFT}:
            self.violate("incarnation", f"{process.name} forgot {_told(member)}, which is not gone")
        if (shadow := self._shadows.get(process.uid)) is not None:
            shadow.pop(member.node_id, None)
            graves = self._buried[process.uid]
            graves[member.node_id] = member, self._now()
            if len(graves) > self._config.members_max:
                del graves[next(iter(graves))]

    def _about_self(self, process: Process, after: Member) -> None:
        if after.state in {_SUSPECT, _DEAD}:
            self.violate("self_belief", f"{process.name} believes of itself {_told(after)}")
        if after.state is _LEFT and not process.leaving:
            self.violate("self_belief", f"{process.name} believes that it left, and nobody asked it to")
        if after.incarnation < self._own.get(process.uid, 0):
            self.violate("own_incarnation", f"{process.name} went back to {_told(after)}")
        self._own[process.uid] = after.incarnation

    def superseded(self, process: Process, notice: Superseded) -> None:
        """A core says that its time is over."""
        world = self._world
        if world is None or process.leaving:
            return
        current = world.processes.get(process.name)
        if current is process and life_of(notice.incarnation) <= life_of(process.core.me.incarnation):
            self.violate("superseded", f"{process.name} is told to stop without a successor: {notice.why}")

    # --- deaths -----------------------------------------------------------------------------------------------

    def _is_healthy(self, process: Process, about: Member) -> bool:
        """Whether ``about`` runs, in that life, and never stood still; and may reach the observer."""
        world = self._world
        if world is None:
            return False
        subject = world.processes.get(about.node_id)
        if subject is None or not subject.live or subject.leaving or world.now <= subject.sick_until:
            return False
        if life_of(about.incarnation) != life_of(subject.core.me.incarnation):
            return False
        return not world.apart(process.index, subject.index, REUNION_GRACE_S)

    def _death(self, process: Process, after: Member) -> None:
        world = self._world
        if world is None:
            return
        subject = world.processes.get(after.node_id)
        if subject is not None and world.apart(process.index, subject.index, REUNION_GRACE_S) and subject.live:
            self.deaths_explained += 1
        if not self._is_healthy(process, after):
            return
        if world.now <= process.sick_until:
            self.false_deaths_sick += 1
        else:
            self.false_deaths += 1
            self.violate("false_death", f"{process.name} holds healthy {_told(after)}")

    # --- broadcasts -------------------------------------------------------------------------------------------

    def delivered(self, process: Process, delivery: Deliver, before: Broadcast | None) -> None:
        """A broadcast reached a node; ``before``: it had done so already."""
        what = f"{delivery.origin}'s broadcast {delivery.sequence}"
        if before is not None:
            self.violate("exactly_once", f"{process.name} delivers {what} again")
        if delivery.origin == process.name and delivery.origin_incarnation >> 16 == process.core.me.incarnation >> 16:
            self.violate("exactly_once", f"{process.name} delivers its own broadcast {delivery.sequence}")

    def missing(self, broadcasts: list[Broadcast]) -> None:
        """At the end of a run: each missing delivery needs an explanation."""
        for broadcast in broadcasts:
            unexplained = [process for process in broadcast.missing() if not self._explained(broadcast, process)]
            if unexplained:
                some = ", ".join(process.name for process in unexplained[:3])
                more = "" if len(unexplained) <= 3 else f" and {len(unexplained) - 3} more"
                self.violate(
                    "missing_delivery",
                    f"broadcast {broadcast.number}{broadcast.label and f' ({broadcast.label})'} of "
                    f"{broadcast.origin.name}, sent at {broadcast.at:.3f}, is missing at {some}{more}",
                )

    def _explained(self, broadcast: Broadcast, process: Process) -> bool:
        origin, world = broadcast.origin, self._world
        if origin.ended_at is not None and origin.ended_at <= broadcast.at + ORIGIN_GRACE_S:
            return True  # its words may have died with it
        if process.frozen_at is not None or origin.frozen_at is not None:
            return True  # it has not been able to read them yet
        if world is None:
            return False
        # Sent while the two were apart: nobody promises to store it.
        history = [world.islands] if world.islands is not None else []
        if world.islands_before is not None and broadcast.at <= world.islands_before[1]:
            history.append(world.islands_before[0])
        return any(islands.get(origin.index) != islands.get(process.index) for islands in history)

    # --- looks at the whole -----------------------------------------------------------------------------------

    def body(self, size_bytes: int, peer: str) -> None:
        """A body is sent."""
        if size_bytes > FRAME_BYTES_MAX:
            self.violate("bounds", f"a body of {size_bytes} bytes to {peer} fits no frame")

    def sizes(self, process: Process) -> None:
        """A look at one process's sizes; the runner calls this for some processes each second."""
        config = self._config
        figures = process.core.statistics()
        bounds = {
            "members": config.members_max,
            "members_gone": max(config.dead_max, 0),
            "tombstones": config.members_max,
            "meta_bytes": config.meta_table_bytes_max,
            "broadcast_origins": config.broadcast_origins_max,
        }
        for name, bound in bounds.items():
            if figures.get(name, 0) > bound:
                self.violate("bounds", f"{process.name} has {name}={figures[name]}, more than {bound}")
        for name, value in figures.items():
            # A core that has a queue reports `<name>` and `<name>_max`.
            if (limit := figures.get(f"{name}_max")) is not None and value > limit:
                self.violate("bounds", f"{process.name} has {name}={value}, more than {limit}")
        if process.core.me.incarnation < self._own.get(process.uid, 0):
            self.violate("own_incarnation", f"{process.name} is back at incarnation {process.core.me.incarnation}")

    def ghosts(self, process: Process, remembered_max: int) -> None:
        """A table holds no more than the live nodes and those that went lately."""
        figures = process.core.statistics()
        held = figures.get("members", 0) + figures.get("members_gone", 0) + figures.get("tombstones", 0)
        if held > remembered_max:
            self.violate("bounds", f"{process.name} remembers {held} nodes, more than {remembered_max}")

    def not_converged(self, limit_s: float, detail: str) -> None:
        """Calm did not end in one view."""
        self.violate("convergence", f"no single view after {limit_s:g} s of calm: {detail}")


def difference(world: World) -> str | None:
    """Why the live nodes' views are not one true view; ``None``: they are."""
    live = [process for process in world.live() if process.frozen_at is None and not process.leaving]
    if not live:
        return None
    digests: dict[int, list[Process]] = {}
    for process in live:
        digests.setdefault(process.core.digest, []).append(process)
    names = [process.name for process in world.live() if not process.leaving]
    wrong = 0
    example = ""
    for group in digests.values():
        believed = {m.node_id: m for m in group[0].core.members() if m.state is _ALIVE}
        missing = [name for name in names if name not in believed]
        extra = len(believed) + len(missing) - len(names)
        if missing or extra > 0:
            wrong += len(group)
            example = f"{group[0].name} misses {len(missing)} and has {extra} too many"
    if wrong:
        return f"{wrong} of {len(live)} views are wrong (for one, {example})"
    if len(digests) > 1:
        return f"{len(digests)} different views"
    parts = islands(live)
    return f"{parts} islands without a link between them" if parts > 1 else None


def islands(live: list[Process]) -> int:
    """Into how many parts the links of these processes divide them; one that agrees but is alone hears nothing new."""
    unseen = {process.name: process for process in live}
    parts = 0
    while unseen:
        parts += 1
        todo = [unseen.popitem()[1]]
        while todo:
            found = (unseen.pop(name, None) for name in todo.pop().links)
            todo.extend(neighbour for neighbour in found if neighbour is not None)
    return parts


def _told(member: Member) -> str:
    return f"{member.node_id} {member.state.name} at {life_of(member.incarnation)}.{member.incarnation & 0xFFFF}"
