"""Decoding: broken images are all named or skipped, large ones are bounded, white lies below."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.samples import noise, picture, put, refusal, two_classes, write
from PIL import Image

from attentionce.data import decoding, image_folder
from attentionce.data.decoding import pixel_limit
from attentionce.data.image_folder import FolderOptions
from utils import load

SKIP = FolderOptions(skip_broken=True)


@pytest.fixture
def some_broken(tmp_path):
    """12 broken and 6 whole images in each of two classes: cut short, of other content, empty."""
    images = [noise(70, 80, 3, seed=i) for i in range(12)]
    root = two_classes(tmp_path, images, [noise(70, 80, 3)])
    cut = picture((70, 80, 3), format="PNG")[:-3000]
    for i in range(12):
        write(f"{root}/train/{i % 2}/broken{i:02}.png", (cut, b"text", b"")[i % 3])
    return root


def test_all_broken_images_are_named_in_one_message(some_broken):
    message = refusal("folder", some_broken, "train")
    assert "cannot read 12 images" in message
    assert message.count(".png'") == 10
    assert "broken10.png', " in message  # the sixth: a class after the other
    assert "and 2 more" in message
    assert "--skip_broken" in message
    for i in range(1, 12):
        os.remove(f"{some_broken}/train/{i % 2}/broken{i:02}.png")
    message = refusal("folder", some_broken, "train")
    assert f"the image {f'{some_broken}/train/0/broken00.png'!r}" in message
    assert "--skip_broken" in message


def test_broken_images_are_skipped_and_counted(some_broken):
    images = load("folder", some_broken, "train", options=SKIP)
    for i in range(12):
        os.remove(f"{some_broken}/train/{i % 2}/broken{i:02}.png")
    right = load("folder", some_broken, "train")
    assert torch.equal(images.pixels, right.pixels)
    assert torch.equal(images.labels, right.labels)
    assert images.fingerprint == right.fingerprint
    assert images.left_out.startswith("12 broken images (")
    assert right.left_out == ""


def test_broken_images_do_not_decide_on_the_size(tmp_path):
    """What is left has one size, which is kept."""
    root = two_classes(tmp_path, [noise(20, 30, 3)] * 2, [noise(20, 30, 3)])
    write(f"{root}/train/0/x.png", picture((20, 30, 3), format="PNG")[:20])
    assert load("folder", root, "train", options=SKIP).pixels.shape == (2, 3, 20, 30)


def test_nothing_but_broken_images_is_refused(tmp_path):
    put(tmp_path, {f"{i}.png": b"text" for i in range(3)})
    assert "3 images" in refusal("folder", str(tmp_path), "pretrain", options=SKIP)


def test_a_lack_of_memory_is_not_a_broken_image(tmp_path, monkeypatch):
    """Else which images are trained on would depend on what else runs."""

    upright = image_folder.upright

    def full(image, side):
        if image.filename.endswith("2.png"):
            raise MemoryError
        return upright(image, side)

    monkeypatch.setattr(image_folder, "upright", full)
    root = two_classes(tmp_path, [noise(9, 9, 3)] * 4, [noise(9, 9, 3)])
    assert "not enough memory" in refusal("folder", root, "train", options=SKIP)


# ---- large images ----


def test_large_images_need_a_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # older versions also crop no more
    images = [noise(90, 90, 3), noise(20, 20, 3), noise(120, 120, 3)]  # the last: above twice that
    images += [noise(9, 9, 3)] * 2
    root = two_classes(tmp_path, images, [noise(9, 9, 3)])
    message = refusal("folder", root, "train")
    assert "2 images" in message and "--big_images" in message
    pixels = load("folder", root, "train", options=FolderOptions(big_images=True)).pixels
    assert pixels.shape == (5, 3, 64, 64)
    assert Image.MAX_IMAGE_PIXELS == 5000
    for lifted, count in ((True, 5), (False, 3)):
        options = SKIP._replace(big_images=lifted)
        assert len(load("folder", root, "train", options=options).pixels) == count


def test_limit_comes_back_after_an_error(monkeypatch):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ZeroDivisionError), pixel_limit(lifted=True):
        assert Image.MAX_IMAGE_PIXELS is None
        raise ZeroDivisionError
    assert before == Image.MAX_IMAGE_PIXELS == decoding.PIL_LIMIT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_a_huge_jpeg_takes_little_memory(tmp_path):
    """Of 92 million pixels, which take 369 MB in RGB."""
    small = Image.fromarray(noise(20, 20)).resize((2400, 2400), Image.Resampling.NEAREST)
    small.resize((9600, 9600), Image.Resampling.NEAREST).save(tmp_path / "0.jpg", quality=50)
    small.save(tmp_path / "1.png")
    code = f"""
