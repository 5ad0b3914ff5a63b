"""A loss or gradient that is not finite stops the run; the state before that step is kept."""

import json

import pytest
import torch
from helpers.outputs import check_end, last, read_csv, rows, same_bits

import main
from attentionce.runs import files, states
from attentionce.training import one_epoch, one_step
from model import Model

# ---- the run stops ----


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_run(
    refused, tiny, results, monkeypatch, break_steps, contents, bad
):
    """In epoch 2, step 2. The last good weights stay, and the state before that very step."""
    runs, parameters, buffers = [], [], []
    break_steps(4, value=bad)
    mean_loss = one_step.mean_loss

    def watched(run, z):
        runs.append(run)
        for found, tensors in (
            (parameters, run.model.named_parameters()),
            (buffers, run.model.named_buffers()),
        ):
            found.append({name: tensor.detach().cpu().clone() for name, tensor in tensors})
        return mean_loss(run, z)

    monkeypatch.setattr(one_step, "mean_loss", watched)
    monkeypatch.setattr(one_epoch, "REFRESH", 0)  # every loss is looked at, as on a CPU
    message = refused(main, *tiny, "--epochs", 3, "--save_every", 1, "--loss", "simclr")
    assert "epoch 2, step 2" in message and "--lr 0.001" in message and "--loss simclr" in message
    stem = "folder/folder_SimCLR_simclr_8_"
    endings = ("1.pth", "3.csv", "3.json", "3.state", "3.nonfinite.state")
    assert set(contents(results)) == {stem + ending for ending in endings}
    assert len(read_csv(results / f"{stem}3.csv")) == 1
    state = files.read(results / f"{stem}3.nonfinite.state")
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 1)
    assert all(value.isfinite().all() for value in state["model"].values())
    # The parameters as step 2 found them, BatchNorm's statistics as step 1 left them.
    for name, value in {**parameters[4], **buffers[3]}.items():
        assert torch.equal(state["model"][name], value), name
    good = files.read(results / f"{stem}1.pth")
    for name, value in parameters[3].items():
        assert torch.equal(good[f"module.{name}"], value), name


def test_a_gradient_that_is_not_finite_stops_the_run(refused, tiny, results, monkeypatch):
    """A finite loss with a gradient of NaN must not reach the weights."""
    mean_loss = one_step.mean_loss

    def kinked(run, z):
        kink = (z - z.detach()).abs().sum().sqrt()  # 0, but with a gradient of NaN
        return mean_loss(run, z) + kink

    monkeypatch.setattr(one_step, "mean_loss", kinked)
    message = refused(main, *tiny, "--loss", "simclr")
    assert "gradient" in message and "epoch 1, step 1" in message
    state = files.read(results / "folder" / "folder_SimCLR_simclr_8_1.nonfinite.state")
    torch.manual_seed(0)
    start = Model(128, "resnet10").state_dict()
    assert all(torch.equal(state["model"][key], value) for key, value in start.items())


def test_a_diverging_run_as_a_user_sees_it(script, tiny, results):
    process = script("main.py", *tiny, "--epochs", 2, "--loss", "simclr", "--lr", 1e20)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    *bars, line = process.stderr.splitlines()
    assert all(bar.lstrip().startswith("epoch ") for bar in bars if bar.strip())
    assert line.startswith("error: ")
    assert "not finite at epoch 1, step" in line and "--lr 1e+20" in line
    state = files.read(last(results, ".nonfinite.state"))
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not list(results.rglob("*.pth"))


# ---- what is kept, and going on ----


def test_the_state_before_a_bad_step_is_kept(
    call, flags, results, tmp_path, stop_after, small_encoder, refused, break_steps
):
    """It is that of a run that is stopped there."""
    stop_after(5)
    call(main, *flags, "--results", tmp_path / "stopped")
    stop_after(10**6)
    break_steps(5)
    message = refused(main, *flags, "--save_every", 1)
    assert "not finite at epoch 2, step 3" in message and "--lr 0.001" in message
    kept = last(results, ".nonfinite.state")
    assert str(kept) in message
    state = states.read_state(kept)
    stopped = states.read_state(last(tmp_path / "stopped", ".state"))
    for part in ("model", "optimizer"):
        assert same_bits(state[part], stopped[part])
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 2)
    assert files.read(last(results, "_1_1.0_1.0.pth"))  # the last good weights


def test_the_same_command_goes_on_from_the_last_good_state(
    refused, call, tiny, results, break_steps
):
    """It does not go on from the state that is kept for a look at it."""
    flags = [*tiny, "--epochs", 2, "--loss", "simclr"]
    break_steps(4)
    refused(main, *flags)
    break_steps()
    assert call(main, *flags) == 0
    assert len(rows(results)) == 2
    assert json.loads(last(results, ".json").read_text())["epochs_done"] == 2


def test_skipped_steps_are_counted_and_shown(
    call, flags, results, tmp_path, monkeypatch, small_encoder, stop_after, break_steps, capfd
):
    """With fp16's gradient scaler, steps that overflow are skipped, and counted over a stop."""
    assemble = main.assemble

    def scaled(*arguments):
        run = assemble(*arguments)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return run

    monkeypatch.setattr(main, "assemble", scaled)
    break_steps(1, 4, 5)
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    assert [row["skipped"] for row in rows(tmp_path / "whole")] == ["1", "3", "3"]
    assert "3 steps skipped so far" in capfd.readouterr().out
    break_steps(1, 4, 5)
    stop_after(7)
    assert call(main, *flags) == 143
    stop_after(10**6)
    state = states.read_state(last(results, ".state"))
    assert state["scaler"]["scale"] == 2.0**7 and state["progress"]["skipped"] == 3
    assert call(main, *flags) == 0
    check_end(results, tmp_path / "whole")
