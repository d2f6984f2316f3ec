"""What tests of several packages share: waiting for a condition, and asking for what the machine must have."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

#: The root of the checkout.
ROOT = Path(__file__).resolve().parent.parent

#: The import packages of the distribution, bottom layer first.
PACKAGES = ("transport", "gossip", "state", "mesh", "chaos")

_T = TypeVar("_T")


async def eventually(
    predicate: Callable[[], _T | Awaitable[_T]], timeout_s: float = 5.0, *, what: str = "", interval_s: float = 0.01
) -> _T:
    """Wait until ``predicate`` is true and return what it returned.

    Args:
        predicate: Called again and again; may be a coroutine function.  An ``AssertionError`` counts as false.
        timeout_s: When to give up.  Generous: it is only waited for when the test fails.
        what: Said in the failure; default: the predicate's own source or name.
        interval_s: How long to let the loop run between two looks.

    Raises:
        AssertionError: The time is up; says what was waited for and the last value or assertion.
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            found = predicate()
            value = await found if inspect.isawaitable(found) else found
        except AssertionError as error:
            last = error
        else:
            if value:
                return value
            last = value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or _describe(predicate)}; last: {last!r}")
        await asyncio.sleep(interval_s)


def _describe(predicate: Callable[..., object]) -> str:
    try:
        return inspect.getsource(predicate).strip().splitlines()[0]
    except (OSError, TypeError):
        return getattr(predicate, "__qualname__", repr(predicate))


def in_ci() -> bool:
    """Whether this run must have everything (``CI=true``): what is missing fails instead of being skipped."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def missing(reason: str) -> None:
    """Skip the test because the machine lacks something, or fail it in CI."""
    if in_ci():
        pytest.fail(f"CI must have it: {reason} (scripts/install-debian-packages)", pytrace=False)
    pytest.skip(reason)


def require_tools(*names: str) -> None:
    """Go on only if each program is installed."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    absent = [name for name in names if shutil.which(name, path=search) is None]
    if absent:
        missing(f"not installed: {', '.join(absent)}")


def require_root() -> None:
    """Go on only as root, which network namespaces and packet filters need."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        missing("needs root")


@functools.cache
def _namespaces_refused() -> str:
    import subprocess

    name = f"pm-probe-{os.getpid()}"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if added.returncode != 0:
        return added.stderr.strip() or "ip netns add failed"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return ""


def require_network_namespaces() -> None:
    """Go on only where network namespaces can be made: root, iproute2, and a kernel that lets us."""
    require_root()
    require_tools("ip")
    refused = _namespaces_refused()
    if refused:
        missing(f"no network namespaces here: {refused}")


def python_files(*folders: str) -> Iterator[Path]:
    """The Python files below these folders of the checkout, sorted, without caches."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "__pycache__" not in path.parts:
                yield path


def module_name(path: Path) -> str:
    """The dotted name of a source file of the checkout."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def open_descriptors() -> int | None:
    """How many file descriptors this process has open; ``None`` where the system does not say."""
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return None
