"""The one configuration of a node: typed, checked, and the same from arguments, environment and file.

Where a value comes from, first one wins::

    arguments  >  MESH_* environment variables  >  TOML file  >  preset  >  default

``MESH_LINKS__KEEPALIVE_INTERVAL_S=2`` is ``links.keepalive_interval_s`` and ``[links] keepalive_interval_s = 2``.
A key that does not exist is an error in every source, with the nearest key that does, because a misspelt
timeout that is silently ignored is found in production.  ``docs/configuration.md`` is the reference; a test
compares it with this file.

Only this module imports pydantic-settings; the layers below take the plain dataclasses that
:meth:`MeshConfig.link_config` and :meth:`MeshConfig.gossip_config` return.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from gossip.config import GossipConfig
from transport.config import LinkConfig
from transport.errors import MeshError
from transport.types import Address, NetworkName, NodeId, network_name, node_id

from .errors import ConfigError
from .messaging.body import PAYLOAD_BYTES_MAX

ENV_PREFIX: Final = "MESH_"
ENV_CONFIG_FILE: Final = "MESH_CONFIG"
"""Names the TOML file to read when no ``config`` argument is given."""

# Kubernetes sets these for a service called "mesh" or "mesh-something" (service links); they are not ours.
_FOREIGN_ENV: Final = re.compile(
    r"MESH_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z"
)

#: What one frame can carry, less room for headers; a message larger than this could never be sent.
MESSAGE_BYTES_LIMIT: Final = PAYLOAD_BYTES_MAX


# The preset "lan" is the default, so its values are the fields' defaults.
_LINKS: Final = LinkConfig.lan()
_GOSSIP: Final = GossipConfig.lan()


def _accepted(build: Callable[[], object]) -> None:
    """Let the layer below judge bounds and relations: it knows why they are there."""
    try:
        build()
    except MeshError as error:
        raise ValueError(str(error)) from error


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _listed(value: object) -> object:
    """Accept ``a, b c`` where a list is wanted, which is how people write lists in the environment."""
    if isinstance(value, str):
        return tuple(part for part in re.split(r"[,\s]+", value) if part)
    return value


def _node_id(value: object) -> object:
    return node_id(value) if isinstance(value, str) else value


def _network(value: object) -> object:
    return network_name(value) if isinstance(value, str) else value


def _expanded(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str | Path) else value


AddressField = Annotated[Address, BeforeValidator(_address), PlainSerializer(str, when_used="json")]
AddressList = Annotated[tuple[AddressField, ...], NoDecode, BeforeValidator(_listed)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Section(BaseModel):
    """A table of the configuration: unknown keys refused, no change after it is built."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LinksSection(_Section):
    """Connections between nodes; the rest of :class:`transport.config.LinkConfig` is the preset's."""

    keepalive_interval_s: PositiveSeconds = Field(
        default=_LINKS.keepalive_interval_s,
        description="A ping is sent when nothing was sent or nothing was received for this long.",
    )
    keepalive_timeout_s: PositiveSeconds = Field(
        default=_LINKS.keepalive_timeout_s,
        description="A link is dead when nothing was received for this long. At least twice `keepalive_interval_s`; "
        "three to four times tolerates a stalled loop.",
    )
    handshake_timeout_s: PositiveSeconds = Field(
        default=_LINKS.handshake_timeout_s,
        description="What an accepted connection may take for TLS, WebSocket and hello together.",
    )
    dial_timeout_s: PositiveSeconds = Field(
        default=_LINKS.dial_timeout_s, description="What dialling may take, from name resolution to hello."
    )
    links_max: Count = Field(
        default=_LINKS.links_max, description="Open links; more are refused. An idle link costs under 80 KiB."
    )
    handshakes_max: Count = Field(
        default=_LINKS.handshakes_max,
        description="Accepted connections that have not finished their handshake; one more evicts the oldest.",
    )
    handshakes_per_host_max: Count = Field(
        default=_LINKS.handshakes_per_host_max,
        description="The same for one IP address. Not above `handshakes_max` to have an effect.",
    )
    lane_envelopes_max: Count = Field(
        default=_LINKS.lane_envelopes_max, description="Envelopes that one priority of one link queues."
    )
    lane_bytes_max: int = Field(
        default=_LINKS.lane_bytes_max, description="Bytes that one priority of one link queues."
    )

    @model_validator(mode="after")
    def _accepted_below(self) -> Self:
        _accepted(lambda: LinkConfig(**self.model_dump()))
        return self


