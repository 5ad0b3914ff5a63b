"""Decoded images in a .npy file that is mapped into memory, where the next run finds them.

The array is uint8 N×3×H×W for N images. After it comes one byte per image: 0 not decoded yet, 1
decoded, 2 broken. The images that were decoded lie at the array's beginning, without gaps.
"""

import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from attentionce.data.decoding import BrokenImage, decode, open_image, refuse, upright
from attentionce.errors import as_user_error
from attentionce.progress import progress

DECODED, BROKEN = 1, 2
BLOCK = 2**26  # bytes of pixels to decode at a time


def folder_for(root: str, cache: str | None) -> Path:
    """The user's `cache`, else the images' folder, or where that is read-only a temporary one."""
    if cache is None and os.access(root, os.W_OK):
        return Path(root)
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(cache or Path(tempfile.gettempdir(), f"attentionce-{user}"))
    with as_user_error(f"cannot use the folder {str(folder)!r}: name another with --cache"):
        folder.mkdir(mode=0o777 if cache else 0o700, parents=True, exist_ok=True)
        if not cache and user not in ("", folder.stat().st_uid):
            raise PermissionError("it belongs to somebody else")
    return folder


def find(path: Path, count: int, skip_broken: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Map the file if it has all `count` images, or with `skip_broken` all sound ones."""
    if not path.exists():
        return None
    with as_user_error(f"cannot use the decoded images in {str(path)!r}: remove this file"):
        array = np.load(path, mmap_mode="r")
        states = np.fromfile(path, np.uint8, offset=array.offset + array.nbytes)
        if array.dtype != np.uint8 or not len(array) == len(states) == count or not states.all():
            raise ValueError("it holds other images, or not all")
    kept = np.flatnonzero(states == DECODED)
    return (array[: len(kept)], kept) if skip_broken or len(kept) == count else None


def write(
    path: Path, images: list[str], size: tuple[int, int], what: str, skip_broken: bool
) -> None:
    """Decode images to a file, continuing where a process that was killed stopped.

    Nothing is written through a mapping: on a full disk that would kill the program (SIGBUS).

    Args:
        path: The file. It gets this name only when it is complete.
        images: The files of the images.
        size: Height and width.

    Raises:
        UserError: The file cannot be written, or images are broken.
    """

    def read(i: int) -> Image.Image:
        with open_image(images[i]) as image:
            return upright(image, size)

    count, row = len(images), 3 * math.prod(size)
    block = max(1, BLOCK // row)
    broken: dict[int, BrokenImage] = {}
    part = path.with_suffix(f".{size[0]}.{size[1]}.part")
    with as_user_error(
        f"cannot write {count * row / 1e9:.3f} GB of decoded images to {str(path)!r}: make room "
        "and give write permission there, or name another folder with --cache"
    ):
        part.touch()
        with open(part, "r+b") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, *size)}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            end = file.seek(start + count * row)
            states = np.frombuffer(file.read(count).ljust(count, b"\0"), np.uint8).copy()
            # Unless they are skipped, broken images may have been repaired: begin at the first.
            done = int(np.append(states if skip_broken else states == DECODED, 0).argmin())
            states[done:] = 0
            with progress(count, f"decoding {what}", done) as bar:
                for first in range(done, count, block):
                    pixels = np.empty((min(block, count - first), 3, *size), np.uint8)
                    broken |= decode(read, first, pixels, bar)
                    last = first + len(pixels)
                    states[first:last] = DECODED
                    states[[*broken]] = BROKEN
                    file.seek(start + row * np.count_nonzero(states[:first] == DECODED))
                    file.write(pixels[states[first:last] == DECODED].tobytes())
                    file.flush()
                    os.fsync(file.fileno())  # only then they count as decoded
                    file.seek(end)
                    file.write(states.tobytes())
                    file.flush()
        if not skip_broken:
            refuse(broken, ", or train without them (--skip_broken)")
        os.replace(part, path)
    settings, _, _ = path.name.rpartition("-")
    for other in path.parent.glob(f"{settings}-*.[np]*"):  # of images that have changed since
        if other != path:
            with suppress(OSError):
                other.unlink()
