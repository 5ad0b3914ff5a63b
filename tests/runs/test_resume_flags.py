"""Flags of a run that goes on: which may differ, and what is said of those that may not."""

import json
import shutil

import pytest
import torch
from helpers.outputs import check_end, last

import main
from attentionce.runs import files, states
from attentionce.training import devices

# Another value of every flag that changes the result, and of every flag that does not.
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
ELSEWHERE = "root results resume device dataset_name deterministic grad_cache tensorboard bn"
ELSEWHERE += " test_split skip_broken big_images cache"


@pytest.fixture
def stopped(call, flags, results, stop_after, small_encoder):
    """The state of a run that was stopped in its fourth step."""
    stop_after(4)
    assert call(main, *flags) == 143
    stop_after(10**6)
    return last(results, ".state")


def edit(path, part, **values):
    """Set entries of one part of a state; None takes an entry away."""
    state = files.read(path)
    state[part] = {**state[part], **values}
    for name in [name for name, value in values.items() if value is None]:
        del state[part][name]
    files.save(path, state)


# ---- flags that change the result ----


def test_flags_that_change_the_result_are_named(stopped, flags, refused, contents, results):
    before = contents(results)
    defaults = vars(main.parse_args([]))
    for name, value in CHANGES.items():
        # The state is named, or is this command's own where a named one may differ in the flag.
        state = [] if name in states.RECOVERY else ["--resume", stopped]
        message = refused(main, *flags, f"--{name}", value, *state)
        assert f"--{name} {type(defaults[name])(value)} (there: " in message
        assert "never" in message
        assert message.count("(there: ") == 1
    message = refused(main, *flags, "--seed", 1, "--lr", 0.5)
    assert "--seed 1 (there: 0)" in message and "--lr 0.5 (there: 0.001)" in message
    assert contents(results) == before


def test_a_named_state_goes_on_with_another_rate(call, stopped, flags, results):
    """As after a run that diverged: it learns with the flag's rate, not with the state's."""
    assert call(main, *flags, "--lr", 0.5, "--weight_decay", 0.25, "--resume", stopped) == 0
    group = states.read_state(last(results, ".state"))["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("epochs", [2, 5])
def test_weights_of_another_run_are_not_overwritten(
    call, stopped, flags, refused, contents, results, epochs
):
    """Also where the run with files of the same names is shorter or longer and has no state."""
    stopped.unlink()
    before = contents(results)
    assert "--seed 1 (there: 0)" in refused(main, *flags, "--epochs", epochs, "--seed", 1)
    assert contents(results) == before
    assert call(main, *flags, "--epochs", epochs) == 0


def test_a_named_state_does_not_overwrite_another_run(
    call, stopped, flags, refused, contents, results, tmp_path
):
    """`--resume FILE` continues the run in FILE, unless --results has another of the same name."""
    there, flags = tmp_path / "there", [*flags, "--seed", 1]
    assert call(main, *flags, "--epochs", 1, "--results", there) == 0
    flags += ["--resume", last(there, ".state")]
    before = contents(results)
    message = refused(main, *flags)
    assert "--seed 1 (there: 0)" in message and str(last(results, ".json")) in message
    assert contents(results) == before
    assert call(main, *flags, "--results", tmp_path / "third") == 0


def test_the_state_before_a_bad_step_goes_on_in_the_same_folder(
    call, flags, refused, results, small_encoder, break_steps, capsys
):
    """The documented recovery: its name and another rate, beside the results of that run."""
    break_steps(4)
    message = refused(main, *flags)
    kept = last(results, ".nonfinite.state")
    assert str(kept) in message
    break_steps()
    before = kept.read_bytes()
    assert "--lr 0.0001 (there: 0.001)" in refused(main, *flags, "--lr", 1e-4)
    assert call(main, *flags, "--lr", 1e-4, "--resume", kept) == 0
    assert "continuing from epoch 2, step 1" in capsys.readouterr().out
    assert kept.read_bytes() == before
    result = json.loads(last(results, ".json").read_text())
    assert (result["flags"]["lr"], result["epochs_done"]) == (1e-4, 3)


def test_other_images_are_refused(stopped, flags, refused, pictures, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(pictures, more)
    shutil.copy(pictures / "train" / "red" / "0.png", more / "train" / "red" / "x.png")
    assert "24 images, here are 25" in refused(main, *flags, "--root", more)


def test_as_many_other_images_are_refused(stopped, flags, refused, pictures, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    (other / "train" / "red" / "0.png").rename(other / "train" / "red" / "another.png")
    assert "different images" in refused(main, *flags, "--root", other)


# ---- flags that do not ----


def test_flags_that_change_no_result_go_through(call, stopped, flags, tmp_path, pictures):
    assert {*CHANGES, *FREE, *ELSEWHERE.split()} == {*vars(main.parse_args([]))}
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    flags = [*flags, "--root", moved, "--deterministic", "--resume", stopped]
    for name, value in FREE.items():
        flags += [f"--{name}", value]
    assert call(main, *flags) == 0
    devices.reproducible(False)


# ---- states of older code and of other machines ----


def forget_flag(results, name):
    """Take a flag away from all files, as if the code that wrote them had not known it yet."""
    for path in results.rglob("*.state*"):
        edit(path, "flags", **{name: None})
    for path in results.rglob("*.json"):
        content = json.loads(path.read_text())
        del content["flags"][name]
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("named", [False, True])
def test_a_flag_that_is_newer_than_a_state_had_its_default(
    call, stopped, flags, refused, contents, results, capsys, named
):
    forget_flag(results, "queue")
    before = contents(results)
    flags = [*flags, "--resume", stopped] if named else flags
    assert "--queue 99 (there: 4096)" in refused(main, *flags, "--queue", 99)
    assert contents(results) == before
    assert call(main, *flags, "--queue", 4096) == 0
    assert "continuing from epoch 2, step 1" in capsys.readouterr().out


def test_a_newer_flag_is_compared_with_a_state_alone(stopped, flags, refused, results):
    """Without a JSON file, which would be found first."""
    last(results, ".json").unlink()
    forget_flag(results, "queue")
    for words in ([], ["--resume", stopped]):
        message = refused(main, *flags, "--queue", 99, *words)
        assert f"{stopped} was made with other flags: --queue 99 (there: 4096);" in message


def test_a_shorter_run_without_a_newer_flag_is_extended(
    call, flags, refused, results, tmp_path, small_encoder, capsys
):
    """It is not started anew."""
    call(main, *flags, "--results", tmp_path / "whole")
    call(main, *flags, "--epochs", 1)
    forget_flag(results, "queue")
    assert "--queue 99 (there: 4096)" in refused(main, *flags, "--queue", 99)
    assert call(main, *flags) == 0
    assert "extending the run of 1 epochs" in capsys.readouterr().out
    for path in results.rglob("*_1_*"):
        path.unlink()
    check_end(results, tmp_path / "whole")


def test_other_versions_are_said(call, stopped, flags, capsys):
    edit(stopped, "machine", torch="2.11.0")
    assert call(main, *flags) == 0
    assert f"saved with torch 2.11.0 (here: {torch.__version__})" in capsys.readouterr().out


def test_another_precision_is_said(call, stopped, flags, capsys):
    """What --precision auto means differs from machine to machine."""
    edit(stopped, "machine", precision="bfloat16")
    assert call(main, *flags) == 0
    assert "saved with precision bfloat16 (here: float32)" in capsys.readouterr().out
