"""What a run consists of, as data: it can be written down, repeated, and made smaller."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gossip.config import GossipConfig
from transport.types import NodeId

#: The vocabulary of faults and stimuli; :class:`chaos.sim.runner.Runner` has one method for each.
VERBS: Final = (
    "start",
    "settle",
    "run",
    "broadcast",
    "kill",
    "leave",
    "freeze",
    "block",
    "heal",
    "loss",
    "idle",
    "remember",
)


@dataclass(frozen=True, slots=True)
class Network:
    """What lies between the nodes.

    Attributes:
        latency_s: One-way delay of a pair of nodes, drawn once for each pair, lowest and highest.
        jitter: How much longer a message may take, as a part of the pair's delay.
        loss: Part of the messages that are lost, see ``loss_vanishes``.
        loss_vanishes: Lost messages vanish, as if a link dropped them.  Otherwise they are late, as with TCP: they
            and all behind them wait for the retransmission.
        duplicates: Part of the messages that arrive twice.
        reorders: Part of the messages that may be overtaken (TCP never does this).
        clock_drift: How much faster or slower than true a node's clock may run, as a part.
        keepalive_interval_s: How often a silent link is asked whether it lives.
        keepalive_timeout_s: When a silent link is given up.
        dial_timeout_s: When a dial without answer fails.
        dials_per_s: How many dials a node starts per second at most.
        dials_concurrent_max: How many run at once.
        handshake_round_trips: TCP, TLS 1.3, WebSocket upgrade, hello and accept: one each.
        event_cost_s: What a node that catches up after a freeze needs for one event.
        discovery_interval_s: How often discovery tells a node again of its seeds; 0: only when it starts.
    """

    latency_s: tuple[float, float] = (0.010, 0.050)
    jitter: float = 0.1
    loss: float = 0.0
    loss_vanishes: bool = False
    duplicates: float = 0.0
    reorders: float = 0.0
    clock_drift: float = 0.001
    keepalive_interval_s: float = 2.0
    keepalive_timeout_s: float = 4.0
    dial_timeout_s: float = 5.0
    dials_per_s: float = 64.0
    dials_concurrent_max: int = 16
    handshake_round_trips: int = 4
    event_cost_s: float = 0.00005
    discovery_interval_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens.  Only ``run``, ``settle`` and ``idle`` let time pass."""

    verb: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure of the report must reach, where the plan has at least ``nodes_min`` nodes."""

    metric: str
    at_most: float | None = None
    at_least: float | None = None
    nodes_min: int = 0
    nodes_max: int = 1 << 30

    def applies(self, nodes: int) -> bool:
        """Whether the bar is meant for a network of this size."""
        return self.nodes_min <= nodes <= self.nodes_max

    def met_by(self, value: float | None) -> bool:
        """Whether the figure is there and good enough."""
        if value is None:
            return False
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, completely."""

    scenario: str
    seed: int
    nodes: int
    steps: tuple[Step, ...]
    network: Network = field(default_factory=Network)
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from :meth:`gossip.config.GossipConfig.lan`."""
    bars: tuple[Bar, ...] = ()

    def gossip_config(self) -> GossipConfig:
        """The configuration of every core."""
        return dataclasses.replace(GossipConfig.lan(), **self.config)

    def to_json(self) -> str:
        """One line; :meth:`from_json` reads it."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is not such a line.
        """
        try:
            raw = json.loads(text)
            network = {**raw["network"], "latency_s": tuple(raw["network"]["latency_s"])}
            steps = tuple(Step(step["verb"], step["args"]) for step in raw["steps"])
            unknown = [step.verb for step in steps if step.verb not in VERBS]
            if unknown:
                raise ValueError(f"unknown verb {unknown[0]!r}")
            bars = tuple(Bar(**bar) for bar in raw["bars"])
            return cls(raw["scenario"], raw["seed"], raw["nodes"], steps, Network(**network), dict(raw["config"]), bars)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a plan: {error}") from error


def node_name(index: int) -> NodeId:
    """The name of the node with this number; names sort as numbers do."""
    return NodeId(f"n{index:05}")
