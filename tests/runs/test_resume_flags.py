"""Flags of a resumed run: which may differ, and what is said of those that may not."""

import json
import re
import shutil

import pytest
import torch
from helpers.outputs import STEM, last

import main
from attentionce.runs import files, states
from attentionce.training import devices

# Another value of every flag that changes the result: of this command's own state,
RECOVERY = "--lr 0.5 --weight_decay 1.0 --precision bf16"
# and of a state that is named.
CHANGES = [
    "--seed 1 --temperature 0.1 --feature_dim 7 --image_size 9 --store_size 9 --batch_size 12",
    "--arch resnet18 --stem imagenet --image_size 32 --d_pos 2.0 --d_neg 2.0 --num_pos 2",
    "--noisy_positives 0.5 --init other.pth",
    "--loss bcl --tau_plus 0.3 --alpha 0.8 --beta 0.7",
    "--positives each --negatives hard",
    "--estimator MoCo --queue 99 --momentum 0.5",
    "--dataset_name photos",
]


@pytest.fixture
def stopped(call, flags, results, stop_after, small_encoder):
    """The state of a run that was stopped in its fourth step."""
    stop_after(4)
    assert call(main, *flags) == 143
    return last(results, ".state")


def test_flags_that_change_the_result_are_named(stopped, flags, refused, contents, results):
    before, names = contents(results), set()
    for words in (RECOVERY, *CHANGES):
        named = [] if words == RECOVERY else ["--resume", stopped]
        message = refused(main, *flags, *words.split(), *named)
        for name, value in re.findall(r"--(\w+) (\S+)", words):
            assert f"--{name} {value} (there: " in message
            names.add(name)
        assert "never" in message
    # --bn sync needs a GPU.
    assert names | states.FREE_FLAGS | {"bn"} == vars(main.parse_args([])).keys()
    assert contents(results) == before


def test_results_of_another_run_are_not_overwritten(
    call, stopped, flags, refused, contents, results, tmp_path
):
    """Also with `--resume FILE`, and where the run with files of these names has no state."""
    other = [*flags, "--seed", 1]
    assert call(main, *other, "--epochs", 1, "--results", tmp_path / "there") == 0
    before, state = contents(results), last(tmp_path / "there", ".state")
    message = refused(main, *other, "--resume", state)
    assert "--seed 1 (there: 0)" in message and str(last(results, ".json")) in message
    assert contents(results) == before
    stopped.unlink()
    for epochs in (2, 5):
        assert "--seed 1 (there: 0)" in refused(main, *other, "--epochs", epochs)
    assert call(main, *flags, "--epochs", 5) == 0


def test_the_state_before_a_bad_step_resumes_in_the_same_folder(
    call, flags, refused, results, small_encoder, break_steps, capsys
):
    """The documented recovery: its name and another rate, beside the results of that run.

    It learns with the flag's rate, not with the state's.
    """
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
    after = states.read_state(results / "folder" / f"{STEM}.state")
    assert after["optimizer"]["param_groups"][0]["lr"] == 1e-4


def test_other_images_are_refused(stopped, flags, refused, pictures, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    red = other / "train" / "red"
    (red / "0.png").rename(red / "another.png")
    assert "different images" in refused(main, *flags, "--root", other)
    shutil.copy(red / "1.png", red / "x.png")
    assert "different images (24, here are 25)" in refused(main, *flags, "--root", other)


def test_flags_that_change_no_result_go_through(call, stopped, flags, tmp_path, pictures):
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    words = "--k 3 --knn_every 1 --save_every 1 --state_minutes 0 --epochs 4"
    words += " --deterministic --grad_cache --skip_broken"
    assert call(main, *flags, "--root", moved, "--resume", stopped, *words.split()) == 0
    devices.reproducible(False)


def test_a_flag_that_is_newer_than_a_state_had_its_default(call, stopped, flags, refused, results):
    """As if the code that wrote the files had not known it yet; the run does not start over."""
    state, written = files.read(stopped), last(results, ".json")
    description = json.loads(written.read_text())
    for found in (state, description):
        del found["flags"]["temperature"]
    files.save(stopped, state)
    files.save_json(written, description)
    for file in (written, stopped):
        for words in ([], ["--resume", stopped]):
            message = refused(main, *flags, *words, "--temperature", 0.1)
            assert f"{file} was made with other flags: --temperature 0.1 (there: 0.5);" in message
        written.unlink(missing_ok=True)
    assert call(main, *flags, "--epochs", 4) == 0


def test_other_versions_and_another_precision_are_said(call, stopped, flags, capsys):
    """What --precision auto means differs from machine to machine."""
    state = files.read(stopped)
    state["machine"] |= {"torch": "2.11.0", "precision": "bfloat16"}
    files.save(stopped, state)
    assert call(main, *flags) == 0
    said = capsys.readouterr().out
    assert f"saved with torch 2.11.0 (here: {torch.__version__})" in said
    assert "precision bfloat16 (here: float32)" in said
