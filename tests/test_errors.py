"""Wrong images, results folders and weights: one line that says what is wrong and what to do."""

import pytest
import torch
from helpers.samples import cut_network
from torch import nn
from torchvision import models

import linear
import main
from attentionce.errors import UserError
from model import Model


@pytest.fixture
def refused_by_both(refused, tiny, evaluation, encoder):
    """refused_by_both(flags): the messages of main.py and linear.py."""

    def function(*words):
        by_main = refused(main, *tiny, *words)
        return by_main, refused(linear, *evaluation, "--model_path", encoder, *words)

    return function


# ---- images ----


@pytest.mark.parametrize(
    "name, archive",
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("stl10", "stl10_binary.tar.gz"),
        ("tinyImageNet", "tiny-imagenet-200.zip"),
    ],
)
def test_no_network(refused_by_both, tmp_path, monkeypatch, name, archive):
    """The message says which file to put where."""
    cut_network(monkeypatch)
    root = tmp_path / "data"
    for message in refused_by_both("--dataset_name", name, "--root", root):
        assert archive in message and str(root) in message


@pytest.mark.parametrize(
    "name, archive",
    [("cifar100", "cifar-100-python.tar.gz"), ("tinyImageNet", "tiny-imagenet-200.zip")],
)
def test_a_failed_checksum(refused, tiny, tmp_path, monkeypatch, name, archive):
    cut_network(monkeypatch)
    path = tmp_path / archive
    path.write_bytes(b"half of it")
    message = refused(main, *tiny, "--dataset_name", name, "--root", tmp_path)
    assert archive in message and "md5" in message
    assert path.read_bytes() == b"half of it"


@pytest.mark.parametrize("root, why", [("empty", "there are none"), ("missing", "no such folder")])
def test_a_root_without_images(refused_by_both, results, encoder, tmp_path, contents, root, why):
    (tmp_path / "empty").mkdir()
    for message in refused_by_both("--root", tmp_path / root):
        assert f"--root '{tmp_path / root}' needs a folder train with one folder per" in message
        assert why in message
    assert contents(results) == {} and set(contents(encoder.parent)) == {"encoder.pth"}


def test_an_unreadable_image(refused, tiny, results, tmp_path, contents):
    for split in ("test", "train"):
        path = tmp_path / split / "class" / "broken.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no image")
    assert str(path) in refused(main, *tiny, "--root", tmp_path)
    assert contents(results) == {}  # not even the lock


def test_fewer_images_than_a_batch(refused, call, tiny, results, evaluation, encoder, contents):
    message = refused(main, *tiny, "--batch_size", 25)
    assert "--batch_size 25" in message and "24 images" in message
    assert contents(results) == {}
    # linear.py drops no images, so that less than a batch is enough.
    call(linear, *evaluation, "--model_path", encoder, "--batch_size", 25)


def test_k_above_the_number_of_images(call, tiny, evaluation, encoder, capsys):
    """The run says so and goes on with fewer."""
    call(main, *tiny, "--loss", "simclr", "--knn_every", 1, "--k", 500)
    said = capsys.readouterr().out
    assert "--k 500" in said and "using 24" in said
    call(linear, *evaluation, "--model_path", encoder, "--k", 500)
    said = capsys.readouterr().out
    assert "--k 500" in said and "using 24" in said


# ---- results ----


def test_a_results_folder_that_takes_no_files(refused, tiny, tmp_path, evaluation, nothing_loaded):
    """It lies below a regular file, because root may write into any folder."""
    file = tmp_path / "file"
    file.write_text("mine")
    folder = file / "results"
    untrained = [*evaluation, "--model_path", "random", "--arch", "resnet10"]
    for program, flags in ((main, tiny), (linear, untrained)):
        message = refused(program, *flags, "--results", folder)
        assert "--results" in message and str(folder) in message
    assert file.read_text() == "mine"


# ---- weights ----


def foreign(path, what):
    """Write something to path that is not a weights file of a resnet10."""
    state = Model(24, "resnet10").state_dict()
    if what == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif what == "text":
        path.write_text("<html>404</html>")
    elif what == "folder":
        path.mkdir()
    elif what != "missing":
        torch.save(
            {
                "a list": list(state.values()),
                "a checkpoint of another": {"epoch": 3, "state_dict": {"weight": torch.ones(2)}},
                "a whole model": nn.Linear(2, 2),
                "a number": {**state, "f.1.bias": 3},
                "another arch": Model(24, "resnet18").state_dict(),
                "another program": models.squeezenet1_1().state_dict(),
                "a key more": {**state, "f.8.weight": torch.zeros(1)},
                "a key less": {key: value for key, value in state.items() if key != "f.1.weight"},
                "another shape": {**state, "f.0.weight": torch.zeros(64, 3, 5, 5)},
            }[what],
            path,
        )


@pytest.mark.parametrize(
    ("what", "named"),
    {
        "missing": "no file",
        "truncated": "truncated",
        "text": "is a web page, not weights: download it again",
        "folder": "foreign.pth",
        "a list": "a list, not a state_dict",
        "a checkpoint of another": "not of a known arch",
        "a whole model": "more than tensors",
        "a number": "f.1.bias holds a int, not a tensor",
        "another arch": "f.3.1.conv1.weight",
        "another program": "not of a known arch",
        "a key more": "'f.8.weight' is not part",
        "a key less": "f.1.weight is missing",
        "another shape": "f.0.weight has shape (64, 3, 5, 5) instead of (64, 3, 3, 3)",
    }.items(),
)
def test_bad_weights(refused, evaluation, encoder, nothing_loaded, contents, what, named):
    """All are opened before the first is evaluated, so that good ones have no results either."""
    path = encoder.parent / "foreign.pth"
    foreign(path, what)
    before = contents(encoder.parent)
    arch = ["--arch", "resnet10"] if what == "another arch" else []
    message = refused(linear, *evaluation, *arch, "--model_path", encoder, path)
    assert str(path) in message and named in message
    assert contents(encoder.parent) == before


def test_weights_of_another_arch_than_the_flag_says(refused, evaluation, encoder):
    message = refused(linear, *evaluation, "--arch", "resnet50", "--model_path", encoder)
    assert "resnet50" in message and "f.3.0.conv3.weight is missing" in message


def test_a_message_is_one_printable_line():
    """Whatever the names of files or the flags in a damaged state hold."""
    assert str(UserError("--lr 1 (there: \x16)\r\nand \udcff: é 漢")) == (
        "--lr 1 (there: \\x16)  and \\udcff: é 漢"
    )
