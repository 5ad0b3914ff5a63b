"""The user's own images, of any size and format, with or without labels."""

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from attentionce.data import cache
from attentionce.data.decoding import BrokenImage, open_file, turn, upright
from attentionce.data.folder_layout import find_split
from attentionce.data.image_files import ImageFile
from attentionce.data.images import Images
from attentionce.errors import UserError, as_user_error
from attentionce.progress import progress
from attentionce.runs.locks import held

READING = 3  # part of a cache's name: to be raised whenever an image's pixels come out differently
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
    """Read the images of a split; folder_layout.py says which they are, cache.py where they go.

    Images become RGB on white, upright as EXIF says. Their short side is resized to `store_size`
    and the centre is cut out, unless all images of all splits have the same size and it is no
    larger than that. The arguments and errors are those of `utils.load`.
    """
    with as_user_error(f"cannot list the images in {root!r}: repair or remove what cannot be read"):
        part, everything = find_split(root, split, options.test_split)
    if split == "pretrain" and part.files[-1].folder:
        split = "train"  # the same images
    pixels, kept = decoded(root, split, part.files, everything, store_size, options)
    files = [part.files[i] for i in kept]
    number = {name: i for i, name in enumerate(part.classes)}
    labels = torch.tensor([number.get(file.folder, -1) for file in files])
    if len(files) < len(part.files):
        broken = {file.inside(root) for file in part.files} - {file.inside(root) for file in files}
        part.left_out["broken images"].update(sorted(broken))
    if split in ("pretrain", "train"):
        refuse_emptied(part.classes, labels)
    return Images(
        torch.from_numpy(pixels),
        labels,
        part.classes,
        part.source,
        str(part.left_out),
        fingerprint(root, files, pixels.shape[2:]),
        [file.inside(root) for file in files],
    )


def decoded(
    root: str,
    split: str,
    files: list[ImageFile],
    everything: list[ImageFile],
    store_size: int,
    options: FolderOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """The images of `files`, decoded to a file that is mapped, and which of `files` they are.

    Args:
        split: What to call the images in the file's name and the progress bar.
        everything: The files of all splits, whose sizes decide on that of the images.

    Returns:
        (uint8 n×3×H×W, n indices); n is smaller than the number of files if some are broken.
    """
    contents = digest((file.inside(root), file.size, file.changed) for file in everything)
    paths = []
    for folder in cache.folders(root, options.cache):
        elsewhere = "" if folder == Path(root) else os.path.abspath(root)
        settings = digest([READING, store_size, options.test_split, elsewhere])
        paths.append(folder / f".{split}-{settings}-{contents}.npy")
    find = functools.partial(cache.find, paths, len(files), options.skip_broken)
    found = find()
    if found is None:
        with held(paths[-1].with_suffix(".lock"), None):
            found = find()  # another process may have decoded them meanwhile
            if found is None:
                size = common_size([file.path for file in everything], store_size)
                read = functools.partial(read_image, files, size)
                shape = (len(files), 3, *size)
                found = cache.write(paths[-1], shape, read, split, options.skip_broken)
    return found


def read_image(files: list[ImageFile], size: tuple[int, int], i: int) -> Image.Image:
    """Image i in RGB, `size` pixels high and wide."""
    with open_file(files[i].path) as image:
        return upright(image, size)


def common_size(paths: list[str], store_size: int) -> tuple[int, int]:
    """Height and width of all images, or `store_size` as soon as one differs or is larger."""
    size = None
    with progress(len(paths), "reading sizes") as bar:
        for path in paths:
            bar.update()
            try:
                with open_file(path) as image:
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


def refuse_emptied(classes: list[str], labels: torch.Tensor) -> None:
    """Raise a UserError that names a class of which all images are broken."""
    counts = labels[labels >= 0].bincount(minlength=len(classes)).tolist()
    if 0 in counts:
        raise UserError(
            f"the class {classes[counts.index(0)]!r} ends up empty, all of its images are broken: "
            "replace them, or remove the folder"
        )


def fingerprint(root: str, files: list[ImageFile], size: tuple[int, ...]) -> str:
    """A name that changes with the images, but not with the machine or when files are copied.

    It depends on the size at which images are kept, on the paths and sizes of all files, and on the
    first bytes of a few of them.
    """
    found = hashlib.sha256(ascii(size).encode())
    for file in files:
        found.update(ascii((file.inside(root), file.size)).encode())
    for file in files[:: -(-len(files) // SAMPLES)]:
        with (
            as_user_error(f"cannot read the image {file.path!r}"),
            open(file.path, "rb") as content,
        ):
            found.update(content.read(SAMPLE))
    return found.hexdigest()


def digest(values: Iterable[Any]) -> str:
    """16 hexadecimal digits that differ wherever the values do."""
    found = hashlib.sha256()
    for value in values:
        found.update(ascii(value).encode())
    return found.hexdigest()[:16]
