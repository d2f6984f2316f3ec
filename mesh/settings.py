"""Reading settings: what text means which value, which source wins, and errors that name the culprit.

The machinery below :mod:`mesh.config`, which holds the keys themselves.  A section is a frozen dataclass whose fields
carry, as metadata, how their value is read and what it means (:func:`setting`).  :func:`resolve` walks that table once
over all sources; nothing else knows where a value may come from.

Plain dataclasses instead of a validation library: see ``docs/rfd/0003-configuration-without-pydantic.md``.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from transport.types import Address, NetworkName, NodeId, network_name
from transport.types import node_id as checked_node_id

from .errors import ConfigError, MeshError

ENV_PREFIX: Final = "MESH_"
ENV_CONFIG_FILE: Final = "MESH_CONFIG"
"""Names the TOML file to read when no ``config`` argument is given."""

# Kubernetes sets these for a service called "mesh" or "mesh-something" (service links); they are not ours.
_FOREIGN_ENV: Final = re.compile(
    r"MESH_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z"
)

_SECONDS_MAX: Final = 86_400
_COUNT_MAX: Final = 1_000_000

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")

#: Reads a value as somebody wrote it.  Raises a ``ValueError`` or a ``MeshError`` that says what would be right.
Reader = Callable[[object], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: how its value is read and what it means."""

    read: Reader
    description: str
    secret: bool = False


def setting(read: Reader, description: str, *, secret: bool = False) -> dict[str, Setting]:
    """The metadata of a dataclass field that is a key of the configuration; errors do not show a secret's value."""
    return {"setting": Setting(read, description, secret)}


def settings_of(table: type[Any]) -> dict[str, Setting]:
    """The keys that hold a value, in the order in which they are documented; sections are not among them."""
    return {one.name: one.metadata["setting"] for one in fields(table) if "setting" in one.metadata}


def sections_of(table: type[Any]) -> dict[str, type[Any]]:
    """The keys that hold a section, with its class."""
    return {one.name: type(one.default) for one in fields(table) if is_dataclass(one.default) and not one.metadata}


class Secret:
    """A text that is not shown by ``repr``, so that a logged configuration admits nobody."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The text."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


# --- what may be written for a value ---------------------------------------------------------------------------


class _BadElement(Exception):
    """An element of a list cannot be used; the error that says why is the cause."""

    def __init__(self, element: object) -> None:
        super().__init__(element)
        self.element = element


def flag(value: object) -> bool:
    """Yes or no."""
    if isinstance(value, bool):
        return value
    text = str(value).lower() if isinstance(value, str | int) else ""
    if text not in _TRUE + _FALSE:
        raise ValueError("must be true or false")
    return text in _TRUE


def seconds(value: object) -> float:
    """A duration of at most a day."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number <= _SECONDS_MAX:
        raise ValueError(f"must be a number of seconds above 0 and at most {_SECONDS_MAX}")
    return number


def whole(low: int, high: int | None = None) -> Callable[[object], int]:
    """A whole number within these bounds, both allowed."""
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"

    def read(value: object) -> int:
        number = None
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,20}\s*", value):
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is None or number < low or (high is not None and number > high):
            raise ValueError(f"must be a whole number {bounds}")
        return number

    return read


count: Final = whole(1, _COUNT_MAX)


def one_of(*choices: str) -> Callable[[object], str]:
    """One of these words."""
    listed = f"{', '.join(repr(choice) for choice in choices[:-1])} or {choices[-1]!r}"

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be {listed}")
        return value

    return read


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - a wrong value of a setting, not a wrong call
    return value


def node(value: object) -> NodeId:
    """The name of a node."""
    return checked_node_id(_text(value))


def network(value: object) -> NetworkName:
    """The name of a network."""
    return network_name(_text(value))


def address(value: object) -> Address:
    """A host and a port."""
    return value if isinstance(value, Address) else Address.parse(_text(value))


def path(value: object) -> Path:
    """A path; ``~`` is the home directory."""
    if not isinstance(value, str | Path):
        raise ValueError("must be a path")  # noqa: TRY004 - see _text
    return Path(value).expanduser()


def hidden(value: object) -> Secret:
    """A text that is not to be shown."""
    return value if isinstance(value, Secret) else Secret(_text(value))


def optional(read: Reader) -> Reader:
    """``None``, which means that the node chooses, or what ``read`` takes."""
    return lambda value: None if value is None else read(value)


def several(read: Reader) -> Reader:
    """A list; also ``a, b c``, which is how people write lists in the environment."""

    def read_all(value: object) -> tuple[object, ...]:
        if isinstance(value, str):
            value = [part for part in re.split(r"[,\s]+", value) if part]
        if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
            raise ValueError("must be a list")  # noqa: TRY004 - see _text
        found = []
        for element in value:
            try:
                found.append(read(element))
            except (ValueError, MeshError) as error:
                raise _BadElement(element) from error
        return tuple(found)

    return read_all


# --- where values come from ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Keys and values as somebody wrote them, and who that was, as errors say it."""

    name: str
    values: Mapping[str, object]


def arguments(table: type[Any], values: Mapping[str, object]) -> Source:
    """What a program passes; a section object counts as all its keys."""
    sections = sections_of(table)
    return Source(
        "an argument",
        {
            key: as_mapping(value) if key in sections and isinstance(value, sections[key]) else value
            for key, value in values.items()
        },
    )


def as_mapping(built: Any) -> dict[str, Any]:
    """The fields of a dataclass's object by name."""
    return {one.name: getattr(built, one.name) for one in fields(built)}


