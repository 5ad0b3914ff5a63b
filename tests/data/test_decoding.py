"""Decoding: broken images are all named or skipped, and white lies below what is transparent."""

import os
import struct

import numpy as np
import pytest
import torch
from helpers.samples import noise, picture, put, refusal, two_classes, write
from PIL import Image, ImageOps

from attentionce.data import decoding, image_folder
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


def test_broken_images_are_named_together(some_broken):
    message = refusal("folder", some_broken, "train")
    assert "cannot read 12 images" in message and message.count(".png'") == 10
    assert "broken10.png', " in message  # the sixth: a class after the other
    assert "and 2 more" in message and "--skip_broken" in message


def test_broken_images_are_skipped_and_counted(some_broken):
    images = load("folder", some_broken, "train", options=SKIP)
    for i in range(12):
        os.remove(f"{some_broken}/train/{i % 2}/broken{i:02}.png")
    right = load("folder", some_broken, "train")
    assert torch.equal(images.pixels, right.pixels) and torch.equal(images.labels, right.labels)
    assert images.fingerprint == right.fingerprint and images.paths == right.paths
    assert images.left_out.startswith("broken images (12: 'train/0/broken00.png', ")
    assert right.left_out == ""


def test_broken_images_do_not_decide_on_the_size(tmp_path):
    """What is left has one size, which is kept."""
    root = two_classes(tmp_path, [noise(20, 30, 3)] * 2, [noise(20, 30, 3)])
    write(f"{root}/train/0/x.png", picture((20, 30, 3), format="PNG")[:20])
    assert load("folder", root, "train", options=SKIP).pixels.shape == (2, 3, 20, 30)


def test_nothing_but_broken_images_is_refused(tmp_path):
    """Again and again, although which are broken is known after the first time."""
    put(tmp_path, {f"{i}.png": b"text" for i in range(3)})
    for _ in range(2):
        assert "3 images" in refusal("folder", str(tmp_path), "pretrain", options=SKIP)


def test_a_lack_of_memory_is_not_a_broken_image(tmp_path, monkeypatch):
    """Else which images are trained on would depend on what else runs."""
    upright = image_folder.upright

    def full(image, size):
        if image.filename.endswith("2.png"):
            raise MemoryError
        return upright(image, size)

    monkeypatch.setattr(image_folder, "upright", full)
    root = two_classes(tmp_path, [noise(9, 9, 3)] * 4, [noise(9, 9, 3)])
    assert "not enough memory" in refusal("folder", root, "train", options=SKIP)


def test_images_above_the_limit_of_pils(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    images = [noise(90, 90, 3), noise(9, 9, 3), noise(120, 120, 3)]  # the last: above twice that
    root = two_classes(tmp_path, images, [noise(9, 9, 3)])
    message = refusal("folder", root, "train")
    assert "2 images" in message and "more than 5,000 pixels: shrink it first" in message


def test_decoding_takes_all_cpus(tmp_path, monkeypatch):
    """Also under torchrun, which sets OMP_NUM_THREADS to 1."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(5), raising=False)
    counts, pool = [], decoding.ThreadPool
    monkeypatch.setattr(decoding, "ThreadPool", lambda count: (counts.append(count), pool(1))[1])
    load("folder", two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)]), "train")
    assert counts == [5]
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS and Windows
    assert decoding.cpus() == os.cpu_count()


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


# ---- orientation, and other channels ----


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("turned", [True, False])
def test_malformed_exif(tmp_path, suffix, turned):
    """A resolution in letters, which PIL cannot write again, or what is not EXIF at all."""
    orientation = struct.pack("<HHLHH", 0x112, 3, 1, 6, 0)
    resolution = struct.pack("<HHL4s", 0x11A, 2, 4, b"72")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + orientation + resolution + bytes(4)
    image = Image.fromarray(noise(20, 30, 3))
    image.save(tmp_path / f"x{suffix}", exif=exif if turned else b"Exif\0\0nothing", quality=100)
    pixels = load("folder", str(tmp_path), "pretrain").pixels[0]
    assert pixels.shape == ((3, 30, 20) if turned else (3, 20, 30))


def test_all_orientations(tmp_path):
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(noise(20, 20, 3)).save(tmp_path / f"{orientation}.png", exif=exif)
    pixels = load("folder", str(tmp_path), "pretrain").pixels
    for orientation in range(10):
        right = ImageOps.exif_transpose(Image.open(tmp_path / f"{orientation}.png"))
        assert np.array_equal(pixels[orientation].permute(1, 2, 0), np.array(right))


def tiff(samples, extra=(), bits=8, pages=1, photometric=2):
    """An uncompressed TIFF of 2×2 pixels, which are all 100."""
    pixels = (100).to_bytes(bits // 8, "little") * 4 * samples
    entries = [(256, 3, [2]), (257, 3, [2]), (258, 3, [bits] * samples), (259, 3, [1])]
    entries += [(262, 3, [photometric]), (273, 4, [8]), (277, 3, [samples]), (278, 3, [2])]
    entries += [(279, 4, [len(pixels)])] + ([(338, 3, list(extra))] if extra else [])
    end = 8 + len(pixels)
    directory, outside = b"", b""
    for tag, kind, values in entries:
        data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'L'}", *values)
        if len(data) > 4:
            outside, data = outside + data, struct.pack("<L", end + len(outside))
        directory += struct.pack("<HHL", tag, kind, len(values)) + data.ljust(4, b"\0")
    first = end + len(outside)
    size = 2 + len(directory) + 4
    content = b"II*\0" + struct.pack("<L", first) + pixels + outside
    for page in range(pages):
        following = first + size * (page + 1) if page + 1 < pages else 0
        content += struct.pack("<H", len(entries)) + directory + struct.pack("<L", following)
    return content


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"samples": 3}, ""),
        ({"samples": 4, "extra": [2]}, ""),
        ({"samples": 4}, "its 4 channels are not"),
        ({"samples": 4, "extra": [0]}, "its 4 channels are not"),
        ({"samples": 5, "extra": [0, 0]}, "its 5 channels are not"),
        ({"samples": 2, "extra": [0], "photometric": 1}, "its 2 channels are not"),
        ({"samples": 3, "pages": 3}, "it has 3 pages"),
        ({"samples": 1, "photometric": 1, "bits": 32}, "32 bits have no known range"),
    ],
)
def test_other_channels_and_pages_are_named(tmp_path, given, reason):
    write(f"{tmp_path}/x.tif", tiff(**given))
    if reason:
        assert reason in refusal("folder", str(tmp_path), "pretrain")
    else:
        pixels = load("folder", str(tmp_path), "pretrain").pixels
        assert set(pixels.unique().tolist()) == ({100} if given["samples"] == 3 else {194})
