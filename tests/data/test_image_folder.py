"""The reader of the user's own folder, on images of odd kinds and sizes."""

import numpy as np
import pytest
import torch
from helpers.samples import noise, odd_images, tree, two_classes, write
from PIL import Image, ImageOps
from torchvision import transforms

from attentionce.data import image_folder
from utils import load


@pytest.fixture
def odd(tmp_path):
    return odd_images(tmp_path)


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


def as_array(pixels):
    """An image, 3×H×W, as PIL and NumPy have it."""
    return pixels.permute(1, 2, 0).numpy()


def test_folder_of_odd_images(odd):
    root, paths = odd
    images = load("folder", root, "train", 64)
    assert images.classes == ["a", "b", "c d"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2]
    assert images.pixels.shape == (9, 3, 64, 64)
    assert images.pixels.is_contiguous()
    for path, pixels in zip(paths, images.pixels, strict=True):
        assert torch.equal(pixels, expected(path, 64)), path
    assert torch.equal(load("folder", root, "pretrain", 64).pixels, images.pixels)
    test = load("folder", root, "test", 33)
    assert test.labels.tolist() == [1]
    assert torch.equal(test.pixels[0], expected(f"{root}/test/b/x.png", 33))


@pytest.mark.parametrize("format", ["png", "big-endian tiff", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path, format):
    values = np.random.RandomState(0).randint(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :2] = 0, 65535
    if format == "pgm":
        write(str(tmp_path / "train/0/0.pgm"), b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
        root = two_classes(tmp_path, [], [noise(20, 30)])
    elif format == "png":
        root = two_classes(tmp_path, [values], [values])
    else:
        values = values.astype(">u2")
        root = two_classes(tmp_path, [values], [values], suffix=".tif")
    pixels = load("folder", root, "train").pixels
    right = np.floor(values.astype(float) / 257 + 0.5)
    assert np.array_equal(pixels.numpy(), np.broadcast_to(right, (1, 3, 20, 30)))


def test_long_line_of_pixels(tmp_path, monkeypatch):
    """An image one pixel high is not enlarged whole.

    To 64 rows that would take 260 MB here, and more than a terabyte in the worst case.
    """
    real, largest = Image.Image.resize, []

    def resize(image, size, *arguments, **options):
        largest.append(size[0] * size[1])
        return real(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    line = np.tile(noise(1, 1, 3), (1, 16000, 1))
    root = two_classes(tmp_path, [line, noise(32, 16000, 3)], [noise(9, 9)])
    pixels = load("folder", root, "train").pixels
    assert (pixels[0] == torch.from_numpy(noise(1, 1, 3))[0].T[..., None]).all()
    assert 0 < max(largest) <= 64 * 64 * 16
    difference = pixels[1].float() - expected(f"{root}/train/1/1.png", 64).float()
    assert difference.abs().mean() < 40  # 85 for unrelated noise


def test_equal_sizes_are_kept(tmp_path):
    train = [noise(20, 30, 3, seed=i) for i in range(4)]
    test = [noise(20, 30, 3, seed=9)]
    root = two_classes(tmp_path, train, test, "val")
    images = load("folder", root, "train", 30)
    assert images.labels.tolist() == [0, 0, 1, 1]
    for pixels, i in zip(images.pixels, (0, 2, 1, 3), strict=True):
        assert np.array_equal(as_array(pixels), train[i])
    assert np.array_equal(as_array(load("folder", root, "test", 30).pixels[0]), test[0])
    too_large = load("folder", root, "train", 29).pixels
    assert too_large.shape == (4, 3, 29, 29)


def test_one_other_size_in_test_decides_for_train(tmp_path):
    root = two_classes(tmp_path, [noise(20, 20, 3)] * 2, [noise(20, 20, 3), noise(20, 21, 3)])
    assert load("folder", root, "train", 32).pixels.shape == (2, 3, 32, 32)


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


def test_headers_are_read_no_further_than_needed(tmp_path, monkeypatch):
    small, large = noise(20, 20, 3), noise(65, 65, 3)
    two_classes(tmp_path, [small, small, large, small, small, small], [noise(20, 20)])
    opened, decoded = [], []
    real_open = Image.open

    def open_image(path, **options):
        opened.append(path)
        return real_open(path, **options)

    monkeypatch.setattr(Image, "open", open_image)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)
    paths = sorted(path for path in tree(tmp_path) if "/train/" in path)
    assert image_folder.common_size(paths, 64) == (64, 64)
    assert opened == paths[:2]
    assert image_folder.common_size(paths[2:], 64) == (20, 20)
    assert not decoded


def test_home_folder(odd, monkeypatch):
    monkeypatch.setenv("HOME", odd[0])
    assert len(load("folder", "~", "train").labels) == 9