class GossipSection(_Section):
    """Membership; the rest of :class:`gossip.config.GossipConfig` is the preset's."""

    heartbeat_interval_s: PositiveSeconds = Field(
        default=_GOSSIP.heartbeat_interval_s,
        description="How often a node tells its peers that it is alive; also the pace of anti-entropy.",
    )
    suspicion_s: PositiveSeconds = Field(
        default=_GOSSIP.suspicion_s,
        description="How long a suspect may refute before it is taken for dead. Above a few round trips plus the "
        "longest pause of a healthy node.",
    )
    suspicion_refused_s: PositiveSeconds = Field(
        default=_GOSSIP.suspicion_refused_s,
        description="The same once its host refused a connection. At most `suspicion_s`.",
    )
    dial_backoff_s_min: PositiveSeconds = Field(
        default=_GOSSIP.dial_backoff_s_min, description="Longest wait after the first failed dial; then it doubles."
    )
    dial_backoff_s_max: PositiveSeconds = Field(
        default=_GOSSIP.dial_backoff_s_max,
        description="Where the doubling ends. At least `dial_backoff_s_min`.",
    )
    heal_interval_s: PositiveSeconds = Field(
        default=_GOSSIP.heal_interval_s, description="How often a failed node is dialled again, for ever."
    )
    dead_retention_s: PositiveSeconds = Field(
        default=_GOSSIP.dead_retention_s, description="How long a failed or departed node stays visible."
    )
    members_max: Count = Field(default=_GOSSIP.members_max, description="Nodes that are remembered.")

    @model_validator(mode="after")
    def _accepted_below(self) -> Self:
        _accepted(lambda: GossipConfig(**self.model_dump()))
        return self


class MessagesSection(_Section):
    """Messages between agents."""

    message_bytes_max: int = Field(
        default=MESSAGE_BYTES_LIMIT,
        ge=1,
        le=MESSAGE_BYTES_LIMIT,
        description="Largest payload of one message, headers included, bytes. At most 1 MiB less 4 KiB: what one "
        "frame carries.",
    )
    window_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=1024,
        description="Unacknowledged payload bytes to one node before a sender waits. At least `message_bytes_max`; "
        "about bandwidth times round trip.",
    )
    handler_concurrency: Count = Field(
        default=64, description="Handler calls of one agent that may run at the same time."
    )
    request_timeout_s: PositiveSeconds = Field(
        default=5.0, description="How long `request` waits when no timeout is given."
    )

    @model_validator(mode="after")
    def _one_message_fits(self) -> Self:
        if self.window_bytes < self.message_bytes_max:
            raise ValueError(
                f"window_bytes ({self.window_bytes}) is below message_bytes_max ({self.message_bytes_max})"
            )
        return self


