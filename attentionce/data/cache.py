"""Decoded images in files: the next run reads them, and an array too large for memory is mapped.

A file holds two arrays, one after the other, in NumPy's format: the images, uint8 N×3×H×W, and
which of the N images that there were to decode they are, int64 n. Where broken images were skipped,
n is smaller than N, and only the first n count.
"""

import errno
import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from filelock import FileLock, SoftFileLock

from attentionce.errors import as_user_error

# While a file is being filled it is called PATH.PID.tmp, and PATH.PID.tmp.lock is locked.
PARTS = ".*.npy.*.tmp"
NO_LOCKS = (OSError, NotImplementedError)  # the file system has none, or another process holds it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BLOCK = 2**24  # bytes to write at a time


def load(path: str, count: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Open a file that `make` or `store` made.

    Args:
        path: The file.
        count: How many images there were to decode, N.
        limit: How many bytes may be read into memory; a larger array is mapped, read-only.

    Returns:
        (the images, which of the N they are)

    Raises:
        UserError: The file is damaged.
    """
    with as_user_error(
        f"cannot use the decoded images in {path!r}: remove this file, it is made again"
    ):
        pixels = np.lib.format.open_memmap(path, mode="r")
        if pixels.ndim != 4 or len(pixels) != count or pixels.dtype != np.uint8:
            raise ValueError("it holds other images")
        with open(path, "rb") as file:
            file.seek(pixels.offset + pixels.nbytes)
            kept = np.lib.format.read_array(file)
        steps = np.diff(kept, prepend=-1, append=count)
        if kept.ndim != 1 or kept.dtype != np.int64 or not (steps > 0).all():
            raise ValueError("it holds other images")
        return (pixels if pixels.nbytes > limit else np.array(pixels))[: len(kept)], kept


def make(path: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], np.ndarray]) -> None:
    """Decode images to a memory-mapped file, without ever holding them in memory.

    Args:
        path: The file. It gets this name only when it is complete.
        shape: Of the images, N×3×H×W.
        fill: Decodes them to the array that it is given, and returns which of them it holds.

    Raises:
        UserError: The file cannot be written.
    """
    with (
        as_user_error(
            f"the images are too large for memory and need a file of "
            f"{np.prod(shape, dtype=float) / 1e9:.3f} GB, {path!r}: make room and give write "
            "permission there, name another folder with --cache, or take a smaller --store_size"
        ),
        written(path) as part,
    ):
        fill_file(part, shape, fill)


def fill_file(path: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write both arrays; `fill` fills the first. The file is closed when this returns."""
    start = np.lib.format.open_memmap(path, "w+", np.uint8, shape).offset
    reserve(path, start)
    array = np.lib.format.open_memmap(path, "r+")
    kept = fill(array)
    array.flush()
    with open(path, "ab") as file:
        np.lib.format.write_array(file, kept)


def store(path: str, pixels: np.ndarray, kept: np.ndarray) -> None:
    """Write images that are in memory, for the next run. Where that fails, do without.

    Args:
        path: The file. It gets this name only when it is complete.
        pixels: The images, N×3×H×W.
        kept: Which of the N decoded images they are.
    """
    with suppress(OSError), written(path) as part, open(part, "wb") as file:
        np.lib.format.write_array(file, pixels)
        np.lib.format.write_array(file, kept)


@contextmanager
def written(path: str) -> Iterator[str]:
    """A path to write to, which becomes `path` if nothing fails and else is removed."""
    part = f"{path}.{os.getpid()}.tmp"
    with locked(f"{part}.lock"):
        try:
            yield part
            os.replace(part, path)
        finally:
            with suppress(OSError):  # it has its final name, or was never made
                os.remove(part)


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
        # On a file system without locks some versions of filelock make do with a file, which says
        # nothing about other processes.
        if isinstance(lock, SoftFileLock):
            lock.release()
            continue
        with suppress(OSError):
            os.remove(path.removesuffix(".lock"))
        lock.release()
        with suppress(OSError):
            os.remove(path)
