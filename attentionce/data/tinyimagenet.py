"""TinyImageNet: its zip is checked and unpacked once, then images are read from the folder."""

import glob
import os
import tempfile

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from attentionce.data.decoding import decode, open_image, refuse
from attentionce.data.images import Images, fetching
from attentionce.progress import progress

TINY = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def tiny_imagenet(root: str, split: str) -> Images:
    """Read TinyImageNet; unpack the zip, and download it, if that has not been done.

    Args:
        root: The folder that holds tiny-imagenet-200/ or tiny-imagenet-200.zip, or the unpacked
            data set itself. The classes are in the order of its wnids.txt.
        split: "test" (the folder val), or anything else for training.
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
        label_of = {wnid: label for label, wnid in enumerate(classes)}
        paths, labels = zip(*labelled_paths(folder, split, label_of), strict=True)

    def read(i: int) -> Image.Image:
        with open_image(paths[i], ["JPEG"]) as image:
            if image.size != (64, 64):
                raise ValueError(f"{image.width}×{image.height} pixels, not 64×64")
            return image.convert("RGB")

    pixels = np.empty((len(paths), 3, 64, 64), np.uint8)
    with progress(len(paths), f"decoding {split}") as bar:
        refuse(decode(read, 0, pixels, bar))
    return Images(torch.from_numpy(pixels), torch.tensor(labels), classes)


def labelled_paths(folder: str, split: str, label_of: dict[str, int]) -> list[tuple[str, int]]:
    """The images and their labels: by class and name, or in the order of val's annotations.

    Many people sort the images of val into class folders; then val is read like train.
    """
    images = os.path.join(folder, "val", "images")
    names = sorted(os.path.basename(path) for path in glob.glob(f"{glob.escape(images)}/*.JPEG"))
    if split != "test" or not names:
        part = os.path.join(folder, "val" if split == "test" else "train")
        found = datasets.folder.make_dataset(part, label_of, extensions=(".jpeg",))
        return sorted(found, key=lambda sample: sample[1])
    with open(os.path.join(folder, "val", "val_annotations.txt"), encoding="ascii") as file:
        wnids = [line.split()[:2] for line in file]  # a name, its WNID, and a box
    if sorted(name for name, _ in wnids) != names:
        raise ValueError("val_annotations.txt does not name each image of val/images once")
    return [(os.path.join(images, name), label_of[wnid]) for name, wnid in wnids]
