"""embed.py: what its files hold, and that it goes on where it was interrupted."""

import csv
import shutil

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import embed
import utils
from attentionce.evaluation import knn
from attentionce.runs import files
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


def loaded(path):
    """The arrays of an .npz file."""
    with np.load(path) as content:
        return dict(content)


def save_image(path, value=0, size=(9, 7)):
    """A grey image of `size`, width × height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


# ------------------------------------------------------------------------------ what it writes


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
        assert content["classes"].tolist() == images.classes
        rows += len(images.labels)
    assert rows == 36 and content["feature"].dtype == np.float32
    assert content["path"].tolist() == sorted(content["path"])
    assert content["path"][0] == "test/blue/0.png" and content["path"][-1] == "train/red/7.png"
    assert encoded == [10, 10, 10, 6]
    said = capsys.readouterr()
    assert said.out.startswith("36 images of 8×8 px, 3 classes\nresnet10 on cpu in float32\n")
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


@pytest.mark.parametrize("ending", embed.WRITERS)
def test_a_folder_without_classes(call, flags, out, tmp_path, ending, capsys):
    """At any depth, of any size; what lies in no folder has no label."""
    root, out = tmp_path / "mine", out.with_suffix(ending)
    names = ["b.png", "a\nb, c.png", "ä/deep/er/ü.png", "train/x.png", "unlabeled/y/z.png"]
    for value, name in enumerate(names):
        save_image(root / name, 40 * value, (9 + value, 7))
    save_image(root / ".hidden" / "x.png")
    call(embed, *flags, "--root", root, "--out", out)
    assert "\nleft out: 1 hidden or of the system\n" in capsys.readouterr().out
    order = ["a\nb, c.png", "b.png", "train/x.png", "unlabeled/y/z.png", "ä/deep/er/ü.png"]
    if ending == ".csv":
        with open(out, newline="", encoding="utf-8") as file:
            rows = [row[:2] for row in csv.reader(file)][1:]
        assert rows == [[path, "ä" if "ä" in path else ""] for path in order]
    elif ending == ".npz":
        content = loaded(out)
        assert content["path"].tolist() == order
        assert content["label"].tolist() == [-1, -1, -1, -1, 0]
        assert len(np.unique(content["feature"], axis=0)) == 5
    else:
        from safetensors.numpy import load_file

        paths = load_file(out)["path"]
        assert [bytes(row).rstrip(b"\0").decode() for row in paths] == order
    shutil.rmtree(root / "ä")
    call(embed, *flags, "--root", root, "--out", out)
    if ending == ".npz":
        assert set(loaded(out)) == {"path", "feature"}


def test_data_sets_by_name(call, flags, out, model, monkeypatch):
    """Their test images come first, then those of pretraining; -1 is no label."""
    photos = {split: utils.load("photos", "", split) for split in ("test", "pretrain")}

    def few(name, root, split, side):
        pixels, labels, classes = photos[split][:3]
        assert name == "photos" and side == 8
        labels = labels.clone()
        labels[0] = -1
        return utils.Images(pixels[:12], labels[:12], classes)

    monkeypatch.setattr(embed, "load", few)
    call(embed, *flags, "--dataset_name", "photos", "--out", out)
    content = loaded(out)
    paths = [f"{split}/{i:06d}" for split in ("test", "train") for i in range(12)]
    assert content["path"].tolist() == paths
    pixels = torch.cat([photos["test"].pixels[:12], photos["pretrain"].pixels[:12]])
    expected = knn.features(model.f, pixels, CPU, torch.float32)
    np.testing.assert_allclose(content["feature"], expected, rtol=1e-4, atol=1e-6)
    assert content["label"].tolist() == [-1, *[0] * 11] * 2


def test_an_untrained_encoder(call, flags, out):
    found = []
    for seed in (0, 0, 1):
        words = ["--model_path", "random", "--arch", "resnet10", "--seed", seed]
        call(embed, *flags, *words, "--out", out)
        found.append(loaded(out)["feature"])
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()


# ------------------------------------------------------------------------------ interruptions


class Interrupt:
    """Ctrl-C when the encoder is called for the so-manieth time."""

    def __init__(self, monkeypatch, calls):
        self.left = calls
        monkeypatch.setattr(embed, "features", self)

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return knn.features(*arguments)


@pytest.mark.parametrize("after", range(5))
def test_interrupted_anywhere(call, flags, out, monkeypatch, after, capsys):
    """The same command goes on; finished blocks are not encoded again, the file is the same."""
    whole = out.with_name("whole.npz")
    call(embed, *flags, "--out", whole)
    Interrupt(monkeypatch, after)
    if after < 4:
        with pytest.raises(KeyboardInterrupt):
            call(embed, *flags, "--out", out)
        assert not out.exists()
        names = {path.name for path in out.parent.iterdir()}
        assert names == {"whole.npz", "features.npz.partial"}
    else:  # in the last moment, while the file is written
        with monkeypatch.context() as patch:
            patch.setitem(
                embed.WRITERS, ".npz", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                call(embed, *flags, "--out", out)
    capsys.readouterr()
    rest = Interrupt(monkeypatch, 4 - after)
    call(embed, *flags, "--out", out)
    assert rest.left == 0
    finished = min(36, 10 * after)
    said = f"\n{finished} of them are finished already\n"
    assert (said in capsys.readouterr().out) == (after > 0)
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {"whole.npz", "features.npz"}


@pytest.fixture
def interrupted(call, flags, out, monkeypatch):
    """The partial file of a run that finished 20 of 36 images."""
    with monkeypatch.context() as patch:
        Interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            call(embed, *flags, "--out", out)
    return out.with_name("features.npz.partial")


def test_images_that_changed_meanwhile(call, flags, out, pictures, tmp_path, encoded, monkeypatch):
    """Only new and changed ones are encoded; what is gone is not in the file."""
    root = tmp_path / "mine"
    shutil.copytree(pictures, root)
    flags = [*flags, "--root", root]
    with monkeypatch.context() as patch:
        Interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            call(embed, *flags, "--out", out)
    save_image(root / "test" / "blue" / "0.png", 200, (8, 8))  # changed
    save_image(root / "a.png", 100, (8, 8))  # new, before all others
    (root / "test" / "green" / "1.png").unlink()
    call(embed, *flags, "--out", out)
    assert encoded == [8]  # these two and the six that were left
    again = out.with_name("again.npz")
    call(embed, *flags, "--out", again)
    for name, value in loaded(again).items():
        if name == "feature":  # in other blocks the last bits may differ
            np.testing.assert_allclose(loaded(out)[name], value, rtol=1e-4, atol=1e-6)
        else:
            assert (loaded(out)[name] == value).all()


@pytest.mark.parametrize(
    "words, named",
    [
        (["--precision", "bf16"], "(precision)"),
        (["--projection"], "(weights, columns, numbers per row)"),
        (["--model_path", "random", "--arch", "resnet10"], "(weights)"),
        (["--image_size", 7], "(image size)"),
    ],
)
def test_other_settings_are_refused(refused, flags, out, interrupted, words, named):
    before = interrupted.read_bytes()
    message = refused(embed, *flags, "--out", out, *words)
    assert f"{interrupted} was made with other settings {named}" in message
    assert interrupted.read_bytes() == before


def test_broken_images_are_named_together(call, refused, flags, out, tmp_path, encoded, capsys):
    """When all others are finished; without them the same command is done at once."""
    root, bad = tmp_path / "mine", [f"bad{i:02d}.png" for i in range(12)]
    for i in range(30):
        save_image(root / f"{i}.png", i, (9, 8))
    for name in bad:
        save_image(root / name, 0, (9, 8))
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    message = refused(embed, *flags, "--root", root, "--out", out)
    assert "cannot read 12 images: " in message and "--skip_broken" in message
    assert "bad00.png" in message and "bad09.png' and 2 more" in message
    assert sum(encoded) == 30 and not out.exists()
    skipped = out.with_name("skipped.npz")
    call(embed, *flags, "--root", root, "--out", skipped, "--skip_broken")
    assert "skipped.npz: 30 images, without 12 that cannot be read" in capsys.readouterr().out
    assert loaded(skipped)["path"].tolist() == sorted(f"{i}.png" for i in range(30))
    encoded.clear()
    for name in bad:
        (root / name).unlink()
    call(embed, *flags, "--root", root, "--out", out)
    assert not encoded and out.read_bytes() == skipped.read_bytes()


def test_nothing_but_broken_images(refused, flags, out, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_text("not an image")
    words = ["--root", tmp_path / "mine", "--out", out, "--skip_broken"]
    assert "cannot read the image" in refused(embed, *flags, *words)


def test_images_above_the_limit(call, refused, flags, out, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    save_image(tmp_path / "mine" / "a.png")
    flags = [*flags, "--root", tmp_path / "mine", "--out", out]
    assert "--big_images" in refused(embed, *flags)
    call(embed, *flags, "--big_images")
    assert Image.MAX_IMAGE_PIXELS == 50 and len(loaded(out)["path"]) == 1


def test_two_at_once(refused, flags, out):
    with FileLock(out.with_name("features.npz.lock")):
        assert "another process writes" in refused(embed, *flags, "--out", out)


def test_without_locks(call, flags, out, monkeypatch, capsys):
    def no_locks(self, **_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    assert call(embed, *flags, "--out", out) == 0
    assert "cannot lock" in capsys.readouterr().out


def test_as_a_user_starts_it(script, flags, out):
    process = script("embed.py", *flags, "--out", out)
    assert process.returncode == 0, process.stderr
    assert process.stderr == "" and len(loaded(out)["path"]) == 36


# ------------------------------------------------------------------------------ what is refused


def test_wrong_flags_are_named(refused, flags, out, monkeypatch, tmp_path):
    def says(text, *words):
        assert text in refused(embed, *flags, "--out", out, *words)

    says("must end in .npz, .csv, .safetensors", "--out", "features.txt")
    says("must name a file in a folder that exists", "--out", tmp_path / "none" / "f.npz")
    says("--dataset_name cifar11", "--dataset_name", "cifar11")
    says("--batch_size must be at least 1", "--batch_size", 0)
    says("--image_size must be at least 4", "--store_size", 3)
    says("is not a folder", "--root", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    says("no images in", "--root", tmp_path / "empty")
    says("does not fit resnet18", "--arch", "resnet18")
    monkeypatch.setattr(processes, "world", lambda: 2)
    says("start it without torchrun")
    assert list(out.parent.iterdir()) == []


def test_the_home_folder(call, flags, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(pictures / "test", tmp_path / "mine")
    call(embed, *flags, "--root", "~/mine", "--model_path", "~/w.pth", "--out", "~/f.npz")
    assert len(loaded(tmp_path / "f.npz")["path"]) == 12
