"""Answers commands inside a running node, on a UNIX socket that only this user can open.

Shell.  Three guards stand before a request: the node's directory (0700), the socket's mode (0600), and the
peer's user id as the kernel knows it.  Whoever passes may do whatever this user may do anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final, cast

from mesh.errors import ControlError, MeshError, RequestTimeout
from transport.logs import get_logger

from .operations import CALLS, STREAMS, Arguments
from .protocol import (
    LINE_BYTES_MAX,
    End,
    Failure,
    Item,
    Request,
    Response,
    Result,
    decode_request,
    encode_response,
)
from .target import ControlTarget

#: Commands at the same time; each `mesh listen` is one.  Beyond it a client is told so and closed.
CLIENTS_MAX: Final = 64

_ACCEPT_TURNS: Final = 5

#: How long a client may be connected without asking anything.
IDLE_S: Final = 10.0

#: What a request may take beyond its own time, so that the operation's own, better explained timeout comes first.
MARGIN_S: Final = 1.0

#: How long a client may leave an answer unread before it is cut; streams wait for their reader instead.
WRITE_S: Final = 10.0

_log = get_logger("mesh.control")


class ControlServer:
    """The control socket of one node.

    Args:
        target: The node.
        path: Where the socket goes.  What a killed node left there is replaced: the caller holds the lock on the
            directory, so nobody else can be listening.
        leave: Called when a client asks the node to leave, after it was answered; begins the leaving, which ends
            with :meth:`close`.  Default: the target's ``leave_network``, in a task.
    """

    def __init__(self, target: ControlTarget, path: Path, *, leave: Callable[[], None] | None = None) -> None:
        self._target = target
        self._path = path
        self._leave = leave if leave is not None else self._leave_in_task
        self._leaving: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            ControlError: The socket cannot be made there.
        """
        making = asyncio.ensure_future(asyncio.to_thread(_listening_socket, self._path))
        try:
            listening = await asyncio.shield(making)
        except asyncio.CancelledError:
            # A thread cannot be stopped: wait for the socket, so that it can be closed.
            await asyncio.wait([making])
            if not making.cancelled() and making.exception() is None:
                making.result().close()
            raise
        except OSError as error:
            raise ControlError(
                f"the control socket {self._path} cannot be made: {error.strerror or error}",
                hint="check that the data directory is on a local file system that this user can write",
            ) from error
        # Started in a step of its own, so that no cancellation can come between the server's making and our having it.
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listening, limit=LINE_BYTES_MAX, start_serving=False
        )
        await self._server.start_serving()

    async def close(self) -> None:
        """Stop listening, end every client's request and remove the socket."""
        if self._server is None:
            return
        # Stop accepting first, then let what was accepted reach `_accept`: until Python 3.12 asyncio loses, unclosed,
        # a connection that it has accepted but not set up yet when its server is closed.
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
        self._server.close()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        self._server = None
        await asyncio.to_thread(_remove, self._path)

    # --- one client -----------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._clients.add(task)
        try:
            refusal = self._refusal(writer)
            if refusal is not None:
                _log.warning("control client refused", reason=refusal.message)
                await self._write(writer, Failure(refusal))
            else:
                await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            # The client is gone or too slow, or the node is closing: nobody is left to tell, and a cancelled
            # connection task has ended, which is what the canceller waits for.
            pass
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the node
            _log.exception("control client failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._clients.discard(task)

    def _refusal(self, writer: asyncio.StreamWriter) -> ControlError | None:
        uid = peer_uid(writer.get_extra_info("socket"))
        if uid is not None and uid not in {os.getuid(), 0}:
            return ControlError(f"user {uid} may not command a node of user {os.getuid()}")
        if len(self._clients) > CLIENTS_MAX:
            return ControlError(f"the node serves {CLIENTS_MAX} commands already", hint="end one of them")
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(IDLE_S):
            line = await _line(reader)
        while line:
            try:
                request = decode_request(line)
            except ControlError as error:
                await self._write(writer, Failure(error))
                return
            # The next line is awaited meanwhile: its arrival as end-of-file is how a client cancels.
            upcoming = asyncio.ensure_future(_line(reader))
            answering = asyncio.ensure_future(self._answer(request, writer))
            try:
                await asyncio.wait({upcoming, answering}, return_when=asyncio.FIRST_COMPLETED)
                if upcoming.done() and not answering.done() and (upcoming.exception() or not upcoming.result()):
                    return
                await answering
                async with asyncio.timeout(IDLE_S):
                    line = await upcoming
            finally:
                await _cancelled(answering, upcoming)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        try:
            if request.op in STREAMS:
                await self._stream(request, writer)
                return
            async with asyncio.timeout(request.timeout_s + MARGIN_S):
                value = await self._call(request)
            response: Response = Result(value)
        except MeshError as error:
            response = Failure(error)
        except TimeoutError:
            response = Failure(RequestTimeout(f"the node did not finish {request.op!r} within {request.timeout_s:g} s"))
        except Exception as error:  # noqa: BLE001 - a bug in one command must be told to its user, not end the node
            _log.exception("control request failed", op=request.op)
            response = Failure(ControlError(f"{request.op!r} failed inside the node: {error!r}", changed=True))
        await self._write(writer, response)
        if request.op == "leave" and isinstance(response, Result):
            self._leave()

    async def _call(self, request: Request) -> object:
        if request.op == "leave":
            # Answered first: the socket goes with the node, and its closing tells the client the rest.
            return {"node_id": self._target.node.node_id, "leaving": True}
        call = CALLS.get(request.op)
        if call is None:
            known = ", ".join(sorted([*CALLS, *STREAMS, "leave"]))
            raise ControlError(f"the running node does not know the request {request.op!r}", hint=f"it knows {known}")
        return await call(self._target, Arguments(request.args, request.timeout_s))

    def _leave_in_task(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._target.leave_network(), name="control: leave")

    async def _stream(self, request: Request, writer: asyncio.StreamWriter) -> None:
        items = STREAMS[request.op](self._target, Arguments(request.args, request.timeout_s))
        try:
            async for item in items:
                # No time limit: a reader that pauses holds up its own stream, which is bounded, and nothing else.
                writer.write(encode_response(Item(item)))
                await writer.drain()
        finally:
            await cast("AsyncGenerator[object, None]", items).aclose()
        await self._write(writer, End())

    async def _write(self, writer: asyncio.StreamWriter, response: Response) -> None:
        try:
            line = encode_response(response)
        except MeshError as error:
            line = encode_response(Failure(error))
        writer.write(line)
        async with asyncio.timeout(WRITE_S):
            await writer.drain()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line; empty at the end of the stream, or when the line is longer than any may be."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return b""
    except asyncio.LimitOverrunError:
        return b""


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end, as the kernel knows it; ``None`` where the system does not say.

    There the modes of the socket and of its directory are what protects the node.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    layout = struct.Struct("3i")  # struct ucred: pid, uid, gid
    _, uid, _ = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, option, layout.size))
    return int(uid)


def _listening_socket(path: Path) -> socket.socket:
    _remove(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        # Between bind and listen nobody can connect, so the mode is right before the first client comes.
        path.chmod(0o600)
        listening.listen(CLIENTS_MAX)
        listening.setblocking(False)
    except BaseException:  # whatever it is goes on to the caller; only the descriptor must not stay
        listening.close()
        raise
    return listening


def _remove(path: Path) -> None:
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        pass
