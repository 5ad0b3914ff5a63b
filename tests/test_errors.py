"""Bad input: one line that says what is wrong and what to do, exit status 2, no traceback, nothing half-written.

Most programs run in this process, where what becomes that line is a UserError; a few run as a user starts them.
"""

import json
import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import datasets, models

import linear
import main
from attentionce import cli
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import one_step
from model import Model

CUDA = "cuda" if not torch.cuda.is_available() else "cuda:99"


@pytest.fixture
def nothing_loaded(monkeypatch):
    """The mistake must be noticed before any images are loaded."""

    def fail(*_):
        pytest.fail("images were loaded first")

    monkeypatch.setattr(main, "load", fail)
    monkeypatch.setattr(linear, "load", fail)


@pytest.fixture
def encoder(tmp_path):
    """A file of weights, in a folder of its own."""
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "encoder.pth"
    torch.save(
        {f"module.{key}": value for key, value in Model(24, "resnet10").state_dict().items()}, path
    )
    return path


@pytest.fixture
def evaluation(tiny):
    """Flags of linear.py for an evaluation of a second."""
    return [*tiny[:6], "--image_size", 8, "--batch_size", 8, "--epochs", 1]


def one_line(process):
    """The error of a process that must have ended as one with bad input does."""
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and line.isprintable()
    return line


# ---- as a user sees it ----


def test_a_process_ends_with_one_line(script, tmp_path, encoder):
    results = tmp_path / "results"
    process = script("main.py", "--dataset_name", "cifar11", "--results", results)
    assert "--dataset_name cifar11" in one_line(process) and "cifar100" in one_line(process)
    assert process.stdout == "" and not results.exists()

    encoder.write_bytes(encoder.read_bytes()[:1000])
    process = script("linear.py", "--dataset_name", "photos", "--model_path", encoder)
    assert str(encoder) in one_line(process)
    assert process.stdout == "" and [path.name for path in encoder.parent.iterdir()] == [
        "encoder.pth"
    ]


def test_run_makes_one_line_of_any_message(capsys):
    def fail():
        print("so far")
        raise UserError("two\nlines of\ttext")

    with pytest.raises(SystemExit) as caught:
        cli.run(fail)
    assert caught.value.code == 2
    assert tuple(capsys.readouterr()) == ("so far\n", "error: two lines of text\n")


def test_run_passes_on_a_status_and_hides_no_bug():
    for status in (0, 143, None):
        with pytest.raises(SystemExit) as caught:
            cli.run(lambda status=status: status)
        assert caught.value.code == status
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


# ---- flags ----


MAIN = [
    ("--dataset_name", "cifar11"),
    ("--temperature", "0"),
    ("--temperature", "-1"),
    ("--temperature", "nan"),
    ("--d_pos", "0"),
    ("--d_pos", "inf"),
    ("--d_neg", "-0.5"),
    ("--epochs", "0"),
    ("--epochs", "-3"),
    ("--epochs", "two"),
    ("--batch_size", "1"),
    ("--batch_size", "0"),
    ("--num_pos", "0"),
    ("--k", "0"),
    ("--lr", "0"),
    ("--lr", "nan"),
    ("--knn_every", "-1"),
    ("--save_every", "-1"),
    ("--save_every", "0"),
    ("--seed", "-1"),
    ("--image_size", "0"),
    ("--store_size", "0"),
    ("--weight_decay", "-1"),
    ("--feature_dim", "0"),
    ("--loss", "infonce"),
    ("--arch", "resnet11"),
    ("--precision", "fp8"),
    ("--precision", "fp16"),
    ("--device", CUDA),
    ("--device", "toaster"),
    ("--device", "meta"),
    ("--estimator", "BYOL"),
    ("--colour", "red"),
    ("--state_minutes", "nan"),
]
LINEAR = [
    ("--dataset_name", "cifar11"),
    ("--temperature", "0"),
    ("--epochs", "0"),
    ("--batch_size", "1"),
    ("--k", "0"),
    ("--lr", "0"),
    ("--lr", "-1"),
    ("--seed", "-1"),
    ("--image_size", "0"),
    ("--weight_decay", "-1"),
    ("--arch", "resnet11"),
    ("--precision", "fp16"),
    ("--device", CUDA),
    ("--encoder_mode", "thawed"),
    ("--colour", "red"),
]


@pytest.mark.parametrize(("flag", "value"), MAIN)
def test_bad_flags_of_main(refused, tiny, results, nothing_loaded, flag, value):
    message = refused(main, *tiny, "--device", "cpu", flag, value)
    assert flag in message and value in message
    assert not results.exists()


@pytest.mark.parametrize(("flag", "value"), LINEAR)
def test_bad_flags_of_linear(
    refused, evaluation, encoder, results, nothing_loaded, contents, flag, value
):
    message = refused(linear, *evaluation, "--model_path", encoder, "--device", "cpu", flag, value)
    assert flag in message and value in message
    assert set(contents(encoder.parent)) == {"encoder.pth"} and not results.exists()


