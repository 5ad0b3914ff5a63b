"""A run's state as a dictionary: what it takes to continue with another precision."""

import pytest
import torch
from helpers.device import DEVICE

import main
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import one_step
from attentionce.training.pretraining import restore, state_of


def new_run(scaled):
    """A run of two steps per epoch; `scaled`: with fp16's gradient scaler."""
    flags = "--dataset_name photos --arch resnet10 --image_size 8 --batch_size 4 --loss simclr"
    args = main.parse_args([*flags.split(), "--compile", "off"])
    pixels = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    run = main.assemble(args, pixels, DEVICE, torch.float32)
    run.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10, enabled=scaled)
    return run


@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True)])
def test_another_precision_goes_on(monkeypatch, before, after):
    """A state of bf16 or fp32 has no gradient scale; fp16 then starts with its own."""
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    first, second = new_run(before), new_run(after)
    one_step.take_step(first, first.pixels[:4])
    first.progress["step"] = 1
    if before:
        first.scaler.update(2.0**7)
    restore(second, state_of(first))
    assert second.position == (1, 1)
    assert second.scaler.get_scale() == (2.0**7 if before and after else 2.0**10 if after else 1)
    one_step.take_step(second, second.pixels[4:])
    assert second.progress["losses"].isfinite().all()
    assert not torch.equal(second.model.f[0].weight, first.model.f[0].weight)


def test_a_part_of_progress_that_is_newer_than_the_state_starts_fresh(monkeypatch):
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    first, second = new_run(False), new_run(False)
    one_step.take_step(first, first.pixels[:4])
    first.progress["step"] = 1
    state = state_of(first)
    state["progress"] = {name: value for name, value in first.progress.items() if name != "skipped"}
    restore(second, state)
    assert second.position == (1, 1) and second.progress["skipped"] == 0
    with pytest.raises(UserError, match="the state does not fit this run"):
        restore(second, {**state, "progress": {**state["progress"], "seconds": "long"}})


def test_metrics_of_older_code_may_lack_a_column(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    first, second = new_run(False), new_run(False)
    first.progress["rows"] = [{"epoch": 1, "seconds": 2.0}, {"epoch": 2, "seconds": 4, "new": 7}]
    restore(second, state_of(first))
    files.save_csv(tmp_path / "a.csv", second.progress["rows"])
    assert (tmp_path / "a.csv").read_text() == "epoch,seconds,new\n1,2.0,\n2,4,7\n"
    first.progress["rows"] = [{"epoch": 1}]
    with pytest.raises(UserError, match="the state does not fit this run"):
        restore(second, state_of(first))


def trained_state(monkeypatch):
    """The state of a run after one step, and a fresh run to restore it to."""
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    first, second = new_run(False), new_run(False)
    one_step.take_step(first, first.pixels[:4])
    return state_of(first), second


def rename(dictionary, old, new):
    dictionary[new] = dictionary.pop(old)


@pytest.mark.parametrize(
    "damage",
    [
        lambda adam: rename(adam["state"][0], "exp_avg", "exp\tavg"),
        lambda adam: adam["state"][3].pop("step"),
        lambda adam: adam["state"].pop(3),
        lambda adam: rename(adam["state"], 3, 1000),
        lambda adam: rename(adam, "state", "s\tate"),
        lambda adam: adam["state"][0].update(exp_avg=torch.zeros(3)),
        lambda adam: adam["state"][0].update(exp_avg=1.0),
    ],
)
def test_a_damaged_optimiser_is_refused(monkeypatch, damage):
    """Before the first step, which would fail on it."""
    state, run = trained_state(monkeypatch)
    damage(state["optimizer"])
    with pytest.raises(UserError, match="does not fit this run"):
        restore(run, state)


@pytest.mark.parametrize("name, value", [("scale", "large"), ("growth_factor", None)])
def test_a_damaged_gradient_scaler_is_refused(monkeypatch, name, value):
    monkeypatch.setattr(main, "cost", lambda model, image_size: (0, 0))
    first, second = new_run(True), new_run(True)
    one_step.take_step(first, first.pixels[:4])
    state = state_of(first)
    state["scaler"][name] = value
    with pytest.raises(UserError, match="does not fit this run"):
        restore(second, state)


def test_the_optimisers_settings_are_those_of_the_flags(monkeypatch):
    """Nothing that a state says of them counts, damaged or not."""
    state, run = trained_state(monkeypatch)
    settings = [dict(group, params=None) for group in run.optimizer.param_groups]
    rename(state["optimizer"]["param_groups"][0], "betas", "b\tas")
    state["optimizer"]["param_groups"][0]["lr"] = 7.0
    restore(run, state)
    assert [dict(group, params=None) for group in run.optimizer.param_groups] == settings
    one_step.take_step(run, run.pixels[4:])
