"""Flags of a run that goes on: which may differ, and what is said of those that may not."""

import shutil

import pytest
import torch
from helpers.programs import (
    last,
)

import main
from attentionce.runs import states
from attentionce.training import devices

# ---- flags ----
CHANGES = {
    "seed": 1,
    "lr": 0.5,
    "temperature": 0.1,
    "weight_decay": 1,
    "arch": "resnet18",
    "stem": "imagenet",
    "feature_dim": 7,
    "image_size": 9,
    "store_size": 9,
    "momentum": 0.5,
    "queue": 99,
    "tau_plus": 0.3,
    "alpha": 0.8,
    "beta": 0.7,
    "precision": "bf16",
    "d_pos": 2,
    "d_neg": 2,
    "num_pos": 2,
    "loss": "simclr",
    "batch_size": 12,
    "estimator": "MoCo",
}


FREE = {"k": 3, "knn_every": 1, "save_every": 1, "state_minutes": 0, "compile": "off", "epochs": 4}


@pytest.fixture
def stopped(call, flags, results, stop_after, small_encoder):
    """A state of a run that was stopped in its fourth step."""
    stop_after(4)
    assert call(main, *flags) == 143
    stop_after(10**6)
    return last(results, ".state")


def test_flags_that_change_the_result_are_named(stopped, flags, refused, contents, results):
    before = contents(results)
    for name, value in CHANGES.items():
        state = [] if name in states.RECOVERY else ["--resume", stopped]  # else this command's own
        message = refused(main, *flags, f"--{name}", value, *state)
        assert (
            f"--{name} {type(vars(main.parse_args([]))[name])(value)} (there: " in message
            and "never" in message
        )
        assert message.count("(there: ") == 1
    message = refused(main, *flags, "--seed", 1, "--lr", 0.5)
    assert "--seed 1 (there: 0)" in message and "--lr 0.5 (there: 0.001)" in message
    assert contents(results) == before


def test_a_named_state_goes_on_with_another_rate(call, stopped, flags, results):
    """As after a run that diverged: what it learns with is the flag's, not the state's."""
    assert call(main, *flags, "--lr", 0.5, "--weight_decay", 0.25, "--resume", stopped) == 0
    group = states.read_state(last(results, ".state"))["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("epochs", [2, 5])
def test_weights_of_another_run_are_not_overwritten(
    call, stopped, flags, refused, contents, results, epochs
):
    """A run of other flags, but with files of the same names, shorter or longer: also where no state is left."""
    stopped.unlink()
    before = contents(results)
    assert "--seed 1 (there: 0)" in refused(main, *flags, "--epochs", epochs, "--seed", 1)
    assert contents(results) == before
    assert call(main, *flags, "--epochs", epochs) == 0


def test_flags_that_change_no_result_go_through(call, stopped, flags, tmp_path, pictures):
    known = vars(main.parse_args([])).keys()
    elsewhere = {
        "root",
        "results",
        "resume",
        "device",
        "dataset_name",
        "deterministic",
        "grad_cache",
        "tensorboard",
        "bn",
    }
    assert CHANGES.keys() | FREE.keys() | elsewhere == known  # no flag is forgotten
    shutil.copytree(pictures, tmp_path / "moved")
    other = [word for name, value in FREE.items() for word in (f"--{name}", value)]
    assert (
        call(
            main,
            *flags,
            *other,
            "--root",
            tmp_path / "moved",
            "--deterministic",
            "--resume",
            stopped,
        )
        == 0
    )
    devices.reproducible(False)


def test_the_old_name_of_the_loss_is_the_new_one(call, stopped, flags, results, capsys):
    """States and result files from before the project was called AttentioNCE have `attention_nce`."""
    state = states.read_state(stopped)
    state["flags"]["loss"] = "attention_nce"
    states.save_state(stopped, state)
    made = last(results, ".json")
    made.write_text(made.read_text().replace('"attentionce"', '"attention_nce"'))
    assert call(main, *flags) == 0 and "going on from epoch 2, step 1" in capsys.readouterr().out
    assert states.read_state(stopped)["flags"]["loss"] == "attentionce"


def test_other_versions_are_said(call, stopped, flags, capsys):
    state = states.read_state(stopped)
    state["machine"]["torch"] = "2.11.0"
    states.save_state(stopped, state)
    assert call(main, *flags) == 0
    assert f"saved with torch 2.11.0 (here: {torch.__version__})" in capsys.readouterr().out


def test_another_precision_is_said(call, stopped, flags, capsys):
    """What --precision auto means differs from machine to machine."""
    state = states.read_state(stopped)
    state["machine"]["precision"] = "bfloat16"
    states.save_state(stopped, state)
    assert call(main, *flags) == 0
    assert "saved with precision bfloat16 (here: float32)" in capsys.readouterr().out


def test_other_images_are_refused(stopped, flags, refused, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "more")
    shutil.copy(pictures / "train" / "red" / "0.png", tmp_path / "more" / "train" / "red" / "x.png")
    assert "24 images, here are 25" in refused(main, *flags, "--root", tmp_path / "more")
