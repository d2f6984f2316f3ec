"""Worker processes that a parent drives with JSON lines: what the demo, the benchmarks and the chaos runs stand on.

The parent starts ``python -m MODULE OPTIONS`` and writes one command a line to its standard input; the worker answers
on standard output, and may tell events of its own.  Standard input is also the life line: when it ends, for whatever
reason, the worker ends, so not even a parent killed with SIGKILL leaves processes behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from transport.errors import MeshError
from transport.tasks import TaskScope

Document = dict[str, Any]
"""What one line holds."""

Command = Callable[..., Awaitable[Document | None]]
"""A worker's answer to one command; its keyword arguments are the command's."""

# A report with some ten thousand samples is the largest line.
_LINE_BYTES_MAX: Final = 8 * 1024 * 1024
_STDERR_LINES_KEPT: Final = 40
_SHUTDOWN_S: Final = 8.0
# Where the packages are, so that workers import the same ones.
_ROOT: Final = Path(__file__).resolve().parent.parent


# --- the parent's side ------------------------------------------------------------------------------------------


class Worker:
    """One worker process.  Made by :class:`Workers`.

    Args:
        name: For people, in errors.
        told: Called with each event that the worker tells.
    """

    def __init__(self, name: str, told: Callable[[Worker, Document], None] | None = None) -> None:
        self.name = name
        self._told = told
        self._process: asyncio.subprocess.Process | None = None
        self._scope = TaskScope(f"worker {name}")
        self._replies: dict[int, asyncio.Future[Document]] = {}
        self._calls = 0
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES_KEPT)
        self._killed = False

    async def start(self, module: str, options: Mapping[str, Any]) -> None:
        """Start the process.

        Raises:
            OSError: The system refuses.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a file in the user's folder must not stand in for a module of ours
            "-m",
            module,
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=worker_environment(),
            limit=_LINE_BYTES_MAX,
            start_new_session=True,  # Ctrl-C is the parent's; it ends the workers in order
        )
        self._scope.spawn(self._read_answers(), name="answers")
        self._scope.spawn(self._read_stderr(), name="stderr")

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        """How the process ended; ``None`` while it runs, negative for a signal."""
        return self._process.returncode if self._process is not None else None

    @property
    def stderr(self) -> list[str]:
        """The last lines that it wrote to standard error."""
        return list(self._stderr)

    async def call(self, command: str, *, answer_within_s: float = 30.0, **arguments: Any) -> Document:
        """Have the worker carry out ``command`` and return its answer.

        Raises:
            MeshError: It failed, ended or did not answer in time; says which worker and what it wrote last.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        self._calls += 1
        number = self._calls
        future: asyncio.Future[Document] = asyncio.get_running_loop().create_future()
        self._replies[number] = future
        try:
            process.stdin.write(json.dumps([number, command, arguments]).encode() + b"\n")
            async with asyncio.timeout(answer_within_s):
                await process.stdin.drain()
                answer = await future
        except TimeoutError:
            raise MeshError(f"worker {self.name} did not answer {command!r} within {answer_within_s:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended(command) from None
        finally:
            self._replies.pop(number, None)
        if "error" in answer:
            raise MeshError(f"worker {self.name}, {command!r}: {answer['error']}")
        return answer

    def kill(self) -> None:
        """End the process with SIGKILL: it can neither say goodbye nor clean up."""
        assert self._process is not None
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self, *, timeout_s: float = _SHUTDOWN_S) -> None:
        """Let the process end, and kill it if it does not in time.  Harmless when it has ended."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            self.kill()
        finally:
            if process.returncode is None:  # also when this very call is cancelled
                self.kill()
            await process.wait()
            await self._scope.close()
            # asyncio closes the pipes when both are at their end; after a kill nobody reads them to there.
            process._transport.close()  # type: ignore[attr-defined]

    async def _read_answers(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            try:
                answer = json.loads(line)
            except ValueError:
                self._stderr.append(line.decode(errors="replace").rstrip())
                continue
            future = self._replies.get(answer["reply"]) if "reply" in answer else None
            if future is not None and not future.done():
                future.set_result(answer)
            elif "event" in answer and self._told is not None:
                self._told(self, answer)
        for future in self._replies.values():
            if not future.done():
                future.set_exception(self._ended("a command"))

    def _ended(self, command: str) -> MeshError:
        code = self.exit_code
        how = "was killed" if self._killed else f"ended{f' with {code}' if code else ''}"
        last = "\n    ".join(self._stderr)
        return MeshError(
            f"worker {self.name} {how} before it answered {command}" + (f"; it wrote\n    {last}" if last else "")
        )

    async def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self._stderr.append(line.decode(errors="replace").rstrip())


class Workers:
    """Worker processes and a temporary directory for them; leaving the context ends and removes all of it.

    Args:
        told: Called with each event that a worker tells.
        keep: Leave the directory behind, for a look.
    """

    def __init__(self, told: Callable[[Worker, Document], None] | None = None, *, keep: bool = False) -> None:
        self._told = told
        self._keep = keep
        self._workers: list[Worker] = []
        self.path = Path()
        self._removed = False

    async def __aenter__(self) -> Workers:
        self.path = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="peermesh-"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, name: str, module: str, options: Mapping[str, Any]) -> Worker:
        """Start a worker.

        Raises:
            OSError: The system refuses.
        """
        worker = Worker(name, self._told)
        self._workers.append(worker)
        await worker.start(module, options)
        return worker

    @property
    def all(self) -> Sequence[Worker]:
        """Every worker that was started."""
        return self._workers

    async def close(self) -> None:
        """End every process and remove the directory; goes through with it even when it is cancelled."""
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            for worker in self._workers:
                if worker.is_running:
                    worker.kill()
            await closing
            raise

    async def _close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self._workers))
        if not self._keep:
            await asyncio.to_thread(shutil.rmtree, self.path, ignore_errors=True)
            self._removed = not await asyncio.to_thread(self.path.exists)

    @property
    def is_clean(self) -> bool:
        """After :meth:`close`: whether no process runs, and no file is left unless it was to be kept."""
        return not any(worker.is_running for worker in self._workers) and (self._keep or self._removed)


def worker_environment() -> dict[str, str]:
    """This process's environment without the settings of the user's own node, which the workers are not."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    if _ROOT.name not in {"site-packages", "dist-packages"}:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{known}" if known else str(_ROOT)
    return environment


# --- the worker's side ------------------------------------------------------------------------------------------


def tell(event: str, **fields: Any) -> None:
    """Tell the parent something that it did not ask for."""
    _write({"event": event, **fields})


def _write(document: Mapping[str, Any]) -> None:
    # The parent reads all the time, so the pipe has room; and a parent that is gone need not be told.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def options() -> Document:
    """The options that the parent gave this worker."""
    parsed: Document = json.loads(sys.argv[1])
    return parsed


async def serve(commands: Mapping[str, Command]) -> None:
    """Carry out the parent's commands, each in a task of its own, until the parent closes our standard input."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LINE_BYTES_MAX)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    scope = TaskScope("commands")
    try:
        while line := await reader.readline():
            number, name, arguments = json.loads(line)
            scope.spawn(_carry_out(number, commands[name], arguments), name=name)
    finally:
        await scope.close()
        transport.close()


async def _carry_out(number: int, command: Command, arguments: Document) -> None:
    try:
        answer = await command(**arguments) or {}
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent wants to know and decides
        _write({"reply": number, "error": f"{type(error).__name__}: {error}"})
    else:
        _write({"reply": number, **answer})


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a worker's main coroutine; an interrupt ends it quietly."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main)
