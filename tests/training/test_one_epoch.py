"""When the host looks at the losses, saves and prints during an epoch, by a clock that is ours."""

import re
from types import SimpleNamespace

import pytest
from helpers.runs import new_run

from attentionce.training import fallbacks, one_epoch


@pytest.fixture
def epoch_of(monkeypatch):
    """epoch_of(seconds, device): a run after an epoch of 12 steps that take so long, with its log.

    Saving takes 1,000 s more.
    """
    clock, log = [0.0], []
    monkeypatch.setattr(one_epoch, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    check_losses = one_epoch.check_losses

    def check(run, bar):
        log.append(run.progress["step"])
        check_losses(run, bar)

    def function(seconds, device, *words):
        run = new_run("--loss", "simclr", "--epochs", 2, *words, count=48)

        def take_step(run, batch):
            clock[0] += seconds
            run.progress["losses"][run.progress["step"]] = 2.0

        def save():
            log.append("saved")
            clock[0] += 1000
            run.saved = clock[0]

        monkeypatch.setattr(one_epoch, "check_losses", check)
        monkeypatch.setattr(fallbacks, "take_step_or_change", take_step)
        monkeypatch.setattr(one_epoch, "batches", lambda pixels, order, device: order)
        run.device = SimpleNamespace(type=device)
        assert one_epoch.train_epoch(run, [], save) == 0
        assert run.progress["seconds"] == pytest.approx(12 * seconds)  # without saving
        return log

    return function


@pytest.mark.parametrize("device, steps", [("cuda", [3, 6, 9, 12]), ("cpu", [*range(1, 13)])])
def test_a_gpu_is_waited_for_every_two_seconds_and_at_the_end(epoch_of, device, steps):
    """A CPU, which is never ahead, after every step."""
    assert epoch_of(0.9, device) == steps


def test_states_in_between(epoch_of):
    """Each after a look at the losses, so that none holds what is not finite."""
    log = epoch_of(0.9, "cuda", "--state_minutes", 0.1)
    assert log == [3, 6, 7, "saved", 8, 11, 12]


def test_a_log_has_a_line_a_minute(epoch_of, capsys):
    epoch_of(25.0, "cuda")
    lines = [re.sub(r"\d\d:\d\d", "…", line) for line in capsys.readouterr().out.splitlines()]
    expected = [f"epoch 1/2, step {step}/12: loss 2.0000, left …" for step in (3, 6, 9, 12)]
    assert lines[-5:-4] + expected == lines[-5:] and "GB expected" in lines[-5]
