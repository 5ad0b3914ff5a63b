"""torchvision's data sets, on small files in the true formats, and the photographs."""

import os
import pickle

import numpy as np
import pytest
import torch
from helpers.samples import cut_network, md5, noise, put, refusal
from torchvision import datasets

import utils
from attentionce.errors import UserError
from utils import load


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Make every download fail; return the list of the URLs that were tried."""
    return cut_network(monkeypatch)


# ---- CIFAR and STL10 ----


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch):
    """A small CIFAR: its name, torchvision's class, files by name, and pixels and labels by split.

    torchvision takes its md5s for the right ones.
    """
    source = getattr(datasets, request.param.upper())
    key = "labels" if request.param == "cifar10" else "fine_labels"
    files, contents = {}, {}
    for split in ("train", "test"):
        pixels, labels, entries = [], [], []
        for i, (name, _) in enumerate(getattr(source, f"{split}_list")):
            batch = {"data": noise(4, 3072, seed=10 * len(split) + i), key: [i % 3, 1, 0, 2]}
            files[name] = pickle.dumps(batch, protocol=2)
            entries.append([name, md5(files[name])])
            pixels.append(batch["data"].reshape(-1, 3, 32, 32))
            labels += batch[key]
        monkeypatch.setattr(source, f"{split}_list", entries)
        contents[split] = torch.from_numpy(np.concatenate(pixels)), labels
    meta = pickle.dumps({source.meta["key"]: ["apple", "bear", "chair"]}, protocol=2)
    files[source.meta["filename"]] = meta
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})
    return request.param, source, files, contents


def test_cifar(cifar, tmp_path, no_network, capsys):
    name, source, files, contents = cifar
    put(tmp_path / source.base_folder, files)
    for split, part in (("pretrain", "train"), ("train", "train"), ("test", "test")):
        images = load(name, str(tmp_path), split)
        pixels, labels = contents[part]
        assert torch.equal(images.pixels, pixels) and images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64 and images.labels.tolist() == labels
        assert images.classes == ["apple", "bear", "chair"]
        assert images.source == images.fingerprint == f"{name} {part}"
    assert not no_network and capsys.readouterr().out == ""


def test_nothing_unverified_is_unpickled(cifar, tmp_path, capsys):
    name, source, files, _ = cifar

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    put(tmp_path / source.base_folder, {**files, source.train_list[0][0]: pickle.dumps(Evil())})
    message = refusal(name, str(tmp_path), "train")
    assert source.filename in message and "no network" in message
    assert f"remove any {source.base_folder}" in message
    assert not os.path.exists(tmp_path / "pwned") and capsys.readouterr().out == ""


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


# ---- photos ----


def test_photos():
    for split, count in (("train", 64), ("test", 32)):
        images = load("photos", "", split)
        assert images.pixels.shape == (16 * count, 3, 32, 32)
        assert images.pixels.dtype == torch.uint8 and images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert images.labels.bincount().tolist() == 16 * [count]
        assert len(set(images.classes)) == 16
    assert torch.equal(load("photos", "", "test").pixels, images.pixels)


def test_unknown_name():
    with pytest.raises(UserError, match="unknown data set 'cifar': choose one of cifar10, "):
        load("cifar", "", "train")


def test_photos_do_not_overlap(monkeypatch):
    """Where the value of a pixel is its column divided by 4, crops tell where they come from."""
    from skimage import data

    monkeypatch.setattr(utils, "PHOTOS", "ramp")
    ramp = np.tile((np.arange(512) // 4).astype(np.uint8), (70, 1))
    monkeypatch.setattr(data, "ramp", lambda: ramp, raising=False)
    left = 4 * load("photos", "", "train").pixels.int()
    right = 4 * load("photos", "", "test").pixels.int()
    assert 0.55 * 512 < left.max() < 0.6 * 512 < right.min() + 4
    assert right.min() < 0.65 * 512  # and the bounds are used
    assert left.min() < 0.05 * 512 and right.max() > 0.95 * 512
