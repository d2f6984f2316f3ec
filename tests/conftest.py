"""What holds for every test: no blocking call on the loop, nothing left behind, one seed that says it all."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings
from support import PACKAGES, in_ci, open_descriptors

# --- Hypothesis -------------------------------------------------------------------------------------------------

# `ci` is the default everywhere: the same examples each time, so that a red build is red again on the next
# machine.  `deep` looks for new ones (make fuzz, or HYPOTHESIS_PROFILE=deep).
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,  # a busy machine is not a bug; pytest-timeout catches hangs
    max_examples=60,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep",
    deadline=None,
    max_examples=2_000,
    stateful_step_count=80,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell ignores SIGINT for what it runs in the background, and processes inherit that: tests that stop a program with
# Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    """Say what a red run needs to be repeated."""
    seed = getattr(config.option, "randomly_seed", None)
    profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    return f"peermesh: hypothesis profile {profile}, CI={in_ci()}; repeat this order with --randomly-seed={seed}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by where they are, keep those that share the machine's network on one worker, give slow ones time."""
    for item in items:
        folders = {*item.path.relative_to(item.config.rootpath).parts}
        if item.path.stem.endswith("_network") or folders & {"chaos", "system", "benchmarks"}:
            item.add_marker(pytest.mark.network)
        if item.get_closest_marker("slow") is not None and item.get_closest_marker("timeout") is None:
            # They take seconds; on a machine that does other work as well, minutes.
            item.add_marker(pytest.mark.timeout(300))
        if item.get_closest_marker("system") is not None:
            item.add_marker(pytest.mark.xdist_group("system"))


# --- blocking calls ---------------------------------------------------------------------------------------------

#: Our own code is watched; a blocking call in a library or in the test harness is not ours to mend.
_WATCHED = [*PACKAGES]


def _allow_known(blockbuster: BlockBuster) -> None:
    """Tolerate these, each for its reason."""
    # Loading a certificate chain reads two small files of our own, at start and once per renewal; OpenSSL offers
    # no other way in, and the call has to swap the live context between two handshakes.
    for name in ("io.BufferedReader.read", "io.TextIOWrapper.read", "os.stat"):
        if name in blockbuster.functions:
            blockbuster.functions[name].can_block_in("ssl.py", {"load_cert_chain", "load_verify_locations"})
    # The tracer of coverage takes a lock of its own when a line of a file is reached for the first time.
    blockbuster.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", {"lock_data"})


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make a blocking call from our code on a running event loop an error."""
    marker = request.node.get_closest_marker("allow_blocking")
    if marker is not None:
        assert marker.args, "allow_blocking needs its reason"
        yield
        return
    with blockbuster_ctx(scanned_modules=_WATCHED) as blockbuster:
        _allow_known(blockbuster)
        yield


# --- leaks ------------------------------------------------------------------------------------------------------

#: Threads that outlive a test because their owner keeps a pool: asyncio's and concurrent.futures' executors are
#: joined when their loop closes, Hypothesis and pytest-timeout have one of their own.
_KNOWN_THREADS = ("asyncio_", "ThreadPoolExecutor-", "execnet", "pytest_timeout", "Dummy-", "MainThread")

#: How long a test's leftovers may take to wind down.
_GRACE_S = 2.0


def _strangers(before: frozenset[int]) -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread.ident not in before and not thread.name.startswith(_KNOWN_THREADS)
    ]


@pytest.fixture(autouse=True)
def no_leaked_threads_or_descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or file descriptor behind."""
    threads = frozenset(thread.ident for thread in threading.enumerate() if thread.ident is not None)
    descriptors = open_descriptors()
    yield
    if request.node.get_closest_marker("allow_leaks") is not None:
        return
    deadline = time.monotonic() + _GRACE_S
    collected = False
    while True:
        strangers = _strangers(threads)
        now = open_descriptors()
        grown = 0 if descriptors is None or now is None else now - descriptors
        # A few more may be the test runner's own (log capture, a lazily opened pipe); a leaked loop, server or link
        # costs at least as many.
        if not strangers and grown <= _SLACK:
            return
        if time.monotonic() >= deadline:
            break
        if not collected:
            gc.collect()
            collected = True
        time.sleep(0.02)
    left = [f"thread {thread.name}" for thread in strangers]
    if grown > _SLACK:
        left.append(f"{grown} file descriptors: {_targets()}")
    pytest.fail(f"left behind: {'; '.join(left)}", pytrace=False)


_SLACK = 2


def _targets() -> str:
    names = []
    for entry in sorted(Path("/proc/self/fd").iterdir(), key=lambda path: int(path.name)):
        try:
            names.append(str(entry.readlink()))
        except OSError:
            continue
    return ", ".join(names[-12:])


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an async test that leaves a task running."""
    if request.node.get_closest_marker("asyncio") is None and not _is_async(request):
        yield
        return
    request.getfixturevalue("_task_watch")
    yield


def _is_async(request: pytest.FixtureRequest) -> bool:
    return inspect.iscoroutinefunction(getattr(request.node, "obj", None))


@pytest.fixture
async def _task_watch(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    if request.node.get_closest_marker("allow_leaks") is not None:
        return
    deadline = time.monotonic() + _GRACE_S
    while left := [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]:
        if time.monotonic() >= deadline:
            names = ", ".join(f"{task.get_name()} ({task.get_coro()!r})" for task in left)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            pytest.fail(f"tasks left running: {names}", pytrace=False)
        await asyncio.sleep(0.01)