@pytest.mark.parametrize(
    ("loss", "flag", "value"),
    [
        ("dcl", "tau_plus", 1),
        ("dcl", "tau_plus", -0.1),
        ("hcl", "beta", -1),
        ("bcl", "alpha", 1.5),
        ("bcl", "beta", 2),
    ],
)
def test_bad_parameters_of_a_loss(refused, tiny, results, nothing_loaded, loss, flag, value):
    message = refused(main, *tiny, "--loss", loss, f"--{flag}", value)
    assert flag in message and loss in message and not results.exists()


def test_no_flags(refused):
    assert "--model_path" in refused(linear)


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


# ---- numbers that go wrong ----


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_run(
    refused, tiny, results, monkeypatch, bad, contents
):
    """In epoch 2, step 2. What stays is the last good weights, and the state of before that very step."""
    runs, seen = [], []
    mean_loss = one_step.mean_loss

    def watched(run, z):
        runs.append(run)
        tensors = [run.model.parameters(), run.model.buffers()]
        seen.append([[t.detach().clone() for t in group] for group in tensors])
        return mean_loss(run, z) * (bad if len(seen) == 5 else 1)

    monkeypatch.setattr(one_step, "mean_loss", watched)
    message = refused(main, *tiny, "--epochs", 3, "--save_every", 1, "--loss", "simclr")
    assert "epoch 2, step 2" in message and "--lr 0.001" in message and "--loss simclr" in message
    stem = "folder/folder_SimCLR_simclr_8_"
    assert set(contents(results)) == {
        stem + ending for ending in ("1.pth", "3.csv", "3.json", "3.state", "3.nonfinite.state")
    }
    assert len((results / (stem + "3.csv")).read_text().splitlines()) == 2
    state = files.read(results / (stem + "3.nonfinite.state"))
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 1)
    assert all(value.isfinite().all() for value in state["model"].values())
    names = [
        [name for name, _ in group]
        for group in (runs[0].model.named_parameters(), runs[0].model.named_buffers())
    ]
    # the parameters as step 2 found them, BatchNorm's statistics as step 1 left them
    for name, value in [
        *zip(names[0], seen[4][0], strict=True),
        *zip(names[1], seen[3][1], strict=True),
    ]:
        assert torch.equal(state["model"][name], value), name
    good = files.read(results / (stem + "1.pth"))
    for name, value in zip(names[0], seen[3][0], strict=True):
        assert torch.equal(good[f"module.{name}"], value)


def test_a_gradient_that_is_not_finite_stops_the_run(refused, tiny, results, monkeypatch):
    """A finite loss with a gradient of NaN must not reach the weights."""
    mean_loss = one_step.mean_loss

    def kinked(run, z):
        kink = (z - z.detach()).abs().sum().sqrt()  # 0, but with a gradient of NaN
        return mean_loss(run, z) + kink

    monkeypatch.setattr(one_step, "mean_loss", kinked)
    message = refused(main, *tiny, "--loss", "simclr")
    assert "gradient" in message and "epoch 1, step 1" in message
    state = files.read(results / "folder" / "folder_SimCLR_simclr_8_1.nonfinite.state")
    torch.manual_seed(0)
    start = Model(128, "resnet10").state_dict()
    assert all(torch.equal(state["model"][key], value) for key, value in start.items())


def test_a_diverging_run_as_a_user_sees_it(script, tiny, results):
    process = script("main.py", *tiny, "--epochs", 2, "--loss", "simclr", "--lr", 1e20)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    *bars, line = process.stderr.splitlines()
    assert all(bar.lstrip().startswith("epoch ") for bar in bars if bar.strip())
    assert (
        line.startswith("error: ")
        and "not finite at epoch 1, step" in line
        and "--lr 1e+20" in line
    )
    (path,) = (results / "folder").glob("*.nonfinite.state")
    state = files.read(path)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not list((results / "folder").glob("*.pth"))


def test_what_can_be_seen_after_a_stop_is_not_gone_on_from(
    refused, call, tiny, results, monkeypatch
):
    """The same command again starts from the last good state, not from the one that is kept to be looked at."""
    step = one_step.update_weights
    count = iter(range(100))
    monkeypatch.setattr(
        one_step,
        "update_weights",
        lambda run, loss: step(run, loss * torch.nan if next(count) == 4 else loss),
    )
    refused(main, *tiny, "--epochs", 2, "--loss", "simclr")
    assert (
        call(main, *tiny, "--epochs", 2, "--loss", "simclr") == 0
    )  # a fault that does not come again
    stem = results / "folder" / "folder_SimCLR_simclr_8_2"
    assert len(Path(f"{stem}.csv").read_text().splitlines()) == 3
    assert json.loads(Path(f"{stem}.json").read_text())["epochs_done"] == 2


def test_out_of_gpu_memory_is_one_line(monkeypatch, capsys):
    def main():
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
        )

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2
    said = capsys.readouterr().err
    advice = "use main.py's --grad_cache or a smaller --batch_size"
    assert said.startswith(f"error: CUDA out of memory: {advice}") and said.count("\n") == 1
