"""The reader of the user's own folder, on odd, large and broken images; every fault is one line of UserError."""

import os
import random
import resource
import shutil
import struct
import warnings

import numpy as np
import pytest
import torch
from helpers.samples import cut_network, mutated, noise, picture, refusal, refusals, tree, write
from PIL import Image, ImageOps
from torchvision import transforms

from attentionce.data import image_folder
from utils import load


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to download fails, and leaves its URL in the list."""
    return cut_network(monkeypatch)


def expected(path, side):
    """What torchvision's transforms make of the image."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def odd(tmp_path):
    """A folder of odd images. Returns root and the paths of train in the order in which they are read."""
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "train/a/cmyk.JPG": (noise(70, 81, 4, seed=1), "CMYK", {"format": "JPEG"}),
        "train/a/deep/er/wide.png": (noise(50, 333, 3, seed=2), "RGB", {}),
        "train/b/exif.jpeg": (noise(75, 91, 3, seed=3), "RGB", {"exif": turned}),
        "train/b/gray.png": (noise(99, 64, seed=4), "L", {}),
        "train/b/la.png": (noise(64, 67, 2, seed=5), "LA", {}),
        "train/b/rgba.png": (noise(99, 71, 4, seed=6), "RGBA", {}),
        "train/b/tall.webp": (noise(321, 68, 3, seed=7), "RGB", {"lossless": True}),
        "train/b/tiny.bmp": (noise(3, 2, 3, seed=8), "RGB", {}),
        "train/c d/palette.gif": (noise(80, 64, 3, seed=9), "P", {}),
        "test/b/x.png": (noise(77, 78, 3, seed=10), "RGB", {}),
    }
    for name, (data, mode, options) in images.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = (
            Image.fromarray(data).convert("P")
            if mode == "P"
            else Image.frombytes(mode, data.shape[1::-1], data)
        )
        image.save(path, **options)
    (tmp_path / "train" / "empty").mkdir()
    for junk in (
        "train/readme.png",
        "train/a/notes.txt",
        "train/a/.hidden.png",
        "train/a/.thumbs/x.png",
        ".x/y.png",
    ):
        write(str(tmp_path / junk), b"no image")
    for junk in ("train/a/film.mpg", "train/a/run.eps", "train/b/noextension", "train/.git/x.png"):
        write(str(tmp_path / junk), b"no image")
    return str(tmp_path), [str(tmp_path / name) for name in images if name.startswith("train")]


def test_folder_of_odd_images(odd):
    root, paths = odd
    images = load("folder", root, "train", 64)
    assert images.classes == ["a", "b", "c d", "empty"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2]
    assert images.pixels.shape == (9, 3, 64, 64)
    assert images.pixels.is_contiguous()
    for path, pixels in zip(paths, images.pixels, strict=True):
        assert torch.equal(pixels, expected(path, 64)), path
    assert torch.equal(load("folder", root, "pretrain", 64).pixels, images.pixels)
    test = load("folder", root, "test", 33)
    assert test.labels.tolist() == [1]
    assert torch.equal(test.pixels[0], expected(f"{root}/test/b/x.png", 33))


def two_classes(root, train, test, held_out="test", suffix=".png", **options):
    """A folder with the arrays as classes 0 and 1 in turn."""
    for split, arrays in (("train", train), (held_out, test)):
        for i, data in enumerate(arrays):
            path = root / split / str(i % 2) / f"{i}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            (data if isinstance(data, Image.Image) else Image.fromarray(data)).save(path, **options)
    return str(root)


