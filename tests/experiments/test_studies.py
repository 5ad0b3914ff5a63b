"""experiments/studies.py: the rows, and how flags change their studies."""

import pytest
import torch

import loss
import main
import reproduce
from experiments import results, studies


def rows_of(name, words=""):
    rows = studies.all_rows(reproduce.parse_args(words.split()))
    return [row for row in rows if row.study.name == name]


def test_flags_of_every_row_are_of_main():
    for row in studies.all_rows(reproduce.parse_args([])):
        args = main.parse_args(results.pretraining_flags(row, 0))
        assert all(getattr(args, key) == value for key, value in row.flags.items())


def test_flags_change_the_study():
    flags = ["--arch", "resnet18", "--batch_size", "32", "--linear=--lr=0.1", "--results", "here"]
    flags += ["--seeds", "3", "4", "--pretrain=", "--root", "images"]
    changed = studies.all_rows(reproduce.parse_args(flags))
    for row, own in zip(changed, studies.all_rows(reproduce.parse_args([])), strict=True):
        study = own.study._replace(arch="resnet18", batch_size=32, linear=["--lr=0.1"], pretrain=[])
        study = study._replace(results="here", root="images", seeds=[3, 4])
        assert row == own._replace(study=study, seeds=[3, 4])


def test_rows_of_the_small_study():
    """All end at as many views per image; three seeds, one for those shown for comparison only."""
    for row in rows_of("cifar10-small"):
        assert row.stops[-1] * results.views_per_image(row) == 24
        assert row.seeds == ((0, 1, 2) if row.loss in ("simclr", "attentionce") else (0,))
    assert {row.epochs for row in rows_of("cifar10-small", "--epochs 200")} == {200, 600}


def test_attention_of_a_million_is_none():
    """With these d_pos and d_neg every positive and every negative counts alike, to 1e-5."""
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, 16, 8, dtype=torch.float64), dim=2)
    d_pos, d_neg = rows_of("cifar10-small")[3].flags.values()
    positives = loss.positive_weights(z, d_pos)
    negatives = loss.negative_weights(z, d_neg)
    assert (positives - 1 / 4).abs().max() < 1e-5
    assert (negatives[negatives > 0] * 30 - 1).abs().max() < 1e-5


@pytest.mark.parametrize("epochs, expected", [(5, [2, 4]), (1, [1, 2])])
def test_rows_keep_the_proportion_of_their_epochs(epochs, expected):
    """200 and 400 epochs are one and two units; a unit is a whole number of epochs, at least 1."""
    rows = [row for row in rows_of("cifar10", f"--epochs {epochs}") if row.loss == "attentionce"]
    assert [row.epochs for row in rows] == expected
    assert all(row.stops == tuple(expected) for row in rows)
