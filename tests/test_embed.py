"""embed.py: what its files hold, and that it continues where it was interrupted."""

import csv
import io
import json
import os
import signal

import numpy as np
import pytest
import torch
from helpers.samples import picture, put

import embed
import linear
import utils
from attentionce.errors import UserError
from attentionce.evaluation import knn
from attentionce.runs import files, locks
from attentionce.runs.feature_files import WRITERS, fill_rows
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


@pytest.fixture
def interrupted(call, monkeypatch):
    """interrupted(2, SIGINT, *flags): embed.py gets the signal in the encoder's third call."""

    def function(calls, number, *words):
        left, real = iter(range(calls)), embed.features

        def watched(*arguments):
            if next(left, None) is None:
                os.kill(os.getpid(), number)
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(embed, "features", watched)
            call(embed, *words)

    return function


def loaded(path):
    """The arrays of an .npz file."""
    with np.load(path) as content:
        return dict(content)


def table(path):
    """The header and the rows of a .csv file."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


# ---- what it writes ----


def test_features_are_those_of_the_evaluation(call, flags, out, model, pictures, encoded, capsys):
    assert call(embed, *flags, "--out", out, "--projection") == 0
    content = loaded(out)
    assert set(content) == {"path", "feature", "projection", "label", "classes"}
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
    assert rows == 36 and content["feature"].dtype == np.float32 and encoded == [10, 10, 10, 6]
    with torch.no_grad():
        expected = model.g(torch.from_numpy(content["feature"]))
    np.testing.assert_allclose(content["projection"], expected, rtol=1e-4, atol=1e-5)
    said = capsys.readouterr()
    line = f"36 images of 3 classes, 8×8 px ({pictures})"
    assert said.out.startswith(f"{line}\nresnet10 on cpu in float32\n")
    end = "feature of 512 numbers, projection of 16 numbers\n"
    assert said.out.endswith(f"{out}: 36 images, {end}")
    assert said.err == ""  # no bars where there is no terminal
    assert [path.name for path in out.parent.iterdir()] == ["features.npz"]


def test_any_folder(call, flags, out, tmp_path, capsys):
    """At any depth, of any size; what lies in no folder has no label."""
    root, out = tmp_path / "mine", out.with_suffix(".csv")
    names = ["a\nb, c.png", "b.png", "train/x.png", "unlabeled/y/z.png", "ä/deep/er/ü.png"]
    put(root, {name: picture((7, 9 + i, 3), format="PNG") for i, name in enumerate(names)})
    put(root, {".hidden/x.png": b"", "broken.png": b"not an image"})
    call(embed, *flags, "--root", root, "--out", out, "--skip_broken")
    said = capsys.readouterr().out
    assert "5 images, 1 of 1 class and 4 without labels" in said and "broken images (1)" in said
    expected = [[path, "ä" if "ä" in path else ""] for path in names]
    assert [row[:2] for row in table(out)[1]] == expected


def test_data_sets_by_name(call, flags, out, model, monkeypatch):
    """Their test images come first, then those of pretraining; -1 is no label."""
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    parts = {"test": slice(0, 4), "pretrain": slice(4, 10)}
    labels = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, -1, -1])

    def photos(split):
        return utils.Images(pixels[parts[split]], labels[parts[split]], ["a", "b"])

    monkeypatch.setattr(utils, "photos", photos)
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


def test_images_have_the_size_of_pretraining(call, flags, out, tmp_path, capsys):
    content = {"flags": {"image_size": 6, "store_size": 7}}
    (tmp_path / "w.json").write_text(json.dumps(content))
    del flags[4:6]
    call(embed, *flags, "--out", out)
    said = capsys.readouterr().out
    assert "--store_size 7, as in pretraining" in said and "7×7 px" in said


@pytest.fixture
def classifier(call, flags, tmp_path):
    """The file in which linear.py keeps its classifier, whose top-1 accuracy is not trivial."""
    words = ["--dataset_name", "folder", "--image_size", 8, "--store_size", 8, "--lr", 0.1]
    call(linear, *flags[:4], *words, "--epochs", 3, "--batch_size", 8, *flags[8:])
    (path,) = tmp_path.glob("*_linear.classifier")
    return path


def test_predictions_are_those_of_the_classifier(call, flags, out, classifier):
    del flags[4:6]  # the size is the classifier's
    call(embed, *flags, "--out", out, "--classifier", classifier)
    content = loaded(out)
    assert content["predicted"].tolist() == ["blue", "green", "red"]
    hit = content["prediction"] == content["label"]
    test = np.char.startswith(content["path"], "test/")
    row = json.loads(classifier.with_suffix(".json").read_text())["last_epoch"]
    assert 100 * hit[test].mean() == pytest.approx(row["top1"]) and 0 < hit.mean()
    call(embed, *flags, "--out", out.with_suffix(".csv"), "--classifier", classifier)
    header, rows = table(out.with_suffix(".csv"))
    assert header[:4] == ["path", "label", "prediction", "feature_0"]
    names = content["predicted"][content["prediction"]].tolist()
    assert [row[2] for row in rows] == names


def test_a_classifier_that_does_not_fit(refused, flags, out, classifier):
    def says(text, *words):
        assert text in refused(embed, *flags, "--out", out, "--classifier", classifier, *words)

    says("was fitted to other weights than random", "--model_path", "random", "--arch", "resnet10")
    says("was fitted to images of 8×8 px, these are of another size", "--image_size", 7)
    says("is not a classifier of linear.py", "--classifier", flags[1])
    content = files.read(classifier)
    files.save(classifier, {**content, "encoder": {"1.running_mean": torch.ones(64)}})
    says("was fitted with --encoder_mode reference")
    assert list(out.parent.iterdir()) == []


def test_names_and_numbers_that_text_often_spoils():
    numbers = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    numbers[0, :3] = [1e-30, 16777217, 1 / 3]
    paths, file = ["a\nb, c.png", "\udcff.png", "z" * 300], io.BytesIO()
    arrays = {"path": np.array(paths), "feature": numbers[:, :4], "projection": numbers[:, 4:]}
    arrays |= {"label": np.array([-1, 1, 0]), "classes": np.array(["cat", "dog, or ü"])}
    WRITERS[".csv"](file, arrays)
    text = file.getvalue().decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    columns = [f"feature_{i}" for i in range(4)] + [f"projection_{i}" for i in range(3)]
    assert header == ["path", "label", *columns]
    assert [row[0] for row in rows] == paths
    assert [row[1] for row in rows] == ["", "dog, or ü", "cat"]
    assert (np.array([row[2:] for row in rows], np.float32) == numbers).all()


# ---- interruptions ----


@pytest.mark.parametrize("length, first", [(0, 0), (11, 0), (95, 4), (96, 8), (120, 10)])
def test_rows_are_continued_at_a_whole_block(tmp_path, length, first, capsys):
    all_rows, path, made = np.arange(30, dtype=np.float32).reshape(10, 3) / 7, tmp_path / "rows", []
    path.write_bytes(all_rows.tobytes()[:length])

    def rows(first, last):
        made.append((first, last))
        return all_rows[first:last]

    assert (fill_rows(path, (10, 3), 4, rows) == all_rows).all()
    assert made == [block for block in ((0, 4), (4, 8), (8, 10)) if block[0] >= first]
    assert (f"{first} of them are finished" in capsys.readouterr().out) == (first > 0)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .* what is done is kept.*No space left"):
        fill_rows(tmp_path / "rows", (1, 3), 4, lambda first, last: np.ones((1, 3)))


@pytest.mark.parametrize(("after", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_interrupted(call, flags, out, encoded, interrupted, after, number):
    """The same command continues; finished blocks are not encoded again, the file is the same."""
    whole = out.with_name("whole.npz")
    call(embed, *flags, "--out", whole)
    interrupted(after, number, *flags, "--out", out)
    assert len(list(out.parent.glob("features.npz.*"))) == 1  # no lock
    encoded.clear()
    call(embed, *flags, "--out", out)
    assert len(encoded) == 4 - after and out.read_bytes() == whole.read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {"whole.npz", "features.npz"}


def test_rows_of_other_settings_are_not_taken(call, flags, out, tmp_path, encoded, interrupted):
    """Nor do they stay when the output is written."""
    root = tmp_path / "mine"
    put(root, {f"{i}.png": picture((8, 8, 3), i, "PNG") for i in range(30)})
    flags = [*flags, "--root", root, "--out", out]
    interrupted(2, signal.SIGINT, *flags)
    (partial,) = out.parent.iterdir()
    content = partial.read_bytes()
    words = ["--model_path", "random", "--arch", "resnet10"]
    for other in (["--precision", "bf16"], ["--image_size", 7], ["--projection"], words, []):
        if not other:
            put(root, {"more.png": picture((8, 8, 3), 30, "PNG")})
        partial.write_bytes(content)
        encoded.clear()
        call(embed, *flags, *other)
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
    says("--store_size must be at least 4", "--store_size", 3)
    put(tmp_path / "other", {"a.png": b"not an image"})
    says("a.png", "--root", tmp_path / "other")
    says("does not fit resnet18", "--arch", "resnet18")
    monkeypatch.setattr(processes, "world", lambda: 2)
    says("start it without torchrun")
    assert list(out.parent.iterdir()) == []
