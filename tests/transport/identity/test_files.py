"""Files that survive crashes and are nobody else's business."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from transport.errors import DataDirectoryError, InsecureKeyFile
from transport.identity import files


def test_a_write_is_private_and_complete(tmp_path: Path) -> None:
    """The file is 0600 whatever the umask is, and nothing else stays behind."""
    old = os.umask(0)
    try:
        files.write_atomic(tmp_path / "x", b"one")
        files.write_atomic(tmp_path / "x", b"two")
    finally:
        os.umask(old)
    assert (tmp_path / "x").read_bytes() == b"two"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A full disk at any step leaves the old file and no stray one."""
    path = tmp_path / "x"
    files.write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner: object = os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(DataDirectoryError, match="free some space") as caught:
        files.write_atomic(path, b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "give this user"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "space"),
        (errno.ENOTDIR, "something else stands"),
        (errno.EIO, "check the disk"),
    ],
)
def test_every_failure_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str) -> None:
    """The hint depends on what went wrong."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(DataDirectoryError, match=hint):
        files.try_lock(tmp_path / "lock")


def test_a_missing_file_is_none_and_a_directory_an_error(tmp_path: Path) -> None:
    """Absent and unreadable are different things."""
    assert files.read_optional(tmp_path / "x") is None
    with pytest.raises(DataDirectoryError):
        files.read_optional(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """Whatever lies there, memory stays bounded."""
    with (tmp_path / "x").open("wb") as file:
        file.truncate(files.FILE_BYTES_MAX + 1)
    with pytest.raises(DataDirectoryError, match="larger"):
        files.read_optional(tmp_path / "x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_a_private_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """Any right of anybody else is too much; the hint mends it."""
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(InsecureKeyFile, match=f"chmod 600 {path}"):
        files.read_optional(path, private=True)
    path.chmod(0o600)
    assert files.read_optional(path, private=True) == b"secret"


def test_a_directory_others_may_write_is_refused(tmp_path: Path) -> None:
    """They could put their own authority in it."""
    path = tmp_path / "d"
    files.ensure_directory(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o770)
    with pytest.raises(InsecureKeyFile, match="chmod 700"):
        files.ensure_directory(path)
    path.chmod(0o755)
    files.ensure_directory(path)


def test_a_file_where_a_directory_belongs_is_an_error(tmp_path: Path) -> None:
    """Both in the place itself and above it."""
    (tmp_path / "x").write_text("")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(DataDirectoryError, match="something else stands"):
            files.ensure_directory(path)


def test_a_lock_excludes_threads_too(tmp_path: Path) -> None:
    """Each holder has its own description of the file, so threads of one process exclude each other."""
    path = tmp_path / "lock"
    entered = []

    def work() -> None:
        for _ in range(20):
            with files.locked(path):
                entered.append(1)
                assert len(entered) == 1
                entered.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_lock_held_for_ever_is_an_error(tmp_path: Path) -> None:
    """A stopped process must not hang all the others."""
    path = tmp_path / "lock"
    with (
        files.locked(path),
        pytest.raises(DataDirectoryError, match="locked by another"),
        files.locked(path, timeout_s=0.02),
    ):
        pass


def test_stray_temporary_files_are_removed(tmp_path: Path) -> None:
    """What a crash left behind goes; everything else stays."""
    (tmp_path / ".tmp-x-1").write_bytes(b"secret")
    (tmp_path / "x").write_bytes(b"")
    files.remove_temporary(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_failed_rename_is_an_error(tmp_path: Path) -> None:
    """It names the target."""
    with pytest.raises(DataDirectoryError, match="rename"):
        files.move_durably(tmp_path / "none", tmp_path / "x")
