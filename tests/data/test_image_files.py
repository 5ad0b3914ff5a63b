"""Which files are taken for images, also through links; and what is left out is counted."""

import os
import sys
import types

import numpy as np
import pytest
from conftest import ROOT
from helpers.samples import noise, picture, put, refusal, two_classes, write
from PIL import Image, ImageFile

from attentionce.data import decoding, image_files
from attentionce.data.image_folder import FolderOptions
from attentionce.data.images import summary
from utils import load

PNG = picture((9, 9, 3), format="PNG")


@pytest.fixture
def root(tmp_path):
    """A folder with one image per split."""
    return two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])


def test_the_line_about_the_images(tmp_path):
    """It is the documentation's example."""
    for i in range(4):
        put(tmp_path / "root", {f"train/a/{i}.png": PNG, f"train/{i}.png": PNG})
        put(tmp_path / "elsewhere", {f"{i}.png": PNG})
    put(tmp_path / "root", {"train/a/x.HEIC": b"", "train/a/notes.txt": b"", "test/a/x.png": PNG})
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "train" / "b")
    root = str(tmp_path / "root")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == 4 * [0] + 4 * [1]
    line = summary(images).replace(root, "DIR").replace("9×9", "64×64")
    assert f"\npretraining on {line}\n" in (ROOT / "docs" / "your-own-images.md").read_text()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_an_image_counts_whatever_format_its_name_says(root, format):
    write(f"{root}/train/0/IMAGE.JPG", picture((9, 9, 3), format=format))
    assert len(load("folder", root, "pretrain").labels) == 2


def test_other_files_are_counted(root):
    """None of them is opened."""
    for name in ("a.txt", "b.TXT", "c.json", "d", "e.mp4", "f.npy", "g.eps", "h.fits", "i.heic"):
        write(f"{root}/train/0/{name}", PNG)
    os.mkfifo(f"{root}/train/0/pipe")
    images = load("folder", root, "pretrain")
    assert len(images.labels) == 1
    assert images.left_out == (
        "other files (9: 2 '.txt', 2 'no extension', '.json', …), "
        "HEIC, which needs pip install pillow-heif (1: '.heic')"
    )


def test_text_named_png_is_a_broken_image(root):
    write(f"{root}/train/0/x.png", b"text")
    assert "x.png" in refusal("folder", root, "pretrain")


def test_images_are_in_a_fixed_order(tmp_path):
    """The same on every file system: a folder's own images before those in its folders."""
    order = ["a.png", "z.png", "a/k.png", "a/1/y.png", "a/2/x.png", "b/z.png", "b/c/x.png"]
    put(tmp_path, dict.fromkeys(reversed(order), PNG))
    found = image_files.find_images(str(tmp_path), image_files.LeftOut())
    assert [file.inside(str(tmp_path)) for file in found] == order
    assert [file.folder for file in found] == ["", "", "a", "a", "a", "b", "b"]


def test_what_is_hidden_or_of_the_system(tmp_path, root):
    put(tmp_path / "train", {".git/x.png": PNG, "0/.x.png": PNG, "0/.DS_Store": b"", "0/.t/x": b""})
    put(tmp_path / "train", {"__MACOSX/x.png": PNG, "0/@eaDir/x.png": PNG, "0/Thumbs.db": b""})
    images = load("folder", root, "pretrain")
    assert images.classes == ["0"] and len(images.labels) == 1
    assert images.left_out.startswith("hidden or of the system (5: ")


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


def test_heic_with_its_reader(root, monkeypatch):
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
        write(f"{root}/train/0/a.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        images = load("folder", root, "pretrain")
        assert images.left_out == "" and (images.pixels[1, 0] == 255).all()
    finally:
        decoding.formats.cache_clear()
        decoding.extensions.cache_clear()


def test_links_back_are_noticed(tmp_path, root):
    """To the root, to train, to the class folder itself and to a folder in between."""
    put(tmp_path, {"train/0/deep/er/x.png": PNG, "train/1/y.png": PNG})
    os.symlink(tmp_path, f"{root}/train/0/root")
    os.symlink(tmp_path / "train", f"{root}/train/0/deep/train")
    os.symlink(".", f"{root}/train/1/self")
    os.symlink("..", f"{root}/train/0/deep/er/up")
    os.symlink(tmp_path / "train", f"{root}/train/2")
    os.symlink("loop", f"{root}/train/1/loop")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [0, 0, 1]
    assert "links to a folder above (5: '2', 'root', 'train', …)" in images.left_out


def test_images_are_those_of_torchvisions_image_folder(tmp_path):
    """Through a link to another class, too, whose images then count twice."""
    from torchvision.datasets import ImageFolder

    names = ["b/z.png", "b/a.png", "a/2/x.png", "a/10.png", "a/1/y.png", "c/k/l/m.png", "c/k/b.png"]
    put(tmp_path / "train", {name: picture((9, 9, 3), i, "PNG") for i, name in enumerate(names)})
    os.symlink("../a", tmp_path / "train" / "c" / "linked")
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


def test_a_broken_link_is_a_broken_image(root):
    os.symlink("nowhere", f"{root}/train/0/x.png")
    os.symlink("nowhere", f"{root}/train/0/notes")
    assert "No such file" in refusal("folder", root, "pretrain")
    images = load("folder", root, "pretrain", options=FolderOptions(skip_broken=True))
    assert images.left_out == (
        "other files (1: 'no extension'), broken images (1: 'train/0/x.png')"
    )
