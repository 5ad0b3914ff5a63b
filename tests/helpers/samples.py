"""What the tests of the readers share: small files in the true on-disk formats, damage to them, and load's refusals."""

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
    file = io.BytesIO()
    Image.fromarray(noise(*shape, seed=seed)).save(file, format, **options)
    return file.getvalue()


def tree(folder):
    """Every file below folder with its contents and time."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                found[path] = (file.read(), os.stat(path).st_mtime_ns)
    return found


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


def refusal(*arguments, **options):
    """The message of the UserError that load raises, which must be one printable line."""
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    assert 20 < len(message) < 2000
    return message


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


def cut_network(monkeypatch):
    """Any attempt to download fails from now on, and leaves its URL in the list returned."""
    tried = []

    def fail(url, *_, **__):
        print("Downloading", url)  # as some versions of torchvision do
        tried.append(url)
        raise urllib.error.URLError("no network\nhere")

    monkeypatch.setattr(datasets.utils, "_get_redirect_url", fail)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", fail)
    return tried