@pytest.mark.parametrize("format", ["png", "big-endian tiff", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path, format):
    values = np.random.RandomState(0).randint(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :2] = 0, 65535
    if format == "pgm":
        write(str(tmp_path / "train/0/0.pgm"), b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
        root = two_classes(tmp_path, [], [noise(20, 30)])
    else:
        values = values.astype(">u2") if format == "big-endian tiff" else values
        root = two_classes(
            tmp_path, [values], [values], suffix=".png" if format == "png" else ".tif"
        )
    pixels = load("folder", root, "train").pixels
    right = np.floor(values.astype(float) / 257 + 0.5)
    assert np.array_equal(pixels.numpy(), np.broadcast_to(right, (1, 3, 20, 30)))


def test_long_line_of_pixels(tmp_path, monkeypatch):
    """One pixel high: to enlarge it whole to 64 rows would take 260 MB here, and more than a terabyte in the worst case."""
    real, largest = Image.Image.resize, []

    def resize(image, size, *arguments, **options):
        largest.append(size[0] * size[1])
        return real(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    root = two_classes(
        tmp_path, [np.tile(noise(1, 1, 3), (1, 16000, 1)), noise(32, 16000, 3)], [noise(9, 9)]
    )
    pixels = load("folder", root, "train").pixels
    assert (pixels[0] == torch.from_numpy(noise(1, 1, 3))[0].T[..., None]).all()
    assert 0 < max(largest) <= 64 * 64 * 16
    assert (
        pixels[1].float() - expected(f"{root}/train/1/1.png", 64).float()
    ).abs().mean() < 40  # noise, by chance: 85


def test_equal_sizes_are_kept(tmp_path):
    train, test = [noise(20, 30, 3, seed=i) for i in range(4)], [noise(20, 30, 3, seed=9)]
    root = two_classes(tmp_path, train, test, "val")
    images = load("folder", root, "train", 30)
    assert images.labels.tolist() == [0, 0, 1, 1]
    for pixels, i in zip(images.pixels, (0, 2, 1, 3), strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), train[i])
    assert np.array_equal(
        load("folder", root, "test", 30).pixels[0].permute(1, 2, 0).numpy(), test[0]
    )
    assert load("folder", root, "train", 29).pixels.shape == (
        4,
        3,
        29,
        29,
    )  # no longer small enough


def test_one_other_size_in_test_decides_for_train(tmp_path):
    root = two_classes(tmp_path, [noise(20, 20, 3)] * 2, [noise(20, 20, 3), noise(20, 21, 3)])
    assert load("folder", root, "train", 32).pixels.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_sizes_are_those_after_the_turn(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6
    root = two_classes(tmp_path / "some", [noise(20, 30, 3)], [noise(20, 30, 3)], suffix=suffix)
    Image.fromarray(noise(20, 30, 3)).save(f"{root}/train/0/1{suffix}", exif=turned)
    assert load("folder", root, "train").pixels.shape == (2, 3, 64, 64)
    root = two_classes(
        tmp_path / "all", [noise(20, 30, 3)], [noise(20, 30, 3)], suffix=suffix, exif=turned
    )
    pixels = load("folder", root, "train").pixels
    assert pixels.shape == (1, 3, 30, 20)
    turned = ImageOps.exif_transpose(Image.open(f"{root}/train/0/0{suffix}"))
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), np.array(turned))


def test_headers_are_read_no_further_than_needed(tmp_path, monkeypatch):
    two_classes(
        tmp_path,
        [noise(20, 20, 3)] * 2 + [noise(65, 65, 3)] + [noise(20, 20, 3)] * 3,
        [noise(20, 20)],
    )
    opened, loaded = [], []
    real_open, real_load = Image.open, Image.Image.load
    monkeypatch.setattr(
        Image, "open", lambda path, **options: opened.append(path) or real_open(path, **options)
    )
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: loaded.append(image))
    paths = sorted(path for path in tree(tmp_path) if "/train/" in path)
    assert image_folder.common_size(paths, 64) is None
    assert opened == paths[:2]
    assert not loaded
    assert image_folder.common_size(paths[2:], 64) == (20, 20)
    assert not loaded
    assert real_load


def test_links_to_files_are_followed(tmp_path):
    write(str(tmp_path / "store" / "x.png"), picture((64, 64, 3), format="PNG"))
    root = two_classes(tmp_path / "root", [noise(64, 64, 3)], [noise(64, 64, 3)])
    os.symlink(tmp_path / "store" / "x.png", f"{root}/train/0/link.png")
    os.symlink(tmp_path / "store", f"{root}/train/1")
    assert load("folder", root, "train").labels.tolist() == [0, 0, 1]
    os.remove(tmp_path / "store" / "x.png")
    assert "link.png" in refusal("folder", root, "train")


# ---- the cache of folders that do not fit ----


@pytest.fixture
def tight(monkeypatch):
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 1000)


def hidden(root):
    return sorted(name for name in os.listdir(root) if name.startswith(".") and name != ".x")


