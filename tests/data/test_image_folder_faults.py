"""Broken folders and images; every fault is a UserError of one line."""

import os
import random
import struct
import warnings

import numpy as np
import pytest
from helpers.samples import (
    cut_network,
    mutated,
    noise,
    odd_images,
    picture,
    put,
    refusal,
    two_classes,
    write,
)

from attentionce.data.image_folder import FolderOptions
from utils import load


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    return cut_network(monkeypatch)


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
    "above the bomb limit": jpeg_header(10000, 10000),
    "above twice the bomb limit": jpeg_header(60000, 60000),
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
            assert f"cannot read the image {path!r}" in refusal("folder", root, "train")
        assert not caught
        os.remove(path)


def test_floating_point_image_is_refused(tmp_path):
    floats = noise(70, 70).astype(np.float32)
    root = two_classes(tmp_path, [floats], [noise(70, 70)], suffix=".tif")
    assert "0.tif" in refusal("folder", root, "train")


def test_pipe_is_not_opened(tmp_path):
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    os.mkfifo(f"{root}/train/0/pipe.png")
    assert "pipe.png" in refusal("folder", root, "train")


def test_folder_faults(tmp_path):
    for root, reason in ((tmp_path / "missing", "no such folder"), (tmp_path, "none in it")):
        message = refusal("folder", str(root), "train")
        assert repr(str(root)) in message and "train" in message and reason in message
    two_classes(tmp_path, [noise(9, 9)], [])
    assert "val" in refusal("folder", str(tmp_path), "test")
    os.makedirs(tmp_path / "val" / "0")
    assert repr(str(tmp_path / "val")) in refusal("folder", str(tmp_path), "test")
    assert len(load("folder", str(tmp_path), "train").labels) == 1
    write(str(tmp_path / "file"), b"")
    for name in ("folder", "cifar10", "stl10", "tinyImageNet"):
        assert str(tmp_path / "file") in refusal(name, str(tmp_path / "file"), "train")


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    root, _ = odd_images(tmp_path)
    real = os.scandir

    def denied(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "deep" in refusal("folder", root, "train")


def test_fuzz_folder(tmp_path, under_1_gb):
    """Mutated images are broken or read, whatever else happens to PIL."""
    draw, broken = random.Random(1), 0
    for format in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "jp2"):
        options = {"compression": "tiff_deflate"} if format == "tiff" else {}
        good = picture((20, 24, 3), format={"jp2": "JPEG2000"}.get(format, format), **options)
        put(tmp_path / format, {f"{i}.{format}": mutated(good, draw) for i in range(25)})
        write(f"{tmp_path}/{format}/good.{format}", good)
        skip = FolderOptions(skip_broken=True)
        broken += 26 - len(load("folder", str(tmp_path / format), "pretrain", options=skip).pixels)
    assert 60 < broken < 200
