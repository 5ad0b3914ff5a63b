"""Folders with and without labels and splits: what is pretrained on, and what is tested."""

import os
import shutil

import pytest
import torch
from helpers.samples import noise, put, refusal, two_classes, write
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
    assert images.labels.tolist() == 8 * [-1]
    assert images.classes == []
    assert summary(images) == f"8 images without labels, 9×9 px ({root})"
    for split, word in (("train", "no labels"), ("test", "no labels")):
        with pytest.raises(NoLabels, match=word):
            load("folder", root, split)


def test_images_at_any_depth(tmp_path):
    """Where there are no splits, every image below the folder counts, wherever it lies."""
    root = images_in(tmp_path, "x.png", "2019/05/a.png", "2019/b.png", "2020/1/2/3/c.png")
    images = load("folder", root, "pretrain")
    assert len(images.pixels) == 4
    assert images.classes == ["2019", "2020"]
    assert images.labels.tolist() == [0, 0, 1, -1]
    what = "4 images, 3 of 2 classes and 1 without labels, 9×9 px"
    assert summary(images) == f"{what} ({root})"


def test_train_without_labels(tmp_path):
    root = images_in(tmp_path, "train/a.png", "train/b.png", "test/x/c.png")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [-1, -1]
    assert images.source == f"{root}/train"
    assert "no labels" in refusal("folder", root, "train")
    message = refusal("folder", root, "test")
    assert "the training images" not in message and f"{root}/train/CLASS" in message


def test_unlabelled_images_join(tmp_path):
    """As STL10's do: in pretraining only, after those with labels."""
    root = two_classes(tmp_path, [noise(9, 9, 3, seed=i) for i in range(3)], [noise(9, 9, 3)])
    alone = load("folder", root, "train")
    images_in(tmp_path, "unlabeled/deep/x.png", "unlabeled/y.png")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [0, 0, 1, -1, -1]
    assert images.classes == ["0", "1"]
    train = load("folder", root, "train")
    for images_with_labels in (train, labelled(images)):
        assert torch.equal(images_with_labels.pixels, alone.pixels)
        assert torch.equal(images_with_labels.labels, alone.labels)
    assert load("folder", root, "test").labels.tolist() == [0]
    assert summary(images) == (
        f"5 images, 3 of 2 classes and 2 without labels, 9×9 px ({root}/train and {root}/unlabeled)"
    )
    shutil.rmtree(tmp_path / "train")
    images = load("folder", root, "pretrain")
    assert images.labels.tolist() == [-1, -1]
    assert images.source == f"{root}/unlabeled"
    assert "left out" not in summary(images)


def test_unlabelled_images_join_classes_without_splits(tmp_path):
    root = images_in(tmp_path, "cats/x.png", "unlabeled/y.png", "zebras/z.png")
    images = load("folder", root, "pretrain")
    assert images.classes == ["cats", "zebras"]
    assert images.labels.tolist() == [0, 1, -1]


def test_size_of_unlabelled_images_decides_too(tmp_path):
    root = two_classes(tmp_path, [noise(9, 9, 3)], [noise(9, 9, 3)])
    images_in(tmp_path, "unlabeled/x.png", size=10)
    for split in ("pretrain", "train", "test"):
        assert load("folder", root, split, 7).pixels.shape[2:] == (7, 7)


def test_labels_come_first_in_memory_too(tmp_path):
    root = images_in(tmp_path, "unlabeled/x.png", "train/a/x.png")
    images = load("folder", root, "pretrain")
    part = labelled(images)
    assert part.pixels.data_ptr() == images.pixels.data_ptr()


# ---- without a test split ----


def test_train_without_test(tmp_path):
    root = images_in(tmp_path, "train/a/x.png", "train/b/y.png")
    for split in ("pretrain", "train"):
        assert load("folder", root, split).labels.tolist() == [0, 1]
    message = refusal("folder", root, "test")
    for word in ("no test images", repr(root), "val", "--test_split"):
        assert word in message


def test_classes_without_splits(tmp_path):
    root = images_in(tmp_path, "cats/x.png", "dogs/y.png", "dogs/z.png")
    for split in ("pretrain", "train"):
        images = load("folder", root, split)
        assert images.labels.tolist() == [0, 1, 1]
        assert images.classes == ["cats", "dogs"]
    assert "no test images" in refusal("folder", root, "test")


def test_folder_of_text_beside_the_classes_without_splits(tmp_path):
    root = images_in(tmp_path, "cats/x.png", "dogs/y.png")
    write(f"{root}/notes/readme.txt", b"text")
    assert line(root).endswith(
        "left out: 1 other file (1 .txt), 1 folder (without images: 'notes')"
    )


def test_test_without_train(tmp_path):
    root = images_in(tmp_path, "test/a/x.png", "a/y.png")
    message = refusal("folder", root, "pretrain")
    assert f"'{root}/test'" in message and "no folder train" in message
    assert "1 item (beside train: 'a')" in message


def test_folders_beside_train_are_named(tmp_path):
    """A class may be called train."""
    root = images_in(tmp_path, "train/x.png", "car/y.png", "bus/z.png", "w.png", "q.txt")
    assert line(root).endswith("left out: 3 items (beside train: 'bus', 'car', 'w.png')")


# ---- which test split ----


