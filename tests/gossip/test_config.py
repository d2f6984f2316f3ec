"""The limits and times of gossip."""

from __future__ import annotations

import pytest

from gossip.config import GossipConfig


@pytest.mark.parametrize("preset", [GossipConfig.local(), GossipConfig.lan(), GossipConfig.wan()])
def test_presets_detect_slower_than_they_beat(preset: GossipConfig) -> None:
    """A suspect has at least one heartbeat's time to refute, and news travel faster than that."""
    assert preset.suspicion_s > preset.heartbeat_interval_s > preset.flush_delay_s


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"suspicion_s": 0}, "suspicion_s"),
        ({"suspicion_refused_s": 3}, "suspicion_refused_s"),
        ({"dial_backoff_s_max": 0.1}, "dial_backoff_s_max"),
        ({"sync_body_bytes_max": 1000}, "sync_body_bytes_max"),
        ({"suspicion_mult": 0}, "suspicion_mult"),
        ({"probe_timeout_s": 1.1}, "probe_timeout_s"),
        ({"probe_silence_intervals": 0.9}, "probe_silence_intervals"),
        ({"partition_part": 0}, "partition_part"),
        ({"plumtree_age_s": 0}, "plumtree_age_s"),
        ({"plumtree_age_s": 1.5}, "plumtree_sync_interval_s"),
        ({"plumtree_graft_timeout_s": 0.2}, "plumtree_graft_timeout_s"),
        ({"plumtree_sync_grace_s": 0.1}, "plumtree_sync_grace_s"),
        ({"active_view": 4}, "active_view"),
        ({"active_walk": 2}, "active_walk"),
        ({"active_walk": 17}, "active_walk"),
        ({"shuffle_interval_s_max": 0.5}, "shuffle_interval_s_max"),
        ({"shuffle_passive": 30}, "shuffle_passive"),
        ({"relay_route_s": 0}, "relay_route_s"),
        ({"relay_ttl": 0}, "relay_ttl"),
        ({"relay_ttl": 16}, "relay_ttl"),
        ({"relay_rto_s_max": 0.1}, "relay_rto_s_max"),
        ({"relay_silence_s": 3.0}, "relay_silence_s"),
    ],
)
def test_values_that_contradict_each_other_are_refused(change: dict[str, float], names: str) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=names):
        GossipConfig(**change)  # type: ignore[arg-type]