def environment(table: type[Any]) -> Source:
    """The ``MESH_*`` variables.

    Raises:
        ConfigError: A variable means nothing, or would be a whole section.
    """
    sections = sections_of(table)
    values: dict[str, Any] = {}
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper == ENV_CONFIG_FILE or _FOREIGN_ENV.match(upper):
            continue
        key, nested, below = upper.removeprefix(ENV_PREFIX).lower().partition("__")
        if key in sections and nested:
            values.setdefault(key, {})[below] = os.environ[name]
        elif key in sections:
            raise ConfigError(
                f"the environment cannot be read: {name} is a section, not a key",
                hint="write one variable per key, e.g. MESH_LINKS__KEEPALIVE_INTERVAL_S=2",
            )
        elif nested or key not in settings_of(table):
            raise _unknown(table, "the environment", (key,), shown=name)
        else:
            values[key] = os.environ[name]
    return Source("the environment", values)


def toml_file(file_path: Path) -> Source:
    """What a TOML file says.

    Raises:
        ConfigError: It cannot be read or is no TOML.
    """
    try:
        with file_path.open("rb") as file:
            return Source(str(file_path), tomllib.load(file))
    except OSError as error:
        raise ConfigError(
            f"the configuration file {file_path} cannot be read: {error.strerror}",
            hint="check the path given as config, --config or MESH_CONFIG",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration file {file_path} is not valid TOML: {error}", hint="correct that line"
        ) from error


# --- from sources to values ------------------------------------------------------------------------------------


def resolve(
    table: type[Any], sources: Sequence[Source], checks: Mapping[str, Callable[[Any], object]]
) -> dict[str, Any]:
    """The keys of ``table`` that some source has, each from the first that has it, and every section.

    Args:
        table: The configuration's class.
        sources: First one wins.
        checks: By section: raises a ``ValueError`` or a ``MeshError`` when its values contradict each other.

    Raises:
        ConfigError: A key does not exist or a value cannot be used; the first is explained, the others are counted.
    """
    for source in sources:
        _check_keys(table, source)
    problems: list[ConfigError] = []
    values = _resolved(table, sources, (), problems)
    for name, section in sections_of(table).items():
        found = len(problems)
        parts = [
            Source(source.name, part) for source in sources if isinstance(part := source.values.get(name), Mapping)
        ]
        built = section(**_resolved(section, parts, (name,), problems))
        if name in checks and len(problems) == found:
            try:
                checks[name](built)
            except (ValueError, MeshError) as error:
                problems.append(_unusable((name,), parts[0].name if parts else "the defaults", error))
        values[name] = built
    if problems:
        first, more = problems[0], len(problems) - 1
        raise ConfigError(f"{first.message} (and {more} more)" if more else first.message, hint=first.hint)
    return values


def _resolved(
    table: type[Any], sources: Sequence[Source], above: tuple[str, ...], problems: list[ConfigError]
) -> dict[str, Any]:
    """The values that are given and can be used; what cannot is added to ``problems``."""
    values = {}
    for key, one in settings_of(table).items():
        source = next((source for source in sources if key in source.values), None)
        if source is None:
            continue
        given = source.values[key]
        try:
            values[key] = one.read(given)
        except _BadElement as error:
            cause = error.__cause__ if error.__cause__ is not None else error
            problems.append(_unusable((*above, key), source.name, cause, shown=repr(error.element)))
        except (ValueError, MeshError) as error:
            # A token that is refused may be a right one with a typing error, so it is not shown either.
            shown = "" if one.secret else repr(given)
            problems.append(_unusable((*above, key), source.name, error, shown=shown))
    return values


def _check_keys(table: type[Any], source: Source) -> None:
    sections = sections_of(table)
    for key, value in source.values.items():
        if key in sections:
            if not isinstance(value, Mapping):
                error = ValueError("must be a section with keys of its own")
                raise _unusable((key,), source.name, error, shown=repr(value))
            for below in value:
                if below not in settings_of(sections[key]):
                    raise _unknown(table, source.name, (key, str(below)))
        elif key not in settings_of(table):
            raise _unknown(table, source.name, (key,))


# --- errors that name the culprit ------------------------------------------------------------------------------


def _unusable(keys: tuple[str, ...], source: str, error: BaseException, *, shown: str = "") -> ConfigError:
    text, hint = (error.message, error.hint) if isinstance(error, MeshError) else (str(error), "")
    value = f" = {shown}" if shown else ""
    return ConfigError(
        f"configuration {'.'.join(keys)}{value} from {source}: {text}",
        hint=hint or "see docs/configuration.md for the values it takes",
    )


def _unknown(table: type[Any], source: str, keys: tuple[str, ...], *, shown: str = "") -> ConfigError:
    """Say what does not exist and what its writer may have meant; ``shown`` is how it was spelt."""
    *above, key = keys
    sections = sections_of(table)
    known = [one.name for one in fields(sections[above[0]] if above else table)]
    nearest = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    elsewhere = [f"{name}.{key}" for name, section in sections.items() if key in settings_of(section)]
    suggestion = ".".join([*above, *nearest]) if nearest else elsewhere[0] if elsewhere else ""
    if suggestion and shown.startswith(ENV_PREFIX):
        suggestion = ENV_PREFIX + suggestion.replace(".", "__").upper()
    hint = f"did you mean {suggestion}?" if suggestion else f"the keys here are {', '.join(known)}"
    return ConfigError(f"unknown configuration key {shown or '.'.join(keys)} from {source}", hint=hint)
