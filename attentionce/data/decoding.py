"""From image files to 8-bit RGB pixels, in one thread per CPU."""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin
from torchvision.transforms import functional
from tqdm import tqdm

from attentionce.errors import UserError

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


class BrokenImage(Exception):
    """An image that cannot be decoded: its path, and why."""


@contextmanager
def open_image(path: str, allowed: list[str] | None = None) -> Iterator[Image.Image]:
    """Open an image in one of the `allowed` formats. Whatever fails inside makes it a broken one.

    Raises:
        BrokenImage: The image is broken, or above PIL's limit of pixels.
        UserError: There is not enough memory, which does not mean that the image is broken.
    """
    try:
        with Image.open(path, formats=allowed or formats()) as image:
            yield image
    except MemoryError:
        raise UserError(f"not enough memory to decode {path!r}: allow this process more") from None
    except Exception as error:
        raise BrokenImage(path, f"{type(error).__name__}: {error}"[:300]) from error


def decode(
    read: Callable[[int], Image.Image], first: int, out: np.ndarray, bar: tqdm
) -> dict[int, BrokenImage]:
    """Fill `out`, uint8 N×3×H×W, with images `first` to `first` + N − 1, in several threads.

    Args:
        read: Given i, returns image i in RGB. PIL releases Python's lock while it decodes.
        bar: Is moved by every image.

    Returns:
        The broken images by i, in order. Their pixels in `out` are undefined.
    """
    broken: dict[int, BrokenImage] = {}

    def decode_one(i: int) -> None:
        try:
            out[i - first] = np.asarray(read(i)).transpose(2, 0, 1)
        except BrokenImage as error:
            broken[i] = error

    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    with ThreadPoolExecutor(len(usable(0)) if usable else os.cpu_count()) as pool:
        for _ in pool.map(decode_one, range(first, first + len(out))):
            bar.update()
    return dict(sorted(broken.items()))


def refuse(broken: dict[int, BrokenImage], advice: str = "") -> None:
    """Raise a UserError for the broken images, if any: ten names and the first cause."""
    images = [error.args for error in broken.values()]
    if images:
        names = ", ".join(repr(path) for path, _ in images[:10])
        more = f" and {len(images) - 10} more images" if len(images) > 10 else ""
        raise UserError(
            f"cannot read {names}{more}: replace or remove them{advice} ({images[0][1]})"
        )


# ---------------------------------------------------------------------------------- one image


def upright(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB on white and turn it as EXIF says.

    Where it has not this `size`, height and width, its short side is resized to the height, and the
    centre is cropped.
    """
    refuse_unknown_pixels(image)
    turn(image)
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        image.info.pop("transparency", None)  # a level of the 16 bits
    image = on_white(image)
    if (image.height, image.width) == size:
        return image
    longest = 16 * min(image.size)  # a row of pixels, enlarged whole, would fill the memory
    if max(image.size) > longest:
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    return functional.center_crop(functional.resize(image, size[0]), size[0])


def turn(image: Image.Image) -> None:
    """Turn an image in place as EXIF says; where EXIF is malformed, leave it as it lies."""
    image.load()  # first of all, so that an error below is none of the pixels
    with suppress(Exception):  # PIL reads EXIF, turns the image in place, then writes EXIF again
        ImageOps.exif_transpose(image, in_place=True)


def refuse_unknown_pixels(image: Image.Image) -> None:
    """Raise a ValueError for pixels of no known range, and for what PIL would read in part."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags, bands = image.tag_v2, image.getbands()
        bits, channels, extra = tags.get(258, (1,)), tags.get(277, 1), tags.get(338, (0,))
        alpha = bands[-1] != "A" or extra[0] in (1, 2)
        if max(bits) > 16 or channels != len(bands) or not alpha or image.n_frames > 1:
            raise ValueError(
                f"a TIFF of {image.n_frames} pages, {channels} channels and {max(bits)} bits: save "
                "it as one page in gray, RGB or CMYK, with or without alpha, of up to 16 bits"
            )


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB; where it is transparent, white shows through."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
