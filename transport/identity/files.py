"""Files that survive crashes and are nobody else's business: atomic writes, locks, and who may read what.

A write is: temporary file in the same directory, fsync, rename, fsync of the directory.  After a crash there is the
old content or the new one, never a mixture (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
Locks are ``flock``: the kernel drops them with the process, so a crash leaves none behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from transport.clock import SystemClock
from transport.errors import DataDirectoryError, InsecureKeyFile

#: No file of the identity tree is near this size; a bigger one is not ours, and is not read into memory.
FILE_BYTES_MAX: Final = 4 * 1024 * 1024

#: How long to wait for a lock that is only ever held for milliseconds.
LOCK_TIMEOUT_S: Final = 30.0

_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700
_TEMPORARY: Final = ".tmp-"
_LOCK_POLL_S: Final = 0.005
_CLOCK: Final = SystemClock()


def _failed(action: str, path: Path, error: OSError) -> DataDirectoryError:
    """Word an :class:`OSError` as something a person can act upon."""
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"give this user the right to it (ls -ld {path}), or choose another data directory"
    elif error.errno == errno.EROFS:
        hint = "the file system is mounted read-only; choose another data directory"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or choose a data directory on another disk"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        hint = f"something else stands at {path}: move it away, or choose another data directory"
    else:
        hint = "check the disk, or choose another data directory"
    return DataDirectoryError(f"cannot {action} {path}: {error.strerror or error}", hint=hint)


def ensure_directory(path: Path) -> None:
    """Create ``path`` (mode 0700) and its parents where missing, durably.

    Raises:
        DataDirectoryError: It cannot be created, or is something else.
        InsecureKeyFile: It exists and others may write in it, so they could replace the files in it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=_PRIVATE_DIRECTORY)
        except FileExistsError:
            pass
        else:
            _sync_directory(path.parent)
        mode = path.stat().st_mode
    except OSError as error:
        raise _failed("create", path, error) from error
    if not stat.S_ISDIR(mode):
        raise _failed("create", path, NotADirectoryError(errno.ENOTDIR, "it is not a directory"))
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InsecureKeyFile(f"others may write in {path} (mode {mode & 0o777:04o})", hint=f"chmod 700 {path}")


def write_atomic(path: Path, data: bytes, *, mode: int = _PRIVATE_FILE) -> None:
    """Put ``data`` in the place of ``path``: durable when this returns, and never half there.

    Raises:
        DataDirectoryError: It could not be written; the old content is still there.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # Whatever stopped us, also a cancellation: leave no stray file with a key in it.
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _failed("write", path, error) from error


def move_durably(source: Path, target: Path) -> None:
    """Rename within one directory, durably.

    Raises:
        DataDirectoryError: It could not be renamed.
    """
    try:
        source.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise _failed("rename to", target, error) from error


def remove_temporary(directory: Path) -> None:
    """Delete what interrupted writes left behind.  Only for the holder of the directory's lock."""
    for path in directory.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # best effort: such a file is never read, and the next start tries again
            path.unlink()


def read_optional(path: Path, *, private: bool = False) -> bytes | None:
    """The content of ``path``, or ``None`` if there is no such file.

    Args:
        path: The file.
        private: It holds a secret, so it is refused when anybody else may read it.

    Raises:
        DataDirectoryError: It is there and cannot be read, or is far too large to be ours.
        InsecureKeyFile: ``private``, and group or others have any right to it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if private:
                refuse_shared(path, status.st_mode)
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("read", path, error) from error
    if len(data) > FILE_BYTES_MAX:
        raise DataDirectoryError(
            f"{path} is larger than {FILE_BYTES_MAX} bytes", hint="it is not a peermesh file: move it away"
        )
    return data


def refuse_shared(path: Path, mode: int) -> None:
    """Refuse a private key that group or others may touch.

    Raises:
        InsecureKeyFile: They may; it names the command that mends it.
    """
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InsecureKeyFile(
            f"private key {path} is open to others (mode {mode & 0o777:04o})", hint=f"chmod 600 {path}"
        )


def try_lock(path: Path) -> int | None:
    """Take the lock file at ``path`` if nobody holds it.

    Returns:
        The descriptor that holds the lock until it is closed; ``None`` when another one holds it.

    Raises:
        DataDirectoryError: The file cannot be created or locked at all.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
    except OSError as error:
        raise _failed("open", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise _failed("lock", path, error) from error
    return descriptor


@contextmanager
def locked(path: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file at ``path``, waiting for other processes and threads.

    Raises:
        DataDirectoryError: Somebody held it for ``timeout_s``.
    """
    deadline = _CLOCK.monotonic() + timeout_s
    while (descriptor := try_lock(path)) is None:
        if _CLOCK.monotonic() > deadline:
            raise DataDirectoryError(
                f"{path} has been locked by another process for {timeout_s:g} s",
                hint=f"see who holds it (fuser {path}); a stopped process may have to be continued or killed",
            )
        time.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
