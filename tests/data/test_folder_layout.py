"""The user's folders: which files are images, in which split and class, and what is left out."""

import hashlib
import os
import shutil
import sys
import types

import pytest
import torch
from conftest import ROOT
from helpers.samples import noise, picture, put, refusal
from PIL import Image

from attentionce.data import decoding
from attentionce.data.folder_layout import NoLabels, files_below
from attentionce.data.image_folder import FolderOptions
from attentionce.data.images import labelled, summary
from utils import load

PNG = picture((9, 9, 3), format="PNG")


def images_in(folder, *names):
    """Save one image under each name; none are the same."""
    put(folder, {name: picture((9, 9, 3), sum(map(ord, name)), "PNG") for name in names})
    return str(folder)


# ---- without labels ----


def test_images_at_any_depth(tmp_path):
    """Where there are no splits, every image below the folder counts, wherever it lies."""
    names = ["x.png", "2019/05/a.png", "2019/b.png", "2020/1/2/3/c.png", "unlabeled/y.png"]
    root = images_in(tmp_path, *names)
    images = load("folder", root, "pretrain")
    assert images.classes == ["2019", "2020"] and images.labels.tolist() == [0, 0, 1, -1, -1]
    what = "5 images, 3 of 2 classes and 2 without labels, 9×9 px"
    assert summary(images) == f"{what} ({root})"


def test_unlabelled_images_join(tmp_path):
    """As STL10's do: in pretraining only, after those with labels and in the same memory."""
    root = images_in(tmp_path, "train/0/0.png", "train/0/2.png", "train/1/1.png", "test/0/0.png")
    alone = load("folder", root, "train")
    images_in(tmp_path, "unlabeled/deep/x.png", "unlabeled/y.png")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [0, 0, 1, -1, -1] and images.classes == ["0", "1"]
    assert images.paths[-2:] == ["unlabeled/y.png", "unlabeled/deep/x.png"]
    assert images.source == f"{root}/train and {root}/unlabeled"
    assert labelled(images).pixels.data_ptr() == images.pixels.data_ptr()
    for part in (load("folder", root, "train"), labelled(images)):
        assert torch.equal(part.pixels, alone.pixels) and torch.equal(part.labels, alone.labels)
    shutil.rmtree(tmp_path / "train")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [-1, -1] and images.source == f"{root}/unlabeled"
    assert summary(images).startswith("2 images without labels, 9×9 px")
    for split in ("train", "test"):
        with pytest.raises(NoLabels, match="have no labels"):
            load("folder", root, split)


def test_all_images_by_path(tmp_path):
    """At any depth; the folder of a split is not a class."""
    labels = {
        "1.png": "",
        "cat/1.png": "cat",
        "cat/train/1.png": "cat",
        "dog/deep/1.png": "dog",
        "train/1.png": "",
        "train/cat/1.png": "cat",
        "unlabeled/cat/1.png": "",
        "val/dog/1.png": "dog",
    }
    root = images_in(tmp_path, *labels)
    images = load("folder", root, "all")
    assert images.paths == list(labels) and images.classes == ["cat", "dog"]
    assert [[*images.classes, ""][i] for i in images.labels] == list(labels.values())
    assert torch.equal(images.pixels[5], load("folder", root, "train").pixels[0])


# ---- splits ----


def test_val_where_test_has_no_class_folders(tmp_path):
    """As in ImageNet."""
    root = images_in(tmp_path, "train/a/x.png", "train/b/y.png", "test/1.png", "val/b/z.png")
    test = load("folder", root, "test")
    assert test.labels.tolist() == [1] and test.source == f"{root}/val"
    assert test.left_out == "classes without images here, such as 'a' (1)"
    images_in(tmp_path, "test/a/z.png")
    test = load("folder", root, "test")
    assert test.labels.tolist() == [0] and test.source == f"{root}/test"


def test_a_folder_test_is_never_trained_on(tmp_path):
    root = images_in(tmp_path, "test/1.png", "a/x.png")
    images = load("folder", root, "pretrain")
    assert images.paths == ["a/x.png"]
    assert images.left_out == "images beside splits and classes (1)"


def test_named_test_split(tmp_path):
    names = "train/a/x.png", "train/b/y.png", "test/a/z.png", "held/b/z.png", "x.png"
    root, held = images_in(tmp_path, *names), FolderOptions(test_split="held")
    test = load("folder", root, "test", options=held)
    assert test.labels.tolist() == [1] and test.source == f"{root}/held"
    images = load("folder", root, "pretrain", options=held)
    assert images.left_out == "images beside splits and classes (2)"


def test_other_names_of_splits(tmp_path):
    root = images_in(tmp_path, "Training/a/x.png", "Validation/a/y.png", "Unlabelled/z.png")
    assert load("folder", root, "pretrain").labels.tolist() == [0, -1]
    assert load("folder", root, "test").source == f"{root}/Validation"
    assert load("folder", root, "all").labels.tolist().count(-1) == 1


