"""The user's own images, of any size and format, with or without labels."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attentionce.data import cache
from attentionce.data.decoding import BrokenImage, open_image, turn
from attentionce.data.folder_layout import find_split, listed
from attentionce.data.images import Images
from attentionce.errors import UserError, as_user_error
from attentionce.progress import progress
from attentionce.runs.locks import held

READING = 4  # part of a cache's name: raise it whenever pixels or the file come out differently
SAMPLES = 64  # files of which a fingerprint knows the first bytes
SAMPLE = 2**16  # bytes


class FolderOptions(NamedTuple):
    """How to read a folder, besides the size of its images."""

    test_split: str | None = None  # the folder of the test images; None: test or val
    skip_broken: bool = False
    cache: str | None = None  # folder for the decoded images; None: beside the images


def image_folder(
    root: str, split: str, store_size: int, options: FolderOptions = FolderOptions()
) -> Images:
    """Read the images of a split; the arguments and errors are those of `utils.load`.

    Images become RGB on white, upright as EXIF says. Their short side is resized to `store_size`
    and the centre is cut out, unless all images of all splits have one size, no larger than that.
    """
    with as_user_error(f"cannot list the images in --root {root!r}: name another, or repair it"):
        part, everything = find_split(root, split, options.test_split)
    paths, labels = [*part.files], [*part.files.values()]
    if split == "pretrain" and labels[-1]:
        split = "train"  # the same images
    folder = cache.folder_for(root, options.cache)
    elsewhere = "" if folder == Path(root) else os.path.abspath(root)
    settings = digest([READING, store_size, options.test_split, elsewhere])
    contents = digest((path, *size_and_time(root, path)) for path in everything)
    file = folder / f".{split}-{settings}-{contents}.npy"
    if (found := cache.find(file, len(paths), options.skip_broken)) is None:
        with held(file.with_suffix(".lock"), None):  # another process may be decoding them
            while (found := cache.find(file, len(paths), options.skip_broken)) is None:
                size = common_size([os.path.join(root, path) for path in everything], store_size)
                images = [os.path.join(root, path) for path in paths]
                cache.write(file, images, size, split, options.skip_broken)
    pixels, kept = found
    if len(kept) < len(paths):
        part.left_out["broken images"] = len(paths) - len(kept)
        paths, labels = [paths[i] for i in kept], [labels[i] for i in kept]
    if not paths:
        raise UserError(f"none of the images in {part.source} can be read")
    number = {name: i for i, name in enumerate(part.classes)}
    return Images(
        torch.from_numpy(pixels),
        torch.tensor([number.get(name, -1) for name in labels]),
        part.classes,
        part.source,
        listed(part.left_out),
        fingerprint(root, paths, pixels.shape[2:]),
        paths,
    )


def common_size(paths: list[str], store_size: int) -> tuple[int, int]:
    """Height and width of all images, or `store_size` as soon as one differs or is larger."""
    size = None
    with progress(len(paths), "reading sizes") as bar:
        for path in paths:
            bar.update()
            try:
                with open_image(path) as image:
                    # Turning an image decodes it, so do it only where it matters.
                    if image.width != image.height and max(image.size) <= store_size:
                        turn(image)
                    this = (image.height, image.width)
            except BrokenImage:  # decoding will name it
                continue
            if max(this) > store_size or size not in (None, this):
                return store_size, store_size
            size = this
    return size or (store_size, store_size)


def fingerprint(root: str, paths: list[str], size: tuple[int, ...]) -> str:
    """A name that changes with the images, but not when they are copied to another machine.

    It depends on the size at which images are kept, on the paths and sizes of all files, and on the
    first bytes of a few.
    """
    found = hashlib.sha256(ascii(size).encode())
    for path in paths:
        found.update(ascii((path, size_and_time(root, path)[0])).encode())
    for path in paths[:: -(-len(paths) // SAMPLES)]:
        with as_user_error(f"cannot read {path!r}"), open(os.path.join(root, path), "rb") as file:
            found.update(file.read(SAMPLE))
    return found.hexdigest()


def size_and_time(root: str, path: str) -> tuple[int, int]:
    """Bytes, and ns of the last change; of a link that leads nowhere, a broken image, -1."""
    with suppress(OSError):
        info = os.stat(os.path.join(root, path))
        return info.st_size, info.st_mtime_ns
    return -1, -1


def digest(values: Iterable[Any]) -> str:
    """16 hexadecimal digits that differ wherever the values do."""
    return hashlib.sha256("".join(map(ascii, values)).encode()).hexdigest()[:16]