class LogsSection(_Section):
    """What `mesh up` logs.  A program that embeds a node configures logging itself."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is shown."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`console` for people, `json` one object a line, `auto`: console on a terminal."
    )


Preset = Literal["local", "lan", "wan"]

_LINK_PRESETS: Final = {"local": LinkConfig.local(), "lan": LinkConfig.lan(), "wan": LinkConfig.wan()}
_GOSSIP_PRESETS: Final = {"local": GossipConfig.local(), "lan": GossipConfig.lan(), "wan": GossipConfig.wan()}

#: What each preset sets, section by section.
PRESETS: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    name: {
        "links": {key: getattr(_LINK_PRESETS[name], key) for key in LinksSection.model_fields},
        "gossip": {key: getattr(_GOSSIP_PRESETS[name], key) for key in GossipSection.model_fields},
    }
    for name in _LINK_PRESETS
}


class MeshConfig(BaseSettings):
    """Everything a node can be told.  Frozen; build another one to change it.

    Use :meth:`load` to add a TOML file; the constructor reads arguments, environment, preset and defaults.

    Raises:
        ConfigError: A value cannot be used or a key does not exist; names source, key, value and the fix.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        arbitrary_types_allowed=True,
    )

    preset: Preset = Field(
        default="lan", description="Timings to start from: `local` (one machine), `lan`, `wan` (slow or lossy paths)."
    )
    network: Annotated[NetworkName, BeforeValidator(_network)] = Field(
        default=NetworkName("default"),
        description="Name of the network; a DNS label. Nodes of other networks are refused.",
    )
    node_id: Annotated[NodeId, BeforeValidator(_node_id)] | None = Field(
        default=None,
        description="Name of this node; a DNS label, unique in the network. Default: host name plus a short suffix, "
        "kept in the data directory.",
    )
    listen: AddressField = Field(
        default=Address("0.0.0.0", 7946),  # noqa: S104 - a node exists to be reached; mutual TLS guards the port
        description="Address and port to listen on. Port 0: the system picks one.",
    )
    advertise: AddressList = Field(
        default=(),
        description="Addresses that peers are told to dial, best first. Default: those of the interfaces that "
        "`listen` covers.",
    )
    bootstrap: AddressList = Field(
        default=(), description="Nodes to try first; tried in parallel, dead ones again for ever."
    )
    mdns: bool = Field(default=True, description="Announce and look for nodes on the local network by multicast DNS.")
    data_dir: Annotated[Path, BeforeValidator(_expanded)] | None = Field(
        default=None,
        description="Tree that the nodes of one machine share. Default: `$XDG_STATE_HOME/peermesh` or "
        "`~/.local/state/peermesh`.",
    )
    join_token: SecretStr | None = Field(
        default=None, description="From `mesh invite`; only for the first join from another machine or data directory."
    )
    links: LinksSection = LinksSection()
    gossip: GossipSection = GossipSection()
    messages: MessagesSection = MessagesSection()
    logs: LogsSection = LogsSection()

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(type(self), error, _SOURCES.get()) from None

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
        path = config if config is not None else os.environ.get(ENV_CONFIG_FILE) or None
        token = _FILE.set(_read_file(Path(path).expanduser()) if path is not None else None)
        try:
            return cls(**given)
        finally:
            _FILE.reset(token)

    def _changed(self, given: Mapping[str, object]) -> MeshConfig:
        if not given:
            return self
        if given.get("preset", self.preset) != self.preset:
            raise ConfigError(
                "a preset cannot be changed on a finished MeshConfig, whose timings it has already set",
                hint="build MeshConfig(preset=...) instead",
            )
        merged = _merged(self.model_dump(), given)
        return type(self)(**merged)

    def link_config(self) -> LinkConfig:
        """What the transport layer takes: the preset with :attr:`links` on top."""
        return replace(_LINK_PRESETS[self.preset], **self.links.model_dump())

    def gossip_config(self) -> GossipConfig:
        """What the gossip layer takes: the preset with :attr:`gossip` on top; it dials within ``links.links_max``."""
        base = _GOSSIP_PRESETS[self.preset]
        return replace(base, **self.gossip.model_dump(), links_max=min(base.links_max, self.links.links_max))

    @property
    def message_bytes_max(self) -> int:
        """Short for ``messages.message_bytes_max``."""
        return self.messages.message_bytes_max

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources (see the module); no ``.env`` files and no secrets directory."""
        del env_settings, dotenv_settings, file_secret_settings
        record: dict[str, Mapping[str, object]] = {"argument": getattr(init_settings, "init_kwargs", {})}
        _SOURCES.set(record)
        return (
            init_settings,
            _Environment(settings_cls, record),
            _File(settings_cls, record),
            _PresetValues(settings_cls, record),
        )


# What the file said, while `load` runs: pydantic-settings builds its sources from the class alone.
_FILE: ContextVar[tuple[Path, Mapping[str, object]] | None] = ContextVar("mesh_config_file", default=None)
# Which source gave what, while a configuration is built: errors name the culprit.
_SOURCES: ContextVar[Mapping[str, Mapping[str, object]]] = ContextVar("mesh_config_sources", default={})  # noqa: B039


class _Environment(EnvSettingsSource):
    """``MESH_*`` variables, refusing names that mean nothing."""

    def __init__(self, settings_cls: type[BaseSettings], record: dict[str, Mapping[str, object]]) -> None:
        super().__init__(settings_cls)
        self._record = record

    def __call__(self) -> dict[str, Any]:
        fields = MeshConfig.model_fields
        for name in sorted(os.environ):
            upper = name.upper()
            if not upper.startswith(ENV_PREFIX) or upper == ENV_CONFIG_FILE or _FOREIGN_ENV.match(upper):
                continue
            first = upper.removeprefix(ENV_PREFIX).partition("__")[0].lower()
            if first not in fields:
                raise _unknown(MeshConfig, "environment", first, shown=name)
        try:
            values = super().__call__()
        except SettingsError as error:
            raise ConfigError(
                f"the environment cannot be read: {error}",
                hint="write one variable per key, e.g. MESH_LINKS__KEEPALIVE_INTERVAL_S=2",
            ) from error
        self._record["environment"] = values
        return values


class _Plain(PydanticBaseSettingsSource):
    """A source that already is a mapping."""

    def __init__(self, settings_cls: type[BaseSettings], record: dict[str, Mapping[str, object]]) -> None:
        super().__init__(settings_cls)
        self._record = record

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        """Not used: :meth:`__call__` returns everything at once."""
        del field
        return None, field_name, False


class _File(_Plain):
    """The TOML file."""

    def __call__(self) -> dict[str, Any]:
        loaded = _FILE.get()
        if loaded is None:
            return {}
        path, values = loaded
        self._record[str(path)] = values
        return dict(values)


class _PresetValues(_Plain):
    """What the chosen preset says; the sources above have decided which one."""

    def __call__(self) -> dict[str, Any]:
        chosen = self.current_state.get("preset", MeshConfig.model_fields["preset"].default)
        values = PRESETS.get(chosen, {}) if isinstance(chosen, str) else {}
        self._record[f"preset {chosen}"] = values
        return {section: dict(keys) for section, keys in values.items()}


def _read_file(path: Path) -> tuple[Path, Mapping[str, object]]:
    try:
        with path.open("rb") as file:
            return path, tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"the configuration file {path} cannot be read: {error.strerror}",
            hint="check the path given as config, --config or MESH_CONFIG",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration file {path} is not valid TOML: {error}", hint="correct that line"
        ) from error


def _merged(base: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        plain = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(plain, Mapping):
            result[key] = _merged(below, plain)
        else:
            result[key] = plain
    return result


# --- errors that name the culprit ------------------------------------------------------------------------------

_SECRET: Final = frozenset({"join_token"})


def _explained(
    model: type[BaseModel], error: ValidationError, sources: Mapping[str, Mapping[str, object]]
) -> ConfigError:
    """Turn pydantic's first complaint into one that says where the value came from and what to write."""
    detail = error.errors(include_url=False)[0]
    location = tuple(detail["loc"])
    source = _source_of(location, sources)
    keys = [str(part) for part in location if isinstance(part, str) and not part.startswith("function-")]
    if detail["type"] == "extra_forbidden":
        return _unknown(_model_at(model, keys[:-1]), source, keys[-1], above=keys[:-1])
    key = ".".join(keys)
    raised = detail.get("ctx", {}).get("error")
    hint = ""
    if isinstance(raised, MeshError):
        text, hint = raised.message, raised.hint
    elif raised is not None:
        text = str(raised)
    else:
        text = detail["msg"][0].lower() + detail["msg"][1:]
    shown = "" if keys and keys[0] in _SECRET else repr(detail["input"])
    is_table = isinstance(detail["input"], Mapping | BaseModel)
    value = "" if is_table else f" = {shown}" if shown else ""
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    return ConfigError(
        f"configuration {key}{value} from {_described(source)}: {text}{tail}",
        hint=hint or "see docs/configuration.md for the values it takes",
    )


