"""linear.py: its flags, what it writes and prints, and where its results go."""

import json
import os
from argparse import Namespace

import pytest
import torch
from helpers.outputs import read_csv, same_bits

import embed
import linear
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.evaluation import linear_classifier
from attentionce.runs import states
from model import Model, stem_of

RUN = "cifar10_SimCLR_4model_256_{}_1.0_1.0"  # of main.py


def test_flags_and_defaults_of_the_reference():
    random, stl10 = ["--model_path", "random"], ["--dataset_name", "stl10"]
    words = "--root data --dataset_name cifar10 --batch_size 512 --epochs 100 --lr 1e-3"
    words += " --weight_decay 1e-6 --encoder_mode frozen"
    assert linear.parse_args([*random, *words.split()]) == linear.parse_args(random)
    assert linear.parse_args([*random, *stl10]).lr == 1e-2
    assert linear.parse_args([*random, *stl10, "--lr", "0.5"]).lr == 0.5


def test_sizes_are_those_of_pretraining(tmp_path, capsys):
    """By the JSON beside the weights, also of an earlier epoch; flags win."""

    def sizes(*weights, image_size=None, store_size=None):
        args = Namespace(image_size=image_size, store_size=store_size)
        states.take_sizes(args, [str(tmp_path / f"{RUN.format(epoch)}.pth") for epoch in weights])
        return args.image_size, args.store_size

    assert sizes() == sizes(200) == (32, 64) and sizes(image_size=96) == (96, 96)
    assert capsys.readouterr().out == ""
    flags = {"image_size": 24, "store_size": 80}
    (tmp_path / f"{RUN.format(400)}.json").write_text(json.dumps({"flags": flags}))
    assert sizes(200) == sizes(400) == sizes(200, 400) == (24, 80)
    assert "--image_size 24, as in pretraining\n" in capsys.readouterr().out
    assert sizes(400, image_size=8, store_size=9) == (8, 9)
    assert capsys.readouterr().out == ""
    simclr = "cifar10_SimCLR_simclr_256_{}"  # whose name has nothing after the epochs
    for name, size in (("100_linear", 32), ("400", 24)):
        text = json.dumps({"flags": {"image_size": size}})
        (tmp_path / f"{simclr.format(name)}.json").write_text(text)
    assert states.flags_beside(tmp_path / f"{simclr.format(200)}.pth") == {"image_size": 24}
    other = RUN.replace("4model", "2model").format(400)
    (tmp_path / f"{other}.json").write_text(json.dumps({"flags": {"image_size": 16}}))
    paths = [str(tmp_path / f"{name}.pth") for name in (RUN.format(400), other)]
    with pytest.raises(UserError, match="trained with different --image_size: give one for all"):
        states.take_sizes(Namespace(image_size=None), paths)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_untrained_encoders_are_those_of_seed_and_stem(tmp_path, stem):
    words = ["--model_path", "random", "--arch", "resnet10", "--stem", stem, "--seed", "4"]
    args = linear.parse_args([*words, "--results", str(tmp_path)])
    _, f, _, out = linear.open_encoder("random", args)
    torch.manual_seed(4)
    assert same_bits(f.state_dict(), Model(128, "resnet10", stem).f.state_dict())
    assert stem_of(f[0].weight) == stem
    name = "random_resnet10_4" if stem == "small" else "random_resnet10_imagenet_4"
    assert out.name == f"{name}_linear"
    encoder, _ = embed.open_encoder(embed.parse_args(words))
    assert same_bits(encoder.f.state_dict(), f.state_dict())


# ---- results ----


