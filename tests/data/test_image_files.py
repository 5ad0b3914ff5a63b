"""Which files are taken for images: by content, through links; and what is left out is counted."""

import os
import sys
import types

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.samples import noise, picture, put, refusal, two_classes, write
from PIL import Image, ImageFile

from attentionce.data import decoding, image_files
from attentionce.data.image_folder import FolderOptions
from attentionce.data.images import summary
from utils import load

PNG = picture((9, 9, 3), format="PNG")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_the_folders_of_the_issue(tmp_path):
    """4 PNGs and a HEIC; 4 PNGs without extension and a link to a folder of 4; 4 PNGs beside."""
    for i in range(4):
        image = picture((9, 9, 3), seed=i, format="PNG")
        put(tmp_path / "root" / "train", {f"a/{i}.png": image, f"b/{i}": image, f"{i}.png": image})
        put(tmp_path / "elsewhere", {f"{i}.png": image})
    put(tmp_path / "root", {"train/a/x.HEIC": HEIC, "test/a/x.png": PNG})
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "train" / "b" / "more")
    root = str(tmp_path / "root")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == 4 * [0] + 8 * [1]
    assert summary(images) == (
        f"12 images of 2 classes, 9×9 px ({root}/train); left out: 1 HEIC (to read them: pip "
        "install pillow-heif), 4 images (beside the class folders)"
    )
    example = summary(images).replace(root, "DIR").replace("9×9", "64×64")
    assert f"\npretraining on {example}\n" in (ROOT / "docs" / "your-own-images.md").read_text()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("name", ["image", "image.jpg_large", "image.01", "IMAGE.JPG"])
def test_an_image_counts_whatever_its_name(tmp_path, format, name):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    write(f"{root}/train/0/{name}", picture((9, 9, 3), format=format))
    images = load("folder", root, "pretrain")
    raw = format == "TIFF" and name in ("image.jpg_large", "image.01")  # as a camera's raw file is
    assert len(images.labels) == (1 if raw else 2)
    assert ("other file" in images.left_out) == raw


