"""Folders with and without labels and splits: what is pretrained on, and what is tested."""

import os
import shutil

import pytest
import torch
from helpers.samples import noise, put, refusal, two_classes
from PIL import Image

from attentionce.data.folder_layout import NoLabels
from attentionce.data.image_folder import FolderOptions
from attentionce.data.images import labelled, summary
from utils import load


def images_in(folder, *names, size=9):
    """Save one image under each name; none are the same."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(map(ord, name))
        Image.fromarray(noise(size, size, 3, seed=seed)).save(path, "PNG")
    return str(folder)


def line(root, split="pretrain", **options):
    """What is said about the images."""
    return summary(load("folder", root, split, options=FolderOptions(**options)))


# ---- without labels ----


def test_images_in_one_folder(tmp_path):
    root = images_in(tmp_path / "photos", *(f"{i}.png" for i in range(8)))
    images = load("folder", root, "pretrain")
    assert images.pixels.shape == (8, 3, 9, 9)
    assert images.labels.tolist() == 8 * [-1] and images.classes == []
    assert summary(images) == f"8 images without labels, 9×9 px ({root})"
    for split in ("train", "test"):
        with pytest.raises(NoLabels, match="no labels"):
            load("folder", root, split)


def test_images_at_any_depth(tmp_path):
    """Where there are no splits, every image below the folder counts, wherever it lies."""
    names = ["x.png", "2019/05/a.png", "2019/b.png", "2020/1/2/3/c.png", "unlabeled/y.png"]
    root = images_in(tmp_path, *names)
    images = load("folder", root, "pretrain")
    assert images.classes == ["2019", "2020"] and images.labels.tolist() == [0, 0, 1, -1, -1]
    what = "5 images, 3 of 2 classes and 2 without labels, 9×9 px"
    assert summary(images) == f"{what} ({root})"


def test_train_without_labels(tmp_path):
    root = images_in(tmp_path, "train/a.png", "train/b.png", "test/x/c.png")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [-1, -1] and images.source == f"{root}/train"
    for split in ("train", "test"):
        message = refusal("folder", root, split)
        assert "no labels" in message and f"{root}/train/CLASS" in message


def test_unlabelled_images_join(tmp_path):
    """As STL10's do: in pretraining only, after those with labels and in the same memory."""
    root = two_classes(tmp_path, [noise(9, 9, 3, seed=i) for i in range(3)], [noise(9, 9, 3)])
    alone = load("folder", root, "train")
    images_in(tmp_path, "unlabeled/deep/x.png", "unlabeled/y.png")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [0, 0, 1, -1, -1] and images.classes == ["0", "1"]
    assert images.paths[-2:] == ["unlabeled/y.png", "unlabeled/deep/x.png"]
    assert labelled(images).pixels.data_ptr() == images.pixels.data_ptr()
    for part in (load("folder", root, "train"), labelled(images)):
        assert torch.equal(part.pixels, alone.pixels) and torch.equal(part.labels, alone.labels)
    assert load("folder", root, "test").labels.tolist() == [0]
    assert summary(images) == (
        f"5 images, 3 of 2 classes and 2 without labels, 9×9 px ({root}/train and {root}/unlabeled)"
    )
    shutil.rmtree(tmp_path / "train")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [-1, -1] and images.source == f"{root}/unlabeled"


