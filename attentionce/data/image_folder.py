"""The user's own images: one folder per class, of any size and format."""

import hashlib
import math
import os
import stat
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from attentionce.data.cache import cached, remove_parts
from attentionce.data.images import EXTENSIONS, FORMATS, Images, decode, open_image
from attentionce.data.limits import free_memory
from attentionce.errors import UserError, mending


class ImageFile(NamedTuple):
    """An image in a class folder."""

    path: str
    label: int
    size: int  # bytes
    changed: int  # time of the last change, ns


def image_folder(root: str, split: str, store_size: int) -> Images:
    """Read root/train/CLASS/… or root/test/CLASS/…; without a folder test it is root/val/CLASS/….

    Images become RGB, upright as EXIF says, without transparency. Their short side is resized to
    `store_size` and the centre is cut out, unless all images of both splits have the same size and
    it is no larger than that. EPS, FITS and videos are skipped.

    An array that is too large for memory goes to a hidden file in `root`, where the next run on the
    same images finds it.

    Args:
        root: The folder with both splits.
        split: "train" or "test".
        store_size: Side in pixels at which the images are kept.

    Raises:
        UserError: A folder or an image is missing or unusable.
    """
    train, test = split_folders(root)
    with mending(f"cannot list the images in {root!r}: repair or remove what cannot be read"):
        classes = class_names(train)
        found = {"train": find_images(train, classes), "test": find_images(test, classes)}
    files = found[split]
    if not files:
        folder = test if split == "test" else train
        raise UserError(f"no images in {folder!r}: it needs one folder per class, with images")
    everything = found["train"] + found["test"]
    size = common_size([file.path for file in everything], store_size)
    side = store_size if size is None else None

    def read(i: int) -> Image.Image:
        path = files[i].path
        with open_image(path, path, FORMATS) as image:
            return upright(image, side)

    def fill(out: np.ndarray) -> None:
        decode(read, out, split)

    shape = (len(files), 3, *(size or (store_size, store_size)))
    if np.prod(shape, dtype=float) > memory_limit():
        remove_parts(root)
        pixels = cached(cache_path(root, split, everything, store_size), shape, fill)
    else:
        pixels = np.empty(shape, np.uint8)
        fill(pixels)
    labels = torch.tensor([file.label for file in files])
    return Images(torch.from_numpy(pixels), labels, classes)


def split_folders(root: str) -> tuple[str, str]:
    """The folders of the training and of the test images."""
    train = os.path.join(root, "train")
    test = os.path.join(root, "test")
    if not os.path.isdir(test):
        test = os.path.join(root, "val")
    if not os.path.isdir(train) or not os.path.isdir(test):
        raise UserError(
            f"--root {root!r} needs a folder train and a folder test or val, "
            "each with one folder per class"
        )
    return train, test


def class_names(train: str) -> list[str]:
    """The class folders of the training images, in alphabetical order."""
    return sorted(entry.name for entry in os.scandir(train) if is_class_folder(entry))


def is_class_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder that is not hidden."""
    return entry.is_dir() and not entry.name.startswith(".")


def find_images(top: str, classes: list[str]) -> list[ImageFile]:
    """Find all images below top/CLASS, at any depth, that are not hidden."""
    for entry in os.scandir(top):
        if is_class_folder(entry) and entry.name not in classes:
            raise UserError(
                f"{entry.path!r} is not a class of the folder train: rename or remove it"
            )
    found = []
    for label, name in enumerate(classes):
        folder = os.path.join(top, name)
        if os.path.isdir(folder):
            found += [image_file(path, label) for path in image_paths(folder)]
    return found


def image_paths(top: str) -> list[str]:
    """Paths below `top` with an image's extension, in a fixed order; hidden ones are skipped."""

    def stop(error: OSError) -> None:  # os.walk would skip a folder that it cannot read
        raise error

    paths = []
    for folder, folders, files in os.walk(top, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                paths.append(os.path.join(folder, name))
    return paths


def image_file(path: str, label: int) -> ImageFile:
    """Look the file up, and refuse what is not a file: opening a pipe would wait for ever."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{path!r} is not a regular file: remove it")
    return ImageFile(path, label, info.st_size, info.st_mtime_ns)


def common_size(paths: list[str], store_size: int) -> tuple[int, int] | None:
    """Whether all images have one size that is no larger than `store_size`.

    Returns:
        That size (height, width); None as soon as one image differs or is larger.
    """
    size = None
    for path in tqdm(paths, desc="reading sizes", unit="image", leave=False, disable=None):
        with open_image(path, path, FORMATS) as image:
            # Turning an image decodes it, so do it only where it matters. Else the header will do.
            if image.width != image.height and max(image.size) <= store_size:
                ImageOps.exif_transpose(image, in_place=True)
            this = (image.height, image.width)
        if max(this) > store_size or size not in (None, this):
            return None
        size = this
    return size


def upright(image: Image.Image, side: int | None) -> Image.Image:
    """Convert an image to 8-bit RGB and turn it as EXIF says.

    Args:
        image: The image, in any mode.
        side: Resize the image and crop its centre to side×side pixels; None keeps its size.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip 16 bits to 8
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    image = image.convert("RGB")
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


def memory_limit() -> float:
    """How many bytes of memory decoded images may take: half of what is free; 4 GB if unknown."""
    free = free_memory()
    return 4e9 if free == math.inf else free / 2


def cache_path(root: str, split: str, files: list[ImageFile], store_size: int) -> str:
    """The hidden file for a split. Its name changes with the images and with `store_size`."""
    marks = [(os.path.relpath(file.path, root), file.size, file.changed) for file in files]
    name = hashlib.sha256(ascii([store_size, marks]).encode()).hexdigest()[:16]
    return os.path.join(root, f".{split}-{name}.npy")
