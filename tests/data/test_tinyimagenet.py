"""TinyImageNet's reader, on small zips and folders; every fault is a UserError of one line."""

import io
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from helpers.samples import cut_network, md5, picture, put, refusal, write
from PIL import Image
from torchvision import datasets

from attentionce.data import tinyimagenet
from utils import load

WNIDS = ["n03", "n01", "n02"]  # not in alphabetical order, as in the real file
TRAIN = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(3)]
TEST = [f"val/images/val_{i}.JPEG" for i in (2, 0, 3, 1)]
ANNOTATIONS = "val/val_annotations.txt"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Make every download fail; return the list of the URLs that were tried."""
    return cut_network(monkeypatch)


@pytest.fixture
def files():
    """A small TinyImageNet: contents by path.

    Two of the JPEGs are grayscale. The annotations of val are not in order of its names.
    """
    found = {"wnids.txt": b"n03\nn01\nn02\n"}
    for seed, path in enumerate(TRAIN + TEST):
        found[path] = picture((64, 64) if seed in (4, 9) else (64, 64, 3), seed=seed)
    order = (2, "n01"), (0, "n02"), (3, "n03"), (1, "n02")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in order]
    found[ANNOTATIONS] = "".join(lines).encode()
    return found


@pytest.fixture
def archive(files, tmp_path, monkeypatch):
    """The path of these files as a zip whose md5 is the right one."""
    path = tmp_path / "source" / "tiny-imagenet-200.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    monkeypatch.setattr(tinyimagenet, "TINY_MD5", md5(path.read_bytes()))
    return path


def check(root, split, files, paths, labels):
    """The images of the split are these files, in this order, as PIL decodes them."""
    images = load("tinyImageNet", str(root), split)
    assert images.classes == WNIDS and images.labels.dtype == torch.int64
    assert images.labels.tolist() == labels
    for pixels, path in zip(images.pixels, paths, strict=True):
        expected = np.array(Image.open(io.BytesIO(files[path])).convert("RGB"))
        assert torch.equal(pixels, torch.from_numpy(expected).permute(2, 0, 1))


def check_all(root, files):
    for split in ("pretrain", "train"):
        check(root, split, files, TRAIN, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    check(root, "test", files, TEST, [1, 2, 0, 2])


@pytest.mark.parametrize("below", ["tiny-imagenet-200", ""])
def test_an_unpacked_folder(tmp_path, files, no_network, below):
    put(tmp_path / below, files)
    check_all(tmp_path, files)
    assert not no_network


@pytest.mark.parametrize("layout", ["val/{}/", "val/{}/images/"])
def test_val_in_class_folders(tmp_path, files, layout):
    """As scripts that are passed around leave it."""
    wnids = ["n03", "n01", "n02", "n02"]
    paths = [f"{layout.format(wnid)}{i}.JPEG" for i, wnid in enumerate(wnids)]
    for path, old in zip(paths, TEST, strict=True):
        files[path] = files.pop(old)
    put(tmp_path, files)
    check(tmp_path, "test", files, paths, [0, 1, 2, 2])


def test_download(archive, tmp_path, files, monkeypatch):
    """The page of a hotel's network is not taken for the zip, which is unpacked once."""
    root, fetched = tmp_path / "new", []
    message = refusal("tinyImageNet", str(root), "test")  # no network
    for part in (tinyimagenet.TINY_MD5, tinyimagenet.TINY_URL, repr(str(root))):
        assert part in message
    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", lambda url, path: write(path, b"<html>"))
    assert "corrupted" in refusal("tinyImageNet", str(root), "test")

    def fetch(url, path):
        fetched.append(url)
        shutil.copy(archive, path)

    monkeypatch.setattr(datasets.utils, "_urlretrieve", fetch)
    check_all(root, files)
    assert fetched == [tinyimagenet.TINY_URL]
    assert sorted(os.listdir(root)) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


def test_an_interrupted_unpacking_leaves_no_folder(archive, files, monkeypatch):
    """Half a data set would be read as if it were the whole."""

    def half(path, folder, *_):
        put(folder, {"tiny-imagenet-200/wnids.txt": files["wnids.txt"]})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(datasets.utils, "extract_archive", half)
        load("tinyImageNet", str(archive.parent), "train")
    assert os.listdir(archive.parent) == [archive.name]
    check_all(archive.parent, files)


@pytest.mark.parametrize(
    ("name", "content", "split", "said"),
    [
        ("wnids.txt", b"n01\nn02\nn03\nn09\n", "train", "n09"),
        ("wnids.txt", b"n03\nn02\n", "test", "'n01'"),
        (ANNOTATIONS, b"val_0.JPEG\tn01\n", "test", "each image of val/images once"),
        (TRAIN[5], picture((64, 65, 3)), "train", TRAIN[5]),
    ],
)
def test_faults(tmp_path, files, name, content, split, said):
    put(tmp_path, {**files, name: content})
    assert said in refusal("tinyImageNet", str(tmp_path), split)
