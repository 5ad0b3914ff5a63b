"""A lock: one process at a time works on a run, on an output, or on a file of decoded images."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from attentionce.errors import UserError


@contextmanager
def held(path: Path, taken: str | None) -> Iterator[None]:
    """Hold the lock file `path`, which is removed at the end.

    The system frees it however the process ends. On a file system without locks there is none, and
    one line says so.

    Args:
        taken: What the holder is working on, for the error. None: wait for it.

    Raises:
        UserError: Another process has it; the message names that process.
    """
    if not _has_locks(path.parent):
        print(f"{path.parent} has no locks: start this only once at a time", flush=True)
        yield
        return
    owner = path.with_name(path.name + ".owner")  # some versions of filelock empty `path`
    lock = filelock.FileLock(path, timeout=-1 if taken is None else 0)
    try:
        lock.acquire()
        while not path.exists():  # its last holder removed it after we had opened it
            lock.release()
            lock.acquire()
    except filelock.Timeout:
        name = owner.read_text(errors="replace") if owner.exists() else "another process"
        raise UserError(f"{name} is at work on {taken}") from None
    except OSError as error:
        raise UserError(f"cannot lock {path}: {error.strerror}") from None
    try:
        with suppress(OSError):  # a full disk
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        for file in (owner, path):
            with suppress(OSError):  # the folder is gone or read-only
                file.unlink()
        lock.release()


def _has_locks(folder: Path) -> bool:
    """Whether files in a folder can be locked; where they cannot, versions of filelock differ."""
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows always can
        return True
    except OSError:
        return False
    return True
