"""Decoded images in files: those of a first run, and those too many for memory."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.samples import noise, odd_images, picture, refusal, two_classes, write

from attentionce.data import cache, image_folder
from attentionce.data.image_folder import FolderOptions
from utils import load


@pytest.fixture
def odd(tmp_path):
    return odd_images(tmp_path)


@pytest.fixture
def tight(monkeypatch):
    """Next to nothing fits into memory."""
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 1000)


def hidden(root):
    """The hidden files that reading has made."""
    return sorted(name for name in os.listdir(root) if name.startswith(".") and name != ".x")


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets the name of every split that is decoded."""
    splits, decode = [], image_folder.decode

    def counted(read, out, what):
        splits.append(what)
        return decode(read, out, what)

    monkeypatch.setattr(image_folder, "decode", counted)
    return splits


def test_images_are_decoded_once(odd, decoded):
    """Whatever fits into memory is read from the hidden file of the first run."""
    root, paths = odd
    first = {split: load("folder", root, split) for split in ("train", "test")}
    assert decoded == ["train", "test"]
    assert [name.split("-")[0] for name in hidden(root)] == [".test", ".train"]
    for split, right in first.items():
        again = load("folder", root, split)
        assert torch.equal(again.pixels, right.pixels)
        assert torch.equal(again.labels, right.labels)
        assert again[2:] == right[2:]
    assert len(decoded) == 2
    with open("/proc/self/maps") as file:
        assert ".npy" not in file.read()
    os.utime(paths[0], ns=(1, 1))  # a file that has changed may hold another image
    load("folder", root, "train")
    assert len(decoded) == 3
    load("folder", root, "train", 32)
    assert len(decoded) == 4
    assert len(hidden(root)) == 4


def test_memory_mapped_equals_in_memory_and_is_reused(odd, monkeypatch, decoded, recwarn):
    root, paths = odd
    right = {split: load("folder", root, split) for split in ("train", "test")}
    for name in hidden(root):
        os.remove(f"{root}/{name}")
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 64 * 64 * 3 * 9 - 1)
    decoded.clear()
    for _ in range(2):
        images = load("folder", root, "pretrain")
        assert torch.equal(images.pixels, right["train"].pixels)
        assert torch.equal(images.labels, right["train"].labels)
        assert images.classes == right["train"].classes
    assert decoded == ["train"]
    (name,) = hidden(root)
    assert name.startswith(".train-")
    assert name.endswith(".npy")
    assert not recwarn.list
    assert torch.equal(torch.from_numpy(np.load(f"{root}/{name}")), images.pixels)
    with open("/proc/self/maps") as file:
        assert name in file.read()
    assert torch.equal(load("folder", root, "test").pixels, right["test"].pixels)  # fits


@pytest.fixture
def read_only(odd, monkeypatch):
    """Nothing can be written beside the images, by whatever user."""
    root, real = odd[0], open

    def denied(path, mode="r", *rest, **options):
        if str(path).startswith(root) and mode[0] in "wax":
            raise PermissionError(13, "Permission denied", path)
        return real(path, mode, *rest, **options)

    monkeypatch.setattr("builtins.open", denied)
    real_memmap = np.lib.format.open_memmap

    def denied_memmap(path, mode, *rest):
        if str(path).startswith(root) and mode != "r":
            raise PermissionError(13, "Permission denied", path)
        return real_memmap(path, mode, *rest)

    monkeypatch.setattr(np.lib.format, "open_memmap", denied_memmap)


def test_images_that_fit_do_without_a_cache(odd, read_only, decoded):
    root, _ = odd
    for _ in range(2):
        assert len(load("folder", root, "train").labels) == 9
    assert decoded == ["train", "train"]
    assert hidden(root) == []
    with open(f"{os.path.dirname(root)}/file", "w"):
        pass
    nowhere = FolderOptions(cache=f"{os.path.dirname(root)}/file/cache")
    assert len(load("folder", root, "train", options=nowhere).labels) == 9


@pytest.mark.parametrize("limit", [1000, 1e9])
def test_cache_in_another_folder(odd, read_only, decoded, monkeypatch, tmp_path_factory, limit):
    root, _ = odd
    monkeypatch.setattr(image_folder, "memory_limit", lambda: limit)
    other = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("HOME", str(other))
    options = FolderOptions(cache="~/new/cache")
    first, again = (load("folder", root, "train", options=options).pixels for _ in range(2))
    assert torch.equal(first, again)
    assert decoded == ["train"]
    assert hidden(root) == []
    assert len(hidden(other / "new" / "cache")) == 1
    if limit == 1000:
        assert "--cache" in refusal("folder", root, "train")
        assert "--cache" in refusal("folder", root, "train", options=FolderOptions(cache=root))


def test_cache_beside_the_images_is_found_with_another_folder_given(odd, decoded, tmp_path):
    root, _ = odd
    load("folder", root, "train")
    load("folder", root, "train", options=FolderOptions(cache=str(tmp_path / "other")))
    assert decoded == ["train"]


