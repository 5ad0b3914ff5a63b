"""TinyImageNet, read from its folder or from the zip as distributed, which is never unpacked."""

import os
import re
import stat
import zipfile
from collections import defaultdict
from io import BytesIO
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from attentionce.data.decoding import decode, open_image, refuse
from attentionce.data.images import Images, fetching
from attentionce.errors import UserError, as_user_error

TINY = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
MAX_FILE = 16 * 2**20  # bytes; no file in TinyImageNet has a tenth of it
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def damaged(what: str) -> UserError:
    """An error that getting the zip again will fix."""
    return UserError(f"{what}: get {TINY}.zip again (md5 {TINY_MD5}, from {TINY_URL})")


class Source(Protocol):
    """The files of TinyImageNet. Paths are relative to it and have forward slashes."""

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, none if it is not there."""

    def read(self, path: str) -> bytes:
        """The contents of a file."""


class Folder:
    """TinyImageNet as an unpacked folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def names(self, folder: str) -> list[str]:
        path = os.path.join(self.folder, folder)
        return os.listdir(path) if os.path.isdir(path) else []

    def read(self, path: str) -> bytes:
        path = os.path.join(self.folder, path)
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_FILE:
            raise damaged(f"{path!r} is not a file of at most {MAX_FILE} bytes")
        with open(path, "rb") as file:
            return file.read()


class Zip:
    """TinyImageNet as a zip. The size of a file is checked before it is unpacked, in memory."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.folders: dict[str, list[str]] = defaultdict(list)
        for info in archive.infolist():
            parts = re.split(r"[/\\]", info.filename)
            if info.filename in self.members or ".." in parts or not parts[0] or ":" in parts[0]:
                raise damaged(f"{info.filename!r} is in the zip twice or leads out of it")
            self.members[info.filename] = info
            self.folders[os.path.dirname(info.filename)].append(os.path.basename(info.filename))

    def names(self, folder: str) -> list[str]:
        return self.folders.get(f"{TINY}/{folder}", [])

    def read(self, path: str) -> bytes:
        info = self.members.get(f"{TINY}/{path}")
        if info is None:
            raise damaged(f"no {TINY}/{path} in the zip")
        # With these two methods and read(size), zipfile never unpacks more than the declared size.
        if info.file_size > MAX_FILE or info.compress_type not in METHODS:
            raise damaged(f"{info.filename!r} in the zip is too large or packed in an unknown way")
        with self.archive.open(info) as file:
            return file.read(info.file_size)


def tiny_imagenet(root: str, split: str) -> Images:
    """Read TinyImageNet; download the zip if it is not there.

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
    if os.path.isdir(folder):
        with as_user_error(str(damaged(f"cannot read {folder!r}"))):
            return read_split(Folder(folder), split)
    path = os.path.join(root, f"{TINY}.zip")
    if not os.path.exists(path):
        with fetching(f"{TINY}.zip", TINY_MD5, TINY_URL, root, TINY):
            datasets.utils.download_url(TINY_URL, root, f"{TINY}.zip.part", TINY_MD5)
            os.replace(f"{path}.part", path)
    with as_user_error(str(damaged(f"cannot read {path!r}"))):
        if not datasets.utils.check_integrity(path, TINY_MD5):
            raise damaged(f"{path!r} does not have the md5 it should have")
        with zipfile.ZipFile(path) as archive:
            return read_split(Zip(archive), split)


def read_split(source: Source, split: str) -> Images:
    """Decode one split: train by class and name, test in the order of its annotations.

    Many people sort the images of val into class folders; then test is in order of class and name.
    """
    classes = read_classes(source)
    if split != "test":
        label_of = labels_by_folder(source, "train", classes)
    elif sorted_into_classes(source, classes):
        label_of = labels_by_folder(source, "val", classes)
    else:
        label_of = val_labels(source, classes)
    names = list(label_of)

    def read(i: int) -> Image.Image:
        name = names[i]
        with open_image(lambda: BytesIO(source.read(name)), name, ["JPEG"]) as image:
            if image.size != (64, 64):  # before anything is decoded
                raise ValueError(f"{image.width}×{image.height} pixels, not 64×64")
            return image.convert("RGB")

    pixels = np.empty((len(names), 3, 64, 64), np.uint8)
    refuse(decode(read, pixels, split))
    return Images(torch.from_numpy(pixels), torch.tensor(list(label_of.values())), classes)


def read_classes(source: Source) -> list[str]:
    """The WNIDs in the order of wnids.txt."""
    classes = source.read("wnids.txt").decode("ascii", "replace").split()
    valid = all(re.fullmatch(r"\w+", wnid, re.ASCII) for wnid in classes)
    if not classes or not valid or len(set(classes)) < len(classes):
        raise damaged(
            "wnids.txt of TinyImageNet is empty, names a class twice or holds something else"
        )
    return classes


def sorted_into_classes(source: Source, classes: list[str]) -> bool:
    """Whether val has its images in class folders instead of in val/images."""
    if jpegs(source, "val/images"):
        return False
    return any(class_images(source, f"val/{wnid}") for wnid in classes)


def labels_by_folder(source: Source, part: str, classes: list[str]) -> dict[str, int]:
    """The label of every image of train or val by its path, in order of class and name."""
    label_of = {}
    for label, wnid in enumerate(classes):
        paths = class_images(source, f"{part}/{wnid}")
        if not paths:
            raise damaged(f"no images in {part}/{wnid}/images of TinyImageNet")
        label_of.update(dict.fromkeys(paths, label))
    return label_of


def val_labels(source: Source, classes: list[str]) -> dict[str, int]:
    """The label of every image in val by its path, in the order of val_annotations.txt.

    Each line of that file is a name, a WNID and a box, separated by tabs. Every image has one line.
    """
    text = source.read("val/val_annotations.txt").decode("ascii", "replace")
    missing = set(jpegs(source, "val/images"))
    if not missing:
        raise damaged("no images in val/images of TinyImageNet")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    label_of = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        path = f"val/images/{name}"
        where = f"val/val_annotations.txt, line {number}"
        if wnid not in labels:
            raise damaged(f"{where}: {wnid[:80]!r} is not a class of wnids.txt")
        if path not in missing:
            raise damaged(f"{where}: {name[:80]!r} is missing or there twice")
        missing.remove(path)
        label_of[path] = labels[wnid]
    if missing:
        raise damaged(f"{min(missing)!r} has no line in val/val_annotations.txt")
    return label_of


def class_images(source: Source, folder: str) -> list[str]:
    """The paths of a class's JPEGs: those in its folder images, or else in the folder itself."""
    return jpegs(source, f"{folder}/images") or jpegs(source, folder)


def jpegs(source: Source, folder: str) -> list[str]:
    """The paths of the JPEGs in a folder, in order of their names."""
    return [
        f"{folder}/{name}"
        for name in sorted(source.names(folder))
        if name.endswith(".JPEG") and not name.startswith(".")
    ]
