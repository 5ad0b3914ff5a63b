"""Folders of images that do not fit into memory."""

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
from helpers.samples import noise, odd_images, refusal, two_classes, write

from attentionce.data import cache, image_folder
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
        decode(read, out, what)

    monkeypatch.setattr(image_folder, "decode", counted)
    return splits


def test_memory_mapped_equals_in_memory_and_is_reused(odd, monkeypatch, decoded, recwarn):
    root, paths = odd
    right = {split: load("folder", root, split) for split in ("train", "test")}
    assert hidden(root) == []
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 64 * 64 * 3 * 9 - 1)
    decoded.clear()
    for _ in range(2):
        images = load("folder", root, "pretrain")
        assert torch.equal(images.pixels, right["train"].pixels)
        assert torch.equal(images.labels, right["train"].labels)
        assert images.classes == right["train"].classes
    assert torch.equal(load("folder", root, "test").pixels, right["test"].pixels)  # fits
    assert decoded == ["train", "test"]
    (name,) = hidden(root)
    assert name.startswith(".train-")
    assert name.endswith(".npy")
    assert not recwarn.list
    assert torch.equal(torch.from_numpy(np.load(f"{root}/{name}")), images.pixels)
    with open("/proc/self/maps") as file:
        assert name in file.read()
    os.utime(paths[0], ns=(1, 1))  # a file that has changed may hold another image
    load("folder", root, "train")
    assert len(decoded) == 3
    assert len(hidden(root)) == 2
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 1000)
    load("folder", root, "train", 32)
    assert len(decoded) == 4
    assert len(hidden(root)) == 3


def test_no_half_cache(odd, tight):
    root, paths = odd
    write(f"{root}/train/c d/z.png", b"not an image")
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
    monkeypatch.setattr(image_folder, "memory_limit", lambda: 1000)
    if without is not None:
        without(monkeypatch)
    monkeypatch.setattr(cache, "BLOCK", 1000)
    seen, decode = [], image_folder.decode

    def look(read, out, what):
        (part,) = Path(root).glob(".*.tmp")
        seen.append((part.stat().st_blocks * 512, part.stat().st_size))
        decode(read, out, what)

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
