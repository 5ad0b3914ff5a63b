"""The files of a run are named as in the reference."""

import pytest

import main
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
