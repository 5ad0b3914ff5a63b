"""main.py, then linear.py: what they write and print, that seeds decide everything, and what each leaves unchanged."""

import copy
import csv
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import linear
import loss
import main
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import devices, one_step
from model import Model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "checkpoint_keys.json").read_text())
COLUMNS = {
    "epoch",
    "loss",
    "views",
    "seconds",
    "skipped",
    "effective_positives",
    "effective_negatives",
    "knn_top1",
    "knn_top5",
}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def equal(a, b):
    """Whether two state_dicts have the same keys and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def linear_flags(tiny, *words):
    """Flags for linear.py on the data set of `tiny`."""
    return [*tiny[:4], "--image_size", 8, "--batch_size", 8, "--epochs", 2, *words]


@pytest.fixture
def encoder(tmp_path):
    """A file of weights of an untrained resnet10 whose BatchNorm has seen some images."""
    torch.manual_seed(5)
    model = Model(24, "resnet10")
    model(torch.randn(16, 3, 8, 8))
    path = tmp_path / "encoder.pth"
    files.save(path, {f"module.{key}": value for key, value in model.state_dict().items()})
    return path


# ---- both programs ----


def test_pretrain_and_evaluate_the_photographs(script, results):
    """The two commands as a user gives them, each in a process of its own."""
    flags = ["--dataset_name", "photos", "--image_size", 8, "--batch_size", 512]
    trained = script(
        "main.py",
        *flags,
        "--arch",
        "resnet10",
        "--num_pos",
        1,
        "--d_neg",
        10,
        "--epochs",
        2,
        "--knn_every",
        0,
        "--results",
        results,
        "--seed",
        1,
    )
    assert trained.returncode == 0, trained.stderr
    assert "resnet10: 5.23 M parameters, 0.02 G multiply-adds" in trained.stdout
    assert (
        "epoch 2/2" in trained.stderr and "images/s" in trained.stderr and "loss=" in trained.stderr
    )
    stem = results / "photos" / "photos_SimCLR_1model_512_2_1.0_10.0"
    written = {path.name for path in stem.parent.iterdir()}
    assert written == {
        stem.name + ending for ending in (".csv", ".json", ".pth", ".state", ".state.previous")
    }
    losses = [float(row["loss"]) for row in rows(f"{stem}.csv")]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)

    evaluated = script("linear.py", *flags, "--epochs", 1, "--k", 20, "--model_path", f"{stem}.pth")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "(resnet10): kNN top-1" in evaluated.stdout
    result = json.loads(Path(f"{stem}_linear.json").read_text())
    for which in ("last", "best"):
        row = result[f"{which}_epoch"]
        assert (
            f"{which} epoch (1): top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %"
            in evaluated.stdout
        )
    assert (
        result["knn_top1"] > 20
    )  # 6 % is chance, 45 % usual; the images are more than noise to it
    assert 6 < result["best_epoch"]["top1"] < result["best_epoch"]["top5"] <= 100


# ---- main.py ----


def test_flags_and_defaults_of_the_reference():
    flags = vars(main.parse_args([]))
    expected = {
        "root": "data",
        "feature_dim": 128,
        "temperature": 0.5,
        "k": 200,
        "batch_size": 256,
        "epochs": 400,
        "estimator": "SimCLR",
        "dataset_name": "cifar10",
        "d_pos": 1,
        "d_neg": 1,
        "lr": 1e-3,
        "weight_decay": 1e-6,
        "loss": "attentionce",
        "num_pos": 4,
        "arch": "resnet50",
        "image_size": 32,
        "knn_every": 10,
        "precision": "auto",
        "results": "results",
        "save_every": 200,
        "device": None,
    }
    assert {name: flags[name] for name in expected} == expected
    assert main.parse_args(["--dataset_name", "tinyImageNet"]).save_every == 100
    assert main.parse_args(["--dataset_name", "tinyImageNet", "--save_every", "7"]).save_every == 7
    flags = vars(linear.parse_args(["--model_path", "random"]))
    expected = {
        "root": "data",
        "batch_size": 512,
        "epochs": 100,
        "dataset_name": "cifar10",
        "lr": 1e-3,
        "weight_decay": 1e-6,
        "image_size": 32,
        "arch": None,
        "encoder_mode": "frozen",
        "results": "results",
    }
    assert {name: flags[name] for name in expected} == expected
    assert linear.parse_args(["--model_path", "random", "--dataset_name", "stl10"]).lr == 1e-2
    assert (
        linear.parse_args(["--model_path", "random", "--dataset_name", "stl10", "--lr", "0.5"]).lr
        == 0.5
    )


def test_what_a_run_writes(call, tiny, results, capsys, contents):
    """Weights at every multiple of --save_every and at the end; a row an epoch; kNN when it is due and at the end."""
    assert (
        call(
            main,
            *tiny,
            "--epochs",
            3,
            "--save_every",
            2,
            "--knn_every",
            2,
            "--k",
            5,
            "--d_pos",
            2,
            "--seed",
            9,
        )
        == 0
    )
    stem = "folder_SimCLR_4model_8_{}_2.0_1.0"
    weights_written = {stem.format(epoch) + ".pth" for epoch in (2, 3)}
    others = {stem.format(3) + ending for ending in (".csv", ".json", ".state", ".state.previous")}
    folder = results / "folder"
    assert set(contents(results)) == {f"folder/{name}" for name in weights_written | others}

    table = rows(folder / (stem.format(3) + ".csv"))
    assert set(table[0]) >= COLUMNS
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert [int(row["views"]) for row in table] == [epoch * 24 * 6 for epoch in (1, 2, 3)]
    assert [row["knn_top1"] != "" for row in table] == [False, True, True]
    for row in table:
        assert 0 < float(row["loss"]) < 20 and 1 <= float(row["effective_positives"]) <= 4
        assert 1 <= float(row["effective_negatives"]) <= 14
    assert "epoch 2: kNN top-1" in capsys.readouterr().out

    result = json.loads((folder / (stem.format(3) + ".json")).read_text())
    flags = vars(main.parse_args([]))
    assert result["flags"].keys() == flags.keys()
    for name, value in {
        "seed": 9,
        "d_pos": 2.0,
        "epochs": 3,
        "dataset_name": "folder",
        "temperature": 0.5,
    }.items():
        assert result["flags"][name] == value
    assert result["machine"]["torch"] == torch.__version__ and result["machine"]["device"] == "cpu"
    assert {"python", "torchvision", "numpy", "commit"} <= result["machine"].keys()
    assert result["precision"] == "float32" and result["epochs_done"] == 3
    assert result["best_knn"] == max(float(row["knn_top1"] or 0) for row in table)
    assert str(result["last"]["loss"]) == table[-1]["loss"]

    first, last = (files.read(folder / (stem.format(epoch) + ".pth")) for epoch in (2, 3))
    assert all(key.startswith("module.f.") or key.startswith("module.g.") for key in last)
    assert not equal(first, last)
    assert all(isinstance(value, torch.Tensor) for value in last.values())
    assert last["module.f.1.num_batches_tracked"] == 3 * 3 * 6


def test_the_seed_decides_every_bit(call, tiny, tmp_path, results):
    found = []
    for i, seed in enumerate((0, 0, 1)):
        torch.rand(i)  # what was drawn before does not matter
        call(main, *tiny, "--num_pos", 2, "--seed", seed, "--results", results / str(i))
        found.append(
            files.read(results / str(i) / "folder" / "folder_SimCLR_2model_8_1_1.0_1.0.pth")
        )
    assert equal(found[0], found[1])
    assert not torch.equal(found[0]["module.f.0.weight"], found[2]["module.f.0.weight"])


NAMES = {
    "attentionce": "4model_8_1_1.0_1.0",
    "simclr": "simclr_8_1",
    "dcl": "dcl_8_1_0.1",
    "hcl": "hcl_8_1_0.1_1.0",
    "bcl": "bcl_8_1_0.1_0.9_0.9",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_trains(call, tiny, results, name):
    assert call(main, *tiny, "--loss", name) == 0
    path = results / "folder" / f"folder_SimCLR_{NAMES[name]}"
    (row,) = rows(f"{path}.csv")
    entry = loss.LOSSES[name]
    assert 0 < float(row["loss"]) < 20 and int(row["views"]) == 24 * entry.views(4)
    assert (row["effective_negatives"] == "") == (not entry.attention)
    state = files.read(f"{path}.pth")
    assert all(value.isfinite().all() for value in state.values())
    torch.manual_seed(0)
    assert not torch.equal(
        state["module.f.0.weight"], Model(128, "resnet10").f[0].weight
    )  # it has moved


@pytest.mark.parametrize(
    "words, alpha, beta",
    [
        ("--loss bcl", 0.9, 0.9),
        ("--loss bcl --dataset_name stl10", 0.7, 1.0),
        ("--loss bcl --dataset_name cifar100", 0.7, 1.0),
        ("--loss bcl --dataset_name tinyImageNet", 0.8, 1.0),
        ("--loss bcl --beta 0.5", 0.9, 0.5),
        ("--loss bcl --alpha 0", 0.0, 0.9),
        ("--loss hcl", 0.9, 1.0),
        ("--loss hcl --beta 0", 0.9, 0.0),
    ],
)
def test_other_losses_have_their_authors_settings(words, alpha, beta):
    args = main.parse_args(words.split())
    assert (args.tau_plus, args.alpha, args.beta) == (0.1, alpha, beta)


def test_each_loss_is_the_one_that_is_named(monkeypatch):
    """With its flags: the value on some embeddings is that of the function called by hand."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(3, 5, 4, generator=generator), dim=-1)
    words = [
        "--temperature",
        "0.3",
        "--tau_plus",
        "0.2",
        "--alpha",
        "0.7",
        "--beta",
        "0.6",
        "--d_pos",
        "2",
        "--d_neg",
        "0.5",
    ]
    expected = {
        "attentionce": loss.attentionce(z, 0.3, 2.0, 0.5),
        "simclr": loss.simclr(z[:2], 0.3),
        "dcl": loss.dcl(z[:2], 0.3, 0.2),
        "hcl": loss.hcl(z[:2], 0.3, 0.2, 0.6),
        "bcl": loss.bcl(z[:2], 0.3, 0.2, 0.7, 0.6),
    }
    assert expected.keys() == loss.LOSSES.keys()
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    for name, value in expected.items():
        flags = ["--loss", name, "--num_pos", "1", "--arch", "resnet10", "--dataset_name", "photos"]
        args = main.parse_args([*flags, *words])
        run = main.assemble(args, torch.zeros(1, 3, 8, 8), torch.device("cpu"), torch.float32)
        assert torch.equal(one_step.mean_loss(run, z[: run.views]), value)


