"""What all readers of data sets share: the result, the user's mistakes, downloads and decoding."""

import socket
import sys
import tarfile
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, redirect_stdout
from multiprocessing.pool import ThreadPool
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from attentionce.errors import mending

# EPS would start Ghostscript and FITS unpacks without a bound; PIL alone has no pixels for the others.
Image.init()
FORMATS = [f for f in Image.ID if f not in ("EPS", "FITS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")]
EXTENSIONS = {extension for extension, f in Image.registered_extensions().items() if f in FORMATS}
BIG_IMAGE = (
    16_000_000  # pixels. PIL allows 89 million; several of those at once would take gigabytes
)
one_big_image = threading.Lock()


class Images(NamedTuple):
    """A data set. `pixels` may be a read-only memory-mapped file: index it, never write into it."""

    pixels: torch.Tensor  # uint8 N×3×H×W, contiguous
    labels: torch.Tensor  # int64 N; -1 = unlabelled
    classes: list[str]


@contextmanager
def fetching(archive: str, md5: str, url: str, root: str, folder: str):
    """For a download inside: errors say which file to put where, stdout stays the caller's, archives stay in their folder."""
    timeout, unfiltered = socket.getdefaulttimeout(), vars(tarfile.TarFile).get("extraction_filter")
    socket.setdefaulttimeout(
        60
    )  # without one, a network that swallows packets would hang the program
    if hasattr(tarfile, "data_filter"):  # which older versions of torchvision do not ask for
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    place = f"put {archive} (md5 {md5}, from {url}) into the folder {root!r}"
    try:
        with (
            redirect_stdout(sys.stderr),
            mending(f"no usable {archive}: {place} and remove any {folder} from it"),
        ):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        tarfile.TarFile.extraction_filter = unfiltered


def read_image(
    source: Callable[[], str | BinaryIO], name: str, formats: list[str], use: Callable
) -> Any:
    """use(image) of the image in source(), a path or an open file; a UserError with its name if it is broken."""
    with (
        mending(f"cannot read the image {name!r}: replace or remove it"),
        Image.open(source(), formats=formats) as image,
        one_big_image if image.width * image.height > BIG_IMAGE else nullcontext(),
    ):
        return use(image)


def decode(read: Callable[[int], Image.Image], out: np.ndarray, what: str) -> None:
    """Fill out (uint8 N×3×H×W): out[i] = the RGB image read(i); in threads, for PIL decodes outside Python's lock."""

    def one(i: int) -> None:
        out[i] = np.asarray(read(i)).transpose(2, 0, 1)

    bar = tqdm(total=len(out), desc=f"decoding {what}", unit="image", leave=False, disable=None)
    with bar, ThreadPool(torch.get_num_threads()) as pool:
        for _ in pool.imap_unordered(one, range(len(out)), chunksize=16):
            bar.update()
