"""experiments/studies.py: the rows, and how flags change their studies."""

import re

import pytest
import torch

import main
from attentionce import attention
from attentionce.errors import UserError
from experiments import results, studies


def changed(rows, words):
    return studies.with_flags(rows, studies.parse_flags(words.split()))


def test_rows_of_the_paper():
    """The figures of the paper's tables, typed here a second time."""
    figures = [
        (row.dataset, row.method, row.epochs, row.paper) for row in studies.paper_rows() if row.link
    ]
    assert figures == [
        ("stl10", "SimCLR", 400, 80.15),
        ("stl10", "AttentioNCE", 200, 87.12),
        ("stl10", "AttentioNCE", 400, 89.45),
        ("cifar10", "SimCLR", 400, 91.12),
        ("cifar10", "AttentioNCE", 200, 92.42),
        ("cifar10", "AttentioNCE", 400, 93.08),
        ("cifar100", "AttentioNCE", 200, 69.78),
        ("cifar100", "AttentioNCE", 400, 70.23),
        ("tinyImageNet", "AttentioNCE", 200, 56.58),
        ("tinyImageNet", "AttentioNCE", 400, 58.61),
    ]


def test_every_link_is_of_one_row():
    links = [row.link for row in studies.all_rows() if row.link]
    assert len(links) == len(set(links)) == len(studies.WEIGHTS)
    assert all(re.fullmatch(r"https://drive\.google\.com/file/d/[\w-]{33}/view", x) for x in links)


def test_flags_of_every_row_are_of_main():
    for row in studies.all_rows():
        words = ["--loss", row.loss]
        for key, value in row.flags.items():
            words += [f"--{key}", str(value)]
        args = main.parse_args(words)
        assert all(getattr(args, key) == value for key, value in row.flags.items())


def test_without_flags_a_study_is_its_own():
    for row, study in changed(studies.all_rows(), ""):
        assert row in studies.all_rows()
        default = {"photos": studies.PHOTOS, "cifar10-small": studies.SMALL}
        expected = default.get(row.dataset, studies.PAPER)
        assert study == (expected._replace(seeds=row.seeds) if row.seeds else expected)


def test_flags_change_the_study():
    words = "photos --arch resnet18 --batch_size 32 --seeds 3 4 --linear=--lr=0.1 --results here"
    for _, study in changed(studies.photo_rows(), words):
        assert study == studies.PHOTOS._replace(
            arch="resnet18", batch_size=32, seeds=[3, 4], linear=["--lr=0.1"], results="here"
        )
    ((_, study),) = changed(studies.photo_rows()[:1], "--pretrain= --root images")
    assert study.pretrain == [] and study.root == "images"


def test_rows_of_the_small_study():
    """All end at as many views per image; three seeds, one for those shown for comparison only."""
    pairs = changed(studies.small_rows(), "--root images")
    for row, study in pairs:
        length = studies.epochs_of_run(row, study)[-1]
        assert length * results.views_per_image(row, study) == 24
        assert row.epochs in (4, length)
    seeds = {row.method: study.seeds for row, study in pairs}
    assert seeds["SimCLR"] == seeds["AttentioNCE"] == [0, 1, 2]
    assert seeds["DCL"] == seeds["HCL"] == seeds["BCL"] == [0]
    attention = [row.flags for row, _ in pairs if row.method == "AttentioNCE"]
    assert [tuple(flags.values()) for flags in attention] == [(1, 10), (10**6, 10**6), (0.1, 0.5)]
    for _, study in changed(studies.small_rows(), "--seeds 4 --epochs 200 --arch resnet50"):
        assert study.seeds == [4] and study.epochs == 200 and study.arch == "resnet50"
    pairs = changed(studies.small_rows(), "--epochs 200")
    assert {row.epochs for row, _ in pairs} == {200, 600}


def test_attention_of_a_million_is_none():
    """With these d_pos and d_neg every positive and every negative counts alike, to 1e-5."""
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(6, 16, 8, dtype=torch.float64), dim=2)
    d_pos, d_neg = studies.small_rows()[3].flags.values()
    positives = attention.positive_weights(z, d_pos)
    negatives = attention.negative_weights(z, d_neg)
    assert (positives - 1 / 4).abs().max() < 1e-5
    counted = negatives[negatives > 0]
    assert (counted * 30 - 1).abs().max() < 1e-5


@pytest.mark.parametrize("epochs, expected", [(40, [20, 40]), (5, [2, 4]), (1, [1, 2])])
def test_rows_keep_the_proportion_of_their_epochs(epochs, expected):
    """200 and 400 epochs are one and two units; a unit is a whole number of epochs, at least 1."""
    rows = [
        row
        for row in studies.paper_rows()
        if row.dataset == "cifar10" and row.flags.keys() >= {"d_pos"}
    ]
    pairs = changed(rows, f"--epochs {epochs}")
    assert [row.epochs for row, _ in pairs] == expected
    for row, study in pairs:
        assert studies.epochs_of_run(row, study) == expected


def test_flags_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="--rows"):
        studies.parse_flags(["cifar10", "--rows", "3"])
