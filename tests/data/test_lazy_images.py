"""Images that are read when they are needed: which, in which order, and ahead of their use."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

import utils
from attentionce.data import lazy_images
from attentionce.data.decoding import BrokenImage
from attentionce.errors import UserError


@pytest.mark.parametrize(
    "path, name",
    [
        ("cat/1.png", "cat"),
        ("cat/deep/1.png", "cat"),
        ("1.png", ""),
        ("train/cat/1.png", "cat"),
        ("val/cat/1.png", "cat"),
        ("train/1.png", ""),
        ("unlabeled/cat/1.png", ""),
        ("cat/train/1.png", "cat"),
    ],
)
def test_class_of_a_path(path, name):
    assert lazy_images.class_of(path) == name


@pytest.mark.parametrize("side", [4, 8, 16])
def test_images_are_those_of_the_data_set(pictures, side):
    """As large as they are if all are as large, else resized."""
    images = lazy_images.lazy_folder(str(pictures), side)
    assert images.size == (min(8, side), min(8, side)) and images.paths == sorted(images.paths)
    for split in ("test", "train"):
        expected = utils.load("folder", str(pictures), split, side)
        own = [i for i, path in enumerate(images.paths) if path.startswith(split)]
        assert (np.stack([images.read(i) for i in own]) == expected.pixels.numpy()).all()
        assert [images.labels[i] for i in own] == expected.labels.tolist()
    assert images.classes == expected.classes


def test_marks_change_with_path_and_content(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (5, 5)).save(tmp_path / name)
    before = lazy_images.lazy_folder(str(tmp_path), 8).marks()
    assert len(set(before.tolist())) == 2
    assert (lazy_images.lazy_folder(str(tmp_path), 8).marks() == before).all()
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    os.rename(tmp_path / "b.png", tmp_path / "c.png")
    after = lazy_images.lazy_folder(str(tmp_path), 8).marks()
    assert not set(before.tolist()) & set(after.tolist())


def numbers(count, read):
    """Images whose pixel is their number."""
    paths = [str(i) for i in range(count)]
    return lazy_images.LazyImages(paths, [-1] * count, [], (1, 1), read, lambda i: b"")


@pytest.mark.parametrize("wanted", [[], [5], [0, 3, 4, 6, 7], list(range(10))])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 99])
def test_blocks_hold_what_is_wanted(wanted, size):
    images = numbers(10, lambda i: np.full((3, 1, 1), i, np.uint8))
    indices, values = [], []
    for index, block in lazy_images.read_blocks(images, wanted, size):
        assert 0 < len(index) == len(block) <= size
        indices += index
        values += [int(image[0, 0, 0]) for image in block]
    assert indices == values == wanted


def test_broken_images_are_told_from_other_errors():
    error = BrokenImage("1", "why")

    def read(i):
        if i == 1:
            raise error
        return np.zeros((3, 1, 1), np.uint8)

    ((index, block),) = lazy_images.read_blocks(numbers(3, read), [0, 1, 2], 5)
    assert index == [0, 1, 2] and block[1] is error and block[0].shape == (3, 1, 1)
    error = UserError("not enough memory")
    with pytest.raises(UserError, match="not enough memory"):
        next(lazy_images.read_blocks(numbers(3, read), [0, 1, 2], 5))


def test_links_and_what_is_left_out(tmp_path):
    """A link that leads nowhere is a broken image, not the end of the program."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "a" / "z.png")
    os.symlink(tmp_path / "none", tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("text")
    images = lazy_images.lazy_folder(str(tmp_path), 8)
    assert images.paths == ["a/z.png", "b.png"] and images.size == (5, 5)
    assert "1 .txt" in images.left_out and len(set(images.marks().tolist())) == 2
    with pytest.raises(BrokenImage):
        images.read(1)


def test_one_block_ahead_and_no_more():
    """So that memory holds two blocks, however many there are."""
    begun, reading = [], threading.Event()

    def read(i):
        begun.append(i)
        if i == 3:
            reading.set()
        return np.zeros((3, 1, 1), np.uint8)

    blocks = lazy_images.read_blocks(numbers(100, read), list(range(100)), 2)
    next(blocks)
    assert reading.wait(10) and sorted(begun) == [0, 1, 2, 3]
    blocks.close()


def test_no_images(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        lazy_images.lazy_folder(str(tmp_path / "none"), 8)
    (tmp_path / "text.txt").write_text("no image")
    with pytest.raises(UserError, match="no images in .*left out: 1 other file"):
        lazy_images.lazy_folder(str(tmp_path), 8)
