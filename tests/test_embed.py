"""embed.py: what its files hold, and that it continues where it was interrupted."""

import csv
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import embed
import utils
from attentionce.evaluation import knn
from attentionce.runs import files, locks
from attentionce.training import processes
from model import Model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    """A resnet10 whose BatchNorm has statistics of its own."""
    torch.manual_seed(0)
    model = Model(16, "resnet10")
    with torch.no_grad():
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


@pytest.fixture
def flags(model, pictures, tmp_path):
    """Flags for the 36 pictures of 8×8 pixels, in blocks of 10."""
    files.save(tmp_path / "w.pth", model.state_dict())
    words = ["--model_path", tmp_path / "w.pth", "--root", pictures, "--image_size", 8]
    return [*words, "--batch_size", 10, "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "features.npz"


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of the encoder was given."""
    counts = []

    def watched(f, pixels, *arguments):
        counts.append(len(pixels))
        return knn.features(f, pixels, *arguments)

    monkeypatch.setattr(embed, "features", watched)
    return counts


def stopping(calls, stop):
    """The encoder as it is now; stop() is called after so many calls."""
    left, real = iter(range(calls)), embed.features

    def watched(*arguments):
        if next(left, None) is None:
            stop()
        return real(*arguments)

    return watched


def loaded(path):
    """The arrays of an .npz file."""
    with np.load(path) as content:
        return dict(content)


def save_image(path, value=0, size=(9, 7)):
    """A grey image of `size`, width × height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


# ---- what it writes ----


def test_features_are_those_of_the_evaluation(call, flags, out, model, pictures, encoded, capsys):
    assert call(embed, *flags, "--out", out) == 0
    content = loaded(out)
    assert set(content) == {"path", "feature", "label", "classes"}
    rows = 0
    for split in ("test", "train"):  # in path order
        images = utils.load("folder", str(pictures), split, 8)
        expected = knn.features(model.f, images.pixels, CPU, torch.float32)
        part = slice(rows, rows + len(images.labels))
        np.testing.assert_allclose(content["feature"][part], expected, rtol=1e-4, atol=1e-6)
        assert content["label"][part].tolist() == images.labels.tolist()
        assert content["path"][part].tolist() == list(images.paths)
        assert content["classes"].tolist() == images.classes
        rows += len(images.labels)
    assert rows == 36 and content["feature"].dtype == np.float32
    assert encoded == [10, 10, 10, 6]
    said = capsys.readouterr()
    line = f"36 images of 3 classes, 8×8 px ({pictures})"
    assert said.out.startswith(f"{line}\nresnet10 on cpu in float32\n")
    assert said.out.endswith(f"{out}: 36 images, feature of 512 numbers\n")
    assert said.err == ""  # no bars where there is no terminal
    assert [path.name for path in out.parent.iterdir()] == ["features.npz"]


def test_projections(call, flags, out, model):
    call(embed, *flags, "--out", out, "--projection")
    content = loaded(out)
    assert content["projection"].shape == (36, 16)
    with torch.no_grad():
        expected = model.g(torch.from_numpy(content["feature"]))
    np.testing.assert_allclose(content["projection"], expected, rtol=1e-4, atol=1e-5)


def test_any_folder(call, flags, out, tmp_path, capsys):
    """At any depth, of any size; what lies in no folder has no label."""
    root, out = tmp_path / "mine", out.with_suffix(".csv")
    names = ["b.png", "a\nb, c.png", "ä/deep/er/ü.png", "train/x.png", "unlabeled/y/z.png"]
    for value, name in enumerate(names):
        save_image(root / name, 40 * value, (9 + value, 7))
    save_image(root / ".hidden" / "x.png")
    (root / "broken.png").write_text("not an image")
    call(embed, *flags, "--root", root, "--out", out, "--skip_broken")
    said = capsys.readouterr().out
    assert "5 images, 1 of 1 class and 4 without labels" in said and "broken images (1: " in said
    order = ["a\nb, c.png", "b.png", "train/x.png", "unlabeled/y/z.png", "ä/deep/er/ü.png"]
    with open(out, newline="", encoding="utf-8") as file:
        rows = [row[:2] for row in csv.reader(file)][1:]
    assert rows == [[path, "ä" if "ä" in path else ""] for path in order]


def test_data_sets_by_name(call, flags, out, model, monkeypatch):
    """Their test images come first, then those of pretraining; -1 is no label."""
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    parts = {"test": slice(0, 4), "pretrain": slice(4, 10)}
    labels = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, -1, -1])
    monkeypatch.setattr(
        utils,
        "photos",
        lambda part: utils.Images(pixels[parts[part]], labels[parts[part]], ["a", "b"]),
    )
    call(embed, *flags, "--dataset_name", "photos", "--out", out)
    content = loaded(out)
    paths = [f"test/{i:06d}" for i in range(4)] + [f"train/{i:06d}" for i in range(6)]
    assert content["path"].tolist() == paths and content["label"].tolist() == labels.tolist()
    expected = knn.features(model.f, pixels, CPU, torch.float32)
    np.testing.assert_allclose(content["feature"], expected, rtol=1e-4, atol=1e-6)