def test_moco_trains(call, tiny, results):
    assert call(main, *tiny, "--estimator", "MoCo", "--queue", 16, "--num_pos", 1) == 0
    path = results / "folder" / "folder_MoCo_1model_8_1_1.0_1.0.pth"
    assert list(files.read(path)) == [
        f"module.{key}" for key in Model(128, "resnet10").state_dict()
    ]


@pytest.mark.parametrize("flag", [(), ("--grad_cache",)])
def test_grad_cache_is_used_when_it_is_asked_for(call, tiny, monkeypatch, flag):
    used = []
    for name in ("plain_step", "cached_step"):
        step = getattr(one_step, name)
        monkeypatch.setattr(
            one_step, name, lambda *a, name=name, step=step: (used.append(name), step(*a))[1]
        )
    monkeypatch.setattr(main, "save_state", lambda *_: None)
    call(main, *tiny, "--loss", "simclr", *flag)
    assert used == 3 * ["cached_step" if flag else "plain_step"]


def test_a_resnet50_file_is_one_of_the_reference(call, tiny, results, monkeypatch):
    monkeypatch.setattr(main, "save_state", lambda *_: None)  # 300 MB
    flags = ["--arch", "resnet50", "--batch_size", 24, "--loss", "simclr", "--resume", "never"]
    call(main, *tiny, *flags)
    state = files.read(results / "folder" / "folder_SimCLR_simclr_24_1.pth")
    assert [(key, list(value.shape)) for key, value in state.items()] == list(GOLDEN.items())
    assert type(state) is dict or type(state).__name__ == "OrderedDict"


