"""What the tests of the readers share: small files in the true formats, damage, refusals."""

import hashlib
import io
import os
import urllib.error

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from attentionce.errors import UserError
from utils import load


def noise(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def md5(data):
    return hashlib.md5(data).hexdigest()


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def put(folder, contents):
    for name, data in contents.items():
        write(os.path.join(folder, name), data)


def picture(shape, seed=0, format="JPEG", **options):
    """The bytes of an image file that holds noise."""
    file = io.BytesIO()
    Image.fromarray(noise(*shape, seed=seed)).save(file, format, **options)
    return file.getvalue()


def odd_images(root):
    """Make a folder of odd images; return its path and the paths of train in reading order."""
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "train/a/cmyk.JPG": ("CMYK", (81, 70), {"format": "JPEG"}),
        "train/a/deep/er/wide.png": ("RGB", (333, 50), {}),
        "train/b/exif.jpeg": ("RGB", (91, 75), {"exif": turned}),
        "train/b/gray.png": ("L", (64, 99), {}),
        "train/b/la.png": ("LA", (67, 64), {}),
        "train/b/rgba.png": ("RGBA", (71, 99), {}),
        "train/b/tall.webp": ("RGB", (68, 321), {"lossless": True}),
        "train/b/tiny.bmp": ("RGB", (2, 3), {}),
        "train/c d/palette.gif": ("P", (64, 80), {}),
        "test/b/x.png": ("RGB", (78, 77), {}),
    }
    for seed, (name, (mode, size, options)) in enumerate(images.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data = noise(size[1], size[0], Image.getmodebands(mode), seed=seed)
        Image.frombytes(mode, size, data).save(root / name, **options)
    (root / "train" / "empty").mkdir()
    return str(root), [str(root / name) for name in images if name.startswith("train")]


def mutated(data, draw):
    """The bytes with some of them changed, cut out or repeated, or without their end."""
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


def refusal(*arguments, **options):
    """The message of the UserError that load raises; it must be one printable line."""
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    assert 20 < len(message) < 2000
    return message


def cut_network(monkeypatch):
    """Make every download fail from now on; return the list of the URLs that were tried."""
    tried = []

    def fail(url, *_, **__):
        print("Downloading", url)  # as some versions of torchvision do
        tried.append(url)
        raise urllib.error.URLError("no network\nhere")

    monkeypatch.setattr(datasets.utils, "_get_redirect_url", fail)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", fail)
    return tried
