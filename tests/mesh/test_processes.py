"""Worker processes: driven, watched, and never left behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil
import pytest
from support import eventually

from mesh.processes import Document, Worker, Workers, worker_environment
from transport.errors import MeshError

pytestmark = pytest.mark.allow_blocking("subprocess waits for exec, about a millisecond, and knows no other way")

_WORKER = """
import asyncio, sys
from mesh.processes import options, run, serve, tell

async def echo(**fields):
    return fields

async def fail():
    raise ValueError("no such luck")

async def ignore():
    await asyncio.sleep(3600)

async def end():
    print("going", file=sys.stderr, flush=True)
    sys.stderr.flush()
    import os
    os._exit(3)

async def noise():
    print("not a document", flush=True)

async def main():
    tell("ready", options=options())
    await serve({"echo": echo, "fail": fail, "ignore": ignore, "end": end, "noise": noise})
    if options().get("linger"):
        await asyncio.sleep(3600)

run(main())
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A worker module that exists only for this test."""
    (tmp_path / "a_worker.py").write_text(_WORKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_worker"


async def test_a_worker_answers_and_tells(module: str) -> None:
    """Options reach the worker, its events reach the parent, and each call gets its own answer."""
    told: list[Document] = []
    async with Workers(lambda _, event: told.append(event)) as workers:
        worker = await workers.start("one", module, {"a": 1})
        answers = await asyncio.gather(*(worker.call("echo", number=number) for number in range(20)))

    assert [answer["number"] for answer in answers] == list(range(20))
    assert told == [{"event": "ready", "options": {"a": 1}}]


async def test_an_error_in_a_command_is_the_callers(module: str) -> None:
    """A command that raises fails its call, with the worker's name, and leaves the worker running."""
    async with Workers() as workers:
        worker = await workers.start("one", module, {})

        with pytest.raises(MeshError, match="worker one, 'fail': ValueError: no such luck"):
            await worker.call("fail")

        assert (await worker.call("echo", x=1))["x"] == 1


async def test_a_command_that_takes_too_long_is_given_up(module: str) -> None:
    """A call has a deadline, and says which worker missed it."""
    async with Workers() as workers:
        worker = await workers.start("slow", module, {})

        with pytest.raises(MeshError, match=r"worker slow did not answer 'ignore' within 0\.05 s"):
            await worker.call("ignore", answer_within_s=0.05)


async def test_a_worker_that_ends_says_what_it_wrote_last(module: str) -> None:
    """Who waits for a worker that ended is told so, with its last words."""
    async with Workers() as workers:
        worker = await workers.start("mortal", module, {})
        with pytest.raises(MeshError, match="worker mortal ended"):
            await worker.call("end")
        await eventually(lambda: worker.exit_code == 3)

        with pytest.raises(MeshError, match="going"):
            await worker.call("echo")


async def test_output_that_is_no_document_is_kept_as_noise(module: str) -> None:
    """A line that a library prints does not confuse the parent."""
    async with Workers() as workers:
        worker = await workers.start("loud", module, {})
        await worker.call("noise")

        assert "not a document" in worker.stderr


async def test_leaving_ends_processes_and_removes_files(module: str) -> None:
    """After the context no process runs and no file is left, whether workers lived or were killed."""
    async with Workers() as workers:
        one, other = await workers.start("one", module, {}), await workers.start("other", module, {})
        await asyncio.gather(one.call("echo"), other.call("echo"))
        await asyncio.to_thread((workers.path / "file").write_text, "x")
        other.kill()
        pids = [worker.pid for worker in workers.all]

    assert workers.is_clean
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert other.exit_code == -9


async def test_files_stay_when_asked_for(module: str, tmp_path: Path) -> None:
    """With keep the directory is left for a look."""
    async with Workers(keep=True) as workers:
        await workers.start("one", module, {})

    assert workers.is_clean
    assert await asyncio.to_thread(workers.path.is_dir)
    await asyncio.to_thread(workers.path.rmdir)


async def test_a_worker_that_does_not_end_is_killed(module: str) -> None:
    """Closing waits only so long."""
    worker = Worker("stubborn")
    await worker.start(module, {"linger": True})
    await worker.call("echo")
    await worker.close(timeout_s=0.1)

    assert worker.exit_code == -9


async def test_cancelling_still_cleans_up(module: str) -> None:
    """A run that is cancelled while it winds down kills what is left and removes the files."""
    entered = asyncio.Event()
    workers = Workers()

    async def run() -> None:
        async with workers:
            worker = await workers.start("stubborn", module, {"linger": True})
            await worker.call("echo")
            entered.set()

    task = asyncio.create_task(run())
    await entered.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert workers.is_clean


async def test_a_worker_ends_with_its_parent(module: str) -> None:
    """A parent that is killed leaves no worker behind."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio\n"
        "from mesh.processes import Workers\n"
        "async def main():\n"
        "    async with Workers() as workers:\n"
        "        worker = await workers.start('one', 'a_worker', {})\n"
        "        await worker.call('echo')\n"
        "        print(worker.pid, workers.path, flush=True)\n"
        "        await asyncio.sleep(3600)\n"
        "asyncio.run(main())\n",
        stdout=asyncio.subprocess.PIPE,
        env=worker_environment(),
    )
    assert parent.stdout is not None
    pid, path = (await parent.stdout.readline()).decode().split()
    parent.kill()
    await parent.wait()

    await eventually(lambda: not psutil.pid_exists(int(pid)))
    await asyncio.to_thread(Path(path).rmdir)


def test_workers_do_not_inherit_the_users_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """MESH_* variables configure the user's node, not those of a demo."""
    monkeypatch.setenv("MESH_NODE_ID", "mine")

    assert "MESH_NODE_ID" not in worker_environment()
