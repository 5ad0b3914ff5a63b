"""Runs of several processes stop, fail, resume and end together."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from helpers.faults import signals
from helpers.groups import Tiny
from helpers.outputs import last, rows
from helpers.programs import wait_for

import main
from attentionce import cli
from attentionce.errors import UserError
from attentionce.runs import files, states
from attentionce.training import one_step, processes


def program(words, fault=None, elsewhere=None):
    """main.py with the model `Tiny`, ending as it ends.

    Args:
        words: Its flags.
        fault: fault(run) is called before every step.
        elsewhere: The results folder of all but rank 0, as on machines that share no disk.
    """
    main.Model = Tiny
    if elsewhere and processes.rank():
        words = [*words, "--results", elsewhere]
    take_step = one_step.take_step

    def watched(run, batch):
        fault(run)
        take_step(run, batch)

    if fault:
        one_step.take_step = watched
    sys.argv = ["main.py", *map(str, words)]
    cli.run(main.main)


class InRank1:
    """A fault: in rank 1, before step `step` of an epoch, action(*arguments) happens."""

    def __init__(self, epoch, step, action, *arguments):
        self.position, self.action, self.arguments = (epoch, step), action, arguments

    def __call__(self, run):
        if processes.rank() == 1 and run.position == self.position:
            self.action(*self.arguments)


@pytest.fixture
def words(pictures, results):
    """Flags for a run of 2 steps per epoch that up to 4 processes can share."""
    numbers = "--image_size 8 --batch_size 12 --epochs 3 --knn_every 3 --k 5 --lr 0.01"
    folders = ["--dataset_name", "folder", "--root", pictures, "--results", results]
    return [*folders, *numbers.split(), "--device", "cpu"]


def test_signal_to_one_stops_all_and_another_number_resumes(
    words, group, tmp_path, results, contents
):
    whole = group(1, program, [*words, "--results", tmp_path / "whole"])
    stopped = group(2, program, words, InRank1(2, 0, signals, signal.SIGTERM))
    assert whole.join() == [0], whole.output()
    assert stopped.join() == [143, 143], stopped.output()
    assert "stopped at epoch 2, step 1, state saved" in stopped.output(0)
    assert stopped.output(1) == "" and not list(results.rglob("*.pth"))
    resumed = group(3, program, words, None, tmp_path / "elsewhere")
    assert resumed.join() == [0, 0, 0], resumed.output()
    assert resumed.output().count("continuing from epoch 2, step 1") == 1
    assert not (tmp_path / "elsewhere").exists()

    columns = "epoch loss views effective_positives effective_negatives knn_top1"
    for one, other in zip(rows(tmp_path / "whole"), rows(results), strict=True):
        for column in columns.split():
            found, expected = float(other[column] or 0), float(one[column] or 0)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    one, other = (
        torch.load(last(folder, ".pth"), weights_only=True)
        for folder in (tmp_path / "whole", results)
    )
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    endings = {name.rsplit(".", 1)[1] for name in contents(results)}
    assert endings == {"csv", "json", "pth", "state", "previous"}


def test_torchrun_trains_and_a_signal_to_it_saves(words, results):
    flags = ["--arch", "resnet10", "--epochs", 1000, "--knn_every", 0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*torchrun, "main.py", *map(str, [*words, *flags])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: list(results.rglob("*.csv")), seconds=120)
        process.terminate()
        # This waits for the last process that could write.
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert re.search(r"stopped at epoch \d+, step \d+, state saved", output), output
    assert process.returncode != 0
    assert "destroy_process_group" not in output and "Warning" not in output, output
    state = last(results, ".state")
    assert f"--resume {state}" in output
    assert states.read_state(state)["progress"]["epoch"] >= 2


def divide_by_zero():
    raise ZeroDivisionError("a fault of rank 1 alone")


def full_disk(run):
    def save(*_, **__):
        raise UserError("the disk is full")

    files.save = save


def not_finite(run):
    if run.progress["step"] == 1:
        with torch.no_grad():
            run.model.g.bias.fill_(torch.nan)


NOT_FINITE = "error: the loss or its gradient is not finite at epoch 1, step 2"
KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    "fault, statuses, message",
    [
        (InRank1(1, 1, divide_by_zero), [1, 1], "error: process 1: ZeroDivisionError('a fault"),
        (InRank1(1, 1, signals, signal.SIGKILL), [1, KILLED], "error: process 0: RuntimeError("),
        (full_disk, [2, 1], "error: the disk is full"),
        (not_finite, [2, 2], NOT_FINITE),
    ],
    ids=["exception", "SIGKILL", "full disk", "not finite"],
)
def test_a_failure_of_one_ends_all(fault, statuses, message, words, group, results):
    made = group(2, program, words, fault)
    assert made.join() == statuses, made.output()
    assert message in made.output() and "Traceback" not in made.output()
    for rank, status in enumerate(statuses):
        assert made.output(rank).count("error: ") == (status > 0), made.output()
        recorded = made.folder / f"{rank}.error"  # for torchrun's summary
        assert status < 0 or "Traceback" in recorded.read_text()
    assert len(list(results.rglob("*.nonfinite.state"))) == (fault is not_finite)


@pytest.mark.parametrize("wrong", ["--batch_size 13", "--batch_size 2", "--bn sync"])
def test_flags_that_do_not_suit_several(wrong, words, refused, monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 2)
    assert refused(main, *words, *wrong.split()).startswith(wrong)
