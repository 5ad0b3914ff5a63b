"""Every data set's reader, on small files in the true on-disk formats; every fault is one line of UserError."""

import hashlib
import io
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import tarfile
import tracemalloc
import urllib.error
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import datasets, transforms

import utils
from utils import UserError, load

WNIDS = ["n03", "n01", "n02"]  # not in alphabetical order, as in the real file


def noise(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def md5(data):
    return hashlib.md5(data).hexdigest()


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def picture(shape, seed=0, format="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(noise(*shape, seed=seed)).save(file, format, **options)
    return file.getvalue()


def rgb(data):
    """3×H×W of an encoded image, decoded apart from utils."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def tree(folder):
    """Every file below folder with its contents and time."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[path] = (file.read(), os.stat(path).st_mtime_ns)
    return found


def refusal(*arguments, **options):
    """The message of the UserError that load raises, which must be one printable line."""
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    assert 20 < len(message) < 2000
    return message


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to download fails, and leaves its URL in the list."""
    tried = []

    def fail(url, *_, **__):
        print("Downloading", url)  # as some versions of torchvision do
        tried.append(url)
        raise urllib.error.URLError("no network\nhere")

    monkeypatch.setattr(datasets.utils, "_get_redirect_url", fail)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", fail)
    return tried


# ---- CIFAR and STL10 ----


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch):
    """A small CIFAR: (name, torchvision's class, files by name, pixels and labels of train, of test)."""
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    key = "labels" if request.param == "cifar10" else "fine_labels"
    files, lists, contents = {}, [], []
    for seed, entries in enumerate((source.train_list, source.test_list)):
        batches = []
        for i, (name, _) in enumerate(entries):
            batch = {"data": noise(4, 3072, seed=10 * seed + i), key: [(i + j) % 3 for j in range(4)]}
            files[name] = pickle.dumps(batch, protocol=2)
            batches.append(batch)
        lists.append([[name, md5(files[name])] for name, _ in entries])
        contents.append((np.concatenate([b["data"] for b in batches]), sum((b[key] for b in batches), [])))
    files[source.meta["filename"]] = meta = pickle.dumps({source.meta["key"]: ["apple", "bear", "chair"]}, protocol=2)
    monkeypatch.setattr(source, "train_list", lists[0])
    monkeypatch.setattr(source, "test_list", lists[1])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})
    return request.param, source, files, contents[0], contents[1]


def put(folder, files):
    for name, data in files.items():
        write(os.path.join(folder, name), data)


def pack(path, folder, files):
    """A .tar.gz as distributed: the files in one folder. Returns its md5."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
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
    for part in (source.filename, source.tgz_md5, source.url, repr(str(tmp_path / "new")), "no network"):
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


@pytest.mark.parametrize("escape", ["../outside", "/tmp/attention_nce_outside", "link"])
def test_archive_cannot_leave_root(tmp_path, monkeypatch, escape):
    path, outside = str(tmp_path / "root" / datasets.CIFAR10.filename), tmp_path / "outside"
    os.mkdir(tmp_path / "root")
    with tarfile.open(path, "w:gz") as tar:
        if escape == "link":
            info = tarfile.TarInfo("door")
            info.type, info.linkname = tarfile.SYMTYPE, ".."
            tar.addfile(info)
        info = tarfile.TarInfo("door/outside" if escape == "link" else escape)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with open(path, "rb") as file:
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(file.read()))
    assert datasets.CIFAR10.filename in refusal("cifar10", str(tmp_path / "root"), "train")
    assert not os.path.exists(outside)
    assert not os.path.exists("/tmp/attention_nce_outside")


@pytest.fixture
def stl10(monkeypatch):
    """A small STL10: files, and for each split what the binaries hold (columns before rows, labels from 1)."""
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
    pretrain, train, test = (load("stl10", str(tmp_path), split) for split in ("pretrain", "train", "test"))
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


@pytest.mark.parametrize(("file", "data"), [("train_X.bin", b"short"), ("class_names.txt", b"\xff\xfe\xff")])
def test_stl10_damaged(stl10, tmp_path, file, data):
    put(tmp_path / "stl10_binary", {**stl10[0], file: data})
    message = refusal("stl10", str(tmp_path), "train")
    assert "stl10_binary.tar.gz" in message
    assert datasets.STL10.tgz_md5 in message


# ---- TinyImageNet ----


def tiny_files():
    """A small TinyImageNet: contents by path. Two of the JPEGs are grayscale; val is not in order of its names."""
    files = {"wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(), "words.txt": b"n01\tcat\n"}
    for c, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
        for i in range(3):
            shape = (64, 64) if (c, i) == (1, 1) else (64, 64, 3)
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = picture(shape, seed=10 * c + i)
    for i in range(4):
        files[f"val/images/val_{i}.JPEG"] = picture((64, 64) if i == 2 else (64, 64, 3), seed=100 + i)
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in ((2, "n01"), (0, "n02"), (3, "n03"), (1, "n02"))]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = files["train/n01/images/._n01_0.JPEG"] = b"never read"
    return files


def tiny_put(root, form, files, monkeypatch, extra=()):
    """Write files as the form folder, bare (root itself is the folder) or zip; extra = more (name, data) of the zip."""
    if form != "zip":
        put(root / "tiny-imagenet-200" if form == "folder" else root, files)
        return
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicates
        archive.writestr("tiny-imagenet-200/", b"")
        for name, data in [(f"tiny-imagenet-200/{name}", data) for name, data in files.items()] + list(extra):
            archive.writestr(name, data)
    zip_put(root, file.getvalue(), monkeypatch)


def zip_put(root, data, monkeypatch):
    write(str(root / "tiny-imagenet-200.zip"), data)
    monkeypatch.setattr(utils, "TINY_MD5", md5(data))


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
        for pixels, (wnid, i) in zip(images.pixels, [(wnid, i) for wnid in WNIDS for i in range(3)], strict=True):
            assert torch.equal(pixels, rgb(files[f"train/{wnid}/images/{wnid}_{i}.JPEG"]))
    test = load("tinyImageNet", str(tmp_path), "test")
    assert test.labels.tolist() == [1, 2, 0, 2]
    assert test.classes == WNIDS
    for pixels, i in zip(test.pixels, (2, 0, 3, 1), strict=True):
        assert torch.equal(pixels, rgb(files[f"val/images/val_{i}.JPEG"]))
    assert (test.pixels[0, 0] == test.pixels[0, 2]).all()  # the grayscale one
    assert tree(tmp_path) == before
    assert not no_network


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
    assert utils.TINY_MD5 in message
    assert utils.TINY_URL in message
    assert not os.path.exists(root / "tiny-imagenet-200.zip")
    monkeypatch.setattr(datasets.utils, "_urlretrieve", lambda url, path: write(path, b"a page of a hotel's network"))
    assert utils.TINY_MD5 in refusal("tinyImageNet", str(root), "test")
    assert not os.path.exists(root / "tiny-imagenet-200.zip")
    copied = []

    def fetch(url, path):
        copied.append(url)
        shutil.copy(source / "tiny-imagenet-200.zip", path)

    monkeypatch.setattr(datasets.utils, "_urlretrieve", fetch)
    for _ in range(2):
        assert len(load("tinyImageNet", str(root), "test").labels) == 4
    assert copied == [utils.TINY_URL]
    assert os.listdir(root) == ["tiny-imagenet-200.zip"]


def test_tiny_without_network(tmp_path):
    message = refusal("tinyImageNet", str(tmp_path), "train")
    for part in ("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "http://cs231n", repr(str(tmp_path))):
        assert part in message


def test_tiny_zip_with_wrong_md5_is_left_alone(tmp_path, monkeypatch, no_network):
    tiny_put(tmp_path, "zip", tiny_files(), monkeypatch)
    monkeypatch.setattr(utils, "TINY_MD5", "0" * 32)
    before = tree(tmp_path)
    assert repr(str(tmp_path / "tiny-imagenet-200.zip")) in refusal("tinyImageNet", str(tmp_path), "train")
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
    "image outside": ({ANNOTATIONS: b"../../train/n01/images/n01_0.JPEG\tn01\n"}, "test", "../../train/n01"),
    "image without line": ({ANNOTATIONS: LINE % (1, b"n01")}, "test", "val/images/val_0.JPEG"),
    "not an image": ({"train/n02/images/n02_1.JPEG": b"<html>"}, "train", "train/n02/images/n02_1.JPEG"),
    "truncated image": ({"train/n01/images/n01_2.JPEG": picture((64, 64, 3))[:900]}, "train", "n01_2.JPEG"),
    "wrong size": ({"train/n01/images/n01_2.JPEG": picture((64, 65, 3))}, "train", "n01_2.JPEG"),
    "png": ({"train/n01/images/n01_2.JPEG": picture((64, 64, 3), format="PNG")}, "train", "n01_2.JPEG"),
    "huge file": ({"train/n01/images/n01_2.JPEG": picture((64, 64, 3)) + bytes(utils.MAX_FILE)}, "train", "n01_2.JPEG"),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("fault", BAD_TINY)
def test_tiny_faults(tmp_path, monkeypatch, form, fault):
    changes, split, named = BAD_TINY[fault]
    files = {name: data for name, data in {**tiny_files(), **changes}.items() if data is not None}
    tiny_put(tmp_path, form, files, monkeypatch)
    if form == "folder":  # so that only files are missing, and root is still seen as the data set
        os.makedirs(tmp_path / "tiny-imagenet-200" / "val" / "images", exist_ok=True)
    message = refusal("tinyImageNet", str(tmp_path), split)
    assert named in message and "tiny-imagenet-200" in message or "replace or remove" in message


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "tiny-imagenet-200/../evil", "..\\evil", "C:/evil", "wnids"])
def test_tiny_zip_names(tmp_path, monkeypatch, name):
    name = "tiny-imagenet-200/wnids.txt" if name == "wnids" else name  # the second of that name
    tiny_put(tmp_path, "zip", tiny_files(), monkeypatch, extra=[(name, b"evil")])
    assert repr(name) in refusal("tinyImageNet", str(tmp_path), "train")


def test_tiny_zip_link_is_not_followed(tmp_path, monkeypatch):
    files = tiny_files()
    write(str(tmp_path / "secret.JPEG"), files.pop("train/n01/images/n01_2.JPEG"))
    link = zipfile.ZipInfo("tiny-imagenet-200/train/n01/images/n01_2.JPEG")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    tiny_put(tmp_path, "zip", files, monkeypatch, extra=[(link, str(tmp_path / "secret.JPEG"))])
    assert "n01_2.JPEG" in refusal("tinyImageNet", str(tmp_path), "train")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, "lying"])
def test_tiny_zip_bomb(tmp_path, monkeypatch, method):
    bomb = zipfile.ZipInfo("tiny-imagenet-200/train/n01/images/n01_9.JPEG")
    bomb.compress_type = zipfile.ZIP_DEFLATED if method == "lying" else method
    file, size = io.BytesIO(), 100_000_000
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in tiny_files().items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
        archive.writestr(bomb, bytes(size))
    data = file.getvalue()
    if method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, "lying"):  # declare less than is there
        assert data.count(struct.pack("<L", size)) == 2
        data = data.replace(struct.pack("<L", size), struct.pack("<L", 3000))
    zip_put(tmp_path, data, monkeypatch)
    tracemalloc.start()
    assert "n01_9.JPEG" in refusal("tinyImageNet", str(tmp_path), "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def mutated(data, draw):
    """The bytes with some flipped, cut out, repeated, or the end missing."""
    data, kind = bytearray(data), draw.randrange(4)
    at, length = draw.randrange(len(data)), draw.randrange(1, 40)
    if kind == 0:
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = data[at : at + length] * draw.randrange(1, 4)
    else:
        del data[at:]
    return bytes(data)


def refusals(name, root):
    """How many of train and test load refuses; it does so in one line, and does nothing else but load."""
    messages = []
    for split in ("train", "test"):
        try:
            load(name, str(root), split)
        except UserError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    return len(messages)


def test_fuzz_tiny(tmp_path, monkeypatch):
    draw, files = random.Random(0), tiny_files()
    files = {name: data for name, data in files.items() if not name.endswith(("_1.JPEG", "_2.JPEG", "_3.JPEG"))}
    files[ANNOTATIONS] = LINE % (0, b"n01")
    tiny_put(tmp_path / "zip", "zip", files, monkeypatch)
    with open(tmp_path / "zip" / "tiny-imagenet-200.zip", "rb") as file:
        good = file.read()
    assert len(load("tinyImageNet", str(tmp_path / "zip"), "train").labels) == 3
    directory = good.index(b"PK\1\2")
    refused = 0
    for i in range(200):  # every second time only the directory at the end, the part with the most to go wrong
        data = mutated(good, draw) if i % 2 else good[:directory] + mutated(good[directory:], draw)
        zip_put(tmp_path / "zip", data, monkeypatch)
        refused += refusals("tinyImageNet", tmp_path / "zip")
    assert 200 < refused < 390  # or the fuzzer tests nothing
    tiny_put(tmp_path, "folder", files, monkeypatch)
    refused = 0
    for _ in range(150):
        name = draw.choice(["wnids.txt", ANNOTATIONS, "val/images/val_0.JPEG", "train/n01/images/n01_0.JPEG"])
        write(str(tmp_path / "tiny-imagenet-200" / name), mutated(files[name], draw))
        refused += refusals("tinyImageNet", tmp_path)
        write(str(tmp_path / "tiny-imagenet-200" / name), files[name])
    assert 80 < refused < 250


# ---- the user's own folder ----


def expected(path, side):
    """What torchvision's transforms make of the image."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def odd(tmp_path):
    """A folder of odd images. Returns root and the paths of train in the order in which they are read."""
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "train/a/cmyk.JPG": (noise(70, 81, 4, seed=1), "CMYK", {"format": "JPEG"}),
        "train/a/deep/er/wide.png": (noise(50, 333, 3, seed=2), "RGB", {}),
        "train/b/exif.jpeg": (noise(75, 91, 3, seed=3), "RGB", {"exif": turned}),
        "train/b/gray.png": (noise(99, 64, seed=4), "L", {}),
        "train/b/la.png": (noise(64, 67, 2, seed=5), "LA", {}),
        "train/b/rgba.png": (noise(99, 71, 4, seed=6), "RGBA", {}),
        "train/b/tall.webp": (noise(321, 68, 3, seed=7), "RGB", {"lossless": True}),
        "train/b/tiny.bmp": (noise(3, 2, 3, seed=8), "RGB", {}),
        "train/c d/palette.gif": (noise(80, 64, 3, seed=9), "P", {}),
        "test/b/x.png": (noise(77, 78, 3, seed=10), "RGB", {}),
    }
    for name, (data, mode, options) in images.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(data).convert("P") if mode == "P" else Image.frombytes(mode, data.shape[1::-1], data)
        image.save(path, **options)
    (tmp_path / "train" / "empty").mkdir()
    for junk in ("train/readme.png", "train/a/notes.txt", "train/a/.hidden.png", "train/a/.thumbs/x.png", ".x/y.png"):
        write(str(tmp_path / junk), b"no image")
    for junk in ("train/a/film.mpg", "train/a/run.eps", "train/b/noextension", "train/.git/x.png"):
        write(str(tmp_path / junk), b"no image")
    return str(tmp_path), [str(tmp_path / name) for name in images if name.startswith("train")]


