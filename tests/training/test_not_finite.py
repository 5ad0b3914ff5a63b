"""Losses and gradients that are not finite."""

import json
from pathlib import Path

import pytest
import torch
from helpers.programs import (
    check_end,
    last,
    rows,
    same_bits,
)

import main
from attentionce.runs import files, states
from attentionce.training import one_step
from model import Model


# ---- numbers that go wrong ----
def not_finite_at(monkeypatch, *steps):
    """The loss of these steps is infinite; returns a function that begins to count anew."""
    mean_loss, count = one_step.mean_loss, [-1]

    def watched(run, z):
        count[0] += 1
        return mean_loss(run, z) * (float("inf") if count[0] in steps else 1)

    monkeypatch.setattr(one_step, "mean_loss", watched)
    return lambda: count.__setitem__(0, -1)


def test_the_state_before_a_bad_step_is_kept(
    call, flags, results, tmp_path, stop_after, small_encoder, refused, monkeypatch
):
    stop_after(5)
    call(main, *flags, "--results", tmp_path / "stopped")
    stop_after(10**6)
    not_finite_at(monkeypatch, 5)
    message = refused(main, *flags, "--save_every", 1)
    assert "not finite at epoch 2, step 3" in message and "--lr 0.001" in message
    kept = last(results, ".nonfinite.state")
    assert str(kept) in message
    state, stopped = (
        states.read_state(path) for path in (kept, last(tmp_path / "stopped", ".state"))
    )
    assert same_bits(
        [state[part] for part in ("model", "optimizer")],
        [stopped[part] for part in ("model", "optimizer")],
    )
    assert state["progress"]["epoch"] == 2 and state["progress"]["step"] == 2
    assert files.read(last(results, "_1_1.0_1.0.pth"))  # the last good weights


def test_skipped_steps_are_counted_and_shown(
    call, flags, results, tmp_path, monkeypatch, small_encoder, stop_after, capfd
):
    """With fp16's gradient scaler a loss that overflows moves nothing; also in a run that is interrupted."""
    assemble = main.assemble

    def scaled(*arguments):
        run = assemble(*arguments)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return run

    monkeypatch.setattr(main, "assemble", scaled)
    again = not_finite_at(monkeypatch, 1, 4, 5)
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    assert [row["skipped"] for row in rows(tmp_path / "whole")] == ["1", "3", "3"]
    assert "skipped=3" in capfd.readouterr().err
    again()
    stop_after(7)
    assert call(main, *flags) == 143
    stop_after(10**6)
    state = states.read_state(last(results, ".state"))
    assert state["scaler"]["scale"] == 2.0**7 and state["progress"]["skipped"] == 3
    assert call(main, *flags) == 0
    check_end(results, tmp_path / "whole")


# ---- numbers that go wrong ----
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_run(
    refused, tiny, results, monkeypatch, bad, contents
):
    """In epoch 2, step 2. What stays is the last good weights, and the state of before that very step."""
    runs, seen = [], []
    mean_loss = one_step.mean_loss

    def watched(run, z):
        runs.append(run)
        tensors = [run.model.parameters(), run.model.buffers()]
        seen.append([[t.detach().clone() for t in group] for group in tensors])
        return mean_loss(run, z) * (bad if len(seen) == 5 else 1)

    monkeypatch.setattr(one_step, "mean_loss", watched)
    message = refused(main, *tiny, "--epochs", 3, "--save_every", 1, "--loss", "simclr")
    assert "epoch 2, step 2" in message and "--lr 0.001" in message and "--loss simclr" in message
    stem = "folder/folder_SimCLR_simclr_8_"
    assert set(contents(results)) == {
        stem + ending for ending in ("1.pth", "3.csv", "3.json", "3.state", "3.nonfinite.state")
    }
    assert len((results / (stem + "3.csv")).read_text().splitlines()) == 2
    state = files.read(results / (stem + "3.nonfinite.state"))
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 1)
    assert all(value.isfinite().all() for value in state["model"].values())
    names = [
        [name for name, _ in group]
        for group in (runs[0].model.named_parameters(), runs[0].model.named_buffers())
    ]
    # the parameters as step 2 found them, BatchNorm's statistics as step 1 left them
    for name, value in [
        *zip(names[0], seen[4][0], strict=True),
        *zip(names[1], seen[3][1], strict=True),
    ]:
        assert torch.equal(state["model"][name], value), name
    good = files.read(results / (stem + "1.pth"))
    for name, value in zip(names[0], seen[3][0], strict=True):
        assert torch.equal(good[f"module.{name}"], value)


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
    assert (
        line.startswith("error: ")
        and "not finite at epoch 1, step" in line
        and "--lr 1e+20" in line
    )
    (path,) = (results / "folder").glob("*.nonfinite.state")
    state = files.read(path)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not list((results / "folder").glob("*.pth"))


def test_what_can_be_seen_after_a_stop_is_not_gone_on_from(
    refused, call, tiny, results, monkeypatch
):
    """The same command again starts from the last good state, not from the one that is kept to be looked at."""
    step = one_step.update_weights
    count = iter(range(100))
    monkeypatch.setattr(
        one_step,
        "update_weights",
        lambda run, loss: step(run, loss * torch.nan if next(count) == 4 else loss),
    )
    refused(main, *tiny, "--epochs", 2, "--loss", "simclr")
    assert (
        call(main, *tiny, "--epochs", 2, "--loss", "simclr") == 0
    )  # a fault that does not come again
    stem = results / "folder" / "folder_SimCLR_simclr_8_2"
    assert len(Path(f"{stem}.csv").read_text().splitlines()) == 3
    assert json.loads(Path(f"{stem}.json").read_text())["epochs_done"] == 2
