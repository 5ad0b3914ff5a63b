"""The user's own images: a folder a class, any size and format, in memory or in a memory-mapped file."""

import fcntl
import glob
import hashlib
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from attentionce.data.images import EXTENSIONS, FORMATS, Images, decode, read_image
from attentionce.errors import UserError, mending


def image_folder(root: str, split: str, store_size: int) -> Images:
    """root/train/CLASS/… and root/test/CLASS/… (without a test folder: val), with images of any size and format.

    They become RGB, upright as EXIF says, transparency dropped; the short side is resized to store_size and the centre
    cut out, unless all images of both splits have one size and it is no larger. EPS, FITS and videos are passed over.
    An array too large for memory goes to a hidden file in root, which the next run on the same images finds again.
    """
    held_out = "test" if os.path.isdir(os.path.join(root, "test")) else "val"
    train, test = os.path.join(root, "train"), os.path.join(root, held_out)
    if not os.path.isdir(train) or not os.path.isdir(test):
        raise UserError(
            f"--root {root!r} needs a folder train and a folder test or val, each with a folder a class"
        )
    with mending(f"cannot list the images in {root!r}: repair or remove what cannot be read"):
        classes = sorted(
            entry.name for entry in os.scandir(train) if entry.is_dir() and entry.name[0] != "."
        )
        found = {"train": find_images(train, classes), "test": find_images(test, classes)}
    files, everything = found[split], found["train"] + found["test"]
    if not files:
        raise UserError(
            f"no images in {test if split == 'test' else train!r}: it needs a folder a class, with images"
        )
    size = common_size([path for path, _, _ in everything], store_size)
    shape = (len(files), 3, *(size or (store_size, store_size)))

    def read(i: int) -> Image.Image:
        path = files[i][0]
        return read_image(
            lambda: path, path, FORMATS, lambda image: upright(image, None if size else store_size)
        )

    if np.prod(shape, dtype=float) > memory_limit():
        marks = [(os.path.relpath(path, root), *mark) for path, _, mark in everything]
        name = hashlib.sha256(ascii([store_size, marks]).encode()).hexdigest()[:16]
        pixels = cached(
            os.path.join(root, f".{split}-{name}.npy"), shape, lambda out: decode(read, out, split)
        )
    else:
        pixels = np.empty(shape, np.uint8)
        decode(read, pixels, split)
    return Images(torch.from_numpy(pixels), torch.tensor([label for _, label, _ in files]), classes)


def find_images(top: str, classes: list[str]) -> list[tuple[str, int, tuple[int, int]]]:
    """Path, label and (bytes, time of change) of every image below top/CLASS that is not hidden."""

    def stop(error: OSError) -> None:  # os.walk would pass over a folder that it cannot read
        raise error

    for entry in os.scandir(top):
        if entry.is_dir() and entry.name[0] != "." and entry.name not in classes:
            raise UserError(f"{entry.path!r} is no class of the folder train: rename or remove it")
    found = []
    for label, name in enumerate(classes):
        if os.path.isdir(os.path.join(top, name)):
            for folder, folders, files in os.walk(os.path.join(top, name), onerror=stop):
                folders[:] = sorted(f for f in folders if f[0] != ".")
                for file in sorted(files):
                    if file[0] != "." and os.path.splitext(file)[1].lower() in EXTENSIONS:
                        info = os.stat(path := os.path.join(folder, file))
                        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                            raise UserError(f"{path!r} is no regular file: remove it")
                        found.append((path, label, (info.st_size, info.st_mtime_ns)))
    return found


def common_size(paths: list[str], store_size: int) -> tuple[int, int] | None:
    """(height, width) of all images if that is one size within store_size, else None, at the first that decides so."""

    def measure(image: Image.Image) -> tuple[int, int]:
        if (
            image.width != image.height and max(image.size) <= store_size
        ):  # the rare case where EXIF's turn matters,
            ImageOps.exif_transpose(
                image, in_place=True
            )  # which decodes the image; all others need but the header
        return image.height, image.width

    size = None
    for path in tqdm(paths, desc="reading sizes", unit="image", leave=False, disable=None):
        this = read_image(lambda path=path: path, path, FORMATS, measure)
        if max(this) > store_size or size not in (None, this):
            return None
        size = this
    return size


def upright(image: Image.Image, side: int | None) -> Image.Image:
    """The image in 8-bit RGB, turned as EXIF says, then resized and cropped to side×side (None: as large as it is)."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    image = image.convert("RGB")
    if side is None:
        return image
    short = min(image.size)
    if max(image.size) > 16 * short:  # or a line of pixels would be enlarged beyond all memory
        image = ImageOps.fit(image, (min(image.width, 16 * short), min(image.height, 16 * short)))
    image = image.resize(
        (side * image.width // short, side * image.height // short), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def memory_limit() -> float:
    """Bytes that decoded images may take in memory: half of what the machine has free (unknown: 4 GB)."""
    try:
        with open("/proc/meminfo") as file:
            return 512 * int(re.search(r"MemAvailable:\s+(\d+) kB", file.read())[1])
    except (OSError, TypeError):
        return 4e9


def remove_parts(folder: str) -> None:
    """Remove what programs that were killed while they filled a file have left: nobody holds its lock any more."""
    for part in glob.glob(os.path.join(glob.escape(folder), ".*.npy.*.tmp")):
        with suppress(OSError), open(part, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(part)


def cached(path: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """The uint8 array in the .npy file at path, memory-mapped; if there is none, fill(out) makes it first."""
    part = f"{path}.{os.getpid()}.tmp"
    advice = f"make room there and leave to write, remove {path!r} if it is damaged, or take a smaller --store_size"
    with mending(f"the images need a file of {np.prod(shape, dtype=float) / 1e9:.3f} GB: {advice}"):
        try:
            if not os.path.exists(path):
                remove_parts(os.path.dirname(path))
                with open(part, "wb") as file:
                    with suppress(OSError):  # some network file systems have no locks
                        fcntl.flock(file, fcntl.LOCK_EX)
                    out = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
                    if hasattr(
                        os, "posix_fallocate"
                    ):  # else a disk that fills up kills the program (SIGBUS)
                        os.posix_fallocate(file.fileno(), 0, os.path.getsize(part))
                    fill(out)
                    out.flush()
                    os.replace(part, path)
        finally:
            if os.path.exists(part):
                os.remove(part)
        out = np.lib.format.open_memmap(path, mode="r")
        if out.shape != shape or out.dtype != np.uint8:
            raise ValueError("it holds other images")
        return out
