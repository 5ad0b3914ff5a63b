"""The linear classifier: what it learns, what it leaves unchanged, and that it can be continued."""

import copy
import os
import shutil
import signal

import pytest
import torch
from helpers.outputs import last, rows, same_bits
from torch import nn

import linear
from attentionce.evaluation import linear_classifier
from attentionce.runs import files


@pytest.mark.parametrize("mode", ["frozen", "reference"])
def test_the_encoder_is_frozen(call, evaluation, encoder, monkeypatch, mode):
    """Frozen, no bit of it changes; as in the reference, BatchNorm's statistics and no others."""
    model, arch = linear.load_encoder(encoder)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(linear, "load_encoder", lambda *_: (model, arch))
    call(linear, *evaluation, "--encoder_mode", mode, "--model_path", encoder)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key].cpu())}
    assert changed == (dict(model.named_buffers()).keys() if mode == "reference" else set())
    assert all(p.grad is None for p in model.parameters())


def test_it_learns_what_the_seed_decides(call, evaluation, encoder, tmp_path):
    """The classes differ in colour, which even an untrained encoder shows."""
    tables, words = [], ["--epochs", 6, "--lr", 0.02, "--k", 5, "--model_path", encoder]
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        call(linear, *evaluation, *words, "--seed", seed, "--results", folder)
        tables.append(rows(folder))
    assert tables[0] == tables[1] != tables[2]
    assert float(tables[0][-1]["loss"]) < float(tables[0][0]["loss"])
    assert max(float(row["top1"]) for row in tables[0]) > 60  # 33 % is chance


def test_accuracy():
    classifier = nn.Linear(7, 7, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(7))
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).repeat(4, 1)
    labels = torch.tensor([0, 0, 4, 5])  # of three classes one is right
    expected = {"top1": 50, "top5": 75, "class_mean": pytest.approx(100 / 3)}
    assert linear_classifier.accuracy(classifier, scores, labels) == expected
    few = linear_classifier.accuracy(nn.Linear(3, 3), torch.randn(5, 3), torch.tensor([0] * 5))
    assert few["top5"] == 100


# ---- the same command again ----


@pytest.mark.parametrize("mode", ["frozen", "reference"])
def test_stopped_and_continued_it_has_the_same_bits(
    call, evaluation, results, encoder, tmp_path, monkeypatch, capsys, mode
):
    """A signal ends it within the third epoch, which is done again; more --epochs go on."""
    flags = [*evaluation, "--device", "cpu", "--encoder_mode", mode, "--model_path", encoder]
    whole, fit_epoch = tmp_path / "whole", linear_classifier.fit_epoch
    assert call(linear, *flags, "--epochs", 4, "--results", whole) == 0

    def stopped(*arguments):
        if arguments[-2] == 3:  # the epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return fit_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(linear_classifier, "fit_epoch", stopped)
        assert call(linear, *flags, "--epochs", 3) == 143
    assert "stopped; the same command continues" in capsys.readouterr().out
    assert len(rows(results)) == 2
    assert call(linear, *flags, "--epochs", 4) == 0
    assert f"continuing after epoch 2 of {last(results, '.classifier')}" in capsys.readouterr().out
    one, other = (files.read(last(folder, ".classifier")) for folder in (results, whole))
    for part in ("classifier", "moments", "encoder", "rows", "classes", "size"):
        assert same_bits(one[part], other[part]), part
    assert rows(results) == rows(whole)


def test_a_classifier_of_another_command_is_kept(
    call, refused, evaluation, encoder, results, pictures, tmp_path, contents, capsys
):
    """What would overwrite it is refused, unless the weights themselves have changed."""
    flags = [*evaluation, "--epochs", 2, "--model_path", encoder]
    call(linear, *flags)
    before, other = contents(results), tmp_path / "other"
    shutil.copytree(pictures, other)
    (other / "test" / "red" / "0.png").unlink()
    advice = f"name another --results, or remove {last(results, '.classifier')}"
    for words, why in (
        (["--seed", 1], "was made otherwise: --seed 1 (there: 0)"),
        (["--root", other], "was made otherwise: other images"),
        (["--epochs", 1], "has 2 epochs already: give more --epochs"),
    ):
        message = refused(linear, *flags, *words)
        assert why in message and message.endswith(advice)
    assert contents(results) == before
    weights = files.read(encoder)
    files.save(encoder, {key: 2 * value for key, value in weights.items()})
    assert call(linear, *flags) == 0
    assert "belongs to different weights: starting over" in capsys.readouterr().out


def test_a_classifier_that_diverges_ends_in_one_line(refused, evaluation, encoder):
    message = refused(linear, *evaluation, "--lr", 1e38, "--model_path", encoder)
    assert "loss is" in message and "in epoch 1: try a smaller --lr" in message
