"""A loss or gradient that is not finite stops the run; the state before that step is kept."""

import torch
from helpers.outputs import STEM, check_end, last, rows, same_bits

import main
from attentionce.runs import files, states
from attentionce.training import one_step


def test_a_loss_that_is_not_finite_stops_the_run(
    call, refused, flags, results, tmp_path, small_encoder, stop_after, break_steps, contents
):
    """In epoch 2, step 2. What is kept is what a run has that is stopped before that very step."""
    words = [*flags, "--save_every", 1, "--loss", "simclr"]
    stop_after(4)
    assert call(main, *words, "--results", tmp_path / "stopped") == 143
    break_steps(4, value=torch.nan)
    message = refused(main, *words)
    assert "epoch 2, step 2" in message and "--lr 0.001" in message and "--loss simclr" in message
    stem = "folder/folder_SimCLR_simclr_8_"
    endings = ("1.pth", "3.csv", "3.json", "3.nonfinite.state")
    assert set(contents(results)) == {stem + ending for ending in endings}
    assert len(rows(results)) == 1
    kept = results / f"{stem}3.nonfinite.state"
    assert str(kept) in message
    state, expected = files.read(kept), files.read(tmp_path / "stopped" / f"{stem}3.state")
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 1)
    assert same_bits(state["model"], expected["model"])
    assert same_bits(state["optimizer"], expected["optimizer"])
    weights = (files.read(last(folder, ".pth")) for folder in (results, tmp_path / "stopped"))
    assert same_bits(*weights)


def test_a_gradient_that_is_not_finite_stops_the_run(
    refused, tiny, results, small_encoder, monkeypatch
):
    """A finite loss with a gradient of NaN must not reach the weights."""
    batch_loss = one_step.batch_loss

    def kinked(run, z):
        kink = (z - z.detach()).abs().sum().sqrt()  # 0, but with a gradient of NaN
        return batch_loss(run, z) + kink

    monkeypatch.setattr(one_step, "batch_loss", kinked)
    message = refused(main, *tiny, "--loss", "simclr")
    assert "gradient" in message and "epoch 1, step 1" in message
    state = files.read(last(results, ".nonfinite.state"))
    torch.manual_seed(0)
    assert same_bits(dict(state["model"]), dict(main.Model().state_dict()))


def test_skipped_steps_are_counted_and_shown(
    call, flags, results, tmp_path, monkeypatch, small_encoder, stop_after, break_steps, capfd
):
    """With fp16's gradient scaler, steps that overflow are skipped, and counted over a stop."""
    new_run = main.new_run

    def scaled(*arguments):
        run = new_run(*arguments)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return run

    monkeypatch.setattr(main, "new_run", scaled)
    break_steps(1, 4, 5)
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    assert [row["skipped"] for row in rows(tmp_path / "whole")] == ["1", "3", "3"]
    assert "3 steps skipped so far" in capfd.readouterr().out
    break_steps(1, 4, 5)
    stop_after(7)
    assert call(main, *flags) == 143
    stop_after(10**6)
    state = states.read_state(last(results, f"{STEM}.state"))
    assert state["scaler"]["scale"] == 2.0**7 and state["progress"]["skipped"] == 3
    assert call(main, *flags) == 0
    check_end(results, tmp_path / "whole")
