"""What all readers of data sets share: the result, downloads and decoding."""

import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from multiprocessing.pool import ThreadPool
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from attentionce.errors import mending

# EPS would start Ghostscript, FITS unpacks without a limit, and PIL alone cannot decode the others.
UNUSED_FORMATS = ("EPS", "FITS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")
Image.init()
FORMATS = [name for name in Image.ID if name not in UNUSED_FORMATS]
EXTENSIONS = {
    extension for extension, name in Image.registered_extensions().items() if name in FORMATS
}

# Above this many pixels, images are decoded one at a time. PIL allows 89 million pixels; decoding
# several such images at once would take gigabytes.
BIG_IMAGE = 16_000_000
one_big_image = threading.Lock()


class Images(NamedTuple):
    """A data set. `pixels` may be a read-only memory-mapped file: index it, never write to it."""

    pixels: torch.Tensor  # uint8 N×3×H×W, contiguous
    labels: torch.Tensor  # int64 N; -1: unlabelled
    classes: list[str]


@contextmanager
def fetching(archive: str, md5: str, url: str, root: str, folder: str) -> Iterator[None]:
    """Guard a download by torchvision.

    It gives up after a minute without an answer, prints to stderr, and unpacks nothing outside the
    archive's folder.

    Args:
        archive: Name of the file to download.
        md5: Its checksum.
        url: Where it comes from.
        root: The folder that it goes to.
        folder: The folder in `root` that it is unpacked to.

    Raises:
        UserError: The download failed or is damaged; the message says which file to put where.
    """
    advice = (
        f"no usable {archive}: put {archive} (md5 {md5}, from {url}) into the folder {root!r} "
        f"and remove any {folder} from it"
    )
    timeout = socket.getdefaulttimeout()
    extraction_filter = vars(tarfile.TarFile).get("extraction_filter")
    socket.setdefaulttimeout(60)  # or a network that swallows packets would hang the program
    if hasattr(tarfile, "data_filter"):  # older versions of torchvision do not ask for it
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        with redirect_stdout(sys.stderr), mending(advice):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        tarfile.TarFile.extraction_filter = extraction_filter


@contextmanager
def open_image(
    source: str | Callable[[], IO[bytes]], name: str, formats: list[str]
) -> Iterator[Image.Image]:
    """Open an image. Whatever fails inside, its decoding included, is reported with its name.

    Args:
        source: A path, or a function that opens a file.
        name: What to call the image.
        formats: PIL's names of the formats that are allowed.

    Raises:
        UserError: The image is broken.
    """
    with (
        mending(f"cannot read the image {name!r}: replace or remove it"),
        Image.open(source() if callable(source) else source, formats=formats) as image,
        one_big_image if image.width * image.height > BIG_IMAGE else nullcontext(),
    ):
        yield image


def decode(read: Callable[[int], Image.Image], out: np.ndarray, what: str) -> None:
    """Decode images in several threads, since PIL releases Python's lock while it decodes.

    Args:
        read: Given i, returns image i in RGB.
        out: The array to fill, uint8 N×3×H×W.
        what: What the progress bar calls the images.
    """

    def decode_one(i: int) -> None:
        out[i] = np.asarray(read(i)).transpose(2, 0, 1)

    bar = tqdm(total=len(out), desc=f"decoding {what}", unit="image", leave=False, disable=None)
    with bar, ThreadPool(torch.get_num_threads()) as pool:
        for _ in pool.imap_unordered(decode_one, range(len(out)), chunksize=16):
            bar.update()
