"""Losses and gradients that are not finite."""

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
