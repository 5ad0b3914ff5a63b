"""The user's own images, of any size and format, with or without labels."""

import hashlib
import math
import os
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from attentionce.data import cache
from attentionce.data.cache import remove_parts
from attentionce.data.decoding import (
    BrokenImage,
    decode,
    open_file,
    pixel_limit,
    refuse,
    upright,
)
from attentionce.data.folder_layout import NoLabels, Part, no_labels, test_part, training_part
from attentionce.data.image_files import ImageFile
from attentionce.data.images import Images
from attentionce.data.limits import free_memory
from attentionce.errors import UserError, as_user_error

READING = 2  # part of a cache's name: to be raised whenever an image's pixels come out differently
SAMPLES = 64  # files of which a fingerprint knows the first bytes
SAMPLE = 2**16  # bytes


class FolderOptions(NamedTuple):
    """How to read a folder, besides the size of its images."""

    test_split: str | None = None  # the folder of the test images; None: test or val
    skip_broken: bool = False
    big_images: bool = False  # read those above PIL's limit of pixels
    cache: str | None = None  # folder for the decoded images; None: beside the images


def image_folder(
    root: str, split: str, store_size: int, options: FolderOptions = FolderOptions()
) -> Images:
    """Read the images of a split; folder_layout.py says which they are.

    Images become RGB on white, upright as EXIF says. Their short side is resized to `store_size`
    and the centre is cut out, unless all images of all splits have the same size and it is no
    larger than that. EPS, FITS and videos are left out.

    The decoded images go to a hidden file in `root`, where the next run on the same images finds
    them. If they are too large for memory, the result is that file, mapped into memory.

    Args:
        root: The folder with the images.
        split: "pretrain", "train" (those with labels) or "test".
        store_size: Side in pixels at which the images are kept.
        options: How to read them.

    Raises:
        NoLabels: "train" or "test" is asked for, and there are no labels.
        UserError: A folder or an image is missing or unusable.
    """
    with pixel_limit(options.big_images):
        with as_user_error(
            f"cannot list the images in {root!r}: repair or remove what cannot be read"
        ):
            part, everything = find_split(root, split, options.test_split)
        kind = "pretrain" if part.files[-1].label < 0 else "test" if split == "test" else "train"
        pixels, kept = decoded(root, kind, part.files, everything, store_size, options)
    files = [part.files[i] for i in kept.tolist()]
    labels = torch.tensor([file.label for file in files])
    part.left_out.broken = sorted({file.path for file in part.files} - {f.path for f in files})
    if split != "test":
        refuse_emptied(part.classes, labels)
    return Images(
        torch.from_numpy(pixels),
        labels,
        part.classes,
        part.source,
        str(part.left_out),
        fingerprint(root, files, pixels.shape[2:]),
    )


def find_split(root: str, split: str, test_split: str | None) -> tuple[Part, list[ImageFile]]:
    """The images of a split; and those of all splits, whose sizes decide on the size to keep."""
    training = training_part(root, test_split)
    everything = training.files
    try:
        test = test_part(root, training, test_split, strict=split == "test")
    except NoLabels:
        if split == "test":
            raise
    else:
        everything = training.files + test.files
        if split == "test":
            for file in test.files:
                if file.label < 0:
                    name = os.path.relpath(file.path, test.source).split(os.sep)[0]
                    folder = os.path.join(test.source, name)
                    raise UserError(
                        f"{folder!r} is not a class of the folder train: rename or remove it"
                    )
            return test, everything
    if split == "train":
        if not training.classes:
            raise NoLabels(no_labels(root, training))
        files = [file for file in training.files if file.label >= 0]
        return training._replace(files=files), everything
    return training, everything