def test_folder_of_odd_images(odd):
    root, paths = odd
    images = load("folder", root, "train", 64)
    assert images.classes == ["a", "b", "c d", "empty"]
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2]
    assert images.pixels.shape == (9, 3, 64, 64)
    assert images.pixels.is_contiguous()
    for path, pixels in zip(paths, images.pixels, strict=True):
        assert torch.equal(pixels, expected(path, 64)), path
    assert torch.equal(load("folder", root, "pretrain", 64).pixels, images.pixels)
    test = load("folder", root, "test", 33)
    assert test.labels.tolist() == [1]
    assert torch.equal(test.pixels[0], expected(f"{root}/test/b/x.png", 33))


def two_classes(root, train, test, held_out="test", suffix=".png", **options):
    """A folder with the arrays as classes 0 and 1 in turn."""
    for split, arrays in (("train", train), (held_out, test)):
        for i, data in enumerate(arrays):
            path = root / split / str(i % 2) / f"{i}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            (data if isinstance(data, Image.Image) else Image.fromarray(data)).save(path, **options)
    return str(root)


@pytest.mark.parametrize("format", ["png", "big-endian tiff", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path, format):
    values = np.random.RandomState(0).randint(0, 65536, (20, 30)).astype(np.uint16)
    values[0, :2] = 0, 65535
    if format == "pgm":
        write(str(tmp_path / "train/0/0.pgm"), b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
        root = two_classes(tmp_path, [], [noise(20, 30)])
    else:
        values = values.astype(">u2") if format == "big-endian tiff" else values
        root = two_classes(tmp_path, [values], [values], suffix=".png" if format == "png" else ".tif")
    pixels = load("folder", root, "train").pixels
    right = np.floor(values.astype(float) / 257 + 0.5)
    assert np.array_equal(pixels.numpy(), np.broadcast_to(right, (1, 3, 20, 30)))


def test_long_line_of_pixels(tmp_path, monkeypatch):
    """One pixel high: to enlarge it whole to 64 rows would take 260 MB here, and more than a terabyte in the worst case."""
    real, largest = Image.Image.resize, []

    def resize(image, size, *arguments, **options):
        largest.append(size[0] * size[1])
        return real(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    root = two_classes(tmp_path, [np.tile(noise(1, 1, 3), (1, 16000, 1)), noise(32, 16000, 3)], [noise(9, 9)])
    pixels = load("folder", root, "train").pixels
    assert (pixels[0] == torch.from_numpy(noise(1, 1, 3))[0].T[..., None]).all()
    assert 0 < max(largest) <= 64 * 64 * 16
    assert (pixels[1].float() - expected(f"{root}/train/1/1.png", 64).float()).abs().mean() < 40  # noise, by chance: 85


def test_equal_sizes_are_kept(tmp_path):
    train, test = [noise(20, 30, 3, seed=i) for i in range(4)], [noise(20, 30, 3, seed=9)]
    root = two_classes(tmp_path, train, test, "val")
    images = load("folder", root, "train", 30)
    assert images.labels.tolist() == [0, 0, 1, 1]
    for pixels, i in zip(images.pixels, (0, 2, 1, 3), strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), train[i])
    assert np.array_equal(load("folder", root, "test", 30).pixels[0].permute(1, 2, 0).numpy(), test[0])
    assert load("folder", root, "train", 29).pixels.shape == (4, 3, 29, 29)  # no longer small enough


def test_one_other_size_in_test_decides_for_train(tmp_path):
    root = two_classes(tmp_path, [noise(20, 20, 3)] * 2, [noise(20, 20, 3), noise(20, 21, 3)])
    assert load("folder", root, "train", 32).pixels.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_sizes_are_those_after_the_turn(tmp_path, suffix):
    turned = Image.Exif()
    turned[0x0112] = 6
    root = two_classes(tmp_path / "some", [noise(20, 30, 3)], [noise(20, 30, 3)], suffix=suffix)
    Image.fromarray(noise(20, 30, 3)).save(f"{root}/train/0/1{suffix}", exif=turned)
    assert load("folder", root, "train").pixels.shape == (2, 3, 64, 64)
    root = two_classes(tmp_path / "all", [noise(20, 30, 3)], [noise(20, 30, 3)], suffix=suffix, exif=turned)
    pixels = load("folder", root, "train").pixels
    assert pixels.shape == (1, 3, 30, 20)
    turned = ImageOps.exif_transpose(Image.open(f"{root}/train/0/0{suffix}"))
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), np.array(turned))


