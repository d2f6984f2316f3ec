"""Run every benchmark, one after the other, and print one JSON document: what ``make bench`` does.

python benchmarks/run.py             about two minutes
python benchmarks/run.py --quick     to see that they work; its figures mean little
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from benchmarks import durable, idle, latency, throughput


async def measure(*, quick: bool) -> dict[str, Any]:
    """Run them all."""
    runs, run_s = (1, 0.2) if quick else (5, 2.0)
    document: dict[str, Any] = {}
    print("throughput ...", file=sys.stderr, flush=True)
    document["throughput"] = await throughput.measure(runs=runs, run_s=run_s, payload_bytes=256)
    print("latency ...", file=sys.stderr, flush=True)
    document["latency"] = await latency.measure(runs=runs, run_s=run_s, payload_bytes=256, concurrencies=(1, 64))
    print("durable ...", file=sys.stderr, flush=True)
    document["durable"] = await durable.measure(
        runs=runs, count=400 if quick else 40_000, payload_bytes=256, callers=20 if quick else 512, agents=16
    )
    print("idle ...", file=sys.stderr, flush=True)
    document["idle"] = await idle.measure(
        links=6 if quick else 30, seconds=0.2 if quick else 10.0, starts=1 if quick else 3
    )
    return document


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(asyncio.run(measure(quick=parser.parse_args().quick)), indent=2))


if __name__ == "__main__":
    main()