@pytest.mark.parametrize("limit", [1000, 1e9])
def test_cache_without_the_broken_images(odd, decoded, monkeypatch, limit):
    """It holds the others and knows which they are."""
    root, paths = odd
    monkeypatch.setattr(image_folder, "memory_limit", lambda: limit)
    right = load("folder", root, "train")
    for i in (3, 8):  # the only image of class c d is the last
        write(paths[i], b"not an image")
    write(f"{root}/train/c d/z.png", picture((70, 70, 3), format="PNG"))
    options = FolderOptions(skip_broken=True)
    for _ in range(2):
        images = load("folder", root, "train", options=options)
        assert torch.equal(images.pixels[:7], right.pixels[[0, 1, 2, 4, 5, 6, 7]])
        assert images.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]
        assert images.pixels.shape == (8, 3, 64, 64)
        assert "2 broken images" in images.left_out
    assert decoded == ["train", "train"]
    assert "2 images" in refusal("folder", root, "train")


def test_no_half_cache(odd, tight):
    root, paths = odd
    write(f"{root}/train/c d/z.png", b"not an image")
    assert "z.png" in refusal("folder", root, "train")
    assert hidden(root) == []


def test_cache_that_cannot_be_written(odd, tight, read_only):
    root, _ = odd
    message = refusal("folder", root, "train")
    assert root in message
    assert "Permission denied" in message
    assert "write" in message
    assert "--cache" in message


def test_cache_on_a_full_disk(odd, tight):
    """Without room for the whole file, nothing is decoded and nothing stays behind."""
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


def no_fallocate(monkeypatch):
    """Windows and macOS."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)


def refused_fallocate(monkeypatch):
    """A file system that cannot do it."""

    def fallocate(descriptor, start, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)


@pytest.mark.parametrize("without", [None, no_fallocate, refused_fallocate])
def test_cache_has_its_room_before_it_is_filled(odd, monkeypatch, without):
    """A sparse file on a disk that fills up would kill the program with SIGBUS while it decodes."""
    root, _ = odd
    right = load("folder", root, "train").pixels
    os.remove(f"{root}/{hidden(root)[0]}")
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 1000)
    if without is not None:
        without(monkeypatch)
    monkeypatch.setattr(cache, "BLOCK", 1000)
    seen, decode = [], image_folder.decode

    def look(read, out, what):
        (part,) = Path(root).glob(".*.tmp")
        seen.append((part.stat().st_blocks * 512, part.stat().st_size))
        return decode(read, out, what)

    monkeypatch.setattr(image_folder, "decode", look)
    assert torch.equal(load("folder", root, "train").pixels, right)
    ((room, size),) = seen
    assert room >= size > 9 * 3 * 64 * 64


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_full_disk_is_not_filled_with_zeros(odd, tight, monkeypatch, number):
    root, _ = odd

    def fallocate(descriptor, start, size):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    monkeypatch.setattr(cache, "BLOCK", None)  # nothing is written
    assert os.strerror(number) in refusal("folder", root, "train")
    assert hidden(root) == []


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks(odd, tight, monkeypatch, number):
    """As some network file systems are: the cache works, and other processes' files stay."""
    root, _ = odd
    others = [f".train-0.npy.{os.getppid()}.tmp{ending}" for ending in ("", ".lock")]
    for name in others:
        write(f"{root}/{name}", b"")

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert len(load("folder", root, "train").labels) == 9
    names = [name for name in hidden(root) if not name.endswith(".npy")]
    assert others[0] in names
    assert set(names) <= set(others)
    assert len(hidden(root)) == len(names) + 1


def test_what_killed_processes_left_is_removed(odd, tight):
    """Only with a lock that nobody holds; that of a living process is tried in test_faults.py."""
    root, _ = odd
    for name in (".train-0.npy.1.tmp", ".test-0.npy.1.tmp.lock", ".train-0.npy.1.tmp.lock"):
        write(f"{root}/{name}", b"")
    write(f"{root}/.train-0.npy.2.tmp", b"")
    load("folder", root, "train")
    (cached,) = (name for name in hidden(root) if name.endswith(".npy"))
    assert sorted(hidden(root)) == sorted([cached, ".train-0.npy.2.tmp"])


def test_without_what_only_unix_has(tmp_path):
    """The reader runs where there are neither fcntl nor posix_fallocate, as on Windows."""
    root = two_classes(tmp_path, [noise(9, 9, 3)] * 3, [noise(9, 9, 3)])
    code = f"""
import os, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del os.posix_fallocate
from attentionce.data import image_folder
image_folder.memory_limit = lambda: 1
print(image_folder.image_folder({root!r}, "train", 9).pixels.shape)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([3, 3, 9, 9])\n"
    (name,) = hidden(root)
    assert name.endswith(".npy")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"PK\3\4",
        "cut",
        "fewer images",
        "no list",
        "wrong list",
        "pickle",
    ],
)
def test_damaged_cache(odd, tight, damage):
    root, _ = odd
    load("folder", root, "train")
    path = f"{root}/{hidden(root)[0]}"
    if damage == "cut":
        os.truncate(path, os.path.getsize(path) - 5)
    elif damage == "fewer images":
        with open(path, "wb") as file:
            np.save(file, noise(8, 3, 64, 64))
            np.save(file, np.arange(8))
    elif damage == "no list":
        np.save(path, noise(9, 3, 64, 64))
    elif damage == "wrong list":
        with open(path, "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write((9).to_bytes(8, "little"))
    elif damage == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    else:
        write(path, damage)
    message = refusal("folder", root, "train")
    assert repr(path) in message
    assert "remove" in message


def test_memory_limit_is_plausible():
    assert 1e7 < image_folder.memory_limit() < 1e14