def test_val_where_test_has_no_class_folders(tmp_path):
    root = images_in(tmp_path, "train/a/x.png", "train/b/y.png", "test/1.png", "val/b/z.png")
    test = load("folder", root, "test")
    assert test.labels.tolist() == [1]
    assert test.source == f"{root}/val"
    images_in(tmp_path, "test/a/z.png")
    test = load("folder", root, "test")
    assert test.labels.tolist() == [0]
    assert summary(test).endswith(f"({root}/test); left out: 1 image (beside the class folders)")


def test_named_test_split(tmp_path):
    names = "train/a/x.png", "train/b/y.png", "test/a/z.png", "valid/b/z.png", "other/b/v.png"
    root = images_in(tmp_path, *names)
    options = FolderOptions(test_split="valid")
    test = load("folder", root, "test", options=options)
    assert test.labels.tolist() == [1]
    assert test.source == f"{root}/valid"
    assert line(root, test_split="valid").endswith("1 item (beside train: 'other')")
    assert line(root).endswith("2 items (beside train: 'other', 'valid')")
    images_in(tmp_path, "flat/x.png")
    for name in ("flat", "nowhere"):
        message = refusal("folder", root, "pretrain", options=FolderOptions(test_split=name))
        assert f"--test_split {name}" in message


def test_named_test_split_is_not_a_class(tmp_path):
    root = images_in(tmp_path, "a/x.png", "b/y.png", "held_out/a/z.png")
    options = FolderOptions(test_split="held_out")
    assert "no folder train" in refusal("folder", root, "pretrain", options=options)


def test_class_of_test_that_train_lacks_stops_only_the_test(tmp_path):
    root = images_in(tmp_path, "train/a/x.png", "test/a/y.png", "test/c/z.png")
    assert len(load("folder", root, "pretrain").labels) == 1
    assert repr(f"{root}/test/c") in refusal("folder", root, "test")


# ---- classes ----


def test_empty_classes(tmp_path):
    root = images_in(tmp_path, "train/b/x.png", "test/b/x.png")
    os.mkdir(f"{root}/train/a")
    images = load("folder", root, "pretrain")
    assert images.classes == ["b"]
    assert summary(images).endswith("left out: 1 folder (without images: 'a')")
    assert load("folder", root, "test").labels.tolist() == [0]


@pytest.mark.parametrize("name", ["x.heic", "notes.txt"])
def test_class_that_ends_up_empty_is_refused(tmp_path, name):
    root = images_in(tmp_path, "train/b/x.png", "test/b/x.png")
    put(tmp_path, {f"train/sloth/{name}": b"something"})
    message = refusal("folder", root, "pretrain")
    assert "'sloth'" in message and "ends up empty" in message
    os.remove(f"{root}/train/sloth/{name}")
    put(tmp_path, {f"test/b2/{name}": b"something"})
    assert len(load("folder", root, "pretrain").labels) == 1
    assert "'b2'" in refusal("folder", root, "test")


def test_class_whose_images_are_all_broken_is_refused(tmp_path):
    root = images_in(tmp_path, "train/a/x.png", "train/b/y.png")
    put(tmp_path, {"train/b/y.png": b"broken", "train/b/z.png": b"broken"})
    message = refusal("folder", root, "pretrain", options=FolderOptions(skip_broken=True))
    assert "'b'" in message and "ends up empty" in message


def test_folders_of_the_system_are_not_classes(tmp_path):
    names = ["train/b/x.png", "test/b/x.png"]
    junk = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "#recycle", ".ipynb_checkpoints"]
    root = images_in(tmp_path, *names, *(f"train/{name}/x.png" for name in junk))
    images_in(tmp_path, "train/b/@eaDir/x.png", "train/b/Thumbs.db", "train/b/._x.png")
    images = load("folder", root, "pretrain")
    assert images.classes == ["b"]
    assert len(images.labels) == 1
    assert summary(images).endswith("left out: 8 hidden or of the system")


# ---- the set of images ----


def test_fingerprint(tmp_path):
    """It notices another set of as many images, and neither copies nor where a folder lies."""
    names = ["train/a/x.png", "train/b/y.png", "test/b/z.png"]
    root = images_in(tmp_path / "one", *names)
    first = load("folder", root, "pretrain").fingerprint
    shutil.copytree(root, tmp_path / "two", copy_function=shutil.copyfile)
    assert load("folder", str(tmp_path / "two"), "pretrain").fingerprint == first
    assert load("folder", f"{root}/", "pretrain").fingerprint == first
    images_in(tmp_path / "one", "test/a/q.png")
    assert load("folder", root, "pretrain").fingerprint == first
    assert load("folder", root, "test").fingerprint != first
    content = (tmp_path / "two/train/b/y.png").read_bytes()
    Image.fromarray(noise(9, 9, 3, seed=77)).save(tmp_path / "two/train/b/y.png")
    other = load("folder", str(tmp_path / "two"), "pretrain").fingerprint
    (tmp_path / "two/train/b/y.png").write_bytes(content)
    os.rename(tmp_path / "two/train/b/y.png", tmp_path / "two/train/b/x.png")
    renamed = load("folder", str(tmp_path / "two"), "pretrain").fingerprint
    small = load("folder", root, "pretrain", 5).fingerprint
    assert len({first, other, renamed, small}) == 4


def test_fingerprints_of_other_data_sets():
    marks = [load("photos", "", split).fingerprint for split in ("pretrain", "train", "test")]
    assert marks == ["photos train", "photos train", "photos test"]
    assert summary(load("photos", "", "test")) == "512 images of 16 classes, 32×32 px (photos test)"
