"""The files of a run are named as in the reference, and a title says what a name means."""

import pytest

import main
from attentionce.runs import file_names
from loss import LOSSES


@pytest.mark.parametrize(
    ("flags", "epoch", "name"),
    [
        ("--dataset_name stl10 --d_pos 2 --d_neg 0.5", 400, "stl10_SimCLR_4model_256_400_2.0_0.5"),
        ("", 200, "cifar10_SimCLR_4model_256_200_1.0_1.0"),
        ("--num_pos 2 --batch_size 64", 1, "cifar10_SimCLR_2model_64_1_1.0_1.0"),
        ("--estimator MoCo --d_neg 10", 400, "cifar10_MoCo_4model_256_400_1.0_10.0"),
        ("--loss simclr", 400, "cifar10_SimCLR_simclr_256_400"),
        ("--loss dcl --tau_plus 0.05", 400, "cifar10_SimCLR_dcl_256_400_0.05"),
        ("--loss hcl --beta 1", 400, "cifar10_SimCLR_hcl_256_400_0.1_1.0"),
        ("--loss bcl", 400, "cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9"),
        (
            "--loss bcl --alpha 0.7 --beta 1 --dataset_name tinyImageNet",
            100,
            "tinyImageNet_SimCLR_bcl_256_100_0.1_0.7_1.0",
        ),
    ],
)
def test_names_are_those_of_the_reference(flags, epoch, name):
    assert main.file_stem(main.parse_args(flags.split()), epoch) == name


def test_no_two_losses_share_a_name():
    names = {main.file_stem(main.parse_args(["--loss", kind]), 1) for kind in LOSSES}
    assert len(names) == len(LOSSES)


@pytest.mark.parametrize(
    "name, words",
    [
        ("stl10_SimCLR_4model_256_400_2.0_0.5.pth", "AttentioNCE (d_pos 2, d_neg 0.5), 400 epochs"),
        (
            "results/photos/photos_SimCLR_8model_64_10_1.0_10.0.csv",
            "AttentioNCE (d_pos 1, d_neg 10, 8 positives), 10 epochs",
        ),
        ("photos_SimCLR_simclr_64_30_linear.csv", "SimCLR, 30 epochs"),
        (
            "cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9.json",
            "BCL (tau_plus 0.1, alpha 0.9, beta 0.9), 400 epochs",
        ),
        ("cifar10_SimCLR_bcl_256_400_0.1_0.9.pth", "cifar10_SimCLR_bcl_256_400_0.1_0.9"),
        ("downloaded_model.pth", "downloaded_model"),
    ],
)
def test_title_says_what_stem_wrote(name, words):
    assert file_names.title(name, LOSSES) == words


def test_title_knows_every_stem():
    for kind, entry in LOSSES.items():
        flags = ["--loss", kind, "--estimator", "MoCo", "--batch_size", "8"]
        for name in entry.parameters:
            flags += [f"--{name}", "0.5"]
        words = ", ".join(f"{name} 0.5" for name in entry.parameters)
        settings = f" ({words})" if words else ""
        path = f"{main.file_stem(main.parse_args(flags), 7)}.pth"
        assert file_names.title(path, LOSSES) == f"{entry.title}{settings}, 7 epochs"
