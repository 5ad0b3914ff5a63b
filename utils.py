"""Data sets by name: each becomes `Images`, a uint8 array N×3×H×W with labels and class names."""

import warnings

import numpy as np
import torch
from torchvision import datasets

from attentionce.data.image_folder import FolderOptions, image_folder
from attentionce.data.images import Images, fetching
from attentionce.data.tinyimagenet import tiny_imagenet
from attentionce.errors import UserError, as_user_error

DATASETS = ("cifar10", "cifar100", "stl10", "tinyImageNet", "folder", "photos")
# STL10's own class_names.txt is not read: no checksum covers it.
STL10_CLASSES = "airplane bird car cat deer dog horse monkey ship truck"
# Functions of skimage.data.
PHOTOS = (
    "astronaut brick camera chelsea coffee coins grass gravel hubble_deep_field "
    "immunohistochemistry moon page retina rocket text clock"
)


def load(
    name: str, root: str, split: str, store_size: int = 64, options: FolderOptions = FolderOptions()
) -> Images:
    """Read a data set and decode it once.

    Args:
        name: One of DATASETS.
        root: The folder that holds the data set or that it is downloaded to; photos need none.
        split: "pretrain", "train", "test" or "all". "pretrain" is "train", and for stl10 and a
            folder the unlabelled images as well. "all" is what is in a folder in the order of the
            paths, and of another data set "test" and "pretrain", with paths like test/000000.
        store_size: Side in pixels at which the images of a folder are kept.
        options: How to read a folder.

    Raises:
        UserError: The data set is missing or damaged. It is a `NoLabels` if a folder has no images
            with labels for "train" or "test".
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if store_size < 1:
        raise UserError(f"--store_size must be at least 1, not {store_size}")
    if split == "all" and name != "folder":
        return joined(load(name, root, "test"), load(name, root, "pretrain"))
    with warnings.catch_warnings():
        # PIL warns about metadata, which is not used, and torch about arrays that are read-only,
        # which nothing writes to.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        if name == "folder":
            return image_folder(root, split, store_size, options)
        if name == "tinyImageNet":
            images = tiny_imagenet(root, split)
        elif name == "photos":
            images = photos(split)
        else:
            images = from_torchvision(name, root, split)
    if split == "pretrain" and name != "stl10":
        split = "train"
    return images._replace(source=f"{name} {split}", fingerprint=f"{name} {split}")


def joined(test: Images, train: Images) -> Images:
    """Test and training images of a data set as one, with paths that tell which is which."""
    source = f"{test.source} and {train.source}"
    paths = [f"test/{i:06d}" for i in range(len(test.labels))]
    paths += [f"train/{i:06d}" for i in range(len(train.labels))]
    pixels = torch.cat([test.pixels, train.pixels])
    labels = torch.cat([test.labels, train.labels])
    return Images(pixels, labels, test.classes, source, fingerprint=source, paths=paths)


def from_torchvision(name: str, root: str, split: str) -> Images:
    """Read CIFAR-10, CIFAR-100 or STL10.

    torchvision checks the md5 of every file before it unpickles anything.
    """
    source = getattr(datasets, name.upper())
    with fetching(source.filename, source.tgz_md5, source.url, root, source.base_folder):
        if name == "stl10":
            parts = "train+unlabeled" if split == "pretrain" else split
            data = source(root, split=parts, download=True)
            pixels = data.data
            labels = data.labels.astype(np.int64)
            classes = STL10_CLASSES.split()
        else:
            data = source(root, train=split != "test", download=True)
            pixels = data.data.transpose(0, 3, 1, 2)
            labels = data.targets
            classes = data.classes
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    return Images(pixels, torch.as_tensor(labels), list(classes))


def photos(split: str) -> Images:
    """Crop the 16 photographs inside scikit-image to 32×32 pixels; the class is the photograph.

    Each crop covers 64×64 pixels and is shrunk by averaging 2×2 of them. Of every photograph there
    are 64 crops for training, all in its left 60 %, and 32 for testing, all in its right 40 %. They
    are always the same.

    Args:
        split: "test", or anything else for training.
    """
    with as_user_error("the photographs are inside scikit-image: pip install scikit-image"):
        from skimage import data

    classes = PHOTOS.split()
    testing = split == "test"
    count = 32 if testing else 64
    random = np.random.RandomState(int(testing))  # NumPy promises never to change this stream
    crops = []
    for name in classes:
        photograph = getattr(data, name)()
        height, width = photograph.shape[:2]
        first, last = (-(-3 * width // 5), width) if testing else (0, 3 * width // 5)
        rgb = np.broadcast_to(photograph.reshape(height, width, -1), (height, width, 3))
        for _ in range(count):
            y = random.randint(height - 63)
            x = random.randint(first, last - 63)
            blocks = rgb[y : y + 64, x : x + 64].reshape(32, 2, 32, 2, 3)
            crops.append((blocks.sum((1, 3)) + 2) // 4)  # halves are rounded up
    pixels = torch.from_numpy(np.stack(crops).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.arange(len(classes)).repeat_interleave(count), classes)
