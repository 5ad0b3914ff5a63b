"""A lock: one process at a time works on a run."""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from attentionce.errors import UserError


def lock(path: Path) -> TextIO:
    """Hold `path` until `unlock` or until this process ends: the kernel then releases it.

    Raises:
        UserError: Another process holds it; the message names it.
    """
    while True:
        try:
            file = open(path, "a+")  # open as long as the process
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise UserError(
                f"{owner} is at work on this run ({path}): wait for it, or name another --results"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot lock {path}: {error.strerror}; name another --results"
            ) from None
        try:
            held = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            held = False
        if held:  # else its last holder removed it between our open and our lock
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def unlock(path: Path, file: TextIO) -> None:
    """Release a lock and leave no file behind."""
    with suppress(OSError):  # a folder that is gone or read-only
        path.unlink()
    file.close()
