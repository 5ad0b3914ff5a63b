"""main.py: its flags, what a run writes and prints, and that the seed decides everything."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.device import DEVICE
from helpers.losses import embeddings
from helpers.outputs import last, read_csv, rows, same_bits

import loss
import main
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import one_step
from loss import LOSSES
from model import Model

GOLDEN = json.loads((Path(__file__).parent / "golden" / "checkpoint_keys.json").read_text())
COLUMNS = {"epoch", "loss", "views", "seconds", "skipped", "knn_top1", "knn_top5"}
COLUMNS |= {"effective_positives", "effective_negatives"}

# ---- both programs ----


def test_pretrain_and_evaluate_the_photographs(script, results):
    """The two commands as a user gives them, each in a new process."""
    flags = [
        "--dataset_name",
        "photos",
        "--image_size",
        "8",
        "--batch_size",
        "512",
        "--precision",
        "fp32",
    ]
    words = "--arch resnet10 --num_pos 1 --d_neg 10 --epochs 2 --knn_every 0 --seed 1"
    trained = script("main.py", *flags, *words.split(), "--results", results)
    assert trained.returncode == 0, trained.stderr
    assert "resnet10: 5.23 M parameters, 0.02 G multiply-adds" in trained.stdout
    assert trained.stderr == ""  # not a terminal: no bars
    assert "\nepoch 2/2: loss " in trained.stdout and " images/s, 00:00 left" in trained.stdout
    stem = results / "photos" / "photos_SimCLR_1model_512_2_1.0_10.0"
    written = {path.name for path in stem.parent.iterdir()}
    endings = (".csv", ".json", ".pth", ".state", ".state.previous")
    assert written == {stem.name + ending for ending in endings}
    losses = [float(row["loss"]) for row in read_csv(f"{stem}.csv")]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)

    evaluate = ["--epochs", 1, "--lr", 0.01, "--k", 20, "--model_path", f"{stem}.pth"]
    evaluated = script("linear.py", *flags, *evaluate)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "(resnet10): kNN top-1" in evaluated.stdout
    result = json.loads(Path(f"{stem}_linear.json").read_text())
    for which in ("last", "best"):
        row = result[f"{which}_epoch"]
        accuracy = f"top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %"
        assert f"{which} epoch (1): {accuracy}" in evaluated.stdout
    # 6 % is chance, 45 % usual: to the encoder the images are more than noise.
    assert result["knn_top1"] > 20
    assert 8 < result["best_epoch"]["top1"] < result["best_epoch"]["top5"] <= 100


# ---- flags ----


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


def test_a_queue_matters_to_moco_alone():
    main.check_args(main.parse_args(["--batch_size", "8192"]))
    with pytest.raises(UserError, match="--queue"):
        main.check_args(main.parse_args(["--batch_size", "8192", "--estimator", "MoCo"]))


# ---- what a run writes ----


def test_what_a_run_writes(call, tiny, results, capsys, contents):
    """One row per epoch; weights and kNN at multiples of their flags, and at the end."""
    words = "--epochs 3 --save_every 2 --knn_every 2 --k 5 --d_pos 2 --seed 9"
    assert call(main, *tiny, *words.split()) == 0
    folder, stem = results / "folder", "folder_SimCLR_4model_8_{}_2.0_1.0"
    written = {stem.format(epoch) + ".pth" for epoch in (2, 3)}
    written |= {
        stem.format(3) + ending for ending in (".csv", ".json", ".state", ".state.previous")
    }
    assert set(contents(results)) == {f"folder/{name}" for name in written}

    table = read_csv(folder / (stem.format(3) + ".csv"))
    assert set(table[0]) >= COLUMNS
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert [int(row["views"]) for row in table] == [epoch * 24 * 6 for epoch in (1, 2, 3)]
    assert [row["knn_top1"] != "" for row in table] == [False, True, True]
    for row in table:
        assert 0 < float(row["loss"]) < 20 and 1 <= float(row["effective_positives"]) <= 4
        assert 1 <= float(row["effective_negatives"]) <= 14
    said = capsys.readouterr().out
    assert "epoch 1/3: loss" in said and re.search("epoch 2/3: .*, kNN top-1 .* %, top-5", said)

    result = json.loads((folder / (stem.format(3) + ".json")).read_text())
    assert result["flags"].keys() == vars(main.parse_args([])).keys()
    expected = {"seed": 9, "d_pos": 2.0, "epochs": 3, "dataset_name": "folder", "temperature": 0.5}
    assert {name: result["flags"][name] for name in expected} == expected
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["device"] == str(DEVICE)
    assert {"python", "torchvision", "numpy", "commit"} <= result["machine"].keys()
    assert result["precision"] == "float32" and result["epochs_done"] == 3
    assert result["best_knn"] == max(float(row["knn_top1"] or 0) for row in table)
    assert str(result["last"]["loss"]) == table[-1]["loss"]

    one, other = (files.read(folder / (stem.format(epoch) + ".pth")) for epoch in (2, 3))
    assert all(key.startswith(("module.f.", "module.g.")) for key in other)
    assert not same_bits(one, other)
    assert all(isinstance(value, torch.Tensor) for value in other.values())
    assert other["module.f.1.num_batches_tracked"] == 3 * 3 * 6


def test_the_seed_decides_every_bit(call, tiny, tmp_path, results):
    found = []
    for i, seed in enumerate((0, 0, 1)):
        torch.rand(i)  # what was drawn before does not matter
        folder = results / str(i)
        words = ["--num_pos", 2, "--seed", seed, "--device", "cpu"]  # a GPU needs --deterministic
        call(main, *tiny, *words, "--results", folder)
        found.append(files.read(last(folder, ".pth")))
    assert same_bits(found[0], found[1])
    assert not torch.equal(found[0]["module.f.0.weight"], found[2]["module.f.0.weight"])


# ---- losses, frameworks and steps ----


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(call, tiny, results, name):
    flags, entry = [*tiny, "--loss", name], LOSSES[name]
    assert call(main, *flags) == 0
    (row,) = rows(results)
    assert 0 < float(row["loss"]) < 20 and int(row["views"]) == 24 * entry.views(4)
    assert (row["effective_negatives"] == "") == (not entry.attention)
    weights = last(results, ".pth")
    assert weights.stem == main.file_stem(main.parse_args([str(flag) for flag in flags]), 1)
    state = files.read(weights)
    assert all(value.isfinite().all() for value in state.values())
    torch.manual_seed(0)
    untrained = Model(128, "resnet10")
    assert not torch.equal(state["module.f.0.weight"], untrained.f[0].weight)


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_has_the_loss_that_is_named_with_its_flags(monkeypatch, name):
    values = {"tau_plus": 0.2, "alpha": 0.7, "beta": 0.6, "d_pos": 2.0, "d_neg": 0.5}
    values = {parameter: values.get(parameter, 0.4) for parameter in LOSSES[name].parameters}
    words = f"--loss {name} --temperature 0.3 --num_pos 1 --arch resnet10 --dataset_name photos"
    for parameter, value in values.items():
        words += f" --{parameter} {value}"
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    args, pixels = main.parse_args(words.split()), torch.zeros(1, 3, 8, 8)
    run = main.assemble(args, pixels, torch.device("cpu"), torch.float32)
    z = embeddings(run.views, 5, 4)
    assert torch.equal(one_step.mean_loss(run, z), getattr(loss, name)(z, 0.3, **values))


def test_moco_trains(call, tiny, results):
    assert call(main, *tiny, "--estimator", "MoCo", "--queue", 16, "--num_pos", 1) == 0
    state = files.read(results / "folder" / "folder_MoCo_1model_8_1_1.0_1.0.pth")
    assert list(state) == [f"module.{key}" for key in Model(128, "resnet10").state_dict()]


@pytest.mark.parametrize("flag", [(), ("--grad_cache",)])
def test_grad_cache_is_used_when_it_is_asked_for(call, tiny, monkeypatch, flag):
    used = []

    def watched(name, step):
        def take(*arguments):
            used.append(name)
            return step(*arguments)

        return take

    for name in ("plain_step", "cached_step"):
        monkeypatch.setattr(one_step, name, watched(name, getattr(one_step, name)))
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
