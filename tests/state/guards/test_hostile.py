"""Thousands of mutated updates and every known crasher: no process dies, each is fast, memory stays."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
import yjs_bytes as yjs
from hostile_updates import CORPUS, TEXTS, VALUES
from support import ROOT

from state.errors import UpdateRefused
from state.guards.updates import TEXT_LIMITS, VALUE_LIMITS, check_fits, read_update

_COUNT = 1_600


async def _run(kind: str, folder: Path) -> dict[str, float]:
    """One process of the pool; what it was applying when it died, if it did, is in the failure."""
    current = folder / f"{kind}.current"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "tests" / "hostile_updates.py"),
        kind,
        "1",
        str(_COUNT),
        str(current),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"ended with {process.returncode} on {current.read_bytes().hex()}"
    report: dict[str, float] = json.loads(output)
    return report


@pytest.mark.slow
async def test_mutated_updates_hurt_nobody(tmp_path: Path) -> None:
    """3,200 mutants and all crashers, validated and applied: all survive, each under 50 ms, less than 50 MB more."""
    reports = await asyncio.gather(*(_run(kind, tmp_path) for kind in (VALUES, TEXTS)))

    assert sum(report["inputs"] for report in reports) >= 3_000
    for report in reports:
        assert report["accepted"] > _COUNT / 10  # else the mutants would test the validator only
        assert report["slowest_ms"] < 50
        assert report["rss_growth_mb"] < 50


def test_the_corpus_is_complete() -> None:
    """Each crasher that is not huge is kept as a file, as the bytes that did it."""
    kept = {path.stem: path.read_bytes() for path in CORPUS.glob("*.bin")}
    small = {name: data for name, data in yjs.crashers().items() if len(data) < yjs.KEPT_BYTES_MAX}

    assert {name: kept.get(name) for name in small} == small


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.bin")), ids=lambda path: path.stem)
def test_the_corpus_is_refused(path: Path) -> None:
    """Whatever once did harm is refused, as values and as text."""
    for limits in (VALUE_LIMITS, TEXT_LIMITS):
        with pytest.raises(UpdateRefused):
            check_fits(read_update(path.read_bytes(), yjs.CLIENT, limits), {})
