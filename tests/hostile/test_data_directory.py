"""Each file of a node's tree damaged in turn: the node starts, or says which file and what to do; never a traceback."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_nodes import join
from support import eventually, missing

from mesh.errors import DataDirectoryError, MeshError
from transport.identity.enrolment import TTL_S_MAX

_FILES = (
    "default-node-id",
    "ca/ca.key",
    "ca/ca.crt",
    "ca/invites.json",
    "ca/lock",
    "n1/lock",
    "n1/life",
    "n1/identity.key",
    "n1/tls.key",
    "n1/tls.crt",
    "n1/ca.crt",
    "n1/audit.log",
)


def _as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere") / "deeper")


def _half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\x00\xff garbage \xc3\x28\n" * 40),
    "empty": lambda path: path.write_bytes(b""),
    "half": _half,
    "huge": lambda path: os.truncate(path, 64 << 20),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "gone": lambda path: path.unlink(),
    "directory": _as_directory,
    "dangling link": _dangling,
}


@pytest.fixture
async def tree(tmp_path: Path) -> Path:
    """What a node leaves behind that made an invite and chose its own name once."""
    async with await join(tmp_path / "whole", "n1") as node:
        await node.invite(ttl_s=TTL_S_MAX, uses=1)
    (tmp_path / "whole" / "default" / "default-node-id").write_text("n1\n")
    return tmp_path / "whole"


@pytest.mark.parametrize("damage", sorted(_DAMAGES))
async def test_damaged_files_are_named_or_mended(tree: Path, tmp_path: Path, damage: str) -> None:
    """Every file, one at a time: a typed error that names a path in the tree and a way out, or a node that works."""
    for number, name in enumerate(_FILES):
        data_dir = tmp_path / str(number)
        await asyncio.to_thread(shutil.copytree, tree, data_dir, ignore=shutil.ignore_patterns("*.sock"))
        await asyncio.to_thread(_DAMAGES[damage], data_dir / "default" / name)
        settings = {"node_id": None} if name == "default-node-id" else {}
        refusal: Exception | None = None
        started = False
        try:
            async with await _start(data_dir, **settings) as node:
                started = True
                await node.invite(ttl_s=60, uses=1)
        except Exception as error:  # noqa: BLE001 - which ones are allowed is what is judged
            refusal = error
        if refusal is not None:
            assert isinstance(refusal, MeshError), f"{name}: {refusal!r}"
            assert started or str(data_dir) in refusal.message, f"{name}: {refusal}"
            assert refusal.hint, f"{name}: {refusal}"


async def _start(data_dir: Path, **settings: Any):  # type: ignore[no-untyped-def]  # what `join` gives
    from mesh import join_network

    given: dict[str, Any] = {"node_id": "n1", **settings}
    return await join_network(data_dir=data_dir, listen="127.0.0.1:0", mdns=False, **given)


async def test_a_tree_that_is_a_file_is_named(tmp_path: Path) -> None:
    """`--data-dir` on something that is no directory."""
    (tmp_path / "file").write_text("not a directory")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataDirectoryError, match="file") as caught:
            await join(data_dir, "n1")
        assert caught.value.hint


async def test_a_tree_that_cannot_be_written_is_named() -> None:
    """Not even root may create directories in /proc/sys."""
    if sys.platform != "linux":
        missing("no file system here that not even root may write")
    with pytest.raises(DataDirectoryError, match="/proc/sys") as caught:
        await join(Path("/proc/sys/peermesh"), "n1")
    assert caught.value.hint


async def test_a_life_counter_damaged_while_the_node_runs_stops_nothing(tmp_path: Path) -> None:
    """What gossip wants stored cannot be: counted and logged, and gossip goes on."""
    async with await join(tmp_path, "n1") as node, await join(tmp_path, "n2") as other:
        await node.wait_for_members(2)
        gossip = node._runtime.gossip
        await asyncio.to_thread((tmp_path / "default" / "n1" / "life").write_bytes, b"garbage")
        assert gossip._persist is not None
        await gossip._write(gossip._persist, 1 << 60)
        assert node.stats()["gossip"]["persist_failures"] == 1
        await other.register_agent(7, handler=None)
        await node.wait_for_agent(7)
        await eventually(lambda: not gossip._writing)