def test_memory_mapped_equals_in_memory_and_is_reused(odd, monkeypatch, recwarn):
    root, paths = odd
    right = {split: load("folder", root, split) for split in ("train", "test")}
    assert hidden(root) == []
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 64 * 64 * 3 * 9 - 1)
    monkeypatch.setattr(image_folder, "decode", counted := Counted(image_folder.decode))
    for _ in range(2):
        images = load("folder", root, "pretrain")
        assert torch.equal(images.pixels, right["train"].pixels)
        assert torch.equal(images.labels, right["train"].labels)
        assert images.classes == right["train"].classes
    assert torch.equal(load("folder", root, "test").pixels, right["test"].pixels)  # fits
    assert counted.calls == 2
    (name,) = hidden(root)
    assert name.startswith(".train-")
    assert name.endswith(".npy")
    assert not recwarn.list
    assert torch.equal(torch.from_numpy(np.load(f"{root}/{name}")), images.pixels)
    with open("/proc/self/maps") as file:
        assert name in file.read()
    os.utime(paths[0], ns=(1, 1))  # another time: perhaps another image
    load("folder", root, "train")
    assert counted.calls == 3
    assert len(hidden(root)) == 2
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 1000)
    load("folder", root, "train", 32)
    assert counted.calls == 4
    assert len(hidden(root)) == 3


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def test_no_half_cache(odd, tight):
    root, paths = odd
    write(f"{root}/train/c d/z.png", b"no image")
    assert "z.png" in refusal("folder", root, "train")
    assert hidden(root) == []


def test_cache_that_cannot_be_written(odd, tight, monkeypatch):
    root, _ = odd
    real = np.lib.format.open_memmap

    def denied(path, mode, *rest):
        if mode == "r":
            return real(path, mode, *rest)
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(np.lib.format, "open_memmap", denied)
    message = refusal("folder", root, "train")
    assert root in message
    assert "Permission denied" in message
    assert "write" in message


def test_cache_on_a_full_disk(odd, tight):
    """A real limit on file sizes: without room for all of it nothing is decoded, and nothing stays behind."""
    root, _ = odd
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        message = refusal("folder", root, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert root in message
    assert "make room" in message
    assert hidden(root) == []


def test_cache_has_its_room_before_it_is_filled(odd, tight, monkeypatch):
    """A sparse file on a disk that fills up would kill the program with SIGBUS while it decodes."""
    root, _ = odd
    seen = []

    def look(read, out, what):
        info = os.stat(f"{root}/{hidden(root)[0]}")
        seen.append((info.st_blocks * 512, info.st_size))

    monkeypatch.setattr(image_folder, "decode", look)
    load("folder", root, "train")
    ((room, size),) = seen
    assert room >= size > 9 * 3 * 64 * 64


@pytest.mark.parametrize(
    "damage", [b"", b"\x93NUMPY\x01\x00", b"PK\3\4", "cut", "other shape", "pickle"]
)
def test_damaged_cache(odd, tight, damage):
    root, _ = odd
    load("folder", root, "train")
    path = f"{root}/{hidden(root)[0]}"
    if damage == "cut":
        os.truncate(path, os.path.getsize(path) - 5)
    elif damage == "other shape":
        np.save(path, noise(9, 3, 64, 63))
    elif damage == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    else:
        write(path, damage)
    message = refusal("folder", root, "train")
    assert repr(path) in message
    assert "remove" in message


def test_memory_limit_is_plausible():
    assert 1e7 < image_folder.memory_limit() < 1e14


# ---- faults of folders ----


def jpeg_header(width, height):
    """A small JPEG that claims to be of the size."""
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
    root = two_classes(tmp_path, [noise(70, 70).astype(np.float32)], [noise(70, 70)], suffix=".tif")
    assert "0.tif" in refusal("folder", root, "train")


def test_pipe_is_not_opened(tmp_path):
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    os.mkfifo(f"{root}/train/0/pipe.png")
    assert "pipe.png" in refusal("folder", root, "train")


def test_folder_faults(tmp_path):
    for root in (tmp_path / "missing", tmp_path):
        message = refusal("folder", str(root), "train")
        assert repr(str(root)) in message
        assert "train" in message
        assert "val" in message
    two_classes(tmp_path, [noise(9, 9)], [])
    assert "val" in refusal("folder", str(tmp_path), "pretrain")
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


def test_folder_that_cannot_be_listed(odd, monkeypatch):
    root, _ = odd
    real = os.scandir

    def denied(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "deep" in refusal("folder", root, "train")


def test_fuzz_folder(tmp_path, under_1_gb):
    draw = random.Random(1)
    root, refused = two_classes(tmp_path, [noise(20, 24, 3)], [noise(20, 24, 3)]), 0
    for format in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "jp2"):
        options = {"compression": "tiff_deflate"} if format == "tiff" else {}
        good = picture((20, 24, 3), format={"jp2": "JPEG2000"}.get(format, format), **options)
        for _ in range(25):
            write(f"{root}/train/0/fuzz.{format}", mutated(good, draw))
            refused += refusals("folder", tmp_path)
        os.remove(f"{root}/train/0/fuzz.{format}")
    assert 150 < refused < 400


def test_home_folder(odd, monkeypatch):
    monkeypatch.setenv("HOME", odd[0])
    assert len(load("folder", "~", "train").labels) == 9
