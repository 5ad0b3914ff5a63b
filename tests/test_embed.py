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
from attentionce.data.images import Images
from attentionce.evaluation import knn
from attentionce.runs import files, locks
from attentionce.runs.feature_files import WRITERS
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
    """interrupted(*flags): embed.py gets a SIGINT in the encoder's third call."""

    def function(*words):
        left, real = iter(range(2)), embed.features

        def watched(*arguments):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGINT)
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
    parts = [utils.load("folder", str(pictures), split, 8) for split in ("test", "train")]
    pixels = torch.cat([images.pixels for images in parts])  # in path order
    expected = knn.features(model.f, pixels, CPU, torch.float32)
    np.testing.assert_allclose(content["feature"], expected, rtol=1e-4, atol=1e-6)
    assert content["label"].tolist() == torch.cat([images.labels for images in parts]).tolist()
    assert content["path"].tolist() == parts[0].paths + parts[1].paths
    assert content["classes"].tolist() == parts[0].classes
    assert content["feature"].dtype == np.float32 and encoded == [10, 10, 10, 6]
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


def test_any_folder(call, refused, flags, out, tmp_path, capsys):
    """At any depth, of any size; what lies in no folder has no label."""
    root, out = tmp_path / "mine", out.with_suffix(".csv")
    names = ["b.png", "train/x.png", "unlabeled/y/z.png", "ä/deep/er/ü.png"]
    put(root, {name: picture((7, 9 + i, 3), format="PNG") for i, name in enumerate(names)})
    put(root, {"broken.png": b"not an image"})
    assert "broken.png" in refused(embed, *flags, "--root", root, "--out", out)
    call(embed, *flags, "--root", root, "--out", out, "--skip_broken")
    said = capsys.readouterr().out
    assert "4 images, 1 of 1 class and 3 without labels" in said and "broken images (1)" in said
    assert [row[:2] for row in table(out)[1]] == [[path, "ä" * ("ä" in path)] for path in names]


def test_data_sets_by_name(call, flags, out, monkeypatch):
    """Their test images come first, then those of pretraining; -1 is no label."""
    labels = {"test": [0, 1, 0, 1], "pretrain": [1, 1, 0, -1]}

    def photos(split):
        pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        return Images(pixels, torch.tensor(labels[split]), ["a", "b"])

    monkeypatch.setattr(utils, "photos", photos)
    call(embed, *flags, "--dataset_name", "photos", "--out", out)
    content = loaded(out)
    paths = [f"{part}/{i:06d}" for part in ("test", "train") for i in range(4)]
    assert content["path"].tolist() == paths
    assert content["label"].tolist() == labels["test"] + labels["pretrain"]


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
    numbers = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    numbers[0, :3] = [1e-30, 16777217, 1 / 3]
    paths, file = ["a\nb, c.png", "\udcff.png", "z" * 300], io.BytesIO()
    arrays = {"path": np.array(paths), "feature": numbers[:, :3], "projection": numbers[:, 3:]}
    arrays |= {"label": np.array([-1, 1, 0]), "classes": np.array(["cat", "dog, or ü"])}
    WRITERS[".csv"](file, arrays)
    text = file.getvalue().decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    columns = ["feature_0", "feature_1", "feature_2", "projection_0"]
    assert header == ["path", "label", *columns]
    assert [row[0] for row in rows] == paths
    assert [row[1] for row in rows] == ["", "dog, or ü", "cat"]
    assert (np.array([row[2:] for row in rows], np.float32) == numbers).all()


# ---- interruptions ----


def test_a_full_disk(refused, flags, out, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(embed, *flags, "--out", out)
    assert "cannot write" in message and "what is done is kept" in message


def test_interrupted(call, flags, out, encoded, interrupted, capsys):
    """The same command continues; finished blocks are not encoded again, the file is the same."""
    whole = out.with_name("whole.npz")
    call(embed, *flags, "--out", whole)
    interrupted(*flags, "--out", out)
    (partial,) = out.parent.glob("features.npz.*")  # no lock
    os.truncate(partial, partial.stat().st_size - 5)  # as if it were killed while it writes
    encoded.clear()
    call(embed, *flags, "--out", out)
    assert "10 of them are finished already" in capsys.readouterr().out
    assert encoded == [10, 10, 6] and out.read_bytes() == whole.read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {"whole.npz", "features.npz"}


def test_rows_of_other_settings_are_not_taken(call, flags, out, encoded, interrupted):
    """Nor do they stay when the output is written."""
    interrupted(*flags, "--out", out)
    (partial,) = out.parent.iterdir()
    content = partial.read_bytes()
    untrained = ["--model_path", "random", "--arch", "resnet10"]
    for other in (["--precision", "bf16"], ["--image_size", 7], ["--projection"], untrained):
        partial.write_bytes(content)
        encoded.clear()
        call(embed, *flags, "--out", out, *other)
        assert encoded == [10, 10, 10, 6]
        assert [path.name for path in out.parent.iterdir()] == ["features.npz"]


def test_two_at_once(refused, flags, out):
    with locks.held(out.with_name("features.npz.lock"), "something"):
        message = refused(embed, *flags, "--out", out)
    assert f"is at work on {out}: wait for it, or name another --out" in message


# ---- what is refused ----


def test_wrong_flags_are_named(refused, flags, out, tmp_path):
    def says(text, *words):
        assert text in refused(embed, *flags, "--out", out, *words)

    says("must end in .npz or .csv", "--out", "features.txt")
    says("must name a file in a folder that exists", "--out", tmp_path / "none" / "f.npz")
    says("--batch_size must be at least 1", "--batch_size", 0)
    assert list(out.parent.iterdir()) == []
