"""Images that are read when they are needed: more of them than fit into memory."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from attentionce.data.decoding import BrokenImage, open_file, pixel_limit, upright
from attentionce.data.image_files import find_images
from attentionce.data.image_folder import common_size
from attentionce.errors import UserError, as_user_error

SPLITS = ("train", "val", "test", "unlabeled")  # folders that are not classes


class LazyImages(NamedTuple):
    """Images that are read when they are needed, in the order of their paths."""

    paths: list[str]  # inside the root, with / on every system
    labels: list[int]  # -1: none
    classes: list[str]
    size: tuple[int, int]  # height and width in pixels
    read: Callable[[int], np.ndarray]  # image i: uint8 3×H×W; a BrokenImage if it cannot be read
    content: Callable[[int], bytes]  # what tells image i from another one of the same path
    left_out: str = ""  # what else was found, and why it is not read

    def marks(self) -> np.ndarray:
        """64 bits per image, by which its row is recognised when a run is resumed."""
        digests = []
        for i, path in enumerate(self.paths):
            text = path.encode("utf-8", "surrogateescape") + b"\0" + self.content(i)
            digests.append(hashlib.blake2b(text, digest_size=8).digest())
        return np.frombuffer(b"".join(digests), "<u8")


def lazy_folder(root: str, side: int) -> LazyImages:
    """All images below `root`, at any depth, as `utils.load` would resize them.

    The folder in `root`, or in one of SPLITS there, that an image lies in is its class.

    Raises:
        UserError: There are no images, or a folder cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"--root {root!r} is not a folder")
    with as_user_error(f"cannot list the images in {root!r}: repair or remove what cannot be read"):
        found, left_out = find_images(root)
    if not found:
        more = f"; left out: {left_out}" if str(left_out) else ""
        raise UserError(f"no images in --root {root!r}{more}")
    files = {os.path.relpath(file.path, root).replace(os.sep, "/"): file for file in found}
    paths = sorted(files)
    changes = np.array([[files[path].size, files[path].changed] for path in paths])
    del found, files  # those of a million images are large
    with image_warnings():
        size = common_size([os.path.join(root, path) for path in paths], side)

    def read(i: int) -> np.ndarray:
        with open_file(os.path.join(root, paths[i])) as image:
            return np.asarray(upright(image, side if size is None else None)).transpose(2, 0, 1)

    names = [class_of(path) for path in paths]
    classes = sorted(set(names) - {""})
    number = {name: i for i, name in enumerate(classes)}
    labels = [number.get(name, -1) for name in names]
    return LazyImages(
        paths,
        labels,
        classes,
        size or (side, side),
        read,
        lambda i: changes[i].tobytes(),
        str(left_out),
    )


def class_of(path: str) -> str:
    """The folder that is an image's class; empty if there is none."""
    *folders, _ = path.split("/")
    split = folders.pop(0) if folders and folders[0] in SPLITS else ""
    return folders[0] if folders and split != "unlabeled" else ""


@contextmanager
def image_warnings(big_images: bool = False) -> Iterator[None]:
    """PIL's warnings about metadata are not shown; that about an enormous image is an error.

    Args:
        big_images: Lift the limit on an image's pixels.
    """
    with warnings.catch_warnings(), pixel_limit(big_images):
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_blocks(
    images: LazyImages, wanted: list[int], size: int
) -> Iterator[tuple[list[int], list[np.ndarray | BrokenImage]]]:
    """Blocks of indices and their images, or the error where one is broken.

    Several threads read a block while the one before it is encoded.
    """

    def read(i: int) -> np.ndarray | BrokenImage:
        try:
            return images.read(i)
        except BrokenImage as error:
            return error

    parts = [wanted[first : first + size] for first in range(0, len(wanted), size)]
    with ThreadPool(torch.get_num_threads()) as pool:
        ahead = pool.map_async(read, parts[0] if parts else [])
        for number, part in enumerate(parts, 1):
            block = ahead.get()
            if number < len(parts):
                ahead = pool.map_async(read, parts[number])
            yield part, block
