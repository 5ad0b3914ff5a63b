"""From image files to 8-bit RGB pixels, in several threads."""

import functools
import importlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.pool import ThreadPool
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from attentionce.data.limits import free_memory
from attentionce.errors import UserError

# EPS would start Ghostscript, FITS unpacks without a limit, and PIL alone cannot decode the others.
UNUSED_FORMATS = ("EPS", "FITS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")

# What HEIC has in its bytes 8 to 12
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

# Above this many pixels, images are decoded one at a time: several such images at once would take
# gigabytes.
BIG_IMAGE = 16_000_000
one_big_image = threading.Lock()

# Above this many pixels, 89 million, PIL refuses images, because small files can be made that
# unpack to more than any memory holds.
PIL_LIMIT = Image.MAX_IMAGE_PIXELS or 89_478_485
BYTES_PER_PIXEL = 16  # as decoded, turned, on white, and in RGB, with 4 bytes each


@functools.cache
def formats() -> list[str]:
    """PIL's names of the formats that are read; HEIC is among them if pillow-heif is installed."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in Image.ID if name not in UNUSED_FORMATS]


@functools.cache
def extensions() -> set[str]:
    """The extensions of these formats, in lower case and with their dot."""
    known = formats()
    return {end for end, name in Image.registered_extensions().items() if name in known}


class BrokenImage(UserError):
    """An image that cannot be decoded."""

    def __init__(self, name: str, cause: str) -> None:
        super().__init__(f"cannot read the image {name!r}: replace or remove it ({cause})")
        self.name = name
        self.cause = cause


@contextmanager
def open_image(
    source: str | Callable[[], IO[bytes]], name: str, allowed: list[str]
) -> Iterator[Image.Image]:
    """Open an image. Whatever fails inside, its decoding included, is reported with its name.

    Args:
        source: A path, or a function that opens a file.
        name: What to call the image.
        allowed: PIL's names of the formats that are allowed.

    Raises:
        BrokenImage: The image is broken.
        UserError: There is not enough memory, which does not mean that the image is broken.
    """
    try:
        with (
            Image.open(source() if callable(source) else source, formats=allowed) as image,
            one_big_image if image.width * image.height > BIG_IMAGE else nullcontext(),
        ):
            yield image
    except UserError:
        raise
    except MemoryError:
        raise UserError(
            f"not enough memory to decode {name!r}: allow this process more, or remove the image"
        ) from None
    except Exception as error:
        # repr escapes line breaks and control characters in names of files.
        raise BrokenImage(name, repr(f"{type(error).__name__}: {error}")[1:-1][:300]) from error


@contextmanager
def open_file(path: str) -> Iterator[Image.Image]:
    """Open an image in any format that is read, and nothing that is not a file.

    Raises:
        BrokenImage: The image is broken or not a file. Opening a pipe would wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BrokenImage(path, "it is not a regular file")
        with open_image(path, path, formats()) as image:
            yield image
    except OSError as error:
        raise BrokenImage(path, str(error.strerror)) from None
    except BrokenImage:
        with suppress(OSError):
            if needs_heic_reader(path):
                why = "it holds HEIC; to read that: pip install pillow-heif"
                raise BrokenImage(path, why) from None
        raise


def needs_heic_reader(path: str) -> bool:
    """Whether a file holds HEIC, whatever its name, and no reader for it is installed."""
    if "HEIF" in formats() or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


@contextmanager
def pixel_limit(lifted: bool) -> Iterator[None]:
    """Lift PIL's limit on the number of pixels of an image, if `lifted`."""
    before = Image.MAX_IMAGE_PIXELS
    if lifted:
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode(
    read: Callable[[int], Image.Image], out: np.ndarray, what: str
) -> dict[int, BrokenImage]:
    """Decode images in several threads, since PIL releases Python's lock while it decodes.

    Args:
        read: Given i, returns image i in RGB.
        out: The array to fill, uint8 N×3×H×W.
        what: What the progress bar calls the images.

    Returns:
        The broken images by i, in order. Their pixels in `out` are undefined.
    """
    broken: dict[int, BrokenImage] = {}

    def decode_one(i: int) -> None:
        try:
            out[i] = np.asarray(read(i)).transpose(2, 0, 1)
        except BrokenImage as error:
            broken[i] = error

    bar = tqdm(total=len(out), desc=f"decoding {what}", unit="image", leave=False, disable=None)
    with bar, ThreadPool(torch.get_num_threads()) as pool:
        for _ in pool.imap_unordered(decode_one, range(len(out)), chunksize=16):
            bar.update()
    return dict(sorted(broken.items()))


def refuse(broken: dict[int, BrokenImage], advice: str = "") -> None:
    """Raise one UserError for all broken images, if there are any: ten names and the number.

    Args:
        broken: As `decode` returns them.
        advice: What else the user can do.
    """
    if not broken:
        return
    images = list(broken.values())
    if any(image.cause.startswith("DecompressionBomb") for image in images):
        advice += f"; --big_images reads those of more than {PIL_LIMIT:,} pixels"
    if len(images) == 1:
        what, them = f"the image {images[0].name!r}", "it"
    else:
        names = ", ".join(repr(image.name) for image in images[:10])
        more = f" and {len(images) - 10} more" if len(images) > 10 else ""
        what, them = f"{len(images)} images: {names}{more}", "them"
    raise UserError(f"cannot read {what}: replace or remove {them}{advice} ({images[0].cause})")


def upright(image: Image.Image, side: int | None) -> Image.Image:
    """Convert an image to 8-bit RGB on white and turn it as EXIF says.

    Args:
        image: The image, in any mode, not decoded yet.
        side: Resize the image and crop its centre to side×side pixels; None keeps its size.
    """
    if image.width * image.height > PIL_LIMIT:
        bound_memory(image, side)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        image.info.pop("transparency", None)  # a level of the 16 bits
    image = on_white(image)
    if side is None:
        return image
    short = min(image.size)
    longest = 16 * short  # a single row of pixels, enlarged whole, would fill the memory
    if max(image.size) > longest:
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    size = (side * image.width // short, side * image.height // short)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left = round((image.width - side) / 2)
    top = round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB; where it is transparent, white shows through."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def bound_memory(image: Image.Image, side: int | None) -> None:
    """Before an image above PIL's limit is decoded, see that it takes no more memory than is free.

    Most JPEGs can be decoded at a half, a quarter or an eighth of their size.

    Raises:
        ValueError: There is not enough memory.
    """
    if side is not None and not image.info.get("progressive"):
        image.draft(None, (2 * side, 2 * side))
    needed, free = image.width * image.height * BYTES_PER_PIXEL, free_memory()
    if needed > free:
        raise ValueError(f"decoding takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
