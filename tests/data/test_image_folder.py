"""The user's own folder: the size of its images, broken ones, and faults of one line."""

import os
import random
import struct
import warnings

import numpy as np
import pytest
import torch
from helpers.samples import mutated, noise, picture, put, refusal, write
from PIL import Image

from attentionce.data.image_folder import FolderOptions
from utils import load

SKIP = FolderOptions(skip_broken=True)


def two_classes(root, images, **options):
    """Save images in the folders 0 and 1 of train, in turn, and the first for testing."""
    for i, data in enumerate([*images, images[0]]):
        path = root / (f"train/{i % 2}/{i}.png" if i < len(images) else "test/0/x.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data).save(path, **options)
    return str(root)


# ---- sizes ----


def test_equal_sizes_are_kept(tmp_path):
    train = [noise(20, 30, 3, seed=i) for i in range(4)]
    root = two_classes(tmp_path, train)
    images = load("folder", root, "train", 30)
    assert images.labels.tolist() == [0, 0, 1, 1]
    for pixels, i in zip(images.pixels, (0, 2, 1, 3), strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), train[i])
    assert load("folder", root, "train", 29).pixels.shape == (4, 3, 29, 29)


@pytest.mark.parametrize("other", ["test/0/other.png", "unlabeled/x.png"])
def test_one_other_size_in_any_split_decides_for_all(tmp_path, other):
    root = two_classes(tmp_path, [noise(20, 20, 3)] * 2)
    put(root, {other: picture((20, 21, 3), format="PNG")})
    for split in ("pretrain", "train", "test"):
        assert load("folder", root, split, 32).pixels.shape[2:] == (32, 32)


def test_sizes_are_those_after_the_turn(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = [noise(20, 30, 3)]
    root = two_classes(tmp_path / "some", image)
    Image.fromarray(image[0]).save(f"{root}/train/0/1.png", exif=turned)
    assert load("folder", root, "train").pixels.shape == (2, 3, 64, 64)
    root = two_classes(tmp_path / "all", image, exif=turned)
    assert load("folder", root, "train").pixels.shape == (1, 3, 30, 20)


# ---- broken images ----


def jpeg_header(width, height):
    """A small JPEG that claims to have this size."""
    data = picture((64, 64, 3))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


BROKEN = {
    "other": b"<html>\n",
    "truncated jpeg": picture((99, 99, 3))[:1500],
    "above PIL's limit": jpeg_header(60000, 60000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 70 70\n%%EndComments\n(x) run\n",
}


def test_unreadable_images(tmp_path):
    """Each is named, by what may be a strange name, and nothing else is said."""
    root = two_classes(tmp_path, [noise(70, 70, 3)])
    for fault, data in BROKEN.items():
        path = f"{root}/train/0/{fault}\n\x1b[31m.png"
        write(path, data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert f"cannot read {path!r}: replace" in refusal("folder", root, "train")
        assert not caught
        os.remove(path)


def test_broken_images(tmp_path):
    """They are named together, or skipped. What is left has one size, which is kept."""
    images = [noise(70, 80, 3, seed=i) for i in range(12)]
    root = two_classes(tmp_path, images)
    right = load("folder", root, "train", 80)
    cut = picture((70, 80, 3), format="PNG")[:-3000]
    for i in range(12):
        write(f"{root}/train/{i % 2}/broken{i:02}.png", (cut, b"text", b"")[i % 3])
    os.symlink("nowhere", f"{root}/train/1/z.png")
    message = refusal("folder", root, "train")
    assert message.count(".png'") == 10 and "and 3 more" in message and "--skip_broken" in message
    assert "broken10.png', " in message  # the sixth: a class after the other
    images = load("folder", root, "train", 80, SKIP)
    assert images.pixels.shape[2:] == (70, 80)
    assert torch.equal(images.pixels, right.pixels) and torch.equal(images.labels, right.labels)
    assert images.fingerprint == right.fingerprint and images.paths == right.paths
    assert images.left_out == "broken images (13)" and right.left_out == ""


def test_nothing_but_broken_images_is_refused(tmp_path):
    """Again and again, although which are broken is known after the first time."""
    put(tmp_path, {f"{i}.png": b"text" for i in range(3)})
    for _ in range(2):
        message = refusal("folder", str(tmp_path), "pretrain", options=SKIP)
        assert f"none of the images in {tmp_path} can be read" in message


# ---- faults ----


def test_folder_faults(tmp_path):
    write(str(tmp_path / "file"), b"")
    for name, reason in (("", "none in it"), ("missing", "No such file"), ("file", "directory")):
        root = str(tmp_path / name)
        message = refusal("folder", root, "train")
        assert f"--root {root!r}" in message and reason in message


def test_fuzz_folder(tmp_path, under_1_gb):
    """Mutated images are broken or read, whatever else happens to PIL."""
    draw, broken = random.Random(1), 0
    for format in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "jp2"):
        options = {"compression": "tiff_deflate"} if format == "tiff" else {}
        good = picture((20, 24, 3), format={"jp2": "JPEG2000"}.get(format, format), **options)
        put(tmp_path / format, {f"{i}.{format}": mutated(good, draw) for i in range(25)})
        write(f"{tmp_path}/{format}/good.{format}", good)
        broken += 26 - len(load("folder", str(tmp_path / format), "pretrain", options=SKIP).pixels)
    assert 60 < broken < 200
