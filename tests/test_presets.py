"""What `--loss` stands for, which flags a loss takes, and the names of a run's files."""

import itertools

import pytest

import main
from attentionce import presets
from attentionce.errors import UserError
from loss import NEGATIVES, POSITIVES

COMBINATIONS = list(itertools.product(POSITIVES, NEGATIVES))


def parsed(words):
    return main.parse_args(words.split())


# ---- flags ----


def test_a_preset_is_its_positives_and_negatives():
    for name, (positives, negatives) in presets.PRESETS.items():
        words = f"--loss simclr --positives {positives} --negatives {negatives}"
        assert vars(parsed(words)) == vars(parsed(f"--loss {name}"))


@pytest.mark.parametrize(
    "words, used",
    [
        ("", {"num_pos": 4, "d_pos": 1, "d_neg": 1}),
        ("--loss simclr", {}),
        ("--loss dcl --tau_plus 0.2", {"tau_plus": 0.2}),
        ("--loss hcl --dataset_name stl10", {"tau_plus": 0.1, "beta": 1}),
        ("--loss bcl --dataset_name tinyImageNet", {"tau_plus": 0.1, "alpha": 0.8, "beta": 1}),
        ("--loss bcl --alpha 0", {"tau_plus": 0.1, "alpha": 0, "beta": 0.9}),
        ("--negatives uniform --num_pos 2", {"num_pos": 2, "d_pos": 1}),
        ("--loss simclr --negatives attention", {"d_neg": 1}),
    ],
)
def test_only_flags_that_are_used_have_a_value(words, used):
    """By default it is the one that the loss's authors chose, for some data sets their own."""
    names = (*presets.PARAMETERS, "num_pos", "momentum", "queue")
    flags = {name: value for name, value in vars(parsed(words)).items() if name in names}
    assert flags == {**dict.fromkeys(names), **used}


@pytest.mark.parametrize(
    "words",
    [
        "--d_pos 1 --loss simclr",
        "--num_pos 2 --positives pair",
        "--noisy_positives 0 --loss hcl",
        "--d_neg 0 --negatives bayes",
        "--momentum 0",
    ],
)
def test_a_flag_without_effect_is_refused(words):
    flag, value = words.split()[:2]
    with pytest.raises(UserError, match=f"{flag} {value}.* has no effect .*: leave it out$"):
        parsed(words)


# ---- names of files ----


@pytest.mark.parametrize(
    "flags, epoch, name",
    [
        ("--dataset_name stl10 --d_pos 2 --d_neg 0.5", 400, "stl10_SimCLR_4model_256_400_2.0_0.5"),
        ("--estimator MoCo --num_pos 2", 400, "cifar10_MoCo_2model_256_400_1.0_1.0"),
        ("--loss simclr", 400, "cifar10_SimCLR_simclr_256_400"),
        ("--loss bcl --alpha 0.7 --beta 1", 9, "cifar10_SimCLR_bcl_256_9_0.1_0.7_1.0"),
        ("--positives each --negatives hard", 9, "cifar10_SimCLR_4each-hard_256_9_0.1_1.0"),
        ("--negatives uniform --d_pos 2", 9, "cifar10_SimCLR_4attention-uniform_256_9_2.0"),
        ("--positives pair", 9, "cifar10_SimCLR_pair-attention_256_9_1.0"),
    ],
)
def test_names_are_those_of_the_reference(flags, epoch, name):
    assert presets.file_stem(parsed(flags), epoch) == name


def test_no_two_losses_share_a_name():
    """Not even if their parameters are equal."""
    names = set()
    for positives, negatives in COMBINATIONS:
        args = main.parse_args(["--positives", positives, "--negatives", negatives])
        for parameter in presets.PARAMETERS:
            if getattr(args, parameter) is not None:
                setattr(args, parameter, 0.5)
        names.add(presets.file_stem(args, 1))
    assert len(names) == len(COMBINATIONS)


def test_titles():
    titles = [presets.title(vars(parsed(f"--loss {name}"))) for name in presets.PRESETS]
    assert titles == ["AttentioNCE", "SimCLR", "DCL", "HCL", "BCL"]
    assert presets.title(vars(parsed("--positives each --negatives hard"))) == "each + hard"
    assert presets.title({"loss": "hcl"}) == "HCL"  # files of older code name no positives
