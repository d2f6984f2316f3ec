"""A process of a benchmark, here in this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesh.bench.worker import BenchWorker


def _settings(path: Path, node_id: str) -> dict[str, Any]:
    return {"node_id": node_id, "network": "bench", "listen": "127.0.0.1:0", "data_dir": str(path), "mdns": False}


async def test_workers_send_and_answer(tmp_path: Path) -> None:
    """One worker's messages are counted by the other, which also answers its requests."""
    receiver, sender = BenchWorker(), BenchWorker()
    try:
        await receiver.join(**_settings(tmp_path, "receiver"))
        await sender.join(**_settings(tmp_path, "sender"))
        assert "127.0.0.1" in (await receiver.listen())["address"]
        await sender.wait_members(2)
        await receiver.expect(50)
        await sender.send(50, 64)
        got = await receiver.received()
        asked = await sender.ask(2, 0.05, 64)
    finally:
        await sender.leave()
        await receiver.leave()

    assert (got["received"], got["out_of_order"]) == (50, 0)
    assert asked["requests"] > 0


async def test_a_worker_tells_what_it_uses() -> None:
    """Memory and CPU time of this process."""
    usage = await BenchWorker().usage()

    assert usage["rss_bytes"] > 1_000_000
