"""Wrong images, results folders and weights: one line that says what is wrong and what to do."""

import urllib.error

import pytest
import torch
from torch import nn
from torchvision import datasets, models

import linear
import main
from model import Model


# ---- images ----
def test_no_network(refused, tiny, tmp_path, monkeypatch, encoder, evaluation):
    """Which file to put where."""

    def fail(url, *_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(datasets.utils, "_get_redirect_url", fail)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", fail)
    root = tmp_path / "data"
    archives = {
        "cifar10": "cifar-10-python.tar.gz",
        "stl10": "stl10_binary.tar.gz",
        "tinyImageNet": "tiny-imagenet-200.zip",
    }
    for name, archive in archives.items():
        words = ["--dataset_name", name, "--root", root]
        for message in (
            refused(main, *tiny, *words),
            refused(linear, *evaluation, "--model_path", encoder, *words),
        ):
            assert archive in message and str(root) in message


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "tiny-imagenet-200.zip"])
def test_a_failed_checksum(refused, tiny, tmp_path, monkeypatch, name):
    def fail(url, *_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(datasets.utils, "_get_redirect_url", fail)
    monkeypatch.setattr(datasets.utils, "_urlretrieve", fail)
    (tmp_path / name).write_bytes(b"half of it")
    message = refused(
        main,
        *tiny,
        "--dataset_name",
        "cifar100" if "cifar" in name else "tinyImageNet",
        "--root",
        tmp_path,
    )
    assert name in message and "md5" in message
    assert (tmp_path / name).read_bytes() == b"half of it"


def test_a_root_without_the_folders(
    refused, tiny, results, evaluation, encoder, tmp_path, contents
):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "missing"):
        for message in (
            refused(main, *tiny, "--root", root),
            refused(linear, *evaluation, "--model_path", encoder, "--root", root),
        ):
            assert str(root) in message and "train" in message and "test or val" in message
    assert contents(results) == {} and set(contents(encoder.parent)) == {"encoder.pth"}


def test_an_unreadable_image(refused, tiny, results, tmp_path, contents):
    for split in ("train", "test"):
        (tmp_path / split / "class").mkdir(parents=True)
        (tmp_path / split / "class" / "broken.png").write_bytes(b"no image")
    assert str(tmp_path / "train" / "class" / "broken.png") in refused(
        main, *tiny, "--root", tmp_path
    )
    assert contents(results) == {}  # not even the lock


def test_fewer_images_than_a_batch(refused, call, tiny, results, evaluation, encoder, contents):
    message = refused(main, *tiny, "--batch_size", 25)
    assert "--batch_size 25" in message and "24 images" in message
    assert contents(results) == {}
    call(
        linear, *evaluation, "--model_path", encoder, "--batch_size", 25
    )  # which drops no images, so one batch is enough


def test_k_above_the_number_of_images(call, tiny, evaluation, encoder, capsys):
    """Clamped, and said: the run goes on."""
    call(main, *tiny, "--loss", "simclr", "--knn_every", 1, "--k", 500)
    assert "--k 500" in (said := capsys.readouterr().out) and "using 24" in said
    call(linear, *evaluation, "--model_path", encoder, "--k", 500)
    assert "--k 500" in (said := capsys.readouterr().out) and "using 24" in said


# ---- results ----
def test_a_results_folder_that_takes_no_files(refused, tiny, tmp_path, evaluation, nothing_loaded):
    """Found before anything is loaded. (Below a regular file: root may write into any folder.)"""
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "results"
    assert (
        "--results" in (message := refused(main, *tiny, "--results", folder))
        and str(folder) in message
    )
    message = refused(
        linear, *evaluation, "--model_path", "random", "--arch", "resnet10", "--results", folder
    )
    assert "--results" in message and str(folder) in message
    assert (tmp_path / "file").read_text() == "mine"


# ---- weights ----
def foreign(path, what):
    """Write something to path that is no file of weights for resnet10."""
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
    """All are opened before the first is evaluated: the good ones before it have no results either."""
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