def test_an_untrained_encoder(call, flags, out):
    found = []
    for seed in (0, 0, 1):
        words = ["--model_path", "random", "--arch", "resnet10", "--seed", seed]
        call(embed, *flags, *words, "--out", out)
        found.append(loaded(out)["feature"])
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()


# ---- interruptions ----


@pytest.mark.parametrize(("after", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_interrupted(call, flags, out, encoded, monkeypatch, after, number, capsys):
    """The same command continues; finished blocks are not encoded again, the file is the same."""
    whole = out.with_name("whole.npz")
    call(embed, *flags, "--out", whole)
    with monkeypatch.context() as patch:
        patch.setattr(embed, "features", stopping(after, lambda: os.kill(os.getpid(), number)))
        with pytest.raises(KeyboardInterrupt):
            call(embed, *flags, "--out", out)
    assert len(list(out.parent.glob("features.npz.*"))) == 1  # no lock
    encoded.clear()
    capsys.readouterr()
    call(embed, *flags, "--out", out)
    assert len(encoded) == 4 - after
    assert ("\n20 of them are finished already\n" in capsys.readouterr().out) == (after > 0)
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {"whole.npz", "features.npz"}


def test_interrupted_while_the_file_is_written(call, flags, out, encoded, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(embed.WRITERS, ".npz", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            call(embed, *flags, "--out", out)
    encoded.clear()
    call(embed, *flags, "--out", out)
    assert not encoded and len(loaded(out)["path"]) == 36


def test_rows_of_other_settings_are_not_taken(
    call, flags, out, pictures, encoded, monkeypatch, tmp_path
):
    """Nor do they stay when the output is written."""
    root = tmp_path / "mine"
    shutil.copytree(pictures, root)
    with monkeypatch.context() as patch:
        patch.setattr(embed, "features", stopping(2, lambda: signal.raise_signal(signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            call(embed, *flags, "--root", root, "--out", out)
    (partial,) = out.parent.iterdir()
    content = partial.read_bytes()
    save_image(root / "train" / "red" / "more.png")
    words = ["--model_path", "random", "--arch", "resnet10"]
    for other in (["--precision", "bf16"], ["--image_size", 7], ["--projection"], words, []):
        partial.write_bytes(content)
        encoded.clear()
        same = ["--root", pictures] if other else ["--root", root]
        call(embed, *flags, *same, *other, "--out", out)
        assert encoded[:3] == [10, 10, 10]
        assert [path.name for path in out.parent.iterdir()] == ["features.npz"]


def test_two_at_once(refused, flags, out):
    with locks.held(out.with_name("features.npz.lock"), "something"):
        message = refused(embed, *flags, "--out", out)
    assert f"is at work on {out}: wait for it, or name another --out" in message


def test_as_a_user_starts_it(script, flags, out):
    process = script("embed.py", *flags, "--out", out)
    assert process.returncode == 0, process.stderr
    assert process.stderr == "" and len(loaded(out)["path"]) == 36


# ---- what is refused ----


def test_wrong_flags_are_named(refused, flags, out, monkeypatch, tmp_path):
    def says(text, *words):
        assert text in refused(embed, *flags, "--out", out, *words)

    says("must end in .npz or .csv", "--out", "features.txt")
    says("must name a file in a folder that exists", "--out", tmp_path / "none" / "f.npz")
    says("--batch_size must be at least 1", "--batch_size", 0)
    says("--image_size must be at least 4", "--store_size", 3)
    says("there is no such folder", "--root", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    says("there are none in it", "--root", tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_text("not an image")
    says("a.png", "--root", tmp_path / "empty")
    says("does not fit resnet18", "--arch", "resnet18")
    monkeypatch.setattr(processes, "world", lambda: 2)
    says("start it without torchrun")
    assert list(out.parent.iterdir()) == []


def test_the_home_folder(call, flags, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(pictures / "test", tmp_path / "mine")
    call(embed, *flags, "--root", "~/mine", "--model_path", "~/w.pth", "--out", "~/f.npz")
    assert len(loaded(tmp_path / "f.npz")["path"]) == 12
