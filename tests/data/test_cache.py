"""Decoded images in a mapped file: found again, continued, never half, never in the way."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.samples import odd_images, refusal, write

from attentionce.data import cache, image_folder
from attentionce.data.decoding import BrokenImage
from attentionce.data.image_folder import FolderOptions
from utils import load


@pytest.fixture
def root(tmp_path):
    """A folder with nine images for training and one for testing."""
    return odd_images(tmp_path)[0]


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets the first image of every block of three images that is decoded."""
    blocks, decode = [], cache.decode

    def watched(read, first, *more):
        blocks.append(first)
        return decode(read, first, *more)

    monkeypatch.setattr(cache, "decode", watched)
    monkeypatch.setattr(cache, "BLOCK", 3 * 3 * 64 * 64)
    return blocks


def hidden(root):
    """The hidden files that reading has made."""
    return sorted(Path(root).glob(".*"))


def test_images_are_decoded_once_and_mapped(root, decoded, recwarn):
    first = load("folder", root, "train")
    again = load("folder", root, "train")
    assert torch.equal(again.pixels, first.pixels) and torch.equal(again.labels, first.labels)
    assert again[2:] == first[2:]
    assert decoded == [0, 3, 6] and not recwarn.list
    (path,) = hidden(root)
    assert path.name.startswith(".train-") and path.name in Path("/proc/self/maps").read_text()
    assert np.array_equal(np.load(path, mmap_mode="r"), first.pixels)


def test_what_other_images_left_is_removed(root):
    """Finished or not; what was made with other settings stays."""
    load("folder", root, "train")
    load("folder", root, "train", 32)
    before = hidden(root)
    write(f"{root}/{before[0].name[:24]}{'0' * 16}.64.64.part", b"")
    os.utime(f"{root}/train/a/cmyk.JPG", ns=(1, 1))  # now it may hold another image
    load("folder", root, "train")
    load("folder", root, "train", 32)
    assert len(hidden(root)) == 2 and not {*before} & {*hidden(root)}


def killed(root, at):
    """Load in another process, which is killed before it decodes the block that begins there."""
    decode, process = cache.decode, os.fork()
    if process == 0:
        cache.decode = lambda *given: os.kill(os.getpid(), 9) if given[1] == at else decode(*given)
        try:
            load("folder", root, "train")
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 9
    assert any(path.suffix == ".part" for path in hidden(root))


def test_a_killed_process_is_continued(root, decoded):
    killed(root, 6)
    images = load("folder", root, "train")
    assert decoded == [6]
    (path,) = hidden(root)
    path.unlink()
    assert torch.equal(images.pixels, load("folder", root, "train").pixels)


def test_broken_images_may_be_repaired(root, decoded, monkeypatch):
    """All after them are decoded again, even if that is interrupted. Skipped, they stay broken."""
    right, open_image = load("folder", root, "train").pixels, cache.open_image
    hidden(root)[0].unlink()

    def denied(path):
        if path.endswith("wide.png"):  # the second
            raise BrokenImage(path, "Permission denied")
        return open_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "open_image", denied)
        assert "Permission denied" in refusal("folder", root, "train")
        decoded.clear()
        skipped = load("folder", root, "train", options=FolderOptions(skip_broken=True))
        assert decoded == [] and torch.equal(skipped.pixels, right[[0, *range(2, 9)]])
        assert "Permission denied" in refusal("folder", root, "train")
        next(Path(root).glob(".*.npy")).unlink()
    killed(root, 4)
    assert torch.equal(load("folder", root, "train").pixels, right)


def test_a_full_disk(root, decoded, monkeypatch):
    """One line; when there is room, the same command continues."""
    real, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = refusal("folder", root, "train")
    assert root in message and "make room" in message and "--cache" in message
    decoded.clear()
    assert len(load("folder", root, "train").pixels) == 9 and decoded == [3, 6]


def test_two_processes_decode_once(root, decoded, monkeypatch):
    with monkeypatch.context() as patch:

        @contextmanager
        def waiting(path, taken):
            patch.undo()
            load("folder", root, "train")  # the process that has the lock
            yield

        patch.setattr(image_folder, "held", waiting)
        assert len(load("folder", root, "train").pixels) == 9
    assert decoded == [0, 3, 6]


def test_where_nothing_can_be_written_beside_the_images(root, monkeypatch, tmp_path):
    """There is a temporary folder, unless it is somebody else's."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    load("folder", root, "train")
    (folder,) = (tmp_path / "tmp").iterdir()
    assert len(hidden(folder)) == 1 and hidden(root) == []
    folder.rename(folder.with_name("attentionce-77"))
    monkeypatch.setattr(os, "getuid", lambda: 77)
    message = refusal("folder", root, "train")
    assert "belongs to somebody else" in message and "--cache" in message


@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_damaged_cache(root, damage):
    load("folder", root, "train")
    (path,) = hidden(root)
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 5)
    else:
        np.save(path, np.array([{}]), allow_pickle=True)
    message = refusal("folder", root, "train")
    assert repr(str(path)) in message and "remove" in message