def _described(source: str) -> str:
    return {"argument": "an argument", "environment": "the environment", "default": "the defaults"}.get(source, source)


def _source_of(location: tuple[int | str, ...], sources: Mapping[str, Mapping[str, object]]) -> str:
    """The first source, in order of priority, that holds something at ``location`` or just above it."""
    for depth in range(len(location), 0, -1):
        for name, values in sources.items():
            if _holds(values, location[:depth]):
                return name
    return "default"


def _holds(values: object, location: tuple[int | str, ...]) -> bool:
    for part in location:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        else:
            # An index into a list that is written as one string, or into the list itself.
            return isinstance(part, int) and isinstance(values, list | tuple | str)
    return True


def _model_at(model: type[BaseModel], keys: list[str]) -> type[BaseModel]:
    for key in keys:
        inner = model.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _unknown(
    model: type[BaseModel],
    source: str,
    key: str,
    *,
    above: list[str] | None = None,
    shown: str = "",
) -> ConfigError:
    path = ".".join([*(above or []), key])
    nearest = difflib.get_close_matches(key.lower(), list(model.model_fields), n=1, cutoff=0.6)
    elsewhere = [
        f"{section}.{key}"
        for section, field in MeshConfig.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and key in field.annotation.model_fields
    ]
    suggestion = ".".join([*(above or []), nearest[0]]) if nearest else elsewhere[0] if elsewhere else ""
    if suggestion and shown.startswith(ENV_PREFIX):
        suggestion = ENV_PREFIX + suggestion.replace(".", "__").upper()
    hint = f"did you mean {suggestion}?" if suggestion else f"the keys here are {', '.join(model.model_fields)}"
    return ConfigError(
        f"unknown configuration key {shown or path} from {_described(source)}",
        hint=hint,
    )
