"""The user's own folder: the size of its images, broken ones, and faults of one line."""

import os
import random
import struct
import warnings

import numpy as np
import pytest
import torch
from helpers.samples import mutated, noise, picture, put, refusal, two_classes, write
from PIL import Image, ImageOps

from attentionce.data.image_folder import FolderOptions
from utils import load

SKIP = FolderOptions(skip_broken=True)


def as_array(pixels):
    """An image, 3×H×W, as PIL and NumPy have it."""
    return pixels.permute(1, 2, 0).numpy()


# ---- sizes ----


def test_equal_sizes_are_kept(tmp_path):
    train = [noise(20, 30, 3, seed=i) for i in range(4)]
    test = [noise(20, 30, 3, seed=9)]
    root = two_classes(tmp_path, train, test, "val")
    images = load("folder", root, "train", 30)
    assert images.labels.tolist() == [0, 0, 1, 1]
    for pixels, i in zip(images.pixels, (0, 2, 1, 3), strict=True):
        assert np.array_equal(as_array(pixels), train[i])
    assert np.array_equal(as_array(load("folder", root, "test", 30).pixels[0]), test[0])
    assert load("folder", root, "train", 29).pixels.shape == (4, 3, 29, 29)


@pytest.mark.parametrize("other", ["test/0/x.png", "unlabeled/x.png"])
def test_one_other_size_in_any_split_decides_for_all(tmp_path, other):
    root = two_classes(tmp_path, [noise(20, 20, 3)] * 2, [noise(20, 20, 3)])
    put(root, {other: picture((20, 21, 3), format="PNG")})
    for split in ("pretrain", "train", "test"):
        assert load("folder", root, split, 32).pixels.shape[2:] == (32, 32)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_sizes_are_those_after_the_turn(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6
    image = [noise(20, 30, 3)]
    root = two_classes(tmp_path / "some", image, image, suffix=suffix)
    Image.fromarray(image[0]).save(f"{root}/train/0/1{suffix}", exif=turned)
    assert load("folder", root, "train").pixels.shape == (2, 3, 64, 64)
    root = two_classes(tmp_path / "all", image, image, suffix=suffix, exif=turned)
    pixels = load("folder", root, "train").pixels
    assert pixels.shape == (1, 3, 30, 20)
    upright = ImageOps.exif_transpose(Image.open(f"{root}/train/0/0{suffix}"))
    assert np.array_equal(as_array(pixels[0]), np.array(upright))


# ---- broken images ----


def jpeg_header(width, height):
    """A small JPEG that claims to have this size."""
    data = picture((64, 64, 3))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


BROKEN = {
    "empty": b"",
    "other": b"<html>\n",
    "truncated jpeg": picture((99, 99, 3))[:1500],
    "truncated png": picture((70, 70, 3), format="PNG")[:-2000],
    "header alone": b"P5 70 70 255\n",
    "bad offset": b"II*\0\xff\xff\xff\xff",
    "above PIL's limit": jpeg_header(60000, 60000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 70 70\n%%EndComments\n(x) run\n",
}


def test_unreadable_images(tmp_path):
    """Each is named, by what may be a strange name, and nothing else is said."""
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    for fault, data in BROKEN.items():
        path = f"{root}/train/0/{fault}\n\x1b[31m.png"
        write(path, data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert f"cannot read {path!r}: replace" in refusal("folder", root, "train")
        assert not caught
        os.remove(path)


@pytest.fixture
def some_broken(tmp_path):
    """12 broken and 6 whole images in each of two classes: cut short, of other content, empty."""
    images = [noise(70, 80, 3, seed=i) for i in range(12)]
    root = two_classes(tmp_path, images, [noise(70, 80, 3)])
    cut = picture((70, 80, 3), format="PNG")[:-3000]
    for i in range(12):
        write(f"{root}/train/{i % 2}/broken{i:02}.png", (cut, b"text", b"")[i % 3])
    return root


def test_broken_images(some_broken):
    """They are named together, or skipped. What is left has one size, which is kept."""
    message = refusal("folder", some_broken, "train")
    assert message.count(".png'") == 10 and "and 2 more" in message and "--skip_broken" in message
    assert "broken10.png', " in message  # the sixth: a class after the other
    images = load("folder", some_broken, "train", 80, SKIP)
    for i in range(12):
        os.remove(f"{some_broken}/train/{i % 2}/broken{i:02}.png")
    right = load("folder", some_broken, "train", 80)
    assert images.pixels.shape[2:] == (70, 80)
    assert torch.equal(images.pixels, right.pixels) and torch.equal(images.labels, right.labels)
    assert images.fingerprint == right.fingerprint and images.paths == right.paths
    assert images.left_out == "broken images (12)" and right.left_out == ""


def test_nothing_but_broken_images_is_refused(tmp_path):
    """Again and again, although which are broken is known after the first time."""
    put(tmp_path, {f"{i}.png": b"text" for i in range(3)})
    for _ in range(2):
        message = refusal("folder", str(tmp_path), "pretrain", options=SKIP)
        assert f"none of the images in {tmp_path} can be read" in message


# ---- faults ----


def test_pipes_and_broken_links_are_broken_images(tmp_path):
    """Opening a pipe would wait for ever."""
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    os.mkfifo(f"{root}/train/0/pipe.png")
    os.symlink("nowhere", f"{root}/train/0/x.png")
    message = refusal("folder", root, "train")
    assert "pipe.png" in message and "x.png" in message and "not a regular file" in message
    assert load("folder", root, "pretrain", options=SKIP).left_out == "broken images (2)"


def test_folder_faults(tmp_path):
    for root, reason in ((tmp_path / "missing", "no such folder"), (tmp_path, "none in it")):
        message = refusal("folder", str(root), "train")
        assert repr(str(root)) in message and "train" in message and reason in message
    write(str(tmp_path / "file"), b"")
    assert str(tmp_path / "file") in refusal("folder", str(tmp_path / "file"), "train")


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    root, real = two_classes(tmp_path, [noise(9, 9)] * 2, [noise(9, 9)]), os.scandir

    def denied(path):
        if str(path).endswith("train/1"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "train/1" in refusal("folder", root, "train")


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
