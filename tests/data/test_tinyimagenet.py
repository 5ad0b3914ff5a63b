"""TinyImageNet's reader, on small zips and folders; every fault is a UserError of one line."""

import io
import os
import random
import shutil
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from helpers.samples import cut_network, md5, mutated, picture, put, refusal, refusals, tree, write
from PIL import Image
from torchvision import datasets

from attentionce.data import tinyimagenet
from utils import load

WNIDS = ["n03", "n01", "n02"]  # not in alphabetical order, as in the real file


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Make every download fail; return the list of the URLs that were tried."""
    return cut_network(monkeypatch)


def rgb(data):
    """The pixels of an encoded image, 3×H×W, decoded without the reader."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def tiny_files():
    """A small TinyImageNet: contents by path.

    Two of the JPEGs are grayscale. The annotations of val are not in order of its names.
    """
    files = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(),
        "words.txt": b"n01\tcat\n",
    }
    for c, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
        for i in range(3):
            shape = (64, 64) if (c, i) == (1, 1) else (64, 64, 3)
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = picture(shape, seed=10 * c + i)
    for i in range(4):
        shape = (64, 64) if i == 2 else (64, 64, 3)
        files[f"val/images/val_{i}.JPEG"] = picture(shape, seed=100 + i)
    lines = [
        f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n"
        for i, wnid in ((2, "n01"), (0, "n02"), (3, "n03"), (1, "n02"))
    ]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = b"never read"
    files["train/n01/images/._n01_0.JPEG"] = b"never read"
    return files


def tiny_put(root, form, files, monkeypatch, extra=()):
    """Write the files below root.

    form: "folder", "bare" (root itself is the folder) or "zip"; extra: more (name, data) for it.
    """
    if form != "zip":
        put(root / "tiny-imagenet-200" if form == "folder" else root, files)
        return
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicates
        archive.writestr("tiny-imagenet-200/", b"")
        for name, data in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
        for name, data in extra:
            archive.writestr(name, data)
    zip_put(root, file.getvalue(), monkeypatch)


def zip_put(root, data, monkeypatch):
    write(str(root / "tiny-imagenet-200.zip"), data)
    monkeypatch.setattr(tinyimagenet, "TINY_MD5", md5(data))


@pytest.mark.parametrize("form", ["folder", "bare", "zip"])
def test_tiny(tmp_path, monkeypatch, form, no_network):
    files = tiny_files()
    tiny_put(tmp_path, form, files, monkeypatch)
    before = tree(tmp_path)
    for split in ("pretrain", "train"):
        images = load("tinyImageNet", str(tmp_path), split)
        assert images.classes == WNIDS
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert images.pixels.shape == (9, 3, 64, 64)
        assert images.labels.dtype == torch.int64
        paths = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(3)]
        for pixels, path in zip(images.pixels, paths, strict=True):
            assert torch.equal(pixels, rgb(files[path]))
    test = load("tinyImageNet", str(tmp_path), "test")
    assert test.labels.tolist() == [1, 2, 0, 2]
    assert test.classes == WNIDS
    for pixels, i in zip(test.pixels, (2, 0, 3, 1), strict=True):
        assert torch.equal(pixels, rgb(files[f"val/images/val_{i}.JPEG"]))
    assert (test.pixels[0, 0] == test.pixels[0, 2]).all()  # the grayscale one
    assert tree(tmp_path) == before
    assert not no_network


@pytest.mark.parametrize("form", ["folder", "bare", "zip"])
@pytest.mark.parametrize("place", ["val/{}/", "val/{}/images/"])
def test_tiny_with_val_in_class_folders(tmp_path, monkeypatch, form, place):
    """As scripts that are passed around leave it, with or without the annotations."""
    files = tiny_files()
    for i, wnid in enumerate(("n02", "n02", "n01", "n03")):
        files[f"{place.format(wnid)}val_{i}.JPEG"] = files.pop(f"val/images/val_{i}.JPEG")
    if form == "bare":
        del files["val/val_annotations.txt"]
    tiny_put(tmp_path, form, files, monkeypatch)
    test = load("tinyImageNet", str(tmp_path), "test")
    assert test.classes == WNIDS
    assert test.labels.tolist() == [0, 1, 2, 2]
    for pixels, name in zip(
        test.pixels,
        ("n03/3", "n01/2", "n02/0", "n02/1"),
        strict=True,
    ):
        wnid, i = name.split("/")
        assert torch.equal(pixels, rgb(files[f"{place.format(wnid)}val_{i}.JPEG"]))