def decoded(
    root: str,
    kind: str,
    files: list[ImageFile],
    everything: list[ImageFile],
    store_size: int,
    options: FolderOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode images, or read them from the file to which an earlier run decoded them.

    Args:
        root: The user's folder.
        kind: What to call the images in the names of files and the progress bar.
        files: The images.
        everything: Those of all splits.
        store_size: Side in pixels at which images of different sizes are kept.
        options: How to read them.

    Returns:
        (uint8 n×3×H×W, the indices in `files` of these n images); n is smaller than the number of
        files if broken images are skipped.
    """
    name = f".{kind}-{cache_key(root, everything, store_size, options)}.npy"
    folders = [root] if options.cache is None else [root, options.cache]
    for folder in folders:
        if os.path.exists(os.path.join(folder, name)):
            return cache.load(os.path.join(folder, name), len(files), memory_limit())
    size = common_size([file.path for file in everything], store_size)
    side = store_size if size is None else None

    def read(i: int) -> Image.Image:
        with open_file(files[i].path) as image:
            return upright(image, side)

    def fill(out: np.ndarray) -> np.ndarray:
        broken = decode(read, out, kind)
        if not options.skip_broken or len(broken) == len(files):
            refuse(broken, ", or train without them (--skip_broken)")
        kept = np.array([i for i in range(len(files)) if i not in broken], np.int64)
        for to, i in enumerate(kept):
            if to < i:
                out[to] = out[i]
        return kept

    shape = (len(files), 3, *(size or (store_size, store_size)))
    path = os.path.join(folders[-1], name)
    with suppress(OSError):
        os.makedirs(folders[-1], exist_ok=True)
    remove_parts(folders[-1])
    if np.prod(shape, dtype=float) > memory_limit():
        cache.make(path, shape, fill)
        return cache.load(path, len(files), 0)
    pixels = np.empty(shape, np.uint8)
    kept = fill(pixels)
    cache.store(path, pixels, kept)
    return pixels[: len(kept)], kept


def common_size(paths: list[str], store_size: int) -> tuple[int, int] | None:
    """Whether all images have one size that is no larger than `store_size`; broken ones aside.

    Returns:
        That size (height, width); None as soon as one image differs or is larger.
    """
    size = None
    for path in tqdm(paths, desc="reading sizes", unit="image", leave=False, disable=None):
        try:
            with open_file(path) as image:
                # Turning an image decodes it, so do it only where it matters. Else the header will
                # do.
                if image.width != image.height and max(image.size) <= store_size:
                    ImageOps.exif_transpose(image, in_place=True)
                this = (image.height, image.width)
        except BrokenImage:  # decoding will name it
            continue
        if max(this) > store_size or size not in (None, this):
            return None
        size = this
    return size


def memory_limit() -> float:
    """How many bytes of memory decoded images may take: half of what is free; 4 GB if unknown."""
    free = free_memory()
    return 4e9 if free == math.inf else free / 2


def refuse_emptied(classes: list[str], labels: torch.Tensor) -> None:
    """Raise a UserError that names the classes of which all images are broken."""
    counts = labels[labels >= 0].bincount(minlength=len(classes)).tolist()
    emptied = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if emptied:
        raise UserError(
            f"the class {emptied[0]!r} ends up empty, all of its images are broken: replace them, "
            "or remove the folder"
        )


def cache_key(root: str, files: list[ImageFile], store_size: int, options: FolderOptions) -> str:
    """A name that changes with the images and with all that decides on their pixels."""
    how = (READING, store_size, options.skip_broken, options.big_images)
    digest = hashlib.sha256(ascii(how).encode())
    for file in files:
        digest.update(ascii((place(root, file), file.size, file.changed)).encode())
    return digest.hexdigest()[:16]


def fingerprint(root: str, files: list[ImageFile], size: tuple[int, ...]) -> str:
    """A name that changes with the images, but not with the machine or when files are copied.

    It depends on the size at which images are kept, on the paths and sizes of all files, and on the
    first bytes of a few of them.
    """
    digest = hashlib.sha256(ascii(size).encode())
    for file in files:
        digest.update(ascii((place(root, file), file.size)).encode())
    for file in files[:: -(-len(files) // SAMPLES)]:
        with (
            as_user_error(f"cannot read the image {file.path!r}"),
            open(file.path, "rb") as content,
        ):
            digest.update(content.read(SAMPLE))
    return digest.hexdigest()


def place(root: str, file: ImageFile) -> str:
    """The path of a file in root, the same on every system."""
    return file.path.removeprefix(root).replace(os.sep, "/").lstrip("/")
