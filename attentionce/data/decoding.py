"""From image files to 8-bit RGB pixels, in one thread per CPU."""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.pool import ThreadPool
from typing import IO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin
from tqdm import tqdm

from attentionce.errors import UserError
from attentionce.progress import progress

# EPS would start Ghostscript, FITS unpacks without a limit, and PIL alone cannot decode the others.
UNUSED_FORMATS = ("EPS", "FITS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")


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
    readable = formats()  # first of all, because it registers more extensions
    return {end for end, name in Image.registered_extensions().items() if name in readable}


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
        BrokenImage: The image is broken, or above PIL's limit of pixels.
        UserError: There is not enough memory, which does not mean that the image is broken.
    """
    try:
        with Image.open(source() if callable(source) else source, formats=allowed) as image:
            yield image
    except UserError:
        raise
    except MemoryError:
        raise UserError(
            f"not enough memory to decode {name!r}: allow this process more, or remove the image"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: shrink it first"
        raise BrokenImage(name, limit) from None
    except Exception as error:
        # repr escapes line breaks and control characters in names of files.
        raise BrokenImage(name, repr(f"{type(error).__name__}: {error}")[1:-1][:300]) from error


@contextmanager
def open_file(path: str) -> Iterator[Image.Image]:
    """Open an image in any format that is read; a BrokenImage if it is broken or not a file."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise BrokenImage(path, "it is not a regular file")  # opening a pipe would wait for ever
    with open_image(path, path, formats()) as image:
        yield image


def cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode(
    read: Callable[[int], Image.Image],
    out: np.ndarray,
    what: str,
    first: int = 0,
    bar: tqdm | None = None,
) -> dict[int, BrokenImage]:
    """Decode images in several threads, since PIL releases Python's lock while it decodes.

    Args:
        read: Given i, returns image i in RGB.
        out: The array to fill with the images from `first` on, uint8 N×3×H×W.
        what: What the progress bar calls the images.
        bar: Is moved by every image; None: one of its own.

    Returns:
        The broken images by i, in order. Their pixels in `out` are undefined.
    """
    broken: dict[int, BrokenImage] = {}

    def decode_one(i: int) -> None:
        try:
            out[i - first] = np.asarray(read(i)).transpose(2, 0, 1)
        except BrokenImage as error:
            broken[i] = error

    own_bar = progress(len(out), f"decoding {what}") if bar is None else nullcontext(bar)
    with own_bar as shown, ThreadPool(cpus()) as pool:
        for _ in pool.imap_unordered(decode_one, range(first, first + len(out)), chunksize=16):
            shown.update()
    return dict(sorted(broken.items()))


def refuse(broken: dict[int, BrokenImage], advice: str = "") -> None:
    """Raise one UserError for all broken images, if there are any: ten names and the number."""
    if not broken:
        return
    images = list(broken.values())
    if len(images) == 1:
        what, them = f"the image {images[0].name!r}", "it"
    else:
        names = ", ".join(repr(image.name) for image in images[:10])
        more = f" and {len(images) - 10} more" if len(images) > 10 else ""
        what, them = f"{len(images)} images: {names}{more}", "them"
    raise UserError(f"cannot read {what}: replace or remove {them}{advice} ({images[0].cause})")


def upright(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Convert an image to 8-bit RGB on white and turn it as EXIF says.

    Args:
        image: The image, in any mode, not decoded yet.
        size: Height and width to bring it to: its short side is resized to the height, and the
            centre is cropped. An image of this size is kept as it is.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        refuse_other_channels(image)
    turn(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        image.info.pop("transparency", None)  # a level of the 16 bits
    image = on_white(image)
    if (image.height, image.width) == size:
        return image
    side, short = size[0], min(image.size)
    longest = 16 * short  # a single row of pixels, enlarged whole, would fill the memory
    if max(image.size) > longest:
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    resized = (side * image.width // short, side * image.height // short)
    image = image.resize(resized, Image.Resampling.BILINEAR)
    left = round((image.width - side) / 2)
    top = round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def turn(image: Image.Image) -> None:
    """Turn an image in place as EXIF says; where EXIF is malformed, leave it as it lies."""
    image.load()  # first of all, so that an error below is none of the pixels
    with suppress(Exception):  # PIL reads EXIF, turns the image in place, then writes EXIF again
        ImageOps.exif_transpose(image, in_place=True)


def refuse_other_channels(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raise a ValueError for a TIFF of which PIL would read a part, or read it as another kind."""
    tags, bands = image.tag_v2, image.getbands()
    alpha = bands[-1] == "A" and tags.get(338, (0,))[0] not in (1, 2)
    if image.n_frames > 1:
        raise ValueError(f"it has {image.n_frames} pages: save each as a file of its own")
    if alpha or tags.get(277, 1) != len(bands):
        raise ValueError(f"its {tags.get(277)} channels are not gray, RGB, CMYK or one with alpha")
    if max(tags.get(258, (1,))) > 16:
        raise ValueError("pixels of 32 bits have no known range; save it with 8 or 16 bits")


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB; where it is transparent, white shows through."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
