"""Arrays that do not fit into memory: each is a memory-mapped .npy file that is filled once."""

import errno
import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from filelock import FileLock

from attentionce.errors import mending

# While a file is being filled it is called PATH.PID.tmp, and PATH.PID.tmp.lock is locked.
PARTS = ".*.npy.*.tmp"
NO_LOCKS = (OSError, NotImplementedError)  # the file system has none, or another process holds it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BLOCK = 2**24  # bytes to write at a time


def cached(path: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """Open an array in a memory-mapped file, or make that file first if there is none.

    Args:
        path: The .npy file.
        shape: The array's shape; its type is uint8.
        fill: Fills the array that it is given, once.

    Returns:
        The array, read-only.

    Raises:
        UserError: The file cannot be written or is damaged.
    """
    with mending(
        f"the images need a file of {np.prod(shape, dtype=float) / 1e9:.3f} GB: make room and give "
        f"write permission there, remove {path!r} if it is damaged, or take a smaller --store_size"
    ):
        if not os.path.exists(path):
            make(path, shape, fill)
        array = np.lib.format.open_memmap(path, mode="r")
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError("it holds other images")
        return array


def make(path: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Make the file at `path`; it gets this name only when it is complete."""
    part = f"{path}.{os.getpid()}.tmp"
    with locked(f"{part}.lock"):
        try:
            fill_file(part, shape, fill)
            os.replace(part, path)
        finally:
            with suppress(OSError):  # it has its final name, or was never made
                os.remove(part)


def fill_file(path: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Write a .npy file of uint8; `fill` fills its array. It is closed when this returns."""
    start = np.lib.format.open_memmap(path, "w+", np.uint8, shape).offset
    reserve(path, start)
    array = np.lib.format.open_memmap(path, "r+")
    fill(array)
    array.flush()


def reserve(path: str, start: int) -> None:
    """Claim the disk space of a sparse file from byte `start` to its end.

    Without this, writing to the mapped file on a disk that is full kills the program (SIGBUS).

    Raises:
        OSError: There is not enough room.
    """
    size = os.path.getsize(path) - start
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), start, size)
                return
            except OSError as error:  # some file systems cannot do it
                if error.errno in NO_ROOM:
                    raise
        file.seek(start)
        for done in range(0, size, BLOCK):
            file.write(bytes(min(BLOCK, size - done)))


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends, however it ends.

    On a file system without locks, go on without one.
    """
    lock = FileLock(path)
    with suppress(*NO_LOCKS):
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            os.remove(path)


def remove_parts(folder: str) -> None:
    """Remove files that were left half filled by killed processes: nobody holds their locks."""
    for path in glob.glob(os.path.join(glob.escape(folder), f"{PARTS}.lock")):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except NO_LOCKS:
            continue
        with suppress(OSError):
            os.remove(path.removesuffix(".lock"))
        lock.release()
        with suppress(OSError):
            os.remove(path)
