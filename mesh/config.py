"""The one configuration of a node: typed, checked, and the same from arguments, environment and file.

Where a value comes from, first one wins::

    arguments  >  MESH_* environment variables  >  TOML file  >  preset  >  default

``MESH_LINKS__KEEPALIVE_INTERVAL_S=2`` is ``links.keepalive_interval_s`` and ``[links] keepalive_interval_s = 2``.
A key that does not exist is an error in every source, with the nearest key that does, because a misspelt
timeout that is silently ignored is found in production.  ``docs/configuration.md`` is the reference; a test
compares it with this file.

The keys are here, and :mod:`mesh.settings` reads them.  The layers below take the plain dataclasses that
:meth:`MeshConfig.link_config` and :meth:`MeshConfig.gossip_config` return.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from gossip.config import GossipConfig
from transport.config import LinkConfig
from transport.types import Address, NetworkName, NodeId

from .errors import ConfigError
from .messaging.body import PAYLOAD_BYTES_MAX
from .messaging.outbox import DurableConfig
from .settings import (
    ENV_CONFIG_FILE,
    Secret,
    Source,
    address,
    arguments,
    as_mapping,
    count,
    environment,
    flag,
    hidden,
    network,
    node,
    one_of,
    optional,
    path,
    resolve,
    seconds,
    setting,
    settings_of,
    several,
    toml_file,
    whole,
)

#: What one frame can carry, less room for headers; a message larger than this could never be sent.
MESSAGE_BYTES_LIMIT: Final = PAYLOAD_BYTES_MAX

# The preset "lan" is the default, so its values are the fields' defaults.
_LINKS: Final = LinkConfig.lan()
_GOSSIP: Final = GossipConfig.lan()
_DAY_S: Final = 86_400.0
_DURABLE: Final = DurableConfig()
_OUTBOX: Final = _DURABLE.outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksSection:
    """Connections between nodes; the rest of :class:`transport.config.LinkConfig` is the preset's."""

    keepalive_interval_s: float = field(
        default=_LINKS.keepalive_interval_s,
        metadata=setting(seconds, "A ping is sent when nothing was sent or nothing was received for this long."),
    )
    keepalive_timeout_s: float = field(
        default=_LINKS.keepalive_timeout_s,
        metadata=setting(
            seconds,
            "A link is dead when nothing was received for this long. At least twice `keepalive_interval_s`; "
            "three to four times tolerates a stalled loop.",
        ),
    )
    handshake_timeout_s: float = field(
        default=_LINKS.handshake_timeout_s,
        metadata=setting(seconds, "What an accepted connection may take for TLS, WebSocket and hello together."),
    )
    dial_timeout_s: float = field(
        default=_LINKS.dial_timeout_s,
        metadata=setting(seconds, "What dialling may take, from name resolution to hello."),
    )
    links_max: int = field(
        default=_LINKS.links_max,
        metadata=setting(count, "Open links; more are refused. An idle link costs under 80 KiB."),
    )
    handshakes_max: int = field(
        default=_LINKS.handshakes_max,
        metadata=setting(
            count, "Accepted connections that have not finished their handshake; one more evicts the oldest."
        ),
    )
    handshakes_per_host_max: int = field(
        default=_LINKS.handshakes_per_host_max,
        metadata=setting(count, "The same for one IP address. Not above `handshakes_max` to have an effect."),
    )
    lane_envelopes_max: int = field(
        default=_LINKS.lane_envelopes_max, metadata=setting(count, "Envelopes that one priority of one link queues.")
    )
    lane_bytes_max: int = field(
        default=_LINKS.lane_bytes_max, metadata=setting(whole(1), "Bytes that one priority of one link queues.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSection:
    """Membership; the rest of :class:`gossip.config.GossipConfig` is the preset's."""

    heartbeat_interval_s: float = field(
        default=_GOSSIP.heartbeat_interval_s,
        metadata=setting(seconds, "How often a node tells its peers that it is alive; also the pace of anti-entropy."),
    )
    flush_delay_s: float = field(
        default=_GOSSIP.flush_delay_s,
        metadata=setting(
            seconds,
            "How long news of members are collected before they are passed on together. Longer saves work where very "
            "many nodes come and go; news then take so long for each hop, which `suspicion_s` has to allow for.",
        ),
    )
    suspicion_s: float = field(
        default=_GOSSIP.suspicion_s,
        metadata=setting(
            seconds,
            "How long a suspect may refute before it is taken for dead. Above a few round trips plus the "
            "longest pause of a healthy node.",
        ),
    )
    suspicion_refused_s: float = field(
        default=_GOSSIP.suspicion_refused_s,
        metadata=setting(seconds, "The same once its host refused a connection. At most `suspicion_s`."),
    )
    dial_backoff_s_min: float = field(
        default=_GOSSIP.dial_backoff_s_min,
        metadata=setting(seconds, "Longest wait after the first failed dial; then it doubles."),
    )
    dial_backoff_s_max: float = field(
        default=_GOSSIP.dial_backoff_s_max,
        metadata=setting(seconds, "Where the doubling ends. At least `dial_backoff_s_min`."),
    )
    heal_interval_s: float = field(
        default=_GOSSIP.heal_interval_s,
        metadata=setting(seconds, "How often a failed node is dialled again, for ever."),
    )
    dead_retention_s: float = field(
        default=_GOSSIP.dead_retention_s, metadata=setting(seconds, "How long a failed or departed node stays visible.")
    )
    members_max: int = field(default=_GOSSIP.members_max, metadata=setting(count, "Nodes that are remembered."))


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesSection:
    """Messages between agents."""

    message_bytes_max: int = field(
        default=MESSAGE_BYTES_LIMIT,
        metadata=setting(
            whole(1, MESSAGE_BYTES_LIMIT),
            "Largest payload of one message, headers included, bytes. At most 1 MiB less 4 KiB: what one "
            "frame carries.",
        ),
    )
    window_bytes: int = field(
        default=4 * 1024 * 1024,
        metadata=setting(
            whole(1024),
            "Unacknowledged payload bytes to one node before a sender waits. At least `message_bytes_max`; "
            "about bandwidth times round trip.",
        ),
    )
    handler_concurrency: int = field(
        default=64, metadata=setting(count, "Handler calls of one agent that may run at the same time.")
    )
    end_to_end: bool = field(
        default=True,
        metadata=setting(
            flag,
            "Demand that messages between agents are sealed from node to node, and broadcasts and groups from their "
            "sender to those they are for, so that no relay can read, alter or forge them. Where all concerned say "
            "no, TLS on each link alone protects them.",
        ),
    )
    request_timeout_s: float = field(
        default=5.0, metadata=setting(seconds, "How long `request` waits when no timeout is given.")
    )
    durable_deadline_s: float = field(
        default=3_600.0,
        metadata=setting(seconds, "How long a durable message may wait for its agent when `send` does not say."),
    )
    outbox_bytes_max: int = field(
        default=_OUTBOX.bytes_max,
        metadata=setting(
            whole(1024),
            "What durable messages that wait may weigh, each 256 bytes more than its payload; beyond it `send` waits. "
            "They are held in memory as well as on disk.",
        ),
    )
    durable_attempts: int = field(
        default=_OUTBOX.attempts,
        metadata=setting(count, "After how many failures of its handler a durable message becomes a dead letter."),
    )
    durable_retry_s: float = field(
        default=_OUTBOX.retry_s,
        metadata=setting(
            seconds,
            "The shortest wait after a handler's failure; each further one is up to three times longer.",
        ),
    )
    durable_retry_s_max: float = field(
        default=_OUTBOX.retry_s_max,
        metadata=setting(seconds, "Where that growth ends. At least `durable_retry_s`."),
    )
    durable_retries_per_s: int = field(
        default=int(_OUTBOX.retries_per_s),
        metadata=setting(
            count,
            "The retry budget: so many retries a second of all durable messages together, and one more for five that "
            "were handled.",
        ),
    )
    durable_ahead_max: int = field(
        default=_DURABLE.ahead_max,
        metadata=setting(
            count,
            "How many durable messages of one sender a handler may finish before the first is recorded as handled: "
            "so many may be handled twice after a crash of this node. 1 is slow and leaves the one at work.",
        ),
    )
    dead_letters_max: int = field(
        default=_DURABLE.dead_letters_max,
        metadata=setting(count, "Dead letters that are kept; they weigh a quarter of `outbox_bytes_max` at most."),
    )
    dead_letters_age_days: int = field(
        default=int(_DURABLE.dead_letters_age_s / _DAY_S), metadata=setting(count, "How long a dead letter is kept.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsSection:
    """What `mesh up` logs.  A program that embeds a node configures logging itself."""

    level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata=setting(one_of("debug", "info", "warning", "error"), "Least severity that is shown.")
    )
    format: Literal["auto", "console", "json"] = field(
        default="auto",
        metadata=setting(
            one_of("auto", "console", "json"),
            "`console` for people, `json` one object a line, `auto`: console on a terminal.",
        ),
    )


Preset = Literal["local", "lan", "wan"]

_LINK_PRESETS: Final = {"local": LinkConfig.local(), "lan": LinkConfig.lan(), "wan": LinkConfig.wan()}
_GOSSIP_PRESETS: Final = {"local": GossipConfig.local(), "lan": GossipConfig.lan(), "wan": GossipConfig.wan()}

#: What each preset sets, section by section.
PRESETS: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    name: {
        "links": {key: getattr(_LINK_PRESETS[name], key) for key in settings_of(LinksSection)},
        "gossip": {key: getattr(_GOSSIP_PRESETS[name], key) for key in settings_of(GossipSection)},
    }
    for name in _LINK_PRESETS
}


def _links(preset: str, links: LinksSection) -> LinkConfig:
    return replace(_LINK_PRESETS[preset], **as_mapping(links))


def _gossip(preset: str, gossip: GossipSection) -> GossipConfig:
    return replace(_GOSSIP_PRESETS[preset], **as_mapping(gossip))


def _one_message_fits(messages: MessagesSection) -> None:
    if messages.window_bytes < messages.message_bytes_max:
        raise ValueError(
            f"window_bytes ({messages.window_bytes}) is below message_bytes_max ({messages.message_bytes_max})"
        )
    if messages.durable_retry_s_max < messages.durable_retry_s:
        raise ValueError(
            f"durable_retry_s_max ({messages.durable_retry_s_max:g}) is below durable_retry_s "
            f"({messages.durable_retry_s:g})"
        )


def _checks(preset: str) -> dict[str, Callable[[Any], object]]:
    """What each section must hold as a whole.  The layers below judge theirs: they know why a relation is there."""
    base = preset if preset in PRESETS else "lan"
    return {
        "links": lambda links: _links(base, links),
        "gossip": lambda gossip: _gossip(base, gossip),
        "messages": _one_message_fits,
    }


@dataclass(frozen=True, slots=True, init=False)
class MeshConfig:
    """Everything a node can be told.  Frozen; build another one to change it.

    Use :meth:`load` to add a TOML file; the constructor reads arguments, environment, preset and defaults.  A value
    may be written as in the environment: ``MeshConfig(listen="127.0.0.1:0", links={"links_max": 100})``.

    Raises:
        ConfigError: A value cannot be used or a key does not exist; names source, key, value and the fix.
    """

    preset: Preset = field(
        default="lan",
        metadata=setting(
            one_of("local", "lan", "wan"),
            "Timings to start from: `local` (one machine), `lan`, `wan` (slow or lossy paths).",
        ),
    )
    network: NetworkName = field(
        default=NetworkName("default"),
        metadata=setting(network, "Name of the network; a DNS label. Nodes of other networks are refused."),
    )
    node_id: NodeId | None = field(
        default=None,
        metadata=setting(
            optional(node),
            "Name of this node; a DNS label, unique in the network. Default: host name plus a short suffix, "
            "kept in the data directory.",
        ),
    )
    listen: Address = field(
        default=Address("0.0.0.0", 7946),  # noqa: S104 - a node exists to be reached; mutual TLS guards the port
        metadata=setting(address, "Address and port to listen on. Port 0: the system picks one."),
    )
    advertise: tuple[Address, ...] = field(
        default=(),
        metadata=setting(
            several(address),
            "Addresses that peers are told to dial, best first. Default: those of the interfaces that `listen` covers.",
        ),
    )
    bootstrap: tuple[Address, ...] = field(
        default=(),
        metadata=setting(several(address), "Nodes to try first; tried in parallel, dead ones again for ever."),
    )
    mdns: bool = field(
        default=True, metadata=setting(flag, "Announce and look for nodes on the local network by multicast DNS.")
    )
    control: bool = field(
        default=True,
        metadata=setting(
            flag, "Answer `mesh members` and the other commands through a socket that only this user can open."
        ),
    )
    data_dir: Path | None = field(
        default=None,
        metadata=setting(
            optional(path),
            "Tree that the nodes of one machine share. Default: `$XDG_STATE_HOME/peermesh` or "
            "`~/.local/state/peermesh`.",
        ),
    )
    join_token: Secret | None = field(
        default=None,
        metadata=setting(
            optional(hidden),
            "From `mesh invite`; only for the first join from another machine or data directory.",
            secret=True,
        ),
    )
    links: LinksSection = LinksSection()
    gossip: GossipSection = GossipSection()
    messages: MessagesSection = MessagesSection()
    logs: LogsSection = LogsSection()

    def __init__(self, **values: Any) -> None:
        self._fill(arguments(MeshConfig, values), environment(MeshConfig))

    def _fill(self, *sources: Source) -> None:
        """Set every field from these sources, the preset and the defaults."""
        preset = next((source.values["preset"] for source in sources if "preset" in source.values), "lan")
        # A preset that does not exist is refused like any other value; until then it sets nothing.
        timings = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        values = resolve(MeshConfig, [*sources, Source(f"preset {preset}", timings)], _checks(str(preset)))
        for one in fields(self):
            object.__setattr__(self, one.name, values.get(one.name, one.default))

    @classmethod
    def load(cls, config: MeshConfig | Path | str | None = None, **overrides: object) -> MeshConfig:
        """Build the configuration from every source.

        Args:
            config: A finished configuration, the path of a TOML file, or ``None``: the file that the environment
                variable ``MESH_CONFIG`` names, if any.
            **overrides: Fields by name; they win.  ``None`` means "not given".

        Raises:
            ConfigError: See the class.
        """
        given = {key: value for key, value in overrides.items() if value is not None}
        if isinstance(config, MeshConfig):
            return config._changed(given)
        file = config if config is not None else os.environ.get(ENV_CONFIG_FILE) or None
        if file is None:
            return cls(**given)
        loaded = cls.__new__(cls)
        loaded._fill(arguments(cls, given), environment(cls), toml_file(Path(file).expanduser()))
        return loaded

    def _changed(self, given: Mapping[str, object]) -> MeshConfig:
        if not given:
            return self
        if given.get("preset", self.preset) != self.preset:
            raise ConfigError(
                "a preset cannot be changed on a finished MeshConfig, whose timings it has already set",
                hint="build MeshConfig(preset=...) instead",
            )
        mine, changes = arguments(MeshConfig, as_mapping(self)).values, arguments(MeshConfig, given).values
        merged = dict(mine)
        for key, value in changes.items():
            below = mine.get(key)
            merged[key] = {**below, **value} if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        changed = MeshConfig.__new__(MeshConfig)
        changed._fill(Source("an argument", merged))  # every key is there: the environment was read before
        return changed

    def durable_config(self) -> DurableConfig:
        """How durable messages behave."""
        messages = self.messages
        return DurableConfig(
            outbox=replace(
                _OUTBOX,
                bytes_max=messages.outbox_bytes_max,
                attempts=messages.durable_attempts,
                retry_s=messages.durable_retry_s,
                retry_s_max=messages.durable_retry_s_max,
                retries_per_s=messages.durable_retries_per_s,
            ),
            ahead_max=messages.durable_ahead_max,
            dead_letters_max=messages.dead_letters_max,
            dead_letters_age_s=messages.dead_letters_age_days * _DAY_S,
        )

    def link_config(self) -> LinkConfig:
        """What the transport layer takes: the preset with :attr:`links` on top."""
        return _links(self.preset, self.links)

    def gossip_config(self) -> GossipConfig:
        """What the gossip layer takes: the preset with :attr:`gossip` on top; it dials within ``links.links_max``."""
        config = _gossip(self.preset, self.gossip)
        return replace(config, links_max=min(config.links_max, self.links.links_max))

    @property
    def message_bytes_max(self) -> int:
        """Short for ``messages.message_bytes_max``."""
        return self.messages.message_bytes_max