def test_headers_are_read_no_further_than_needed(tmp_path, monkeypatch):
    two_classes(tmp_path, [noise(20, 20, 3)] * 2 + [noise(65, 65, 3)] + [noise(20, 20, 3)] * 3, [noise(20, 20)])
    opened, loaded = [], []
    real_open, real_load = Image.open, Image.Image.load
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or real_open(path, **options))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: loaded.append(image))
    paths = sorted(path for path in tree(tmp_path) if "/train/" in path)
    assert utils.common_size(paths, 64) is None
    assert opened == paths[:2]
    assert not loaded
    assert utils.common_size(paths[2:], 64) == (20, 20)
    assert not loaded
    assert real_load


def test_links_to_files_are_followed(tmp_path):
    write(str(tmp_path / "store" / "x.png"), picture((64, 64, 3), format="PNG"))
    root = two_classes(tmp_path / "root", [noise(64, 64, 3)], [noise(64, 64, 3)])
    os.symlink(tmp_path / "store" / "x.png", f"{root}/train/0/link.png")
    os.symlink(tmp_path / "store", f"{root}/train/1")
    assert load("folder", root, "train").labels.tolist() == [0, 0, 1]
    os.remove(tmp_path / "store" / "x.png")
    assert "link.png" in refusal("folder", root, "train")