def test_a_large_image_without_extension_counts(tmp_path, monkeypatch):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    write(f"{root}/train/0/large", picture((99, 99, 3), format="PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    assert "large" in refusal("folder", root, "pretrain")


@pytest.mark.parametrize("content", [b"", b"text\n", b"BMW is a car", b"\xff\xd8\xff\xe0 cut"])
def test_other_files_are_counted(tmp_path, content):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    for name in ("a.txt", "b.TXT", "c.json", "d", "e.mp4", "f.npy", "g.eps", "h.fits"):
        write(f"{root}/train/0/{name}", content)
    images = load("folder", root, "pretrain")
    assert len(images.labels) == 1
    assert images.left_out == "8 other files (2 .txt, 1 without extension, 1 .eps, 1 .fits, …)"


def test_text_named_png_is_a_broken_image(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    write(f"{root}/train/0/x.png", b"text")
    assert "x.png" in refusal("folder", root, "pretrain")


def test_files_whose_extension_says_enough_are_not_opened(tmp_path, monkeypatch):
    """Captions beside a million images would take long to open."""
    put(tmp_path, {"a.txt": b"", "b.json": b"", "c.mp4": b"", "d.jpg": PNG})
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))
    found, left_out = image_files.find_images(str(tmp_path))
    assert [os.path.basename(file.path) for file in found] == ["d.jpg"]
    assert left_out.others.total() == 3


def test_a_pipe_without_extension_is_not_opened(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    os.mkfifo(f"{root}/train/0/pipe")
    assert load("folder", root, "pretrain").left_out == "1 other file (1 without extension)"


def test_images_are_in_a_fixed_order(tmp_path):
    """The same on every file system: a folder's own images before those in its folders."""
    names = [
        "b/z.png",
        "b/a.png",
        "a.png",
        "b/c/x.png",
        "a/2/x.png",
        "a/1/y.png",
        "z.png",
        "a/k.png",
    ]
    put(tmp_path, dict.fromkeys(names, PNG))
    order = [
        "a.png",
        "z.png",
        "a/k.png",
        "a/1/y.png",
        "a/2/x.png",
        "b/a.png",
        "b/z.png",
        "b/c/x.png",
    ]
    found, _ = image_files.find_images(str(tmp_path))
    assert [file.path for file in found] == [f"{tmp_path}/{name}" for name in order]


def test_hidden_images_are_counted(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    put(tmp_path / "train", {".git/x.png": PNG, "0/.x.png": PNG, "0/.DS_Store": b"", "0/.t/x": b""})
    assert load("folder", root, "pretrain").left_out == "3 hidden or of the system"


# ---- HEIC ----


def test_heic_without_a_reader(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    put(tmp_path / "train" / "0", {"a.heic": HEIC, "b.HEIF": HEIC, "c": HEIC, "d.unknown": HEIC})
    left_out = load("folder", root, "pretrain").left_out
    assert left_out == "4 HEIC (to read them: pip install pillow-heif)"
    write(f"{root}/train/0/x.jpg", HEIC)  # as some telephones send them
    message = refusal("folder", root, "pretrain")
    assert "x.jpg" in message and "pillow-heif" in message


class FakeHeif(ImageFile.ImageFile):
    """What pillow-heif registers, for images that are all red."""

    format = "HEIF"
    format_description = "HEIF image"

    def _open(self):
        self._size = (9, 9)
        self._mode = "RGB"

    def load(self):
        if self._im is None:
            self.im = Image.new("RGB", (9, 9), "red").im
        return super().load()


def test_heic_with_its_reader(tmp_path, monkeypatch):
    def register():
        Image.register_open("HEIF", FakeHeif, lambda start: start[4:12] == b"ftypheic")
        Image.register_extensions("HEIF", [".heic", ".heif"])

    Image.init()
    for name in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    reader = types.SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    decoding.formats.cache_clear()
    decoding.extensions.cache_clear()
    try:
        root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
        put(tmp_path / "train" / "0", {"a.heic": HEIC, "b": HEIC})
        images = load("folder", root, "pretrain")
        assert images.left_out == ""
        assert torch.equal(images.pixels[1:, 0], torch.full((2, 9, 9), 255, dtype=torch.uint8))
    finally:
        decoding.formats.cache_clear()
        decoding.extensions.cache_clear()


# ---- links ----


def test_links_back_are_noticed(tmp_path):
    """To the root, to train, to the class folder itself and to a folder in between."""
    root = two_classes(tmp_path, [noise(9, 9, 3)] * 3, [noise(9, 9, 3)])
    put(tmp_path, {"train/0/deep/er/x.png": PNG})
    os.symlink(tmp_path, f"{root}/train/0/root")
    os.symlink(tmp_path / "train", f"{root}/train/0/deep/train")
    os.symlink(".", f"{root}/train/1/self")
    os.symlink("..", f"{root}/train/0/deep/er/up")
    os.symlink(tmp_path / "train", f"{root}/train/2")
    os.symlink("loop", f"{root}/train/1/loop")
    os.symlink("loop.d", f"{root}/train/loop.d")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [0, 0, 0, 1]
    assert "5 links (back to a folder above)" in images.left_out
    os.symlink("loop.png", f"{root}/train/1/loop.png")
    assert "loop.png" in refusal("folder", root, "pretrain")
    os.remove(f"{root}/train/1/loop.png")
    put(tmp_path, {"unlabeled/x.png": PNG})
    os.symlink("..", f"{root}/unlabeled/up")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [0, 0, 0, 1, -1]
    assert "6 links (back to a folder above)" in images.left_out


def test_a_link_to_another_class_is_followed(tmp_path):
    """As torchvision's ImageFolder does: its images count twice."""
    root = two_classes(tmp_path, [noise(9, 9, 3)] * 2, [noise(9, 9, 3)])
    os.symlink("../0", f"{root}/train/1/other")
    assert load("folder", root, "pretrain").labels.tolist() == [0, 1, 1]


def test_images_are_those_of_torchvisions_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    names = ["b/z.png", "b/a.png", "a/2/x.png", "a/10.png", "a/1/y.png", "c/k/l/m.png", "c/k/b.png"]
    put(tmp_path / "train", {name: picture((9, 9, 3), i, "PNG") for i, name in enumerate(names)})
    put(tmp_path / "real" / "more", {"q.png": PNG})
    os.symlink(tmp_path / "real", tmp_path / "train" / "c" / "linked")
    theirs = ImageFolder(str(tmp_path / "train"))
    ours = load("folder", str(tmp_path), "pretrain")
    assert ours.classes == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    by_class = {label: [] for label in range(3)}
    for pixels, label in zip(ours.pixels, ours.labels.tolist(), strict=True):
        by_class[label].append(pixels.permute(1, 2, 0).numpy().tobytes())
    for label, files in by_class.items():
        right = [np.array(image).tobytes() for image, target in theirs if target == label]
        assert sorted(files) == sorted(right)


def test_a_broken_link_is_a_broken_image(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    os.symlink("nowhere", f"{root}/train/0/x.png")
    os.symlink("nowhere", f"{root}/train/0/notes")
    assert "No such file" in refusal("folder", root, "pretrain")
    images = load("folder", root, "pretrain", options=FolderOptions(skip_broken=True))
    assert (
        images.left_out
        == f"1 other file (1 without extension), 1 broken image ('{root}/train/0/x.png')"
    )
