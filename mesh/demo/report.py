"""What the demo does, tells while it runs, and reports at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run.

    Attributes:
        nodes: How many processes, at least 2.
        messages: How many messages each node sends to each other one.
        round_trips: How many requests are timed.
        writes: How often each node writes to the document that all share, before and after one of them is killed.
        mdns: Announce the nodes by multicast DNS on loopback as well.
        keep: Leave the data directory behind for a look.
        deadline_s: When to give up altogether.
    """

    nodes: int = 4
    messages: int = 25
    round_trips: int = 200
    writes: int = 25
    mdns: bool = True
    keep: bool = False
    deadline_s: float = 90.0


@dataclass(frozen=True, slots=True)
class DemoStep:
    """Something was done.

    Attributes:
        at_s: Seconds since the demo began.
        text: What, in one line.
        ok: Whether it went as it should.
    """

    at_s: float
    text: str
    ok: bool = True


@dataclass(slots=True)
class DemoReport:
    """What was seen.  Numbers are 0 or ``None`` for what was not reached.

    Attributes:
        nodes: Processes that were started.
        started_s: Until every process listened, since the first was started.
        converged_s: Until every node knew every other and its agent, since the first process was started.
        found_by: How nodes heard of each other: sightings by way of discovery, all nodes together.
        tls: What a stranger's handshake with a node negotiated.
        strangers_refused: Nodes that refused a connection without a certificate.
        sent: Messages sent, each acknowledged by the receiving agent.
        delivered: Different messages that their receivers had.
        lost: Messages sent that were not delivered.
        duplicates: Further copies of a message or broadcast at one agent.
        out_of_order: Messages that came after a later one of the same sender.
        broadcasts: How many broadcasts were made, one by each node.
        broadcast_reached: Nodes that a broadcast reached, its sender included; the worst of all.
        writes: Transactions on the document that all nodes shared, all nodes together.
        state_equal: Whether in the end all survivors read the same in it, the killed node's writes included.
        equal_s: How long after the last round of writes began.
        rtt_p50_us: Median round trip of a request between two nodes, microseconds.
        killed_node: The node that was ended with SIGKILL.
        detected_first_s: Until the first survivor took it for failed, since the kill.
        detected_s: Until the last survivor did.
        false_alarms: Living nodes that somebody took for failed.
        left: Nodes that left in order and whose leaving the last one saw.
        cleaned_up: Whether every process has ended and every file is gone.
        elapsed_s: The whole run.
        data_dir: Where the files are if they were kept.
        problems: What went wrong, in words.
    """

    nodes: int
    started_s: float | None = None
    converged_s: float | None = None
    found_by: dict[str, int] = field(default_factory=dict)
    tls: str = ""
    strangers_refused: int = 0
    sent: int = 0
    delivered: int = 0
    lost: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    broadcasts: int = 0
    broadcast_reached: int = 0
    writes: int = 0
    state_equal: bool = False
    equal_s: float | None = None
    rtt_p50_us: float | None = None
    killed_node: str = ""
    detected_first_s: float | None = None
    detected_s: float | None = None
    false_alarms: int = 0
    left: int = 0
    cleaned_up: bool = False
    elapsed_s: float = 0.0
    data_dir: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything went as a mesh must."""
        return not self.problems

    def judge(self) -> None:
        """Add a sentence to :attr:`problems` for each figure that is not what it must be."""
        wrong = {
            f"{self.nodes - self.strangers_refused} nodes let a stranger in": self.strangers_refused != self.nodes,
            f"{self.lost} messages were lost": self.lost != 0 or self.sent == 0,
            f"{self.duplicates} messages came twice": self.duplicates != 0,
            f"{self.out_of_order} messages came out of order": self.out_of_order != 0,
            f"a broadcast reached {self.broadcast_reached} of {self.nodes} nodes": self.broadcast_reached != self.nodes,
            "the document that all shared is not equal everywhere": not self.state_equal,
            f"not every survivor noticed that {self.killed_node or 'a node'} was killed": self.detected_s is None,
            f"{self.false_alarms} living nodes were taken for failed": self.false_alarms != 0,
            "something was left behind": not self.cleaned_up,
        }
        self.problems += [sentence for sentence, is_so in wrong.items() if is_so]

    def document(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**asdict(self), "ok": self.ok}

    def rows(self) -> list[tuple[str, str]]:
        """The report as the lines of a table."""
        found = ", ".join(f"{way} ({count})" for way, count in self.found_by.items()) or "nothing"
        return [
            ("nodes", f"{self.nodes} processes, listening after {_seconds(self.started_s)}"),
            ("all know all", f"after {_seconds(self.converged_s)}; found by {found}"),
            ("links", f"{self.tls or 'not examined'}, strangers refused by {self.strangers_refused} of {self.nodes}"),
            (
                "messages",
                (
                    f"{self.sent} sent, {self.delivered} delivered, {self.lost} lost, {self.duplicates} twice, "
                    f"{self.out_of_order} out of order"
                ),
            ),
            ("broadcast", f"{self.broadcasts} made, each reached {self.broadcast_reached} of {self.nodes} nodes"),
            ("request", f"{self.rtt_p50_us:.0f} µs there and back (median)" if self.rtt_p50_us else "not measured"),
            (
                "document",
                f"{self.writes} writes by all at once; "
                + (f"equal everywhere {_seconds(self.equal_s)} later" if self.state_equal else "NOT equal everywhere"),
            ),
            (
                "killed",
                (
                    f"{self.killed_node or 'none'}; noticed after {_seconds(self.detected_first_s)} by the first, "
                    f"{_seconds(self.detected_s)} by all"
                ),
            ),
            ("false alarms", str(self.false_alarms)),
            ("cleaned up", "yes" if self.cleaned_up else f"NO: {self.data_dir}"),
            ("whole run", _seconds(self.elapsed_s)),
        ]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"
