"""A lock: one process at a time works on a run."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import filelock

from attentionce.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What some network file systems (Lustre, NFS) answer when they have no locks.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock `path` inside, and leave no file behind.

    The kernel releases it however the process ends. A file system without locks leaves the run
    unguarded, and one line says so.

    Raises:
        UserError: Another process holds it; the message names it.
    """
    if fcntl is None:
        with _held_by_library(path):
            yield
        return
    file = lock(path)
    try:
        yield
    finally:
        unlock(path, file)


def lock(path: Path) -> TextIO | None:
    """Take the lock; None on a file system without locks.

    Raises:
        UserError: Another process holds it; the message names it.
    """
    while True:
        try:
            file = open(path, "a+")  # open as long as the lock is held
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise UserError(_taken(owner, path)) from None
        except OSError as error:
            if error.errno in NO_LOCKS:
                print(f"{path.parent} has no locks: start this run only once at a time", flush=True)
                unlock(path, file)
                return None
            raise UserError(
                f"cannot lock {path}: {error.strerror}; name another --results"
            ) from None
        try:
            current = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            current = False
        if current:  # else its last holder removed it between our open and our lock
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def unlock(path: Path, file: TextIO | None) -> None:
    """Release a lock and leave no file behind."""
    if file is None:
        return
    with suppress(OSError):  # a folder that is gone or read-only
        path.unlink()
    file.close()


@contextmanager
def _held_by_library(path: Path) -> Iterator[None]:
    guard = filelock.FileLock(path, timeout=0)
    try:
        with guard:
            yield
    except filelock.Timeout:
        raise UserError(_taken("another process", path)) from None
    finally:
        with suppress(OSError):
            path.unlink()


def _taken(owner: str, path: Path) -> str:
    return f"{owner} is at work on this run ({path}): wait for it, or name another --results"
