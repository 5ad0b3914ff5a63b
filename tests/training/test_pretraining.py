"""A run's state as a dictionary: with what changes it continues, and what it is checked for."""

import pytest
import torch
from helpers.device import DEVICE
from helpers.programs import Small
from helpers.runs import new_run, take_steps

from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training.pretraining import restore, state_of


def scaled_run(scaled=False):
    """A run of two steps per epoch; `scaled`: with fp16's gradient scaler."""
    run = new_run("--loss", "simclr", encoder=Small)
    run.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10, enabled=scaled)
    return run


def state_after_a_step(scaled=False):
    run = scaled_run(scaled)
    take_steps(run)
    return state_of(run)


@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True)])
def test_another_precision_continues(before, after):
    """A state of bf16 or fp32 has no gradient scale; fp16 then starts with its own."""
    state, run = state_after_a_step(before), scaled_run(after)
    if before:
        state["scaler"]["scale"] = 2.0**7
    restore(run, state)
    assert run.position == (1, 1)
    assert run.scaler.get_scale() == (2.0**7 if before and after else 2.0**10 if after else 1)
    weight = run.model.g.weight.detach().clone()
    take_steps(run)
    assert run.progress["losses"].isfinite().all() and not torch.equal(run.model.g.weight, weight)


def test_what_older_code_did_not_save_starts_fresh(tmp_path):
    """Parts of the progress, columns of the metrics, the images' fingerprint."""
    state, run = state_after_a_step(), scaled_run()
    del state["progress"]["skipped"], state["fingerprint"]
    rows = [{"epoch": 1, "seconds": 2.0}, {"epoch": 2, "seconds": 4, "new": 7}]
    state["progress"].update(epoch=3, rows=rows)
    restore(run, state)
    assert run.position == (3, 1) and run.progress["skipped"] == 0
    files.save_csv(tmp_path / "a.csv", run.progress["rows"])
    assert (tmp_path / "a.csv").read_text() == "epoch,seconds,new\n1,2.0,\n2,4,7\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
        lambda state: state["optimizer"]["state"].pop(3),
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
        lambda state: state["scaler"].update(scale="large"),
        lambda state: state["progress"].update(step=3),
        lambda state: state["progress"].update(losses=torch.zeros(3)),
        lambda state: state["progress"].update(rows=[{"epoch": 1}]),
        lambda state: state["model"].pop("g.weight"),
    ],
)
def test_a_damaged_state_is_refused(damage):
    """Before the first step, which would fail on it."""
    state = state_after_a_step(scaled=True)
    damage(state)
    with pytest.raises(UserError, match="does not fit this run"):
        restore(scaled_run(scaled=True), state)


def test_the_optimisers_settings_are_those_of_the_flags():
    """Nothing that a state says of them counts, damaged or not."""
    state, run = state_after_a_step(), scaled_run()
    settings = [dict(group, params=None) for group in run.optimizer.param_groups]
    del state["optimizer"]["param_groups"][0]["betas"]
    state["optimizer"]["param_groups"][0]["lr"] = 7.0
    restore(run, state)
    assert [dict(group, params=None) for group in run.optimizer.param_groups] == settings
    take_steps(run)
