"""The way to documents costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from networks import Networks, networks, runtime
from support import ROOT, eventually

PROGRAM = """
import asyncio, sys
from mesh import join_network

async def main():
    async with join_network(node_id="a", listen="127.0.0.1:0", mdns=False, preset="local", data_dir=sys.argv[1]) as net:
        print("pycrdt" in sys.modules, net.stats()["documents"])
        doc = await net.document("board")
        print("pycrdt" in sys.modules)

asyncio.run(main())
"""


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Networks]:
    """Starts nodes."""
    async with networks(tmp_path) as started:
        yield started


def test_a_node_without_documents_does_not_load_what_they_need(tmp_path: Path) -> None:
    """Neither pycrdt nor a file; the first document does."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split("\n")[:2] == ["False {}", "True"]


async def test_links_that_were_there_before_are_used(join: Networks) -> None:
    """A document that is opened long after the nodes met finds its replicas; a link with a pull under way is held."""
    a, b = await join.several("a", "b")
    link = next(iter(runtime(a).gossip.links.values()))
    assert not runtime(a).documents.is_using(link)
    here = await a.document("board")
    here["k"] = 1
    there = await b.document("board")
    await eventually(lambda: "k" in there)
    assert runtime(b).documents.statistics()["documents"]["board"]["applied"] == 1
