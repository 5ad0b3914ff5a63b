"""TinyImageNet: its zip is checked and unpacked once, then images are read from the folder."""

import os
import tempfile
from collections import Counter

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from attentionce.data.decoding import decode, open_image, refuse
from attentionce.data.images import Images, fetching

TINY = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def tiny_imagenet(root: str, split: str) -> Images:
    """Read TinyImageNet; unpack the zip, and download it, if that has not been done.

    Args:
        root: The folder that holds tiny-imagenet-200/ or tiny-imagenet-200.zip, or the unpacked
            data set itself.
        split: "train", "pretrain" (the same) or "test" (the folder val).

    Returns:
        The images. The classes are the WNIDs in the order of wnids.txt.

    Raises:
        UserError: The data set cannot be downloaded or is damaged.
    """
    folder = os.path.join(root, TINY)
    if not os.path.isdir(folder) and os.path.exists(os.path.join(root, "wnids.txt")):
        folder = root
    with fetching(f"{TINY}.zip", TINY_MD5, TINY_URL, root, TINY):
        if not os.path.isdir(folder):
            os.makedirs(root, exist_ok=True)
            # Under another name first, since half a data set must not look like the whole.
            with tempfile.TemporaryDirectory(dir=root) as unpacked:
                datasets.utils.download_and_extract_archive(TINY_URL, root, unpacked, md5=TINY_MD5)
                os.rename(os.path.join(unpacked, TINY), folder)
        with open(os.path.join(folder, "wnids.txt"), encoding="ascii") as file:
            classes = file.read().split()
        if not classes or len(set(classes)) < len(classes):
            raise ValueError("wnids.txt names no class, or one twice")
        paths, labels = zip(*_labelled_paths(folder, split, classes), strict=True)

    def read(i: int) -> Image.Image:
        with open_image(paths[i], paths[i], ["JPEG"]) as image:
            if image.size != (64, 64):
                raise ValueError(f"{image.width}×{image.height} pixels, not 64×64")
            return image.convert("RGB")

    pixels = np.empty((len(paths), 3, 64, 64), np.uint8)
    refuse(decode(read, pixels, split))
    return Images(torch.from_numpy(pixels), torch.tensor(labels), classes)


def _labelled_paths(folder: str, split: str, classes: list[str]) -> list[tuple[str, int]]:
    """The images and their labels: by class and name, or in the order of val's annotations.

    Many people sort the images of val into class folders; then val is read like train.

    Raises:
        ValueError: Images or annotations are missing, or an image has two annotations.
        OSError: A class has no images, or a file cannot be read.
    """
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    images = os.path.join(folder, "val", "images")
    names = [name for name in os.listdir(images) if _is_jpeg(name)] if os.path.isdir(images) else []
    if split != "test" or not names:
        part = os.path.join(folder, "val" if split == "test" else "train")
        found = datasets.folder.make_dataset(part, label_of, is_valid_file=_is_jpeg)
        return sorted(found, key=lambda sample: sample[1])

    with open(os.path.join(folder, "val", "val_annotations.txt"), encoding="ascii") as file:
        wnids = [tuple(line.split()[:2]) for line in file]  # a name, its WNID, and a box
    difference = Counter(name for name, _ in wnids)
    difference.subtract(names)
    for name, count in difference.items():
        if count:
            raise ValueError(f"{name!r} is not once in val/images and val_annotations.txt")
    unknown = {wnid for _, wnid in wnids} - label_of.keys()
    if unknown:
        raise ValueError(f"val_annotations.txt has the class {min(unknown)!r}, wnids.txt has not")
    return [(os.path.join(images, name), label_of[wnid]) for name, wnid in wnids]


def _is_jpeg(path: str) -> bool:
    return path.endswith(".JPEG") and not os.path.basename(path).startswith(".")
