"""What can be tuned about links, each with its unit, its bounds and the reason for its value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from .errors import LocalProtocolError

#: (low, high) of every field, both allowed.
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "keepalive_interval_s": (0.01, 600),
    "keepalive_timeout_s": (0.05, 3600),
    "handshake_timeout_s": (0.1, 60),
    "dial_timeout_s": (0.1, 120),
    "probe_timeout_s": (0.01, 60),
    "close_timeout_s": (0.01, 30),
    "links_max": (1, 65_536),
    "handshakes_max": (1, 65_536),
    "handshakes_per_host_max": (1, 65_536),
    "lane_envelopes_max": (1, 1_048_576),
    "lane_bytes_max": (1 << 16, 1 << 30),
    "frame_bytes_target": (1024, 1 << 20),
    "frame_envelopes_target": (1, 1024),
    "write_buffer_bytes": (1024, 1 << 24),
    "receive_frames_max": (1, 1024),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """How links behave.  The defaults are :meth:`local`.

    Raises:
        LocalProtocolError: A value is out of its bounds, or two contradict each other.
    """

    keepalive_interval_s: float = 2.0
    """A ping is sent when nothing was sent or nothing was received for this long.  0.01 to 600.  Above the longest
    pause between two heartbeats of the layer above (1.75 s and a tenth), so that a link that carries them needs no
    pings."""
    keepalive_timeout_s: float = 4.0
    """A link is dead when nothing was received for this long.  At least twice the interval, so that one lost or
    late ping is not a death; the membership layer adds its own suspicion time on top.  0.05 to 3600."""
    handshake_timeout_s: float = 10.0
    """What an accepted connection may take for TLS, WebSocket, hello and accept together.  0.1 to 60."""
    dial_timeout_s: float = 5.0
    """What dialling may take from name resolution to accept.  0.1 to 120."""
    probe_timeout_s: float = 1.0
    """How long an open link has to show that it lives when a second one to the same node arrives.  0.01 to 60."""
    close_timeout_s: float = 1.0
    """What flushing the control lane and the closing handshake may take before the connection is cut.  0.01 to 30."""
    links_max: int = 1024
    """Open links; more are refused with ``OVERLOADED``.  An idle link costs under 80 KiB.  1 to 65,536."""
    handshakes_max: int = 256
    """Accepted connections that have not finished their handshake; one more evicts the oldest, so that a flood
    of silent connections cannot keep out a peer that finishes in milliseconds.  1 to 65,536."""
    handshakes_per_host_max: int = 128
    """The same for connections from one IP address.  1 to 65,536."""
    lane_envelopes_max: int = 8192
    """Envelopes that one lane of one link queues before ``send`` says ``FULL``.  1 to 1,048,576."""
    lane_bytes_max: int = 8 << 20
    """Bytes that one lane of one link queues; an empty lane takes one envelope of any size.  64 KiB to 1 GiB."""
    frame_bytes_target: int = 64 << 10
    """A frame is closed when it holds this much: larger ones gained nothing and delay urgent lanes.  1 KiB to 1 MiB."""
    frame_envelopes_target: int = 256
    """A frame is closed when it holds so many envelopes.  1 to 1024."""
    write_buffer_bytes: int = 64 << 10
    """Unsent bytes in user space at which the sender waits for the socket.  1 KiB to 16 MiB."""
    receive_frames_max: int = 4
    """Received frames that wait for the reader before the socket is no longer read.  1 to 1024."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            low, high = _BOUNDS[spec.name]
            value = getattr(self, spec.name)
            if not low <= value <= high:
                raise LocalProtocolError(f"{spec.name}={value!r} is outside {low} to {high}")
        if self.keepalive_timeout_s < 2 * self.keepalive_interval_s:
            raise LocalProtocolError(
                f"keepalive_timeout_s={self.keepalive_timeout_s} is less than twice "
                f"keepalive_interval_s={self.keepalive_interval_s}",
                hint="one late ping would then look like a death",
            )

    @classmethod
    def local(cls) -> LinkConfig:
        """All nodes on one machine: the defaults."""
        return cls()

    @classmethod
    def lan(cls) -> LinkConfig:
        """One site: the same timing, since a LAN loses little and people expect failures to be seen in seconds."""
        return cls()

    @classmethod
    def wan(cls) -> LinkConfig:
        """Across sites: round trips up to 300 ms, losses of a few seconds that are not deaths."""
        return cls(
            keepalive_interval_s=3.75,
            keepalive_timeout_s=12.0,
            dial_timeout_s=10.0,
            probe_timeout_s=3.0,
            close_timeout_s=3.0,
            write_buffer_bytes=256 << 10,
        )
