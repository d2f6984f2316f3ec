"""What can be tuned in gossip: every field with its unit, its relation to the others, and presets.

The figures of the presets are derived from the reference study of memberlist, serf, foca and others (see
``docs/protocol/gossip.md``): with links as the first evidence of failure a LAN detects in about three seconds
what SWIM over UDP detects in nine.
"""

# core: no I/O

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: Hops of a random walk, and nodes that one shuffle tells of, that a peer may ask us to handle.
WALK_MAX: Final = 16
SHUFFLE_MAX: Final = 32
#: Nodes that may stand between two others.
RELAY_TTL_MAX: Final = 15


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Limits and times of the gossip cores.

    Attributes:
        heartbeat_interval_s: How often a node tells each neighbour its incarnation and table digest.  Just below the
            links' keepalive interval, even when late, so that links between neighbours need no pings of their own.
        sync_interval_s: Two heartbeats with different digests in a row lead to an exchange of tables; a node starts at
            most one in so long, with N > 32 nodes in ``ceil(log2 N) - 4`` times that (memberlist's scaling), for
            an exchange costs some 35 N bytes.
        suspicion_s: The least time that a suspect has to refute before it is dead, however many accuse it.  Must exceed
            a few round trips plus the longest pause of a healthy node that is already suspected.
        suspicion_mult: With N members the least time is ``max(suspicion_s, suspicion_mult * max(1, log10 N) *
            suspicion_unit_s)``, and ``suspicion_mult - 2`` confirmations bring it down to that.
        suspicion_unit_s: memberlist has its probe interval here, because its news travel with its probes.  Ours are
            pushed over links at once, so the unit is a few hops of news and the refutation's way back.
        suspicion_max_mult: An accusation that nobody confirms gets this many times the least time.
        suspicion_refused_s: The same once a dial was refused, which says that nobody listens there any more.
        probe_interval_s: How often one linked neighbour in turn is pinged.
        probe_timeout_s: How long it may take to answer before others are asked; above the slowest round trip.
        probe_silence_intervals: A neighbour that was silent for so many ``heartbeat_interval_s`` is pinged out of turn.
            Between one and two, so that one late heartbeat is no reason.
        probe_dial_timeout_s: How long the link for a probe may take; above the dialler's own timeout.
        probe_cold_interval_s: How often one member without a link is dialled to see whether it lives; each such probe
            costs a TLS handshake.  Shorter, from ``probe_interval_s``, as long as the dead are found that way.
        indirect_probes: How many neighbours are asked to probe whoever does not answer.
        awareness_max: How much slower to judge others a node gets that has reason to doubt itself: its intervals
            and timeouts are multiplied by 1 to ``awareness_max`` + 1.
        partition_part: A partition is reported when at least this part of the members, and at least two, are lost ...
        partition_window_s: ... within so long of each other; at least the spread of one failure's detection.
        partition_settle_s: How long nothing more must change before a partition, or its end, is reported.
        stall_credit_s_max: How much a stall of our own event loop may at most prolong a suspicion.
        flush_delay_s: How long news are collected before they are sent on as one body, when it was quiet before.
        flush_interval_s: The least time between two such bodies: when hundreds join or die at once each hop waits so
            long, and everything travels in a tenth of the bodies.
        forward_fanout: To how many peers at most, at random, news from others are passed on (own news go to all).
            Above ``active_view_max``: a flood that leaves out one neighbour in four misses some nodes in a thousand.
        forward_meta_bytes_max: Larger metadata is not passed on as news; anti-entropy fetches it.
        dial_delay_s: How long the node with the greater id leaves dialling to the other one.
        dial_backoff_s_min: Longest wait after the first failed dial; doubles with each further one.
        dial_backoff_s_max: Where the doubling ends.
        dial_failures_doubt: After so many failed dials in a row an unlinked member is suspected.
        doubt_interval_s: How long at least between two suspicions of a member that others vouch for.
        heal_interval_s: How often a random dead member is dialled, by about ``heal_nodes`` nodes in the network.
        heal_nodes: Keeps the rate of those dials constant whatever the size of the network (after ringpop).
        candidate_s: How long a node that discovery saw but nobody could link to is tried.
        dead_retention_s: How long a dead or departed member stays visible.
        tombstone_s: How long after that its incarnation is remembered, so that old news cannot raise it.
        active_view: How many neighbours a node looks for.  With that many, random graphs of any size we meet hold
            together under 80 % losses; each one more costs its heartbeats.
        active_view_min: With fewer, a node looks for more at once, and may ask with priority.
        active_view_max: How many it accepts before one has to go.  A network of up to ``active_view_max`` + 1 nodes
            is a full mesh.
        passive_view: How many further nodes are kept in mind as replacements; with N nodes at least 4 log2 N.
        active_walk: Hops of a join's and a shuffle's random walk (HyParView's ARWL); about log6 of the largest N.
        passive_walk: With how many hops left a walk leaves the newcomer in a passive view (PRWL).
        join_walks: How many walks a contact starts for a newcomer; with the contact itself and what the newcomer
            asks for on its own they fill an active view.
        shuffle_interval_s_min: The first shuffle; each next one after twice the time, because views are cold then.
        shuffle_interval_s_max: Where the doubling ends.
        shuffle_active: How many neighbours a shuffle tells of.
        shuffle_passive: How many of the passive view.
        neighbor_timeout_s: How long a neighbour may take to answer a request; above a round trip and a pause.
        repair_dials: How many dials at once replace lost neighbours.  A dial that takes longer than a second no longer
            counts, up to four times as many: after a mass failure most of them lead nowhere.
        optimize_interval_s: How often a node tries to replace its furthest neighbour by a nearer one.
        optimize_gain: Only by one whose round trip is below this share of the furthest's.
        random_neighbors: How many neighbours stay random; those keep the network one.
        idle_link_s: A link outside the active view that nobody used for so long is closed.
        links_max: No dial when so many links are open.
        members_max: Bound of the table, of the tombstones and of the dial candidates, in nodes each.
        dead_max: Bound of visible dead and departed members; the oldest is forgotten first.
        meta_bytes_max: Bound of one member's metadata.
        meta_table_bytes_max: Bound of all members' metadata together; beyond it only statuses are taken.
        addresses_max: Bound of one member's addresses.
        sync_body_bytes_max: Where a table exchange starts another body; above ``meta_bytes_max``.
        broadcast_bytes_max: Bound of one broadcast's payload.
        broadcast_window: How many sequence numbers back a broadcast is still told from a duplicate.
        broadcast_origins_max: Bound of the origins whose windows are kept; the longest silent goes first.
        broadcast_origin_s: How long a silent origin's window is kept.
        plumtree_flush_s: How long announcements to lazy peers are collected.  A small part of one link's latency.
        plumtree_ihave_timeout_s: How long after its first announcement a broadcast may still come by the tree before
            it is fetched.  About twice the latency of a slow link: shorter repairs sooner and costs redundancy.
        plumtree_graft_timeout_s: How long until the next announcer is asked.  At least a usual round trip, and not
            above ``plumtree_ihave_timeout_s``.
        plumtree_optimise_hops: A lazy peer takes the place of the tree's link if it would have saved so many hops.
            Lower makes trees shallower, and costs redundancy where many nodes broadcast.
        plumtree_prune_interval_s: At most one PRUNE a peer in this time; above a round trip.
        plumtree_sync_interval_s: How often, while there is something to compare, a random neighbour is told what we
            have.  Bounds how long a broadcast that the tree lost stays lost.
        plumtree_sync_grace_s: What arrived less long ago is not offered by a sync: the tree is about to bring it.
            Above ``plumtree_ihave_timeout_s``.
        plumtree_age_s: How old a broadcast may be to be passed on, fetched or delivered, and how long payloads are
            kept for that.  Longer than the time to detect a failure and mend the overlay.
        plumtree_history_s: How long before its own start a node still wants broadcasts; 0: only what came after it.
        plumtree_cache_count_max: Bound of the payloads kept; the oldest goes first.
        plumtree_cache_bytes_max: The same in bytes; at least one payload.
        plumtree_missing_max: Bound of the announced broadcasts that are waited for.
        plumtree_ihave_ids_max: Announcements taken from one peer in a second; the rest is left to the sync.
        plumtree_syncs_max: Syncs taken from one peer in a second; above ``2 / plumtree_sync_interval_s``.
        plumtree_link_bytes_per_s: What even a slow link carries: waiting for a large payload takes longer by its size
            over this, so that it is not fetched twice while it is under way.
        plumtree_repair_bytes_max: Payload bytes sent to one peer's requests in a second; at least one payload.
        relay_ttl: How many nodes may pass on what is sent to a node that cannot be dialled.
        relay_delay_s: A dial that the layer above waits for and that takes longer is given up for a relay.
        relay_search_s: How long answers to a question for a way may take per node on the way; above a round trip of
            a slow link.
        relay_retry_s: How long after a search in vain until the next for the same node.
        relay_route_s: How long a way is believed that nothing was heard through.
        relay_routes_max: Bound of the nodes that ways are remembered to; four ways each.
        relay_asks_max: Questions taken from one peer in a second.
        relay_envelopes_max: Envelopes passed on for one peer in a second.
        relay_bytes_max: The same in bytes.
        relay_rto_s_min: The least time until what was not acknowledged is sent again; longer than the usual pauses of
            an event loop, or a busy one would send everything twice.
        relay_rto_s_max: Where the doubling of that time ends.
        relay_silence_s: A relayed link on which nothing was acknowledged for so long is given up; enough to notice that
            a relay is gone, to find another and to send again.
        relay_upgrade_s: How often the other end of a relayed link in use is dialled again.
    """

    heartbeat_interval_s: float = 1.75
    sync_interval_s: float = 1.0
    suspicion_s: float = 2.0
    suspicion_refused_s: float = 1.0
    suspicion_mult: int = 4
    suspicion_unit_s: float = 0.3
    suspicion_max_mult: float = 6.0
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    probe_silence_intervals: float = 1.3
    probe_dial_timeout_s: float = 15.0
    probe_cold_interval_s: float = 60.0
    indirect_probes: int = 3
    awareness_max: int = 8
    partition_part: float = 0.2
    partition_window_s: float = 10.0
    partition_settle_s: float = 2.0
    stall_credit_s_max: float = 5.0
    flush_delay_s: float = 0.02
    flush_interval_s: float = 0.1
    forward_fanout: int = 10
    forward_meta_bytes_max: int = 4096
    dial_delay_s: float = 0.25
    dial_backoff_s_min: float = 0.25
    dial_backoff_s_max: float = 10.0
    dial_failures_doubt: int = 3
    doubt_interval_s: float = 60.0
    heal_interval_s: float = 5.0
    heal_nodes: float = 3.0
    candidate_s: float = 600.0
    dead_retention_s: float = 3600.0
    tombstone_s: float = 86_400.0
    active_view: int = 6
    active_view_min: int = 5
    active_view_max: int = 8
    passive_view: int = 30
    active_walk: int = 6
    passive_walk: int = 3
    join_walks: int = 4
    shuffle_interval_s_min: float = 1.0
    shuffle_interval_s_max: float = 60.0
    shuffle_active: int = 3
    shuffle_passive: int = 4
    neighbor_timeout_s: float = 2.0
    repair_dials: int = 4
    optimize_interval_s: float = 60.0
    optimize_gain: float = 0.7
    random_neighbors: int = 3
    idle_link_s: float = 30.0
    links_max: int = 256
    members_max: int = 20_000
    dead_max: int = 4096
    meta_bytes_max: int = 256 * 1024
    meta_table_bytes_max: int = 64 * 1024 * 1024
    addresses_max: int = 16
    sync_body_bytes_max: int = 384 * 1024
    broadcast_bytes_max: int = 1024 * 1024 - 1024
    broadcast_window: int = 4096
    broadcast_origins_max: int = 20_000
    broadcast_origin_s: float = 3600.0
    plumtree_flush_s: float = 0.005
    plumtree_ihave_timeout_s: float = 0.12
    plumtree_graft_timeout_s: float = 0.06
    plumtree_optimise_hops: int = 7
    plumtree_prune_interval_s: float = 0.5
    plumtree_sync_interval_s: float = 1.0
    plumtree_sync_grace_s: float = 0.25
    plumtree_age_s: float = 30.0
    plumtree_history_s: float = 0.0
    plumtree_cache_count_max: int = 4096
    plumtree_cache_bytes_max: int = 16 * 1024 * 1024
    plumtree_missing_max: int = 4096
    plumtree_ihave_ids_max: int = 5000
    plumtree_syncs_max: int = 8
    plumtree_link_bytes_per_s: float = 4 * 1024 * 1024
    plumtree_repair_bytes_max: int = 8 * 1024 * 1024
    relay_ttl: int = 6
    relay_delay_s: float = 1.0
    relay_search_s: float = 0.25
    relay_retry_s: float = 2.0
    relay_route_s: float = 60.0
    relay_routes_max: int = 1024
    relay_asks_max: int = 64
    relay_envelopes_max: int = 8192
    relay_bytes_max: int = 64 * 1024 * 1024
    relay_rto_s_min: float = 0.2
    relay_rto_s_max: float = 2.0
    relay_silence_s: float = 15.0
    relay_upgrade_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            ValueError: Names the fields and the rule.
        """
        positive = (
            "heartbeat_interval_s",
            "suspicion_s",
            "suspicion_unit_s",
            "probe_interval_s",
            "probe_timeout_s",
            "probe_dial_timeout_s",
            "probe_cold_interval_s",
            "partition_window_s",
            "partition_settle_s",
            "dial_backoff_s_min",
            "heal_interval_s",
            "forward_fanout",
            "active_view_min",
            "passive_view",
            "active_walk",
            "shuffle_interval_s_min",
            "neighbor_timeout_s",
            "repair_dials",
            "optimize_interval_s",
            "idle_link_s",
            "links_max",
            "members_max",
            "broadcast_window",
            "broadcast_origins_max",
            "plumtree_sync_interval_s",
            "plumtree_age_s",
            "plumtree_cache_count_max",
            "plumtree_link_bytes_per_s",
            "relay_search_s",
            "relay_retry_s",
            "relay_route_s",
            "relay_routes_max",
            "relay_rto_s_min",
            "relay_upgrade_s",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.suspicion_refused_s > self.suspicion_s:
            raise ValueError("suspicion_refused_s must not exceed suspicion_s")
        if self.suspicion_mult < 1 or self.suspicion_max_mult < 1:
            raise ValueError("suspicion_mult and suspicion_max_mult must be at least 1")
        if self.probe_timeout_s > self.probe_interval_s:
            raise ValueError("probe_timeout_s must not exceed probe_interval_s")
        if self.probe_silence_intervals < 1:
            raise ValueError("probe_silence_intervals must be at least 1")
        if not 0 < self.partition_part <= 1:
            raise ValueError("partition_part must be above 0 and at most 1")
        if self.dial_backoff_s_max < self.dial_backoff_s_min:
            raise ValueError("dial_backoff_s_max must not be below dial_backoff_s_min")
        if not self.active_view_min <= self.active_view <= self.active_view_max:
            raise ValueError("active_view must be from active_view_min to active_view_max")
        if not 0 <= self.passive_walk <= self.active_walk <= WALK_MAX:
            raise ValueError(f"active_walk must be from passive_walk to {WALK_MAX}")
        if self.shuffle_interval_s_max < self.shuffle_interval_s_min:
            raise ValueError("shuffle_interval_s_max must not be below shuffle_interval_s_min")
        if self.shuffle_active + self.shuffle_passive > SHUFFLE_MAX:
            raise ValueError(f"shuffle_active and shuffle_passive must not exceed {SHUFFLE_MAX} together")
        if self.sync_body_bytes_max < self.meta_bytes_max:
            raise ValueError("sync_body_bytes_max must not be below meta_bytes_max")
        if self.plumtree_graft_timeout_s > self.plumtree_ihave_timeout_s:
            raise ValueError("plumtree_graft_timeout_s must not exceed plumtree_ihave_timeout_s")
        if self.plumtree_sync_grace_s < self.plumtree_ihave_timeout_s:
            raise ValueError("plumtree_sync_grace_s must not be below plumtree_ihave_timeout_s")
        if self.plumtree_age_s < 2 * self.plumtree_sync_interval_s:
            raise ValueError("plumtree_age_s must not be below twice plumtree_sync_interval_s")
        self._check_relays()

    def _check_relays(self) -> None:
        if not 1 <= self.relay_ttl <= RELAY_TTL_MAX:
            raise ValueError(f"relay_ttl must be from 1 to {RELAY_TTL_MAX}")
        if self.relay_rto_s_max < self.relay_rto_s_min:
            raise ValueError("relay_rto_s_max must not be below relay_rto_s_min")
        if self.relay_silence_s < 2 * self.relay_rto_s_max:
            raise ValueError("relay_silence_s must not be below twice relay_rto_s_max")

    @classmethod
    def local(cls) -> GossipConfig:
        """Nodes on one machine: like a LAN, only dials are retried sooner."""
        return replace(cls(), dial_backoff_s_max=5.0, heal_interval_s=2.0)

    @classmethod
    def lan(cls) -> GossipConfig:
        """Nodes on one network: round trips of a few milliseconds.  The default."""
        return cls()

    @classmethod
    def wan(cls) -> GossipConfig:
        """Nodes across the internet: round trips of up to half a second, and some loss."""
        return replace(
            cls(),
            heartbeat_interval_s=3.0,
            sync_interval_s=3.0,
            suspicion_s=8.0,
            suspicion_refused_s=4.0,
            suspicion_unit_s=1.0,
            probe_interval_s=3.0,
            probe_timeout_s=1.5,
            probe_dial_timeout_s=30.0,
            probe_cold_interval_s=120.0,
            partition_window_s=30.0,
            partition_settle_s=5.0,
            flush_delay_s=0.1,
            flush_interval_s=0.3,
            plumtree_flush_s=0.02,
            plumtree_ihave_timeout_s=0.6,
            plumtree_graft_timeout_s=0.4,
            plumtree_prune_interval_s=1.0,
            plumtree_sync_interval_s=2.0,
            plumtree_sync_grace_s=1.2,
            plumtree_age_s=60.0,
            plumtree_link_bytes_per_s=1024 * 1024,
            dial_delay_s=1.0,
            dial_backoff_s_min=1.0,
            dial_backoff_s_max=60.0,
            heal_interval_s=15.0,
            neighbor_timeout_s=5.0,
            relay_delay_s=3.0,
            relay_search_s=0.6,
            relay_rto_s_min=0.5,
            relay_rto_s_max=5.0,
            relay_silence_s=30.0,
        )