import re
from attentionce.data.image_folder import FolderOptions
from utils import load
def peak(name="VmHWM"):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak("VmRSS")
pixels = load("folder", {str(tmp_path)!r}, "pretrain", 64, FolderOptions(big_images=True)).pixels
difference = (pixels[0].float() - pixels[1].float()).abs().mean().item()
print(peak() - before < 150e6, difference < 3)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize(
    ("format", "read"), [("JPEG", True), ("PNG", False), ("progressive", False)]
)
def test_an_image_larger_than_the_memory_is_refused(tmp_path, monkeypatch, format, read):
    """A JPEG can be decoded at an eighth of its size, unless it is progressive."""
    monkeypatch.setattr(decoding, "PIL_LIMIT", 1000)
    monkeypatch.setattr(decoding, "free_memory", lambda: 400 * 400)
    options = {"progressive": True} if format == "progressive" else {}
    data = picture((400, 400, 3), format="PNG" if format == "PNG" else "JPEG", **options)
    write(f"{tmp_path}/x", data)
    big = FolderOptions(big_images=True)
    if read:
        assert load("folder", str(tmp_path), "pretrain", 8, big).pixels.shape == (1, 3, 8, 8)
    else:
        assert "0.0 GB are free" in refusal("folder", str(tmp_path), "pretrain", 8, big)


def test_images_below_the_limit_are_decoded_whole(tmp_path):
    """Their pixels do not depend on --big_images."""
    root = two_classes(tmp_path, [noise(200, 200, 3)], [noise(9, 9, 3)], suffix=".jpg")
    whole = Image.open(f"{root}/train/0/0.jpg").resize((8, 8), Image.Resampling.BILINEAR)
    for lifted in (False, True):
        images = load("folder", root, "train", 8, FolderOptions(big_images=lifted))
        assert np.array_equal(images.pixels[0].permute(1, 2, 0).numpy(), np.array(whole))


# ---- transparency ----


def corners():
    """RGBA: opaque red, half transparent red, transparent red, transparent black."""
    image = np.zeros((2, 2, 4), np.uint8)
    image[:, :, 0] = [[255, 255], [255, 0]]
    image[:, :, 3] = [[255, 128], [0, 0]]
    return Image.fromarray(image).resize((20, 20), Image.Resampling.NEAREST)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "gif", "L", "RGB"])
def test_transparent_pixels_are_white(tmp_path, mode):
    image, options, suffix = corners(), {}, "png"
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = image.quantize(8)
    elif mode == "gif":
        image = Image.new("P", (20, 20), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.paste(0, (0, 10, 20, 20))
        options, suffix = {"transparency": 0}, "gif"
    elif mode in ("L", "RGB"):  # one colour is transparent
        image = Image.new(mode, (20, 20), 0)
        image.paste(77 if mode == "L" else (77, 78, 79), (0, 0, 10, 10))
        options = {"transparency": 0 if mode == "L" else (0, 0, 0)}
    image.save(tmp_path / f"x.{suffix}", **options)
    pixels = load("folder", str(tmp_path), "pretrain").pixels[0]
    assert pixels.shape == (3, 20, 20)
    assert pixels[:, 15, 5].tolist() == [255, 255, 255]
    assert pixels[:, 15, 15].tolist() == [255, 255, 255]
    opaque = {"LA": [76, 76, 76], "L": [77, 77, 77], "RGB": [77, 78, 79]}.get(mode, [255, 0, 0])
    assert pixels[:, 5, 5].tolist() == opaque
    if mode == "RGBA":
        assert pixels[:, 5, 15].tolist() == [255, 127, 127]


def test_opaque_images_keep_their_pixels(tmp_path):
    data = noise(9, 9, 4)
    data[..., 3] = 255
    Image.fromarray(data).save(tmp_path / "x.png")
    pixels = load("folder", str(tmp_path), "pretrain").pixels[0]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), data[..., :3])


def test_sixteen_bits_with_a_transparent_level(tmp_path):
    values = np.full((9, 9), 257 * 40, np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=257 * 40)
    assert (load("folder", str(tmp_path), "pretrain").pixels == 40).all()
