"""Broken folders and images; every fault is a UserError of one line."""

import os
import random
import shutil
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
    refusal,
    refusals,
    two_classes,
    write,
)

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


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", ["x.jpg", "line\nbreak\x1b[31m.png"])
def test_unreadable_image(tmp_path, fault, name):
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    write(f"{root}/train/0/{name}", BROKEN[fault])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert repr(f"{root}/train/0/{name}") in refusal("folder", root, "train")
    assert not caught


def test_floating_point_image_is_refused(tmp_path):
    floats = noise(70, 70).astype(np.float32)
    root = two_classes(tmp_path, [floats], [noise(70, 70)], suffix=".tif")
    assert "0.tif" in refusal("folder", root, "train")


def test_pipe_is_not_opened(tmp_path):
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    os.mkfifo(f"{root}/train/0/pipe.png")
    assert "pipe.png" in refusal("folder", root, "train")


def test_folder_faults(tmp_path):
    for root, why in ((tmp_path / "missing", "no such folder"), (tmp_path, "none in it")):
        message = refusal("folder", str(root), "train")
        assert repr(str(root)) in message
        assert "train" in message
        assert why in message
    two_classes(tmp_path, [noise(9, 9)], [])
    assert len(load("folder", str(tmp_path), "pretrain").labels) == 1
    assert "val" in refusal("folder", str(tmp_path), "test")
    two_classes(tmp_path, [], [noise(9, 9)], "val")
    assert len(load("folder", str(tmp_path), "test").labels) == 1
    two_classes(tmp_path, [], [noise(9, 9)] * 2, "val")
    assert repr(str(tmp_path / "val" / "1")) in refusal("folder", str(tmp_path), "test")
    shutil.rmtree(tmp_path / "val")
    os.makedirs(tmp_path / "val" / "0")
    assert repr(str(tmp_path / "val")) in refusal("folder", str(tmp_path), "test")
    assert len(load("folder", str(tmp_path), "train").labels) == 1
    shutil.rmtree(tmp_path / "train" / "0")
    os.rmdir(tmp_path / "val" / "0")
    assert repr(str(tmp_path / "train")) in refusal("folder", str(tmp_path), "train")
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
    draw, refused = random.Random(1), 0
    root = two_classes(tmp_path, [noise(20, 24, 3)], [noise(20, 24, 3)])
    for format in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "jp2"):
        options = {"compression": "tiff_deflate"} if format == "tiff" else {}
        good = picture((20, 24, 3), format={"jp2": "JPEG2000"}.get(format, format), **options)
        for _ in range(25):
            write(f"{root}/train/0/fuzz.{format}", mutated(good, draw))
            refused += refusals("folder", tmp_path)
        os.remove(f"{root}/train/0/fuzz.{format}")
    assert 150 < refused < 400
