"""TinyImageNet's reader, on small zips and folders; every fault is a UserError of one line."""

import io
import os
import random
import shutil
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
ANNOTATIONS = "val/val_annotations.txt"
LINE = "val_{}.JPEG\t{}\t0\t32\t44\t62\n"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Make every download fail; return the list of the URLs that were tried."""
    return cut_network(monkeypatch)


@pytest.fixture
def files():
    """A small TinyImageNet: contents by path.

    Two of the JPEGs are grayscale. The annotations of val are not in order of its names.
    """
    found = {"wnids.txt": b"n03\nn01\nn02\n", "train/n01/images/._n01_0.JPEG": b"never read"}
    for c, wnid in enumerate(WNIDS):
        found[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
        for i in range(3):
            shape = (64, 64) if (c, i) == (1, 1) else (64, 64, 3)
            found[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = picture(shape, seed=10 * c + i)
    for i in range(4):
        shape = (64, 64) if i == 2 else (64, 64, 3)
        found[f"val/images/val_{i}.JPEG"] = picture(shape, seed=100 + i)
    order = (2, "n01"), (0, "n02"), (3, "n03"), (1, "n02")
    found[ANNOTATIONS] = "".join(LINE.format(*row) for row in order).encode()
    return found


@pytest.fixture
def archive(files, tmp_path, monkeypatch):
    """The path of these files as a zip whose md5 is the right one."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    monkeypatch.setattr(tinyimagenet, "TINY_MD5", md5(data.getvalue()))
    path = tmp_path / "source" / "tiny-imagenet-200.zip"
    write(path, data.getvalue())
    return path


def check(images, files, paths, labels):
    """These are the images of the files, in this order, as PIL decodes them."""
    assert images.classes == WNIDS and images.labels.dtype == torch.int64
    assert images.labels.tolist() == labels
    for pixels, path in zip(images.pixels, paths, strict=True):
        expected = np.array(Image.open(io.BytesIO(files[path])).convert("RGB"))
        assert torch.equal(pixels, torch.from_numpy(expected).permute(2, 0, 1))


def check_all(root, files):
    train = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(3)]
    for split in ("pretrain", "train"):
        check(load("tinyImageNet", str(root), split), files, train, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    test = [f"val/images/val_{i}.JPEG" for i in (2, 0, 3, 1)]
    check(load("tinyImageNet", str(root), "test"), files, test, [1, 2, 0, 2])


@pytest.mark.parametrize("below", ["tiny-imagenet-200", ""])
def test_an_unpacked_folder(tmp_path, files, no_network, below):
    put(tmp_path / below, files)
    before = tree(tmp_path)
    check_all(tmp_path, files)
    assert tree(tmp_path) == before and not no_network


def test_a_zip_is_unpacked(archive, files, no_network):
    check_all(archive.parent, files)
    assert sorted(os.listdir(archive.parent)) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    assert not no_network


@pytest.mark.parametrize("layout", ["val/{}/", "val/{}/images/"])
def test_val_in_class_folders(tmp_path, files, layout):
    """As scripts that are passed around leave it."""
    paths = [layout.format(wnid) + f"val_{i}.JPEG" for i, wnid in enumerate(("n02", "n02", "n01"))]
    for i, path in enumerate(paths):
        files[path] = files.pop(f"val/images/val_{i}.JPEG")
    last = files.pop("val/images/val_3.JPEG")
    put(tmp_path, files)
    assert "n03" in refusal("tinyImageNet", str(tmp_path), "test")  # a class without images
    files[layout.format("n03") + "val_3.JPEG"] = last
    put(tmp_path, files)
    expected = [layout.format("n03") + "val_3.JPEG", paths[2], paths[0], paths[1]]
    check(load("tinyImageNet", str(tmp_path), "test"), files, expected, [0, 1, 2, 2])


def test_download(archive, tmp_path, files, monkeypatch):
    """The page of a hotel's network is not taken for the zip."""
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


JPEG = "train/n01/images/n01_2.JPEG"
FAULTS = {  # changed contents (None: no such file), the split, and what the message names
    "no wnids": ({"wnids.txt": None}, "train", "wnids.txt"),
    "empty wnids": ({"wnids.txt": b"\n"}, "train", "wnids.txt"),
    "class twice": ({"wnids.txt": b"n01\nn02\nn03\nn01\n"}, "train", "wnids.txt"),
    "class without images": ({"wnids.txt": b"n01\nn02\nn03\nn09\n"}, "train", "n09"),
    "no annotations": ({ANNOTATIONS: None}, "test", "val_annotations.txt"),
    "unknown class": ({"wnids.txt": b"n03\nn02\n"}, "test", "'n01'"),
    "not text": ({ANNOTATIONS: b"\xff\x00"}, "test", "ascii"),
    "no class": ({ANNOTATIONS: b"val_0.JPEG\n"}, "test", "values"),
    "no image": ({"val/images/val_3.JPEG": None}, "test", "val_3.JPEG"),
    "image twice": ({ANNOTATIONS: LINE.format(1, "n01").encode() * 2}, "test", "val_1.JPEG"),
    "not annotated": ({ANNOTATIONS: LINE.format(1, "n01").encode()}, "test", ".JPEG"),
    "not an image": ({JPEG: b"<html>"}, "train", JPEG),
    "wrong size": ({JPEG: picture((64, 65, 3))}, "train", JPEG),
    "png": ({JPEG: picture((64, 64, 3), format="PNG")}, "train", JPEG),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, files, fault):
    changes, split, named = FAULTS[fault]
    contents = {name: data for name, data in {**files, **changes}.items() if data is not None}
    put(tmp_path / "tiny-imagenet-200", contents)
    assert named in refusal("tinyImageNet", str(tmp_path), split)


def test_fuzz(tmp_path, files, under_1_gb):
    draw, refused = random.Random(0), 0
    names = ["wnids.txt", ANNOTATIONS, "val/images/val_0.JPEG", "train/n01/images/n01_0.JPEG"]
    put(tmp_path / "tiny-imagenet-200", files)
    for _ in range(100):
        name = draw.choice(names)
        put(tmp_path / "tiny-imagenet-200", {name: mutated(files[name], draw)})
        refused += refusals("tinyImageNet", tmp_path)
        put(tmp_path / "tiny-imagenet-200", {name: files[name]})
    assert 50 < refused < 170  # else the fuzzer tests nothing
