"""TinyImageNet: from the zip as it is distributed, which is never unpacked to disk, or from its folder."""

import os
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from attentionce.data.images import Images, decode, fetching, read_image
from attentionce.errors import UserError, mending

TINY = "tiny-imagenet-200"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
MAX_FILE = 16 * 2**20  # bytes; no file inside TinyImageNet has a tenth of it


def damaged(what: str) -> UserError:
    """TinyImageNet's errors have all the same remedy."""
    return UserError(f"{what}: get {TINY}.zip again (md5 {TINY_MD5}, from {TINY_URL})")


def tiny_imagenet(root: str, split: str) -> Images:
    """TinyImageNet from root/tiny-imagenet-200/, root itself or root/tiny-imagenet-200.zip, which is not unpacked.

    Downloads the zip if there is none of them. Classes: the WNIDs in the order of wnids.txt.
    """
    path, folder = os.path.join(root, f"{TINY}.zip"), os.path.join(root, TINY)
    if not os.path.isdir(folder):
        folder = root if os.path.exists(os.path.join(root, "wnids.txt")) else None
    if folder is None and not os.path.exists(path):
        with fetching(f"{TINY}.zip", TINY_MD5, TINY_URL, root, TINY):
            datasets.utils.download_url(TINY_URL, root, f"{TINY}.zip.part", TINY_MD5)
            os.replace(f"{path}.part", path)
    with mending(str(damaged(f"cannot read {folder or path!r}"))):
        if folder is not None:
            return tiny_images(*tiny_folder(folder), split)
        if not datasets.utils.check_integrity(path, TINY_MD5):
            raise damaged(f"{path!r} does not have the md5 it should have")
        with zipfile.ZipFile(path) as archive:
            return tiny_images(*tiny_zip(archive), split)


def tiny_folder(folder: str) -> tuple[Callable[[str], list[str]], Callable[[str], bytes]]:
    """Functions listing(path) and read(path) of the unpacked data set; paths are relative to it."""

    def read(path: str) -> bytes:
        path = os.path.join(folder, path)
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_FILE:
            raise damaged(f"{path!r} is no file of at most {MAX_FILE} bytes")
        with open(path, "rb") as file:
            return file.read()

    return lambda path: os.listdir(os.path.join(folder, path)), read


def tiny_zip(archive: zipfile.ZipFile) -> tuple[Callable[[str], list[str]], Callable[[str], bytes]]:
    """listing(path) and read(path), as of tiny_folder, of the zip. Sizes are checked before anything is unpacked."""
    members, folders = {}, defaultdict(list)
    for info in archive.infolist():
        parts = re.split(r"[/\\]", info.filename)
        if info.filename in members or ".." in parts or not parts[0] or ":" in parts[0]:
            raise damaged(f"{info.filename!r} is in the zip twice or leads out of it")
        members[info.filename] = info
        folders[os.path.dirname(info.filename)].append(os.path.basename(info.filename))

    def read(path: str) -> bytes:
        info = members.get(f"{TINY}/{path}")
        if info is None:
            raise damaged(f"no {TINY}/{path} in the zip")
        # Only these two methods, and only read(size), keep zipfile from unpacking more than the declared size.
        if info.file_size > MAX_FILE or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise damaged(f"{info.filename!r} in the zip is too large or packed in an unknown way")
        with archive.open(info) as file:
            return file.read(info.file_size)

    return lambda path: folders[f"{TINY}/{path}"], read


def tiny_images(
    listing: Callable[[str], list[str]], read: Callable[[str], bytes], split: str
) -> Images:
    """Decode one split: train ordered by class and name, val (the test split) as its annotations are."""

    def jpegs(folder: str) -> list[str]:
        names = sorted(n for n in listing(folder) if n.endswith(".JPEG") and not n.startswith("."))
        if not names:
            raise damaged(f"no images in {folder} of TinyImageNet")
        return [f"{folder}/{name}" for name in names]

    def rgb(image: Image.Image) -> Image.Image:
        if image.size != (64, 64):  # before anything is decoded
            raise ValueError(f"{image.width}×{image.height} pixels, not 64×64")
        return image.convert("RGB")

    classes = read("wnids.txt").decode("ascii", "replace").split()
    if (
        not classes
        or len(set(classes)) < len(classes)
        or not all(re.fullmatch(r"\w+", c, re.ASCII) for c in classes)
    ):
        raise damaged(
            "wnids.txt of TinyImageNet is empty, names a class twice or holds something else"
        )
    if split == "test":
        annotations = read("val/val_annotations.txt").decode("ascii", "replace")
        label_of = tiny_annotations(annotations, classes, jpegs("val/images"))
    else:
        label_of = {
            name: i for i, wnid in enumerate(classes) for name in jpegs(f"train/{wnid}/images")
        }
    names = list(label_of)
    out = np.empty((len(names), 3, 64, 64), np.uint8)
    decode(
        lambda i: read_image(lambda: BytesIO(read(names[i])), names[i], ["JPEG"], rgb), out, split
    )
    return Images(torch.from_numpy(out), torch.tensor(list(label_of.values())), classes)


def tiny_annotations(text: str, classes: list[str], present: list[str]) -> dict[str, int]:
    """Labels of the images that are present, from lines of name, tab, WNID, tab, box; every image has just one line."""
    label, missing, label_of = {wnid: i for i, wnid in enumerate(classes)}, set(present), {}
    for number, line in enumerate(text.splitlines(), 1):
        name, wnid = (line.split("\t") + [""])[:2]
        path, where = f"val/images/{name}", f"val/val_annotations.txt, line {number}"
        if wnid not in label:
            raise damaged(f"{where}: {wnid[:80]!r} is no class of wnids.txt")
        if path not in missing:
            raise damaged(f"{where}: {name[:80]!r} is missing or there twice")
        missing.remove(path)
        label_of[path] = label[wnid]
    if missing:
        raise damaged(f"{min(missing)!r} has no line in val/val_annotations.txt")
    return label_of