def test_what_an_evaluation_writes(call, evaluation, results, encoder, capsys, monkeypatch):
    """The last epoch and the best one (the first of equals), each under its name."""
    measured = [(10.0, 50.0), (30.0, 60.0), (30.0, 70.0), (20.0, 55.0)]
    accuracies = iter({"top1": top1, "top5": top5, "class_mean": 25.0} for top1, top5 in measured)
    monkeypatch.setattr(linear_classifier, "accuracy", lambda *_: next(accuracies))
    words = ["--epochs", "4", "--k", "5", "--seed", "2"]
    call(linear, *evaluation, *words, "--model_path", encoder)
    out = results / "folder" / "encoder_folder_linear"
    written = {out.with_name(out.name + ending) for ending in (".csv", ".json", ".classifier")}
    assert set(out.parent.iterdir()) == written
    assert [float(row["top1"]) for row in read_csv(f"{out}.csv")] == [10, 30, 30, 20]
    result = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert [result["last_epoch"][key] for key in ("epoch", "top1", "top5")] == [4, 20, 55]
    assert [result["best_epoch"][key] for key in ("epoch", "top1", "top5")] == [2, 30, 60]
    assert result["flags"]["seed"] == 2
    assert "torch" in result["machine"] and "loss.py" in result["code"]
    said = capsys.readouterr().out
    assert "\nepoch 2/4: loss " in said and ", top-1 30.00 %, 00:00 left\n" in said
    assert "last epoch (4): top-1 20.00 %, top-5 55.00 %\n" in said
    assert "best epoch (2): top-1 30.00 %, top-5 60.00 %\n" in said


def test_classes_of_different_sizes_have_a_mean_of_their_own(encoder, capsys):
    row = {"epoch": 1, "top1": 93.75, "top5": 100.0, "class_mean": 50.0}
    result = {"knn_top1": 90.0, "last_epoch": row, "best_epoch": row}
    labels = torch.tensor([0] * 60 + [1] * 4)
    test = Images(torch.zeros(64, 3, 1, 1, dtype=torch.uint8), labels, ["cat", "dog"])
    path = str(encoder)
    linear.print_result(linear.Encoder(path, None, "resnet10", encoder), result, test)
    words = "top-1 93.75 %, top-5 100.00 %, mean over classes 50.00 %"
    assert capsys.readouterr().out.count(words) == 2


def test_where_results_go_and_how_they_are_called(results, encoder, monkeypatch):
    """Data set, mode and seed are in the name where they are not those of the weights."""
    here, foreign = encoder.parent, f"{RUN.format(400)}.pth"

    def out(path, *words):
        words = ["--dataset_name", "folder", "--model_path", path, *words]
        args = linear.parse_args([str(word) for word in words])
        return linear.result_path(str(path), "resnet10", args)

    assert out(encoder) == here / "encoder_folder_linear"
    assert out(encoder, "--encoder_mode", "reference") == here / "encoder_folder_reference_linear"
    assert out(here / foreign) == here / f"{RUN.format(400)}_folder_linear"
    assert out(here / foreign, "--dataset_name=cifar10") == here / f"{RUN.format(400)}_linear"
    named = ["--results", results]
    assert out(encoder, *named) == results / "folder" / "encoder_folder_linear"
    assert out("random", *named, "--seed", 3) == results / "folder" / "random_resnet10_3_linear"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert str(out(encoder)) == os.path.join("results", "folder", "encoder_folder_linear")


def test_several_encoders(call, evaluation, results, encoder, capsys):
    """They are listed in a table, an untrained one among them."""
    call(linear, *evaluation, "--arch", "resnet10", "--k", 5, "--model_path", "random", encoder)
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert "kNN" in table[0] and "linear, last" in table[0] and "linear, best" in table[0]
    assert [line.split()[-1] for line in table[1:]] == ["random", "encoder.pth"]
    for line, name in zip(table[1:], ("random_resnet10_0", "encoder_folder"), strict=True):
        result = json.loads((results / "folder" / f"{name}_linear.json").read_text())
        expected = result["knn_top1"], result["last_epoch"]["top1"], result["best_epoch"]["top1"]
        assert line.split()[:3] == [f"{value:.2f}" for value in expected]