# ---- linear.py ----


@pytest.mark.parametrize("mode", ["frozen", "reference"])
def test_the_encoder_is_frozen(call, tiny, encoder, monkeypatch, mode):
    """In frozen mode no bit of it changes; as in the reference, BatchNorm's statistics and nothing else."""
    opened = []
    load_encoder = linear.load_encoder

    def watched(*arguments):
        model, arch = load_encoder(*arguments)
        opened.append((model, copy.deepcopy(model.state_dict())))
        return model, arch

    monkeypatch.setattr(linear, "load_encoder", watched)
    call(linear, *linear_flags(tiny, "--encoder_mode", mode, "--model_path", encoder))
    ((model, before),) = opened
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if mode == "frozen":
        assert not changed
    else:
        norms = [
            name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)
        ]
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert changed == {f"{name}.{which}" for name in norms for which in statistics}
    assert all(p.grad is None for p in model.parameters())


def test_frozen_features_train_the_classifier(call, tiny, encoder, monkeypatch):
    """The encoder is in eval mode while it encodes the training views, too."""
    modes, forward = [], nn.BatchNorm2d.forward

    def watched(self, x):
        modes.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", watched)
    call(linear, *linear_flags(tiny, "--epochs", 1, "--model_path", encoder))
    assert len(modes) > 3 and not any(modes)