def test_tiny_with_a_class_missing_from_val(tmp_path, monkeypatch):
    files = tiny_files()
    for i, wnid in enumerate(("n02", "n02", "n01", "n01")):
        files[f"val/{wnid}/val_{i}.JPEG"] = files.pop(f"val/images/val_{i}.JPEG")
    tiny_put(tmp_path, "folder", files, monkeypatch)
    assert "val/n03" in refusal("tinyImageNet", str(tmp_path), "test")


def test_tiny_download(tmp_path, monkeypatch):
    files, source = tiny_files(), tmp_path / "elsewhere"
    tiny_put(source, "zip", files, monkeypatch)
    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, **_: url)
    root = tmp_path / "new"

    def half(url, path):
        write(path, b"half a file")
        raise ConnectionResetError("gone")

    monkeypatch.setattr(datasets.utils, "_urlretrieve", half)
    message = refusal("tinyImageNet", str(root), "test")
    assert "tiny-imagenet-200.zip" in message
    assert tinyimagenet.TINY_MD5 in message
    assert tinyimagenet.TINY_URL in message
    assert not os.path.exists(root / "tiny-imagenet-200.zip")

    def login_page(url, path):
        write(path, b"a page of a hotel's network")

    monkeypatch.setattr(datasets.utils, "_urlretrieve", login_page)
    assert tinyimagenet.TINY_MD5 in refusal("tinyImageNet", str(root), "test")
    assert not os.path.exists(root / "tiny-imagenet-200.zip")
    copied = []

    def fetch(url, path):
        copied.append(url)
        shutil.copy(source / "tiny-imagenet-200.zip", path)

    monkeypatch.setattr(datasets.utils, "_urlretrieve", fetch)
    for _ in range(2):
        assert len(load("tinyImageNet", str(root), "test").labels) == 4
    assert copied == [tinyimagenet.TINY_URL]
    assert os.listdir(root) == ["tiny-imagenet-200.zip"]


def test_tiny_without_network(tmp_path):
    message = refusal("tinyImageNet", str(tmp_path), "train")
    for part in (
        "tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "http://cs231n",
        repr(str(tmp_path)),
    ):
        assert part in message


def test_tiny_zip_with_wrong_md5_is_left_alone(tmp_path, monkeypatch, no_network):
    tiny_put(tmp_path, "zip", tiny_files(), monkeypatch)
    monkeypatch.setattr(tinyimagenet, "TINY_MD5", "0" * 32)
    before = tree(tmp_path)
    message = refusal("tinyImageNet", str(tmp_path), "train")
    assert repr(str(tmp_path / "tiny-imagenet-200.zip")) in message
    assert tree(tmp_path) == before
    assert not no_network