# ---- the cache of folders that do not fit ----


@pytest.fixture
def tight(monkeypatch):
    monkeypatch.setattr(utils, "memory_limit", lambda: 1000)


def hidden(root):
    return sorted(name for name in os.listdir(root) if name.startswith(".") and name != ".x")


def test_memory_mapped_equals_in_memory_and_is_reused(odd, monkeypatch, recwarn):
    root, paths = odd
    right = {split: load("folder", root, split) for split in ("train", "test")}
    assert hidden(root) == []
    monkeypatch.setattr(utils, "memory_limit", lambda: 64 * 64 * 3 * 9 - 1)
    monkeypatch.setattr(utils, "decode", counted := Counted(utils.decode))
    for _ in range(2):
        images = load("folder", root, "pretrain")
        assert torch.equal(images.pixels, right["train"].pixels)
        assert torch.equal(images.labels, right["train"].labels)
        assert images.classes == right["train"].classes
    assert torch.equal(load("folder", root, "test").pixels, right["test"].pixels)  # fits
    assert counted.calls == 2
    (name,) = hidden(root)
    assert name.startswith(".train-")
    assert name.endswith(".npy")
    assert not recwarn.list
    assert torch.equal(torch.from_numpy(np.load(f"{root}/{name}")), images.pixels)
    with open("/proc/self/maps") as file:
        assert name in file.read()
    os.utime(paths[0], ns=(1, 1))  # another time: perhaps another image
    load("folder", root, "train")
    assert counted.calls == 3
    assert len(hidden(root)) == 2
    monkeypatch.setattr(utils, "memory_limit", lambda: 1000)
    load("folder", root, "train", 32)
    assert counted.calls == 4
    assert len(hidden(root)) == 3


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def test_no_half_cache(odd, tight):
    root, paths = odd
    write(f"{root}/train/c d/z.png", b"no image")
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
    """A real limit on file sizes: without room for all of it nothing is decoded, and nothing stays behind."""
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