def test_what_an_evaluation_writes(call, tiny, encoder, capsys, monkeypatch, contents):
    """The last epoch and the best one (the first of equals), each named as what it is."""
    accuracies = iter([(10.0, 50.0), (30.0, 60.0), (30.0, 70.0), (20.0, 55.0)])
    monkeypatch.setattr(linear, "accuracy", lambda *_: next(accuracies))
    call(linear, *linear_flags(tiny, "--epochs", 4, "--k", 5, "--seed", 2, "--model_path", encoder))
    assert set(contents(encoder.parent)) == {
        "encoder.pth",
        "encoder_folder_linear.csv",
        "encoder_folder_linear.json",
    }
    table = rows(encoder.parent / "encoder_folder_linear.csv")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert [float(row["top1"]) for row in table] == [10, 30, 30, 20]
    assert all(0 < float(row["loss"]) < 20 for row in table)
    result = json.loads((encoder.parent / "encoder_folder_linear.json").read_text())
    assert [result["last_epoch"][key] for key in ("epoch", "top1", "top5")] == [4, 20, 55]
    assert [result["best_epoch"][key] for key in ("epoch", "top1", "top5")] == [2, 30, 60]
    assert (
        result["flags"]["seed"] == 2
        and result["flags"]["encoder_mode"] == "frozen"
        and "torch" in result["machine"]
    )
    out = capsys.readouterr().out
    assert (
        "last epoch (4): top-1 20.00 %, top-5 55.00 %" in out
        and "best epoch (2): top-1 30.00 %, top-5 60.00 %" in out
    )


def test_a_queue_matters_to_moco_alone():
    main.check_args(main.parse_args(["--batch_size", "8192"]))
    with pytest.raises(UserError, match="--queue"):
        main.check_args(main.parse_args(["--batch_size", "8192", "--estimator", "MoCo"]))


def test_where_results_go_and_how_they_are_called(tiny, results, encoder, monkeypatch):
    """What departs from a frozen evaluation on the weights' own data set has a name of its own, and harms no other."""
    here, foreign = encoder.parent, encoder.with_name("stl10_SimCLR_4model_256_400_2.0_0.5.pth")
    foreign.write_bytes(encoder.read_bytes())

    def out(*words):
        args = linear.parse_args(
            [*map(str, tiny[:4]), "--results", str(results), "--model_path", *map(str, words)]
        )
        return linear.open_encoders(args)[0][-1]

    assert out(encoder) == here / "encoder_folder"
    assert out(encoder, "--encoder_mode", "reference") == here / "encoder_folder_reference"
    assert out(foreign) == here / f"{foreign.stem}_folder"
    assert out(foreign, "--dataset_name", "stl10") == here / foreign.stem
    assert (
        out("random", "--arch", "resnet10", "--seed", 3) == results / "folder" / "random_resnet10_3"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert out(encoder) == results / "folder" / "encoder_folder"


def test_a_classifier_learns(call, tiny, encoder):
    """The pictures' classes differ in colour, which even an untrained encoder shows."""
    call(
        linear, *linear_flags(tiny, "--epochs", 12, "--lr", 0.01, "--k", 5, "--model_path", encoder)
    )
    table = rows(encoder.parent / "encoder_folder_linear.csv")
    assert float(table[-1]["loss"]) < float(table[0]["loss"])
    assert max(float(row["top1"]) for row in table) > 60  # 33 % is chance


def test_the_seed_decides_the_evaluation(call, tiny, encoder):
    tables = []
    for seed in (0, 0, 1):
        call(linear, *linear_flags(tiny, "--seed", seed, "--model_path", encoder))
        tables.append((encoder.parent / "encoder_folder_linear.csv").read_text())
    assert tables[0] == tables[1] != tables[2]


def test_accuracy():
    classifier = nn.Linear(7, 7, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(7))
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).repeat(4, 1)
    assert linear.accuracy(classifier, scores, torch.tensor([0, 1, 4, 5])) == (25, 75)
    few = nn.Linear(3, 3)
    assert linear.accuracy(few, torch.randn(5, 3), torch.zeros(5, dtype=torch.long))[1] == 100


def test_an_untrained_encoder_and_several(call, tiny, results, encoder, capsys, contents):
    flags = linear_flags(tiny, "--results", results, "--arch", "resnet10", "--k", 5)
    call(linear, *flags, "--model_path", "random", encoder)
    assert set(contents(results)) == {
        "folder/random_resnet10_0_linear.csv",
        "folder/random_resnet10_0_linear.json",
    }
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert "kNN" in table[0] and "linear, last" in table[0] and "linear, best" in table[0]
    assert [line.split()[-1] for line in table[1:]] == ["random", "encoder.pth"]
    for line, path in zip(
        table[1:],
        (
            results / "folder" / "random_resnet10_0_linear.json",
            encoder.parent / "encoder_folder_linear.json",
        ),
        strict=True,
    ):
        result = json.loads(path.read_text())
        expected = result["knn_top1"], result["last_epoch"]["top1"], result["best_epoch"]["top1"]
        assert line.split()[:3] == [f"{value:.2f}" for value in expected]


def test_untrained_encoders_are_those_of_the_seed(tmp_path):
    args = linear.parse_args(["--model_path", "random", "--arch", "resnet10", "--seed", "4"])
    torch.manual_seed(4)
    expected = Model(arch="resnet10").f.state_dict()
    assert equal(linear.open_encoder("random", args)[0].state_dict(), expected)
