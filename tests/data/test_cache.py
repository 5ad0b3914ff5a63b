"""Decoded images in a mapped file: found again, continued, never half, never in the way."""

import os
import resource
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.samples import noise, odd_images, picture, refusal, write

from attentionce.data import cache, image_folder
from attentionce.data.image_folder import FolderOptions
from utils import load


@pytest.fixture
def odd(tmp_path):
    return odd_images(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets the split and the first image of every block that is decoded."""
    blocks, decode = [], cache.decode

    def watched(read, out, what, first, total):
        blocks.append((what, first))
        return decode(read, out, what, first, total)

    monkeypatch.setattr(cache, "decode", watched)
    return blocks


@pytest.fixture
def small_blocks(monkeypatch):
    """Three images at a time."""
    monkeypatch.setattr(cache, "BLOCK", 3 * 3 * 64 * 64)


def hidden(root):
    """The hidden files that reading has made."""
    return sorted(name for name in os.listdir(root) if name.startswith(".") and name != ".x")


def test_images_are_decoded_once_and_mapped(odd, decoded, recwarn):
    root, _ = odd
    first = {split: load("folder", root, split) for split in ("train", "test")}
    for split, right in first.items():
        again = load("folder", root, split)
        assert torch.equal(again.pixels, right.pixels) and torch.equal(again.labels, right.labels)
        assert again[2:] == right[2:]
    assert decoded == [("train", 0), ("test", 0)] and not recwarn.list
    test, train = hidden(root)
    assert test.startswith(".test-") and train.startswith(".train-")
    assert train in Path("/proc/self/maps").read_text()
    assert np.array_equal(np.load(f"{root}/{train}", mmap_mode="r")[1:], first["train"].pixels)


def test_what_other_images_left_is_removed(odd, decoded):
    """What was made with other settings stays."""
    root, paths = odd
    load("folder", root, "train")
    load("folder", root, "train", 32)
    before = hidden(root)
    os.utime(paths[0], ns=(1, 1))  # a file that has changed may hold another image
    load("folder", root, "train")
    assert len(decoded) == 3 and len(hidden(root)) == 2 and len({*before, *hidden(root)}) == 3


def test_unfinished_files_do_not_stay(odd):
    """Those of the same settings, and of others if nobody has worked on them for an hour."""
    root, _ = odd
    load("folder", root, "train")
    (name,) = hidden(root)
    os.remove(f"{root}/{name}")
    old, new = (f".test-{digit * 16}-{'0' * 16}.part" for digit in "ab")
    for other in (f"{name[:24]}{'0' * 16}.part", old, new, ".train-mine.part"):
        write(f"{root}/{other}", b"")
    os.utime(f"{root}/{old}", (1, time.time() - 4000))
    load("folder", root, "train")
    assert hidden(root) == sorted([name, new, ".train-mine.part"])


def test_a_killed_process_is_continued(odd, decoded, small_blocks):
    root, _ = odd
    decode = cache.decode
    process = os.fork()
    if process == 0:
        cache.decode = lambda *given: os.kill(os.getpid(), 9) if given[3] == 6 else decode(*given)
        try:
            load("folder", root, "train")
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 9
    assert any(name.endswith(".part") for name in hidden(root))
    images = load("folder", root, "train")
    assert decoded == [("train", 6)]
    (name,) = hidden(root)
    os.remove(f"{root}/{name}")
    assert torch.equal(images.pixels, load("folder", root, "train").pixels)


def test_a_full_disk(odd, decoded, small_blocks):
    """One line instead of SIGBUS; when there is room, the same command continues."""
    root, _ = odd
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, before[1]))
    try:
        message = refusal("folder", root, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert root in message and "make room" in message and "--cache" in message
    decoded.clear()
    assert len(load("folder", root, "train").pixels) == 9 and decoded[0] == ("train", 3)


def test_two_processes_decode_once(odd, decoded, monkeypatch):
    root, _ = odd
    with monkeypatch.context() as patch:

        @contextmanager
        def waiting(path, taken):
            assert taken is None and str(path).startswith(f"{root}/.train-")
            patch.undo()
            load("folder", root, "train")  # the process that has the lock
            yield

        patch.setattr(image_folder, "held", waiting)
        assert len(load("folder", root, "train").pixels) == 9
    assert decoded == [("train", 0)]


def test_without_locks_the_file_is_right_too(odd, decoded, small_blocks, monkeypatch):
    """Another process finishes the file while this one decodes its last block."""
    root, _ = odd
    monkeypatch.setattr(image_folder, "held", lambda path, taken: nullcontext())
    decode, others = cache.decode, []

    def overtaken(read, out, what, first, total):
        if first == 6 and not others:
            others.append(1)
            others.append(load("folder", root, "train").pixels.clone())
        return decode(read, out, what, first, total)

    monkeypatch.setattr(cache, "decode", overtaken)
    assert torch.equal(load("folder", root, "train").pixels, others[1])
    assert len(hidden(root)) == 1


def test_where_nothing_can_be_written_beside_the_images(odd, decoded, monkeypatch, tmp_path):
    """What is there is used. Else there is a temporary folder, unless it is somebody else's."""
    root, _ = odd
    load("folder", root, "test")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for split in ("test", "train", "train"):
        load("folder", root, split)
    (folder,) = (tmp_path / "tmp").iterdir()
    assert decoded == [("test", 0), ("train", 0)] and len(hidden(folder)) == len(hidden(root)) == 1
    folder.rename(folder.with_name("attentionce-77"))
    monkeypatch.setattr(os, "getuid", lambda: 77)
    message = refusal("folder", root, "train")
    assert "belongs to somebody else" in message and "--cache" in message


def test_cache_in_another_folder(odd, decoded, monkeypatch, tmp_path_factory):
    root, _ = odd
    other = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("HOME", str(other))
    options = FolderOptions(cache="~/new/cache")
    for _ in range(2):
        load("folder", root, "train", options=options)
    assert len(decoded) == 1 and hidden(root) == [] and len(hidden(other / "new" / "cache")) == 1
    write(f"{root}/file", b"")
    assert "--cache" in refusal(
        "folder", root, "train", options=FolderOptions(cache=f"{root}/file")
    )


def test_broken_images(odd, decoded, small_blocks):
    """They are refused when all others are decoded; --skip_broken need not decode these again."""
    root, paths = odd
    right = load("folder", root, "train").pixels
    for i in (3, 8):  # the only image of class c d is the last
        write(paths[i], b"not an image")
    write(f"{root}/train/c d/z.png", picture((70, 70, 3), format="PNG"))
    decoded.clear()
    assert "2 images" in refusal("folder", root, "train")
    assert decoded == [("train", 0), ("train", 3), ("train", 6), ("train", 9)]
    images = load("folder", root, "train", options=FolderOptions(skip_broken=True))
    assert torch.equal(images.pixels[:7], right[[0, 1, 2, 4, 5, 6, 7]])
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 2] and len(images.pixels) == 8
    assert "broken images (2: 'train/b/gray.png', 'train/c d/palette.gif')" in images.left_out
    assert len(decoded) == 4
    assert "2 images" in refusal("folder", root, "train")


@pytest.mark.parametrize("damage", ["empty", "cut", "zip", "fewer", "unfinished", "pickle"])
def test_damaged_cache(odd, damage):
    root, _ = odd
    load("folder", root, "train")
    path = f"{root}/{hidden(root)[0]}"
    if damage == "cut":
        os.truncate(path, os.path.getsize(path) - 5)
    elif damage == "fewer":
        np.save(path, noise(9, 3, 64, 64))
    elif damage == "unfinished":
        np.save(path, np.zeros((10, 3, 64, 64), np.uint8))
    elif damage == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    else:
        write(path, b"PK\3\4" if damage == "zip" else b"")
    message = refusal("folder", root, "train")
    assert repr(path) in message and "remove" in message
