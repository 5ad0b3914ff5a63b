"""torchvision's data sets, on small files in the true formats, the photographs, and load.

Every fault is a UserError of one line.
"""

import io
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
import torch
from helpers.samples import cut_network, md5, noise, put, refusal, tree
from torchvision import datasets

import utils
from utils import load


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Make every download fail; return the list of the URLs that were tried."""
    return cut_network(monkeypatch)


# ---- CIFAR and STL10 ----


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch):
    """A small CIFAR.

    Returns:
        (name, torchvision's class, files by name, train's pixels and labels, test's)
    """
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    key = "labels" if request.param == "cifar10" else "fine_labels"
    files, lists, contents = {}, [], []
    for seed, entries in enumerate((source.train_list, source.test_list)):
        batches = []
        for i, (name, _) in enumerate(entries):
            labels = [(i + j) % 3 for j in range(4)]
            batch = {"data": noise(4, 3072, seed=10 * seed + i), key: labels}
            files[name] = pickle.dumps(batch, protocol=2)
            batches.append(batch)
        lists.append([[name, md5(files[name])] for name, _ in entries])
        data = np.concatenate([batch["data"] for batch in batches])
        contents.append((data, [label for batch in batches for label in batch[key]]))
    meta = pickle.dumps({source.meta["key"]: ["apple", "bear", "chair"]}, protocol=2)
    files[source.meta["filename"]] = meta
    monkeypatch.setattr(source, "train_list", lists[0])
    monkeypatch.setattr(source, "test_list", lists[1])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})
    return request.param, source, files, contents[0], contents[1]


def test_cifar(cifar, tmp_path, no_network, capsys):
    name, source, files, train, test = cifar
    put(tmp_path / source.base_folder, files)
    before = tree(tmp_path)
    for split, (data, labels) in (("pretrain", train), ("train", train), ("test", test)):
        images = load(name, str(tmp_path), split)
        assert torch.equal(images.pixels, torch.from_numpy(data.reshape(-1, 3, 32, 32)))
        assert images.pixels.is_contiguous() and images.pixels.dtype == torch.uint8
        assert images.labels.dtype == torch.int64 and images.labels.tolist() == labels
        assert images.classes == ["apple", "bear", "chair"]
    assert not no_network and tree(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_without_network(cifar, tmp_path, capsys):
    name, source, _, _, _ = cifar
    message = refusal(name, str(tmp_path / "new"), "train")
    folder = repr(str(tmp_path / "new"))
    for part in (source.filename, source.tgz_md5, source.url, folder, "no network"):
        assert part in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("which", ["first batch", "meta"])
def test_nothing_unverified_is_unpickled(cifar, tmp_path, which):
    name, source, files, _, _ = cifar

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    victim = source.meta["filename"] if which == "meta" else source.train_list[0][0]
    put(tmp_path / source.base_folder, {**files, victim: pickle.dumps(Evil())})
    message = refusal(name, str(tmp_path), "train")
    assert source.filename in message
    assert f"remove any {source.base_folder}" in message
    assert not os.path.exists(tmp_path / "pwned")


def test_an_archive_is_unpacked(cifar, tmp_path, monkeypatch):
    name, source, files, train, _ = cifar
    with tarfile.open(tmp_path / source.filename, "w:gz") as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(f"{source.base_folder}/{file}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(source, "tgz_md5", md5((tmp_path / source.filename).read_bytes()))
    assert load(name, str(tmp_path), "train").labels.tolist() == train[1]


def test_stl10(monkeypatch, tmp_path, no_network):
    """Its binaries hold columns before rows, and labels from 1."""
    parts = {"train": noise(5, 3, 96, 96, seed=1), "unlabeled": noise(7, 3, 96, 96, seed=2)}
    parts["test"] = noise(4, 3, 96, 96, seed=3)
    files = {f"{part}_X.bin": data.tobytes() for part, data in parts.items()}
    files |= {"train_y.bin": bytes([1, 10, 3, 2, 5]), "test_y.bin": bytes([2, 1, 10, 10])}
    put(tmp_path / "stl10_binary", {**files, "class_names.txt": b"airplane\n"})
    for name in ("train_list", "test_list"):
        entries = [[file, md5(files[file])] for file, _ in getattr(datasets.STL10, name)]
        monkeypatch.setattr(datasets.STL10, name, entries)
    parts["pretrain"] = np.concatenate([parts["train"], parts["unlabeled"]])
    labels = {"train": [0, 9, 2, 1, 4], "test": [1, 0, 9, 9]}
    labels["pretrain"] = labels["train"] + 7 * [-1]
    for split, expected in labels.items():
        images = load("stl10", str(tmp_path), split)
        assert torch.equal(images.pixels, torch.from_numpy(parts[split]).transpose(2, 3))
        assert images.pixels.is_contiguous() and images.labels.dtype == torch.int64
        assert images.labels.tolist() == expected
        assert images.classes[0] == "airplane" and len(images.classes) == 10
    assert not no_network


# ---- photos, and arguments ----


def test_photos():
    for split, count in (("train", 64), ("test", 32)):
        images = load("photos", "", split)
        assert images.pixels.shape == (16 * count, 3, 32, 32)
        assert images.pixels.dtype == torch.uint8 and images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert images.labels.bincount().tolist() == 16 * [count]
        assert len(set(images.classes)) == 16
        torch.manual_seed(1)
        again = load("photos", "", "pretrain" if split == "train" else split)
        assert torch.equal(again.pixels, images.pixels)


def test_photos_do_not_overlap(monkeypatch):
    """Where the value of a pixel is its column divided by 4, crops tell where they come from."""
    from skimage import data

    monkeypatch.setattr(utils, "PHOTOS", "ramp narrow")
    ramp = np.tile((np.arange(512) // 4).astype(np.uint8), (70, 1))
    monkeypatch.setattr(data, "ramp", lambda: ramp, raising=False)
    narrow = ramp[:64, :384]  # as high as a crop
    monkeypatch.setattr(data, "narrow", lambda: narrow, raising=False)
    train, test = load("photos", "", "train"), load("photos", "", "test")
    for label, width in enumerate((512, 384)):
        left = 4 * train.pixels[train.labels == label].int()
        right = 4 * test.pixels[test.labels == label].int()
        assert 0.55 * width < left.max() < 0.6 * width < right.min() + 4
        assert right.min() < 0.65 * width  # and the bounds are used
        assert left.min() < 0.05 * width and right.max() > 0.95 * width
    assert (np.diff(train.pixels[0, 0, 0].int()) >= 0).all()  # not mirrored


def test_photos_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "pip install scikit-image" in refusal("photos", "", "train")


def test_arguments():
    message = refusal("cifar\n10", "", "train")
    assert all(name in message for name in utils.DATASETS)
    assert "--store_size" in refusal("folder", "", "train", store_size=0)
