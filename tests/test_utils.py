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
from attentionce.errors import UserError
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


def pack(path, folder, contents):
    """Make a .tar.gz as distributed, with the files in one folder; return its md5."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with open(path, "rb") as file:
        return md5(file.read())


def test_cifar_unpacked(cifar, tmp_path, no_network, capsys):
    name, source, files, train, test = cifar
    put(tmp_path / source.base_folder, files)
    before = tree(tmp_path)
    for split, (data, labels) in (("pretrain", train), ("train", train), ("test", test)):
        images = load(name, str(tmp_path), split)
        assert torch.equal(images.pixels, torch.from_numpy(data.reshape(-1, 3, 32, 32)))
        assert images.pixels.is_contiguous()
        assert images.pixels.dtype == torch.uint8
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == labels
        assert images.classes == ["apple", "bear", "chair"]
    assert not no_network
    assert tree(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_cifar_archive(cifar, tmp_path, no_network, monkeypatch):
    name, source, files, train, _ = cifar
    digest = pack(str(tmp_path / source.filename), source.base_folder, files)
    monkeypatch.setattr(source, "tgz_md5", digest)
    assert load(name, str(tmp_path), "train").labels.tolist() == train[1]
    assert not no_network


def test_cifar_without_network(cifar, tmp_path, capsys):
    name, source, _, _, _ = cifar
    message = refusal(name, str(tmp_path / "new"), "train")
    place = repr(str(tmp_path / "new"))
    for part in (source.filename, source.tgz_md5, source.url, place, "no network"):
        assert part in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("which", ["first batch", "meta"])
def test_cifar_never_unpickles_unverified(cifar, tmp_path, which):
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


@pytest.mark.parametrize("escape", ["parent", "absolute", "link"])
def test_archive_cannot_leave_root(tmp_path, monkeypatch, escape):
    path, outside = str(tmp_path / "root" / datasets.CIFAR10.filename), tmp_path / "outside"
    os.mkdir(tmp_path / "root")
    with tarfile.open(path, "w:gz") as tar:
        if escape == "link":
            info = tarfile.TarInfo("door")
            info.type, info.linkname = tarfile.SYMTYPE, ".."
            tar.addfile(info)
        names = {"parent": "../outside", "absolute": str(outside), "link": "door/outside"}
        info = tarfile.TarInfo(names[escape])
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with open(path, "rb") as file:
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(file.read()))
    assert datasets.CIFAR10.filename in refusal("cifar10", str(tmp_path / "root"), "train")
    assert not os.path.exists(outside)


@pytest.fixture
def stl10(monkeypatch):
    """A small STL10: its files, and the images of each split.

    The binaries hold columns before rows, and labels from 1.
    """
    parts = {"train": noise(5, 3, 96, 96, seed=1), "unlabeled": noise(7, 3, 96, 96, seed=2)}
    parts["test"] = noise(4, 3, 96, 96, seed=3)
    files = {f"{part}_X.bin": data.tobytes() for part, data in parts.items()}
    files |= {"train_y.bin": bytes([1, 10, 3, 2, 5]), "test_y.bin": bytes([2, 1, 10, 10])}
    files["class_names.txt"] = "".join(f"{name}\n" for name in utils.STL10_CLASSES).encode()
    for name in ("train_list", "test_list"):
        entries = [[file, md5(files[file])] for file, _ in getattr(datasets.STL10, name)]
        monkeypatch.setattr(datasets.STL10, name, entries)
    return files, {part: torch.from_numpy(data).transpose(2, 3) for part, data in parts.items()}


def test_stl10(stl10, tmp_path, no_network):
    files, parts = stl10
    put(tmp_path / "stl10_binary", files)
    pretrain = load("stl10", str(tmp_path), "pretrain")
    train = load("stl10", str(tmp_path), "train")
    test = load("stl10", str(tmp_path), "test")
    assert torch.equal(pretrain.pixels, torch.cat([parts["train"], parts["unlabeled"]]))
    assert torch.equal(train.pixels, parts["train"])
    assert torch.equal(test.pixels, parts["test"])
    assert train.labels.tolist() == [0, 9, 2, 1, 4]
    assert test.labels.tolist() == [1, 0, 9, 9]
    assert pretrain.labels.tolist() == [0, 9, 2, 1, 4] + 7 * [-1]
    for images in (pretrain, train, test):
        assert images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert images.classes[0] == "airplane"
        assert len(images.classes) == 10
    assert not no_network


def test_stl10_is_checked_once_and_again_when_it_changes(stl10, tmp_path, monkeypatch):
    """Of the real one, a check reads 3 GB."""
    files, _ = stl10
    put(tmp_path / "stl10_binary", files)
    checked, real = [], datasets.stl10.check_integrity

    def check(path, md5):
        checked.append(os.path.basename(path))
        return real(path, md5)

    monkeypatch.setattr(datasets.stl10, "check_integrity", check)
    for split in ("pretrain", "train", "test"):
        load("stl10", str(tmp_path), split)
    assert sorted(checked) == sorted(name for name in files if name.endswith(".bin"))
    data = bytearray(files["unlabeled_X.bin"])
    data[0] ^= 1
    put(tmp_path / "stl10_binary", {"unlabeled_X.bin": bytes(data)})
    assert "stl10_binary.tar.gz" in refusal("stl10", str(tmp_path), "train")
    put(tmp_path / "stl10_binary", files)
    assert len(load("stl10", str(tmp_path), "test").labels) == 4


@pytest.mark.parametrize(
    ("file", "data"), [("train_X.bin", b"short"), ("class_names.txt", b"\xff\xfe\xff")]
)
def test_stl10_damaged(stl10, tmp_path, file, data):
    put(tmp_path / "stl10_binary", {**stl10[0], file: data})
    message = refusal("stl10", str(tmp_path), "train")
    assert "stl10_binary.tar.gz" in message
    assert datasets.STL10.tgz_md5 in message


# ---- photos, and arguments ----


@pytest.fixture(scope="module")
def photos():
    return load("photos", "", "train"), load("photos", "", "test")


def test_photos(photos):
    train, test = photos
    for images, count in ((train, 64), (test, 32)):
        assert images.pixels.shape == (16 * count, 3, 32, 32)
        assert images.pixels.dtype == torch.uint8
        assert images.pixels.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert images.labels.bincount().tolist() == 16 * [count]
        assert images.classes == utils.PHOTOS
        assert len(set(utils.PHOTOS)) == 16
    torch.manual_seed(1)
    assert torch.equal(load("photos", "", "pretrain").pixels, train.pixels)
    assert torch.equal(load("photos", "", "test").pixels, test.pixels)


def test_photos_do_not_overlap(monkeypatch):
    """Where the value of a pixel is its column divided by 4, crops tell where they come from."""
    from skimage import data

    monkeypatch.setattr(utils, "PHOTOS", ["ramp", "narrow"])
    ramp = np.tile((np.arange(512) // 4).astype(np.uint8), (70, 1))
    monkeypatch.setattr(data, "ramp", lambda: ramp, raising=False)
    narrow = ramp[:64, :384]  # as high as a crop
    monkeypatch.setattr(data, "narrow", lambda: narrow, raising=False)
    train, test = load("photos", "", "train"), load("photos", "", "test")
    for label, width in enumerate((512, 384)):
        left = 4 * train.pixels[train.labels == label].int()
        right = 4 * test.pixels[test.labels == label].int()
        assert left.max() < 0.6 * width < right.min() + 4
        assert left.max() > 0.55 * width  # and the bounds are used
        assert right.min() < 0.65 * width
        assert left.min() < 0.05 * width
        assert right.max() > 0.95 * width
    assert (np.diff(train.pixels[0, 0, 0].int()) >= 0).all()  # not mirrored


def test_photos_are_means_of_four(photos):
    """Every crop is found in the photograph, which is read without utils."""
    from skimage import data

    for name, picture in (("camera", data.camera()), ("chelsea", data.chelsea())):
        height, width = picture.shape[:2]
        picture = np.broadcast_to(picture.reshape(height, width, -1), (height, width, 3))
        picture = picture.astype(int)
        sums = picture[:-1, :-1] + picture[1:, :-1] + picture[:-1, 1:] + picture[1:, 1:]
        means = np.floor(sums / 4 + 0.5)
        crop = photos[0].pixels[64 * utils.PHOTOS.index(name)].permute(1, 2, 0).numpy()
        corners = np.argwhere((means[:-62, :-62] == crop[0, 0]).all(-1))
        assert any(np.array_equal(means[y : y + 64 : 2, x : x + 64 : 2], crop) for y, x in corners)


def test_photos_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "pip install scikit-image" in refusal("photos", "", "train")


def test_arguments():
    message = refusal("cifar\n10", "", "train")
    assert all(name in message for name in utils.DATASETS)
    assert "--store_size" in refusal("folder", "", "train", store_size=0)
    with pytest.raises(ValueError, match="validation"):
        load("photos", "", "validation")
    assert issubclass(UserError, ValueError)
