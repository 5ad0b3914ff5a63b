"""linear.py: what it trains, measures, writes and prints, and what it leaves unchanged."""

import copy
import json
import os

import pytest
import torch
from helpers.outputs import read_csv, same_bits
from torch import nn

import embed
import linear
from model import Model, stem_of


def test_defaults_are_those_of_the_reference():
    random = ["--model_path", "random"]
    words = "--root data --batch_size 512 --epochs 100 --dataset_name cifar10 --lr 1e-3 "
    words += "--weight_decay 1e-6 --image_size 32 --encoder_mode frozen --results results"
    assert vars(linear.parse_args([*random, *words.split()])) == vars(linear.parse_args(random))
    assert linear.parse_args([*random, "--dataset_name", "stl10"]).lr == 1e-2
    assert linear.parse_args([*random, "--dataset_name", "stl10", "--lr", "0.5"]).lr == 0.5


# ---- the encoder ----


@pytest.mark.parametrize("mode", ["frozen", "reference"])
def test_the_encoder_is_frozen(call, evaluation, encoder, monkeypatch, mode):
    """Frozen, no bit of it changes; as in the reference, BatchNorm's statistics and no others."""
    opened, training, forward = [], [], nn.BatchNorm2d.forward
    load_encoder = linear.load_encoder

    def load(*arguments):
        model, arch = load_encoder(*arguments)
        opened.append((model, copy.deepcopy(model.state_dict())))
        return model, arch

    def watched(self, x):
        training.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(linear, "load_encoder", load)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", watched)
    call(linear, *evaluation, "--encoder_mode", mode, "--model_path", encoder)
    ((model, before),) = opened
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key].cpu())}
    assert any(training) == (mode == "reference")
    if mode == "frozen":
        assert not changed
    else:
        modules = model.named_modules()
        norms = [name for name, module in modules if isinstance(module, nn.BatchNorm2d)]
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert changed == {f"{name}.{which}" for name in norms for which in statistics}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_untrained_encoders_are_those_of_seed_and_stem(tmp_path, stem):
    words = ["--model_path", "random", "--arch", "resnet10", "--stem", stem, "--seed", "4"]
    args = linear.parse_args([*words, "--results", str(tmp_path)])
    ((_, f, _, out),) = linear.open_encoders(args)
    torch.manual_seed(4)
    assert same_bits(f.state_dict(), Model(128, "resnet10", stem).f.state_dict())
    assert stem_of(f[0].weight) == stem
    assert out.name == ("random_resnet10_4" if stem == "small" else "random_resnet10_imagenet_4")
    encoder, _ = embed.open_encoder(embed.parse_args(words))
    assert same_bits(encoder.f.state_dict(), f.state_dict())


# ---- results ----


def test_what_an_evaluation_writes(call, evaluation, encoder, capsys, monkeypatch, contents):
    """The last epoch and the best one (the first of equals), each under its name."""
    accuracies = iter([(10.0, 50.0), (30.0, 60.0), (30.0, 70.0), (20.0, 55.0)])
    monkeypatch.setattr(linear, "accuracy", lambda *_: next(accuracies))
    words = ["--epochs", "4", "--k", "5", "--seed", "2"]
    call(linear, *evaluation, *words, "--model_path", encoder)
    written = {"encoder_folder_linear.csv", "encoder_folder_linear.json"}
    assert set(contents(encoder.parent)) == {"encoder.pth", *written}
    table = read_csv(encoder.parent / "encoder_folder_linear.csv")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert [float(row["top1"]) for row in table] == [10, 30, 30, 20]
    assert all(0 < float(row["loss"]) < 20 for row in table)
    result = json.loads((encoder.parent / "encoder_folder_linear.json").read_text())
    assert [result["last_epoch"][key] for key in ("epoch", "top1", "top5")] == [4, 20, 55]
    assert [result["best_epoch"][key] for key in ("epoch", "top1", "top5")] == [2, 30, 60]
    assert result["flags"]["seed"] == 2 and result["flags"]["encoder_mode"] == "frozen"
    assert "torch" in result["machine"]
    out = capsys.readouterr().out
    assert "last epoch (4): top-1 20.00 %, top-5 55.00 %" in out
    assert "best epoch (2): top-1 30.00 %, top-5 60.00 %" in out


def test_where_results_go_and_how_they_are_called(tiny, results, encoder, monkeypatch):
    """Data set, mode and seed are in the name where they are not those of the weights."""
    here, foreign = encoder.parent, encoder.with_name("stl10_SimCLR_4model_256_400_2.0_0.5.pth")
    foreign.write_bytes(encoder.read_bytes())

    def out(*words):
        flags = [*tiny[:4], "--results", results, "--model_path", *words]
        args = linear.parse_args([str(flag) for flag in flags])
        return linear.open_encoders(args)[0][-1]

    assert out(encoder) == here / "encoder_folder"
    assert out(encoder, "--encoder_mode", "reference") == here / "encoder_folder_reference"
    assert out(foreign) == here / f"{foreign.stem}_folder"
    assert out(foreign, "--dataset_name", "stl10") == here / foreign.stem
    untrained = out("random", "--arch", "resnet10", "--seed", 3)
    assert untrained == results / "folder" / "random_resnet10_3"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert out(encoder) == results / "folder" / "encoder_folder"


# ---- accuracy ----


def test_a_classifier_learns_what_the_seed_decides(call, evaluation, encoder):
    """The classes differ in colour, which even an untrained encoder shows."""
    tables, words = [], ["--epochs", "8", "--lr", "0.01", "--k", "5", "--model_path", encoder]
    for seed in (0, 0, 1):
        call(linear, *evaluation, *words, "--seed", seed)
        tables.append(read_csv(encoder.parent / "encoder_folder_linear.csv"))
    assert tables[0] == tables[1] != tables[2]
    assert float(tables[0][-1]["loss"]) < float(tables[0][0]["loss"])
    assert max(float(row["top1"]) for row in tables[0]) > 60  # 33 % is chance


def test_accuracy():
    classifier = nn.Linear(7, 7, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(7))
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).repeat(4, 1)
    assert linear.accuracy(classifier, scores, torch.tensor([0, 1, 4, 5])) == (25, 75)
    few = nn.Linear(3, 3)
    assert linear.accuracy(few, torch.randn(5, 3), torch.zeros(5, dtype=torch.long))[1] == 100


def test_several_encoders(call, evaluation, results, encoder, capsys, contents):
    """They are listed in a table, an untrained one among them."""
    flags = [*evaluation, "--results", results, "--arch", "resnet10", "--k", 5]
    call(linear, *flags, "--model_path", "random", encoder)
    stem = "folder/random_resnet10_0_linear"
    assert set(contents(results)) == {f"{stem}.csv", f"{stem}.json"}
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert "kNN" in table[0] and "linear, last" in table[0] and "linear, best" in table[0]
    assert [line.split()[-1] for line in table[1:]] == ["random", "encoder.pth"]
    paths = results / f"{stem}.json", encoder.parent / "encoder_folder_linear.json"
    for line, path in zip(table[1:], paths, strict=True):
        result = json.loads(path.read_text())
        expected = result["knn_top1"], result["last_epoch"]["top1"], result["best_epoch"]["top1"]
        assert line.split()[:3] == [f"{value:.2f}" for value in expected]
