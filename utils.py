"""Data sets: each becomes Images, a uint8 array N×3×H×W with integer labels and class names, decoded once."""

import os
import warnings

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from attentionce.data.image_folder import image_folder
from attentionce.data.images import Images, fetching
from attentionce.data.tinyimagenet import tiny_imagenet
from attentionce.errors import UserError, mending

__all__ = ["DATASETS", "Images", "UserError", "load"]

DATASETS = ("cifar10", "cifar100", "stl10", "tinyImageNet", "folder", "photos")
# Not read from STL10's own class_names.txt, which is the one file there without a checksum.
STL10_CLASSES = [
    "airplane",
    "bird",
    "car",
    "cat",
    "deer",
    "dog",
    "horse",
    "monkey",
    "ship",
    "truck",
]
PHOTOS = [
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
]
PHOTOS += ["immunohistochemistry", "moon", "page", "retina", "rocket", "text", "clock"]


def load(name: str, root: str, split: str, store_size: int = 64) -> Images:
    """Read a data set.

    name: one of DATASETS. root: the folder that holds it or into which it is downloaded (photos: unused).
    split: "pretrain", "train" or "test"; pretrain equals train except for stl10, where unlabelled images join it.
    store_size: side in pixels to which a folder's images are cut. Raises UserError for what the user can mend.
    """
    if split not in ("pretrain", "train", "test"):
        raise ValueError(f"split must be pretrain, train or test, not {split!r}")
    if store_size < 1:
        raise UserError(f"--store_size must be at least 1, not {store_size}")
    root = os.path.expanduser(root)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # about metadata, which nothing here uses
        warnings.filterwarnings(
            "ignore", "The given NumPy array is not writable"
        )  # nobody writes: see Images
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if name in ("cifar10", "cifar100", "stl10"):
            return from_torchvision(name, root, split)
        if name == "tinyImageNet":
            return tiny_imagenet(root, split)
        if name == "folder":
            return image_folder(root, "test" if split == "test" else "train", store_size)
        if name == "photos":
            return photos(split)
    raise UserError(f"unknown data set {name!r}: --dataset_name is one of {', '.join(DATASETS)}")


def from_torchvision(name: str, root: str, split: str) -> Images:
    """CIFAR-10, CIFAR-100 or STL10. torchvision checks the md5 of every file before it unpickles anything."""
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[
        name
    ]
    with fetching(source.filename, source.tgz_md5, source.url, root, source.base_folder):
        if name == "stl10":
            data = source(
                root, split="train+unlabeled" if split == "pretrain" else split, download=True
            )
            pixels, labels, classes = data.data, data.labels.astype(np.int64), STL10_CLASSES
        else:
            data = source(root, train=split != "test", download=True)
            pixels, labels, classes = data.data.transpose(0, 3, 1, 2), data.targets, data.classes
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels), list(classes)
    )


def photos(split: str) -> Images:
    """Crops of the 16 photographs inside scikit-image, 32×32 pixels; the class is the photograph.

    Each is a crop of 64×64 shrunk by the mean of 2×2 pixels: 64 a class for training, wholly in the left 60 % of the
    photograph, and 32 a class for testing, wholly in the right 40 %. Always the same crops.
    """
    with mending("the photographs are inside scikit-image: pip install scikit-image"):
        from skimage import data

        pictures = [getattr(data, name)() for name in PHOTOS]
    draw = np.random.RandomState(int(split == "test"))  # NumPy promises never to change this stream
    count, crops = (32 if split == "test" else 64), []
    for picture in pictures:
        height, width = picture.shape[:2]
        first, last = (-(-3 * width // 5), width) if split == "test" else (0, 3 * width // 5)
        picture = np.broadcast_to(picture.reshape(height, width, -1), (height, width, 3))
        for _ in range(count):
            y, x = draw.randint(height - 63), draw.randint(first, last - 63)
            crops.append(
                (picture[y : y + 64, x : x + 64].reshape(32, 2, 32, 2, 3).sum((1, 3)) + 2) // 4
            )
    pixels = torch.from_numpy(np.stack(crops).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.arange(len(PHOTOS)).repeat_interleave(count), list(PHOTOS))
