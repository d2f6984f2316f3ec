"""Two processes, and how one run between them is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from mesh.processes import Document, Worker, Workers
from mesh.stranger import knock
from transport.errors import MeshError
from transport.types import Address

_RUN_S_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class OneWay:
    """One run of numbered messages one way.

    Attributes:
        count: Messages that were sent.
        duration_s: From the first call of ``send`` until the last message was handled.
        received: Messages that were handled.
        out_of_order: Messages that did not follow their predecessor.
        send_cpu_us: CPU time of the sending process for each message, microseconds.
        receive_cpu_us: The same of the receiving process.
    """

    count: int
    duration_s: float
    received: int
    out_of_order: int
    send_cpu_us: float
    receive_cpu_us: float

    @property
    def lost(self) -> int:
        """Messages that did not arrive."""
        return self.count - self.received

    @property
    def msgs_per_s(self) -> float:
        """Messages handled for each second of the run."""
        return self.received / self.duration_s


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """One run of requests.

    Attributes:
        concurrency: Requests under way at once.
        requests: How many were answered.
        duration_s: How long it took.
        p50_us, p99_us, p999_us, max_us: Of the time from calling ``request`` to having the response.
        ask_cpu_us: CPU time of the asking process for each request, microseconds.
    """

    concurrency: int
    requests: int
    duration_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    ask_cpu_us: float

    @property
    def req_per_s(self) -> float:
        """Responses for each second of the run."""
        return self.requests / self.duration_s


class Pair(Protocol):
    """Two processes that some carrier connects."""

    async def one_way(self, count: int, payload_bytes: int) -> OneWay:
        """Send ``count`` messages one way."""
        ...

    async def round_trips(self, concurrency: int, duration_s: float, payload_bytes: int) -> RoundTrips:
        """Ask and answer for ``duration_s``."""
        ...


class WorkerPair:
    """A :class:`Pair` of workers that know the commands ``expect``, ``received``, ``send`` and ``ask``.

    Args:
        receiver: Handles messages and answers requests.
        sender: Sends and asks.
        tls: How the link between them is protected, as it was seen.
    """

    def __init__(self, receiver: Worker, sender: Worker, tls: str) -> None:
        self.receiver = receiver
        self.sender = sender
        self.tls = tls

    async def one_way(self, count: int, payload_bytes: int) -> OneWay:
        """See :meth:`Pair.one_way`."""
        await self.receiver.call("expect", count=count)
        sent = await self.sender.call("send", count=count, payload_bytes=payload_bytes, answer_within_s=_RUN_S_MAX)
        got = await self.receiver.call("received", answer_within_s=_RUN_S_MAX)
        return OneWay(
            count=count,
            duration_s=got["ended_at"] - sent["began_at"],
            received=got["received"],
            out_of_order=got["out_of_order"],
            send_cpu_us=sent["cpu_s"] / count * 1e6,
            receive_cpu_us=got["cpu_s"] / count * 1e6,
        )

    async def round_trips(self, concurrency: int, duration_s: float, payload_bytes: int) -> RoundTrips:
        """See :meth:`Pair.round_trips`."""
        answer: Document = await self.sender.call(
            "ask",
            concurrency=concurrency,
            duration_s=duration_s,
            payload_bytes=payload_bytes,
            answer_within_s=duration_s + _RUN_S_MAX,
        )
        return RoundTrips(
            concurrency=concurrency,
            requests=answer["requests"],
            duration_s=answer["elapsed_s"],
            p50_us=answer["p50_us"],
            p99_us=answer["p99_us"],
            p999_us=answer["p999_us"],
            max_us=answer["max_us"],
            ask_cpu_us=round(answer["cpu_s"] / max(1, answer["requests"]) * 1e6, 3),
        )


async def start_mesh_pair(workers: Workers, *, end_to_end: bool = True) -> WorkerPair:
    """Start two nodes in two processes, joined over mutual TLS on loopback.

    Args:
        workers: Where the processes run; one pair that seals messages end to end and one that does not fit in.
        end_to_end: Whether they seal them, as nodes do unless told otherwise.

    Raises:
        MeshError: They could not be started, did not find each other, or let a stranger in.
    """
    receiver, sender = [
        await workers.start(name, "mesh.bench.worker", node_settings(workers, name, end_to_end=end_to_end))
        for name in (("receiver", "sender") if end_to_end else ("clear-receiver", "clear-sender"))
    ]
    address = (await receiver.call("listen"))["address"]
    for worker in (receiver, sender):
        await worker.call("wait_members", count=2)
    version, refused = await knock(Address.parse(address))
    if not refused:
        raise MeshError(f"{address} let in a stranger ({version}): what would be measured is not mutual TLS")
    return WorkerPair(receiver, sender, f"{version}, both sides authenticated")


def node_settings(workers: Workers, node_id: str, *, end_to_end: bool = True) -> dict[str, Any]:
    """Settings of a node on loopback that shares the workers' data directory."""
    return {
        "node_id": node_id,
        "network": "bench" if end_to_end else "bench-clear",
        "messages": {"end_to_end": end_to_end},
        "data_dir": str(workers.path),
        "listen": "127.0.0.1:0",
        "mdns": False,
    }
