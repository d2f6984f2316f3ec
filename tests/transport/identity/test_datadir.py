"""The data tree and a process's claim on its part of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from identities import now, open_directory

from transport.errors import DataDirectoryError, InsecureKeyFile, InvalidName, NodeIdInUse
from transport.identity import datadir
from transport.identity.datadir import NodeDirectory
from transport.types import network_name, node_id

NETWORK, NODE = network_name("default"), node_id("a")


def test_one_node_runs_once(tmp_path: Path) -> None:
    """A second claim is refused with the holder's process id, until the first is given up."""
    first = open_directory(tmp_path, node_id="a")
    with pytest.raises(NodeIdInUse, match=f"process {os.getpid()}"):
        open_directory(tmp_path, node_id="a")
    first.release()
    first.release()
    with open_directory(tmp_path, node_id="a") as second:
        assert second.path == tmp_path / "default" / "a"


def test_the_claim_dies_with_its_process(tmp_path: Path) -> None:
    """A killed process leaves nothing to clean up."""
    code = (
        "import sys,os,pathlib; from transport.identity.datadir import NodeDirectory as N;"
        "d = N.open(pathlib.Path(sys.argv[1]), 'default', 'a'); print('up', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "up\n"
    with pytest.raises(NodeIdInUse, match=str(child.pid)):
        open_directory(tmp_path, node_id="a")
    child.kill()
    child.wait()
    child.stdout.close()
    child.stdin.close()
    open_directory(tmp_path, node_id="a").release()


def test_names_of_the_tree_are_no_node_ids(tmp_path: Path) -> None:
    """A node called "ca" would live in the authority's directory."""
    for name in datadir.RESERVED:
        with pytest.raises(InvalidName, match="reserved"):
            open_directory(tmp_path, node_id=name)


def test_each_life_is_greater_than_the_last(tmp_path: Path) -> None:
    """Even at once, and even when the clock goes back."""
    with open_directory(tmp_path) as directory:
        first = directory.next_life()
        assert abs(first - now().timestamp()) < 60
        assert directory.next_life() == first + 1
        assert directory.next_life(now=now() - timedelta(days=400)) == first + 2
        later = now() + timedelta(days=1)
        assert directory.next_life(now=later) == int(later.timestamp())
    with open_directory(tmp_path) as directory:
        assert directory.next_life() == int(later.timestamp()) + 1


@pytest.mark.parametrize("content", ["", "x", "1.5", "-5", str(2**37 - 1), "9" * 5000])
def test_a_damaged_life_is_an_error(tmp_path: Path, content: str) -> None:
    """It names the file and how to go on; a negative number counts as none."""
    with open_directory(tmp_path) as directory:
        path = directory.path / "life"
        path.write_text(content)
        if content == "-5":
            assert directory.next_life() > 0
            return
        with pytest.raises(DataDirectoryError, match=f"rm {path}"):
            directory.next_life()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_an_error(tmp_path: Path) -> None:
    """It names the path."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataDirectoryError, match=str(tmp_path)):
            open_directory(tmp_path / "data")
    finally:
        tmp_path.chmod(0o700)


def test_a_place_where_nothing_can_be_created_is_an_error() -> None:
    """Not even by root."""
    with pytest.raises(DataDirectoryError, match="cannot create /proc/peermesh"):
        open_directory(Path("/proc/peermesh"))


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    """In the place of the data directory, of the network's or of the node's."""
    (tmp_path / "data").write_text("")
    with pytest.raises(DataDirectoryError, match=str(tmp_path / "data")):
        open_directory(tmp_path / "data")
    (tmp_path / "default").write_text("")
    with pytest.raises(DataDirectoryError, match=str(tmp_path / "default")):
        open_directory(tmp_path)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the lock is not kept."""

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        with pytest.raises(DataDirectoryError, match="No space"):
            open_directory(tmp_path)
    open_directory(tmp_path).release()


def test_stray_files_of_a_crash_are_removed(tmp_path: Path) -> None:
    """Only the holder of the lock does it."""
    open_directory(tmp_path, node_id="a").release()
    stray = tmp_path / "default" / "a" / ".tmp-tls.key-1"
    stray.write_bytes(b"")
    with open_directory(tmp_path, node_id="a"):
        assert not stray.exists()


def test_the_default_node_id_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with the host's name and is kept."""
    monkeypatch.setattr(socket, "gethostname", lambda: "My_Laptop.example.org")
    first = datadir.default_node_id(tmp_path, NETWORK)
    assert first.startswith("my-laptop-")
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    assert datadir.default_node_id(tmp_path, NETWORK) == first


@pytest.mark.parametrize("host", ["", "...", "___", "x" * 300, "ö", "-"])
def test_any_host_name_gives_a_node_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Also hosts whose names are no DNS labels."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert node_id(datadir.default_node_id(tmp_path, NETWORK))


@pytest.mark.parametrize("content", [b"", b"A B", b"\xff"])
def test_a_damaged_default_node_id_is_an_error(tmp_path: Path, content: bytes) -> None:
    """It is not replaced: other files bear the old name."""
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "default-node-id").write_bytes(content)
    with pytest.raises(DataDirectoryError, match="default-node-id"):
        datadir.default_node_id(tmp_path, NETWORK)


def test_the_state_directory_of_the_user_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG base directory specification says."""
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert datadir.default_data_dir() == Path("/somewhere/peermesh")
    monkeypatch.setenv("HOME", "/home/me")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert datadir.default_data_dir() == Path("/home/me/.local/state/peermesh")

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataDirectoryError, match="no home"):
        datadir.default_data_dir()


def test_nodes_and_networks_of_a_tree_are_listed(tmp_path: Path) -> None:
    """Whatever else lies there is passed over."""
    assert datadir.known_nodes(tmp_path, NETWORK) == []
    assert datadir.known_networks(tmp_path / "none") == []
    for name in ("b", "a"):
        open_directory(tmp_path, node_id=name).release()
    datadir.default_node_id(tmp_path, NETWORK)
    (tmp_path / "default" / "Not a node").mkdir()
    (tmp_path / "Not a network").mkdir()
    (tmp_path / "file").write_text("")
    assert datadir.known_nodes(tmp_path, NETWORK) == ["a", "b"]
    assert datadir.known_networks(tmp_path) == ["default"]


def test_a_short_control_socket_lies_in_the_node_directory() -> None:
    """Opening the directory is not needed to know it."""
    assert datadir.control_socket_path(Path("/d"), NETWORK, NODE) == Path("/d/default/a/control.sock")


def test_a_long_control_socket_path_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same short name each time, in a directory that is only ours, and a socket can be bound there."""
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        path = datadir.control_socket_path(deep, NETWORK, NODE)
        with NodeDirectory.open(deep, NETWORK, NODE) as directory:
            assert directory.control_socket_path == path
        assert path != datadir.control_socket_path(deep, NETWORK, node_id("b"))
        assert path.parent.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
        path.unlink()
        path.parent.chmod(0o750)
        with pytest.raises(InsecureKeyFile, match="private directory"):
            datadir.control_socket_path(deep, NETWORK, NODE)
        path.parent.chmod(0o700)
        path.parent.rename(Path(short) / "theirs")
        path.parent.symlink_to(Path(short) / "theirs")
        with pytest.raises(InsecureKeyFile):
            datadir.control_socket_path(deep, NETWORK, NODE)


def test_a_long_temporary_directory_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the fallback is in /tmp itself."""
    deep = tmp_path / ("z" * 120)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    path = datadir.control_socket_path(deep, NETWORK, NODE)
    assert path.parent == Path(f"/tmp/peermesh-{os.getuid()}")
