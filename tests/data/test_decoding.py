"""Decoding: transparency, orientation, 16 bits, and kinds of images that are refused."""

import struct

import numpy as np
import pytest
import torch
from helpers.samples import noise, odd_images, refusal
from PIL import Image, ImageOps
from torchvision import transforms

from attentionce.data import decoding
from utils import load


def pixels_of(folder):
    """The images in a folder as PIL and NumPy have them, N×H×W×3."""
    return load("folder", str(folder), "pretrain").pixels.permute(0, 2, 3, 1).numpy()


def expected(path, side):
    """What torchvision's transforms make of the image."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    image = image.convert("RGB")
    image = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_odd_images_are_those_of_torchvisions_transforms(tmp_path):
    root, paths = odd_images(tmp_path)
    images = load("folder", root, "train", 64)
    assert images.classes == ["a", "b", "c d"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2]
    assert images.pixels.shape == (9, 3, 64, 64) and images.pixels.is_contiguous()
    for path, pixels in zip(paths, images.pixels, strict=True):
        assert torch.equal(pixels, expected(path, 64)), path
    test = load("folder", root, "test", 33)
    assert torch.equal(test.pixels[0], expected(f"{root}/test/b/x.png", 33))


def test_a_long_line_of_pixels_is_not_enlarged_whole(tmp_path, monkeypatch):
    """To 64 rows that would take 260 MB here, and more than a terabyte in the worst case."""
    real, largest = Image.Image.resize, []

    def resize(image, size, *arguments, **options):
        largest.append(size[0] * size[1])
        return real(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    Image.fromarray(np.tile(noise(1, 1, 3), (1, 16000, 1))).save(tmp_path / "x.png")
    assert (pixels_of(tmp_path) == noise(1, 1, 3)).all()
    assert 0 < max(largest) <= 64 * 64 * 16


# ---- transparency, 16 bits ----


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_transparent_pixels_are_white(tmp_path, mode):
    """In a channel of their own, or of one colour; opaque ones keep theirs."""
    rgba = np.array(
        [[[255, 0, 0, 255], [255, 0, 0, 128]], [[255, 0, 0, 0], [0, 0, 0, 0]]], np.uint8
    )
    image, options = Image.fromarray(rgba), {}
    if mode == "P":
        image = image.quantize(8)
    elif mode == "L":
        image = Image.fromarray(rgba[..., :3] * (rgba[..., 3:] > 0)).convert("L")
        options = {"transparency": 0}
    image.save(tmp_path / "x.png", **options)
    (pixels,) = pixels_of(tmp_path)
    assert (pixels[1] == 255).all()
    assert pixels[0, 0].tolist() == ([76] * 3 if mode == "L" else [255, 0, 0])
    if mode == "RGBA":
        assert pixels[0, 1].tolist() == [255, 127, 127]


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    values = np.random.RandomState(0).randint(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :2] = 0, 65535
    Image.fromarray(values if name == "x.png" else values.astype(">u2")).save(tmp_path / name)
    right = np.floor(values.astype(float) / 257 + 0.5)
    assert np.array_equal(pixels_of(tmp_path)[0], np.repeat(right[..., None], 3, 2))


# ---- orientation ----


@pytest.mark.parametrize("turned", [True, False])
def test_malformed_exif(tmp_path, turned):
    """A resolution in letters, which PIL cannot write again, or what is not EXIF at all."""
    orientation = struct.pack("<HHLHH", 0x112, 3, 1, 6, 0)
    resolution = struct.pack("<HHL4s", 0x11A, 2, 4, b"72")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + orientation + resolution + bytes(4)
    image = Image.fromarray(noise(20, 30, 3))
    image.save(tmp_path / "x.jpg", exif=exif if turned else b"Exif\0\0nothing")
    assert pixels_of(tmp_path)[0].shape == ((30, 20, 3) if turned else (20, 30, 3))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        ("RGBX", {}, "4 channels"),  # without alpha
        ("I", {}, "32 bits"),
        ("F", {}, "no known range"),
        ("RGB", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}, "2 pages"),
    ],
)
def test_other_channels_and_pages_are_named(tmp_path, mode, options, reason):
    Image.new(mode, (9, 9)).save(tmp_path / "x.tif", **options)
    assert reason in refusal("folder", str(tmp_path), "pretrain")


def test_a_second_channel_that_is_not_alpha_is_named(tmp_path):
    path, extra_samples = tmp_path / "x.tif", struct.Struct("<HHLHH")
    Image.new("LA", (9, 9)).save(path)
    alpha, other = (extra_samples.pack(338, 3, 1, kind, 0) for kind in (2, 0))
    assert pixels_of(tmp_path).shape == (1, 9, 9, 3) and alpha in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(alpha, other))
    assert "2 channels" in refusal("folder", str(tmp_path), "pretrain")


def test_a_lack_of_memory_is_not_a_broken_image(tmp_path, monkeypatch):
    """Else which images are trained on would depend on what else runs."""
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "x.png")

    def full(image):
        raise MemoryError

    monkeypatch.setattr(decoding, "on_white", full)
    assert "not enough memory" in refusal("folder", str(tmp_path), "pretrain")