def test_cache_has_its_room_before_it_is_filled(odd, tight, monkeypatch):
    """A sparse file on a disk that fills up would kill the program with SIGBUS while it decodes."""
    root, _ = odd
    seen = []

    def look(read, out, what):
        info = os.stat(f"{root}/{hidden(root)[0]}")
        seen.append((info.st_blocks * 512, info.st_size))

    monkeypatch.setattr(utils, "decode", look)
    load("folder", root, "train")
    ((room, size),) = seen
    assert room >= size > 9 * 3 * 64 * 64


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"PK\3\4", "cut", "other shape", "pickle"])
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
    assert 1e7 < utils.memory_limit() < 1e14


# ---- faults of folders ----


def jpeg_header(width, height):
    """A small JPEG that claims to be of the size."""
    data = picture((64, 64, 3))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


BROKEN = {
    "empty": b"",
    "other": b"<html>\n",
    "truncated jpeg": picture((99, 99, 3))[:1500],
    "truncated png": picture((70, 70, 3), format="PNG")[:-2000],
    "header alone": b"P5 70 70 255\n",
    "bad offset": b"II*\0\xff\xff\xff\xff",
    "above the bomb limit": jpeg_header(10000, 10000),
    "above twice the bomb limit": jpeg_header(60000, 60000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 70 70\n%%EndComments\n(x) run\n",
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", ["x.jpg", "line\nbreak\x1b[31m.png"])
def test_unreadable_image(tmp_path, fault, name):
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    write(f"{root}/train/0/{name}", BROKEN[fault])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert repr(f"{root}/train/0/{name}") in refusal("folder", root, "train")
    assert not caught


def test_floating_point_image_is_refused(tmp_path):
    root = two_classes(tmp_path, [noise(70, 70).astype(np.float32)], [noise(70, 70)], suffix=".tif")
    assert "0.tif" in refusal("folder", root, "train")


def test_pipe_is_not_opened(tmp_path):
    root = two_classes(tmp_path, [noise(70, 70, 3)], [noise(70, 70, 3)])
    os.mkfifo(f"{root}/train/0/pipe.png")
    assert "pipe.png" in refusal("folder", root, "train")


def test_folder_faults(tmp_path):
    for root in (tmp_path / "missing", tmp_path):
        message = refusal("folder", str(root), "train")
        assert repr(str(root)) in message
        assert "train" in message
        assert "val" in message
    two_classes(tmp_path, [noise(9, 9)], [])
    assert "val" in refusal("folder", str(tmp_path), "pretrain")
    two_classes(tmp_path, [], [noise(9, 9)], "val")
    assert len(load("folder", str(tmp_path), "test").labels) == 1
    two_classes(tmp_path, [], [noise(9, 9)] * 2, "val")
    assert repr(str(tmp_path / "val" / "1")) in refusal("folder", str(tmp_path), "test")
    shutil.rmtree(tmp_path / "val")
    os.makedirs(tmp_path / "val" / "0")
    assert repr(str(tmp_path / "val")) in refusal("folder", str(tmp_path), "test")
    assert len(load("folder", str(tmp_path), "train").labels) == 1
    shutil.rmtree(tmp_path / "train" / "0")
    os.rmdir(tmp_path / "val" / "0")
    assert repr(str(tmp_path / "train")) in refusal("folder", str(tmp_path), "train")
    write(str(tmp_path / "file"), b"")
    for name in ("folder", "cifar10", "stl10", "tinyImageNet"):
        assert str(tmp_path / "file") in refusal(name, str(tmp_path / "file"), "train")


def test_folder_that_cannot_be_listed(odd, monkeypatch):
    root, _ = odd
    real = os.scandir

    def denied(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "deep" in refusal("folder", root, "train")


def test_fuzz_folder(tmp_path):
    draw = random.Random(1)
    root, refused = two_classes(tmp_path, [noise(20, 24, 3)], [noise(20, 24, 3)]), 0
    for format in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "jp2"):
        options = {"compression": "tiff_deflate"} if format == "tiff" else {}
        good = picture((20, 24, 3), format={"jp2": "JPEG2000"}.get(format, format), **options)
        for _ in range(25):
            write(f"{root}/train/0/fuzz.{format}", mutated(good, draw))
            refused += refusals("folder", tmp_path)
        os.remove(f"{root}/train/0/fuzz.{format}")
    assert 150 < refused < 400


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
    """In a photograph whose pixels are their own column (in units of 4), the crops tell where they come from."""
    from skimage import data

    monkeypatch.setattr(utils, "PHOTOS", ["ramp", "narrow"])
    ramp = np.tile((np.arange(512) // 4).astype(np.uint8), (70, 1))
    monkeypatch.setattr(data, "ramp", lambda: ramp, raising=False)
    monkeypatch.setattr(data, "narrow", lambda: ramp[:64, :384], raising=False)  # no taller than a crop
    train, test = load("photos", "", "train"), load("photos", "", "test")
    for label, width in enumerate((512, 384)):
        left, right = (4 * x.pixels[x.labels == label].int() for x in (train, test))
        assert left.max() < 0.6 * width < right.min() + 4
        assert left.max() > 0.55 * width  # and the bounds are used
        assert right.min() < 0.65 * width
        assert left.min() < 0.05 * width
        assert right.max() > 0.95 * width
    assert (np.diff(train.pixels[0, 0, 0].int()) >= 0).all()  # not mirrored


def test_photos_are_means_of_four(photos):
    """Some place of the photograph gives the crop; the photograph is read apart from utils' list."""
    from skimage import data

    for name, picture in (("camera", data.camera()), ("chelsea", data.chelsea())):
        picture = np.broadcast_to(picture.reshape(*picture.shape[:2], -1), (*picture.shape[:2], 3)).astype(int)
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


def test_home_folder(odd, monkeypatch):
    monkeypatch.setenv("HOME", odd[0])
    assert len(load("folder", "~", "train").labels) == 9