ANNOTATIONS = "val/val_annotations.txt"
LINE = b"val_%d.JPEG\t%s\t0\t0\t1\t1\n"
BAD_TINY = {
    "no wnids": ({"wnids.txt": None}, "train", "wnids.txt"),
    "empty wnids": ({"wnids.txt": b"\n"}, "train", "wnids.txt"),
    "class twice": ({"wnids.txt": b"n01\nn02\nn03\nn01\n"}, "train", "wnids.txt"),
    "class elsewhere": ({"wnids.txt": b"../n01\n"}, "train", "wnids.txt"),
    "wnids not text": ({"wnids.txt": b"n01\n\xff\xfe\n"}, "train", "wnids.txt"),
    "class without folder": ({"wnids.txt": b"n01\nn02\nn03\nn09\n"}, "train", "train/n09"),
    "no val images": ({f"val/images/val_{i}.JPEG": None for i in range(4)}, "test", "val/images"),
    "no annotations": ({ANNOTATIONS: None}, "test", "val_annotations.txt"),
    "unknown class": ({ANNOTATIONS: LINE % (0, b"n\n99")}, "test", "'n'"),
    "annotations not text": ({ANNOTATIONS: b"\xff\x00" + LINE % (0, b"n01")}, "test", "line 1"),
    "line without class": ({ANNOTATIONS: b"val_0.JPEG\n"}, "test", "line 1"),
    "missing image": ({"val/images/val_3.JPEG": None}, "test", "val_3.JPEG"),
    "image twice": ({ANNOTATIONS: 2 * LINE % (1, b"n01", 1, b"n02")}, "test", "'val_1.JPEG'"),
    "image outside": (
        {ANNOTATIONS: b"../../train/n01/images/n01_0.JPEG\tn01\n"},
        "test",
        "../../train/n01",
    ),
    "image without line": ({ANNOTATIONS: LINE % (1, b"n01")}, "test", "val/images/val_0.JPEG"),
    "not an image": (
        {"train/n02/images/n02_1.JPEG": b"<html>"},
        "train",
        "train/n02/images/n02_1.JPEG",
    ),
    "truncated image": (
        {"train/n01/images/n01_2.JPEG": picture((64, 64, 3))[:900]},
        "train",
        "n01_2.JPEG",
    ),
    "wrong size": ({"train/n01/images/n01_2.JPEG": picture((64, 65, 3))}, "train", "n01_2.JPEG"),
    "png": (
        {"train/n01/images/n01_2.JPEG": picture((64, 64, 3), format="PNG")},
        "train",
        "n01_2.JPEG",
    ),
    "huge file": (
        {"train/n01/images/n01_2.JPEG": picture((64, 64, 3)) + bytes(tinyimagenet.MAX_FILE)},
        "train",
        "n01_2.JPEG",
    ),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("fault", BAD_TINY)
def test_tiny_faults(tmp_path, monkeypatch, form, fault):
    changes, split, named = BAD_TINY[fault]
    files = {name: data for name, data in {**tiny_files(), **changes}.items() if data is not None}
    tiny_put(tmp_path, form, files, monkeypatch)
    if form == "folder":  # only files are missing, so that the folder still counts as the data set
        os.makedirs(tmp_path / "tiny-imagenet-200" / "val" / "images", exist_ok=True)
    message = refusal("tinyImageNet", str(tmp_path), split)
    assert named in message and "tiny-imagenet-200" in message or "replace or remove" in message


@pytest.mark.parametrize(
    "name", ["/etc/evil", "../evil", "tiny-imagenet-200/../evil", "..\\evil", "C:/evil", "wnids"]
)
def test_tiny_zip_names(tmp_path, monkeypatch, name):
    if name == "wnids":
        name = "tiny-imagenet-200/wnids.txt"  # a second file of that name
    tiny_put(tmp_path, "zip", tiny_files(), monkeypatch, extra=[(name, b"evil")])
    assert repr(name) in refusal("tinyImageNet", str(tmp_path), "train")


def test_tiny_zip_link_is_not_followed(tmp_path, monkeypatch):
    files = tiny_files()
    write(str(tmp_path / "secret.JPEG"), files.pop("train/n01/images/n01_2.JPEG"))
    link = zipfile.ZipInfo("tiny-imagenet-200/train/n01/images/n01_2.JPEG")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    tiny_put(tmp_path, "zip", files, monkeypatch, extra=[(link, str(tmp_path / "secret.JPEG"))])
    assert "n01_2.JPEG" in refusal("tinyImageNet", str(tmp_path), "train")


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, "lying"]
)
def test_tiny_zip_bomb(tmp_path, monkeypatch, method):
    bomb = zipfile.ZipInfo("tiny-imagenet-200/train/n01/images/n01_9.JPEG")
    bomb.compress_type = zipfile.ZIP_DEFLATED if method == "lying" else method
    file, size = io.BytesIO(), 100_000_000
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in tiny_files().items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
        archive.writestr(bomb, bytes(size))
    data = file.getvalue()
    if method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, "lying"):  # declares less than is there
        assert data.count(struct.pack("<L", size)) == 2
        data = data.replace(struct.pack("<L", size), struct.pack("<L", 3000))
    zip_put(tmp_path, data, monkeypatch)
    tracemalloc.start()
    assert "n01_9.JPEG" in refusal("tinyImageNet", str(tmp_path), "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_fuzz_tiny(tmp_path, monkeypatch, under_1_gb):
    draw, files = random.Random(0), tiny_files()
    files = {
        name: data
        for name, data in files.items()
        if not name.endswith(("_1.JPEG", "_2.JPEG", "_3.JPEG"))
    }
    files[ANNOTATIONS] = LINE % (0, b"n01")
    tiny_put(tmp_path / "zip", "zip", files, monkeypatch)
    with open(tmp_path / "zip" / "tiny-imagenet-200.zip", "rb") as file:
        good = file.read()
    assert len(load("tinyImageNet", str(tmp_path / "zip"), "train").labels) == 3
    directory = good.index(b"PK\1\2")
    refused = 0
    for i in range(200):
        start = 0 if i % 2 else directory  # at the end, where most can go wrong
        data = good[:start] + mutated(good[start:], draw)
        zip_put(tmp_path / "zip", data, monkeypatch)
        refused += refusals("tinyImageNet", tmp_path / "zip")
    assert 200 < refused < 390  # else the fuzzer tests nothing
    tiny_put(tmp_path, "folder", files, monkeypatch)
    refused = 0
    for _ in range(150):
        name = draw.choice(
            ["wnids.txt", ANNOTATIONS, "val/images/val_0.JPEG", "train/n01/images/n01_0.JPEG"]
        )
        write(str(tmp_path / "tiny-imagenet-200" / name), mutated(files[name], draw))
        refused += refusals("tinyImageNet", tmp_path)
        write(str(tmp_path / "tiny-imagenet-200" / name), files[name])
    assert 80 < refused < 250
