"""Decoded images in a .npy file that is mapped into memory, where the next run finds them.

The array is uint8 (S+N)×3×H×W for N images. Its first S rows hold one byte per image: 0 not decoded
yet, 1 decoded, 2 broken. The images that were decoded follow, in order and without gaps.
"""

import io
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from attentionce.data.decoding import BrokenImage, decode, refuse
from attentionce.errors import as_user_error
from attentionce.progress import progress

DECODED, BROKEN = 1, 2
BLOCK = 2**26  # bytes of pixels to decode at a time


def folders(root: str, cache: str | None) -> list[Path]:
    """The folders to look for decoded images in; the last is the one to write them to.

    Args:
        root: The folder of the images.
        cache: The folder that the user wants. None: `root`, or where nothing can be written there,
            a temporary folder of the user's.

    Raises:
        UserError: A folder cannot be made, or belongs to somebody else.
    """
    if cache is None and os.access(root, os.W_OK):
        return [Path(root)]
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(cache or Path(tempfile.gettempdir(), f"attentionce-{user}"))
    with as_user_error(f"cannot use the folder {str(folder)!r}: name another with --cache"):
        folder.mkdir(mode=0o777 if cache else 0o700, parents=True, exist_ok=True)
        if not cache and user not in ("", folder.stat().st_uid):
            raise PermissionError("it belongs to somebody else")
    return [folder] if cache else [Path(root), folder]


Found = tuple[np.ndarray, np.ndarray]  # images uint8 n×3×H×W, which of all N they are


def find(paths: list[Path], count: int, skip_broken: bool) -> Found | None:
    """Map the first of these files that is there and has all `count` images, or the sound ones.

    Raises:
        UserError: A file is damaged.
    """
    for path in filter(Path.exists, paths):
        with as_user_error(f"cannot use the decoded images in {str(path)!r}: remove this file"):
            array = np.lib.format.open_memmap(path, mode="r")
            rows = _state_rows(count, array.shape[1:])
            states = array[:rows].reshape(-1)[:count]
            if len(array) != rows + count or array.dtype != np.uint8 or not states.all():
                raise ValueError("it holds other images, or not all")
        kept = np.flatnonzero(states == DECODED)
        if skip_broken or len(kept) == count:
            return array[rows : rows + len(kept)], kept
    return None


def write(
    path: Path,
    shape: tuple[int, ...],
    read: Callable[[int], Image.Image],
    what: str,
    skip_broken: bool,
) -> Found:
    """Decode images to a file and map it, continuing where a process that was killed stopped.

    Nothing is written through a mapping: on a full disk that would kill the program (SIGBUS).

    Args:
        path: The file. It gets this name only when it is complete.
        shape: Of the images, N×3×H×W.
        read, what: As for `decode`.

    Raises:
        UserError: The file cannot be written, or images are broken.
    """
    count, row = shape[0], math.prod(shape[1:])
    rows, size = _state_rows(count, shape[1:]), max(1, BLOCK // row)
    header, part = io.BytesIO(), path.with_suffix(".part")
    description = {"descr": "|u1", "fortran_order": False, "shape": (rows + count, *shape[1:])}
    np.lib.format.write_array_header_1_0(header, description)
    start = header.tell()
    broken: dict[int, BrokenImage] = {}
    with as_user_error(
        f"cannot write {count * row / 1e9:.3f} GB of decoded images to {str(path)!r}: make room "
        "and give write permission there, or name another folder with --cache"
    ):
        part.touch()
        with open(part, "r+b") as file:
            if file.read(start) != header.getvalue():
                file.truncate(0)
                file.seek(0)
                file.write(header.getvalue())
            states = np.frombuffer(file.read(count).ljust(count, b"\0"), np.uint8).copy()
            if not skip_broken or DECODED not in states:
                states[states == BROKEN] = 0  # they may have been repaired
            done = int(np.append(states, 0).argmin())
            with progress(count, f"decoding {what}", done) as bar:
                for first in range(done, count, size):
                    pixels = np.empty((min(size, count - first), *shape[1:]), np.uint8)
                    broken_here = decode(read, pixels, what, first, bar)
                    broken |= broken_here
                    state = np.full(len(pixels), DECODED, np.uint8)
                    state[[i - first for i in broken_here]] = BROKEN
                    file.seek(start + (rows + np.count_nonzero(states[:first] == DECODED)) * row)
                    file.write(pixels[state == DECODED].tobytes())
                    file.flush()
                    os.fsync(file.fileno())  # only then they count as decoded
                    states[first : first + len(pixels)] = state
                    file.seek(start)
                    file.write(states.tobytes())
                    file.flush()
            file.truncate(start + (rows + count) * row)
    if not skip_broken or DECODED not in states:
        refuse(broken, ", or train without them (--skip_broken)")
    with suppress(FileNotFoundError):  # without locks, another process may have been faster
        os.replace(part, path)
    _remove_stale(path)
    found = find([path], count, skip_broken)
    assert found is not None
    return found


def _remove_stale(path: Path) -> None:
    """Remove what was decoded with the same settings from other images, finished or not.

    What was begun with other settings goes too, if nobody has worked on it for an hour.
    """
    settings, _, _ = path.name.rpartition("-")
    for other in path.parent.glob(".*-" + "-".join(2 * [16 * "[0-9a-f]"]) + ".[np]*"):
        with suppress(OSError):
            idle = other.suffix == ".part" and time.time() - other.stat().st_mtime > 3600
            if other.stem != path.stem and (other.name.startswith(f"{settings}-") or idle):
                other.unlink()


def _state_rows(count: int, size: tuple[int, ...]) -> int:
    """S: how many rows of this size it takes to hold a byte for each image."""
    return -(-count // math.prod(size))