def test_sizes_of_all_splits_decide(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    images_in(tmp_path, "unlabeled/x.png", size=10)
    for split in ("pretrain", "train", "test"):
        assert load("folder", root, split, 7).pixels.shape[2:] == (7, 7)


# ---- all images ----


def test_all_images_by_path(tmp_path):
    """At any depth; the folder of a split is no class."""
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
    (tmp_path / "none").mkdir()
    assert "there are none in it" in refusal("folder", str(tmp_path / "none"), "all")
    assert "no such folder" in refusal("folder", str(tmp_path / "missing"), "all")


# ---- test splits ----


def test_train_without_test(tmp_path):
    for name in ("one/train", "two"):
        root = images_in(tmp_path / name, "a/x.png", "b/y.png").removesuffix("/train")
        for split in ("pretrain", "train"):
            assert load("folder", root, split).labels.tolist() == [0, 1]
        message = refusal("folder", root, "test")
        for word in ("no test images", repr(root), "val", "--test_split"):
            assert word in message


def test_test_without_train(tmp_path):
    root = images_in(tmp_path, "test/a/x.png", "a/y.png")
    message = refusal("folder", root, "pretrain")
    assert "needs a folder train" in message and "items beside train (1: 'a')" in message


def test_items_beside_train_are_named(tmp_path):
    """A class may be called train."""
    root = images_in(tmp_path, "train/x.png", "car/y.png", "bus/z.png", "w.png", "q.txt")
    assert line(root).endswith("left out: items beside train (3: 'bus', 'car', 'w.png')")


def test_val_where_test_has_no_class_folders(tmp_path):
    root = images_in(tmp_path, "train/a/x.png", "train/b/y.png", "test/1.png", "val/b/z.png")
    test = load("folder", root, "test")
    assert test.labels.tolist() == [1] and test.source == f"{root}/val"
    images_in(tmp_path, "test/a/z.png")
    test = load("folder", root, "test")
    assert test.labels.tolist() == [0] and test.source == f"{root}/test"
    assert test.left_out == (
        "images beside the class folders (1: '1.png'), "
        "classes of which there are no images here (1: 'b')"
    )


def test_named_test_split(tmp_path):
    names = "train/a/x.png", "train/b/y.png", "test/a/z.png", "held/b/z.png", "flat/x.png"
    root = images_in(tmp_path, *names)
    test = load("folder", root, "test", options=FolderOptions(test_split="held"))
    assert test.labels.tolist() == [1] and test.source == f"{root}/held"
    assert line(root, test_split="held").endswith("items beside train (2: 'flat', 'test')")
    for name in ("flat", "nowhere", "train"):
        message = refusal("folder", root, "pretrain", options=FolderOptions(test_split=name))
        assert f"--test_split {name}" in message and ("trained on" in message) == (name == "train")
    shutil.rmtree(tmp_path / "train")  # the test split is not a class
    message = refusal("folder", root, "pretrain", options=FolderOptions(test_split="held"))
    assert "needs a folder train" in message


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "TEST"), ("Training", "testing"), ("train", "Validation")]
)
def test_usual_names_of_splits(tmp_path, train, test):
    root = images_in(tmp_path, f"{train}/a/x.png", f"{test}/a/y.png", "Unlabeled/z.png")
    assert load("folder", root, "pretrain").labels.tolist() == [0, -1]
    assert load("folder", root, "test").source == f"{root}/{test}"
    assert load("folder", root, "all").labels.tolist().count(-1) == 1


def test_a_root_one_folder_too_high(tmp_path):
    root = images_in(tmp_path, "data/Train/a/x.png", "data/test/a/y.png", "readme.txt")
    for split in ("pretrain", "test", "all"):
        assert f"did you mean --root '{root}/data'?" in refusal("folder", root, split)


# ---- classes ----


def test_class_of_test_that_train_lacks_stops_only_the_test(tmp_path):
    root = images_in(tmp_path, "train/a/x.png", "test/a/y.png", "test/c/z.png")
    assert len(load("folder", root, "pretrain").labels) == 1
    assert repr(f"{root}/test/c") in refusal("folder", root, "test")


def test_classes_without_images_are_named(tmp_path):
    root = images_in(tmp_path, "train/b/x.png", "test/b/x.png")
    put(tmp_path, {"train/sloth/x.heic": b"", "train/a/notes.txt": b""})
    images = load("folder", root, "pretrain")
    assert images.classes == ["b"] and "folders without images (2: 'a', 'sloth')" in images.left_out
    assert load("folder", root, "test").labels.tolist() == [0]


def test_class_whose_images_are_all_broken_is_refused(tmp_path):
    root = images_in(tmp_path, "train/a/x.png")
    put(tmp_path, {"train/b/y.png": b"broken"})
    message = refusal("folder", root, "pretrain", options=FolderOptions(skip_broken=True))
    assert "'b'" in message and "ends up empty" in message


# ---- the set of images ----


def test_fingerprint(tmp_path):
    """It notices another set of as many images, and neither copies nor where a folder lies."""
    root = images_in(tmp_path / "one", "train/a/x.png", "train/b/y.png", "test/b/z.png")
    first = load("folder", root, "pretrain").fingerprint
    shutil.copytree(root, tmp_path / "two", copy_function=shutil.copyfile)
    assert load("folder", str(tmp_path / "two"), "pretrain").fingerprint == first
    assert load("folder", f"{root}/", "pretrain").fingerprint == first
    images_in(tmp_path / "one", "test/a/q.png")
    assert load("folder", root, "pretrain").fingerprint == first
    other_images = load("folder", root, "test").fingerprint
    path = tmp_path / "two/train/b/y.png"
    content = path.read_bytes()
    Image.fromarray(noise(9, 9, 3, seed=77)).save(path)
    other_content = load("folder", str(tmp_path / "two"), "pretrain").fingerprint
    path.write_bytes(content)
    os.rename(path, path.with_name("x.png"))
    other_name = load("folder", str(tmp_path / "two"), "pretrain").fingerprint
    other_size = load("folder", root, "pretrain", 5).fingerprint
    assert len({first, other_images, other_content, other_name, other_size}) == 5


def test_fingerprints_of_other_data_sets():
    marks = [load("photos", "", split).fingerprint for split in ("pretrain", "train", "test")]
    assert marks == ["photos train", "photos train", "photos test"]