@pytest.mark.parametrize(
    ("names", "split", "test_split", "said"),
    [
        (["train/a/x.png", "test/1.png"], "test", None, "there are no test images with labels"),
        (["train/a/x.png", "test/c/z.png"], "test", None, "test/c' is not a class of the folder"),
        (["test/a/x.png", "a/y.png"], "pretrain", None, "images beside splits and classes (2)"),
        (["data/Train/a/x.png", "data/val/a/y.png"], "pretrain", None, "has no folder train: did"),
        (["train/x.heic", "extra/x.png"], "pretrain", None, "images beside splits and classes (1)"),
        (["train/a/x.png", "flat/x.png"], "all", "flat", "flat' is not a folder with one folder"),
        (["train/a/x.png"], "pretrain", "train", "--test_split train: these images are trained on"),
    ],
)
def test_refused(tmp_path, names, split, test_split, said):
    root = images_in(tmp_path / "data", *names)
    assert said in refusal("folder", root, split, options=FolderOptions(test_split=test_split))


# ---- files ----


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
    said = summary(images).replace(root, "DIR").replace("9×9", "64×64")
    assert f"\npretraining on {said}\n" in (ROOT / "docs" / "your-own-images.md").read_text()


def test_other_files_are_counted(tmp_path):
    """None of them is opened, whatever they hold; what is hidden or the system's is passed over."""
    names = ("a.txt", "b.TXT", "d", "g.eps", "i/j.txt")
    hidden = (".git/x.png", "0/.x.png", ".t/x", "__MACOSX/x.png", "0/@eaDir/x.png")
    put(tmp_path, {name: PNG for name in (*names, *hidden, "0/x.png")})
    images = load("folder", str(tmp_path), "pretrain")
    assert images.classes == ["0"] and len(images.labels) == 1
    assert images.left_out == "'.txt' (3), 'no extension' (1), '.eps' (1)"


def test_heic_with_its_reader(monkeypatch):
    """pillow-heif is asked to register itself where it is installed."""
    calls = []
    reader = types.SimpleNamespace(register_heif_opener=lambda: calls.append("heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    assert decoding.formats.__wrapped__() and calls == ["heif"]


def test_files_are_in_a_fixed_order(tmp_path):
    """The same on every file system: a folder's own files before those in its folders."""
    order = ["a.png", "z.png", "a/k.png", "a/1/y.png", "a/2/x.png", "b/z.png", "b/c/x.png"]
    put(tmp_path, dict.fromkeys(reversed(order), PNG))
    assert files_below(str(tmp_path)) == files_below(f"{tmp_path}/") == order


def test_links_back_are_not_followed(tmp_path):
    """To the class folder itself, to a folder in between, to train, and to the link."""
    put(tmp_path, {"train/0/x.png": PNG, "train/0/deep/x.png": PNG, "train/1/y.png": PNG})
    os.symlink(".", tmp_path / "train/1/self")
    os.symlink("..", tmp_path / "train/0/deep/up")
    os.symlink(tmp_path / "train", tmp_path / "train/2")
    os.symlink("loop", tmp_path / "train/1/loop")
    assert load("folder", str(tmp_path), "pretrain").labels.tolist() == [0, 0, 1]


# ---- the set of images ----


def test_fingerprint(tmp_path):
    """It notices another set of as many images, and neither copies nor where a folder lies."""
    root, copy = images_in(tmp_path / "one", "a/x.png", "b/y.png"), tmp_path / "two"
    first = load("folder", root, "pretrain").fingerprint
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    assert load("folder", f"{copy}/", "pretrain").fingerprint == first
    content = (copy / "b/y.png").read_bytes()
    Image.fromarray(noise(9, 9, 3, seed=77)).save(copy / "b/y.png")
    other_content = load("folder", str(copy), "pretrain").fingerprint
    (copy / "b/y.png").unlink()
    (copy / "b/x.png").write_bytes(content)
    other_name = load("folder", str(copy), "pretrain").fingerprint
    other_size = load("folder", root, "pretrain", 5).fingerprint
    assert len({first, other_content, other_name, other_size}) == 4


def test_fingerprint_and_cache_stay(tmp_path):
    """Or no state of a run on a folder could be resumed, and no decoded image be found."""
    put(tmp_path, {"a/b.ppm": b"P6 2 1 255\n" + bytes(6), "c.ppm": b"P6 2 1 255\n" + bytes(6)})
    for name in ("a/b.ppm", "c.ppm"):
        os.utime(tmp_path / name, ns=(1, 1))
    images = load("folder", str(tmp_path), "pretrain")
    (cache,) = tmp_path.glob(".*")
    assert cache.name == ".pretrain-ad77d5ec391038ca-569d2c6f3f6f0abc.npy"
    assert hashlib.md5(cache.read_bytes()).hexdigest() == "a6afeed9d59504fc99a153299d20167a"
    assert images.fingerprint == "7cec4a2ce886358dcc53984e3dccd2052912b211ea4d446a17ea1c128b8101bf"
