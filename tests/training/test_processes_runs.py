"""Runs of several processes stop, fail, go on and end together."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from helpers.groups import Tiny

import main
from attentionce import cli
from attentionce.errors import UserError
from attentionce.runs import states
from attentionce.training import one_step, processes


# ------------------------------------------------------------------------------------------ whole runs
def program(words, fault=None, elsewhere=None):
    """main.py with the model `Tiny`, ending as it ends; `fault(run)` is called before every step.

    elsewhere: what the results folder is to all but rank 0, as on machines that share no disk.
    """
    main.Model = Tiny
    words = [*words, "--results", elsewhere] if elsewhere and processes.rank() else words
    take_step = one_step.take_step
    if fault:
        one_step.take_step = lambda run, batch: (fault(run), take_step(run, batch))
    sys.argv = ["main.py", *map(str, words)]
    cli.run(main.main)


@pytest.fixture
def words(pictures, tmp_path):
    """Flags for a run of 2 steps an epoch that any number of processes up to 4 can share."""
    return [
        "--dataset_name",
        "folder",
        "--root",
        pictures,
        "--results",
        tmp_path / "results",
        "--image_size",
        8,
        "--batch_size",
        12,
        "--epochs",
        3,
        "--knn_every",
        3,
        "--k",
        5,
        "--lr",
        0.01,
        "--device",
        "cpu",
    ]


def read(folder, ending):
    (path,) = folder.rglob(f"*{ending}")
    return path


def stop_third_step_in_rank_1(run):
    if processes.rank() == 1 and run.progress["epoch"] == 2 and run.progress["step"] == 0:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_fourth_step_in_rank_1(run):  # an epoch's last: nothing of it is left to do but to evaluate
    if processes.rank() == 1 and run.progress["epoch"] == 2 and run.progress["step"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "step, fault", [(1, stop_third_step_in_rank_1), (2, stop_fourth_step_in_rank_1)]
)
def test_signal_to_one_stops_all_and_another_number_goes_on(
    step, fault, words, group, tmp_path, contents
):
    whole = group(1, program, [*words, "--results", tmp_path / "whole"])
    stopped = group(2, program, words, fault)
    assert whole.join() == [0], whole.output()
    assert stopped.join() == [143, 143], stopped.output()
    assert f"stopped at epoch 2, step {step}, state saved" in stopped.output(0)
    assert stopped.output(1) == ""
    assert not list((tmp_path / "results").rglob("*.pth"))
    resumed = group(3, program, words, None, tmp_path / "elsewhere")
    assert resumed.join() == [0, 0, 0], resumed.output()
    assert resumed.output().count(f"going on from epoch 2, step {step}") == 1
    assert not (tmp_path / "elsewhere").exists()

    rows = [
        list(csv.DictReader(read(tmp_path / name, ".csv").open())) for name in ("whole", "results")
    ]
    for one, other in zip(*rows, strict=True):
        for column in (
            "epoch",
            "loss",
            "views",
            "effective_positives",
            "effective_negatives",
            "knn_top1",
        ):
            torch.testing.assert_close(
                float(other[column] or 0), float(one[column] or 0), rtol=1e-5, atol=1e-5
            )
    one, other = (
        torch.load(read(tmp_path / name, ".pth"), weights_only=True)
        for name in ("whole", "results")
    )
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert {name.rsplit(".", 1)[1] for name in contents(tmp_path / "results")} == {
        "csv",
        "json",
        "pth",
        "state",
        "previous",
    }


def lose_parent_of_rank_1(run):
    if processes.rank() == 1 and run.progress["epoch"] == 2:
        os.getppid = lambda: 1


def test_torchruns_own_death_stops_and_saves(words, group, tmp_path):
    made = group(2, program, words, lose_parent_of_rank_1, environment={"TORCHELASTIC_RUN_ID": "x"})
    assert made.join() == [143, 143], made.output()
    assert "stopped at epoch 2, step 1, state saved" in made.output(0)
    assert read(tmp_path / "results", ".state")


def raise_in_rank_1(run):
    if processes.rank() == 1 and run.progress["step"] == 1:
        raise ZeroDivisionError("a fault of rank 1 alone")


def die_in_rank_1(run):
    if processes.rank() == 1 and run.progress["step"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def full_disk(run):
    def save_state(path, state):
        assert processes.rank() == 0
        raise UserError("the disk is full")

    states.save_state = save_state


def not_finite(run):
    if run.progress["step"] == 1:
        with torch.no_grad():
            run.model.g.bias.fill_(torch.nan)


@pytest.mark.parametrize(
    "fault, statuses, message",
    [
        (raise_in_rank_1, [2, 1, 2], "ZeroDivisionError: a fault of rank 1 alone"),
        (die_in_rank_1, [2, -signal.SIGKILL, 2], "error: process"),
        (full_disk, [2, 2, 2], "error: the disk is full"),
        (not_finite, [2, 2, 2], "error: the loss or its gradient is not finite at epoch 1, step 2"),
    ],
)
def test_error_of_one_ends_all_and_is_told_once(fault, statuses, message, words, group, tmp_path):
    made = group(3, program, words, fault)
    assert made.join() == statuses, made.output()
    said = [line for line in made.output().splitlines() if re.match(r"\w*[eE]rror: ", line)]
    assert len(said) == 1 and said[0].startswith(message), made.output()
    states = list((tmp_path / "results").rglob("*.nonfinite.state"))
    assert len(states) == (fault is not_finite)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            ["--batch_size", 13],
            "--batch_size 13 is global: 2 processes need a multiple",
        ),
        (["--batch_size", 2], "--batch_size 2 is global"),
        (["--loss", "nonsense"], "argument --loss: invalid choice: 'nonsense'"),
        (["--bn", "sync"], "--bn sync needs CUDA"),
        (["--device", "mps"], "--device mps: under torchrun"),
        (["--root", "/nowhere"], "--root '/nowhere' needs a folder train"),
    ],
)
def test_wrong_flags_are_told_once(wrong, message, words, group):
    made = group(2, program, [*words, *wrong])
    assert made.join() == [2, 2], made.output()
    assert [line.startswith(f"error: {message}") for line in made.output().splitlines()] == [
        True
    ], made.output()


def torchrun(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        *map(str, words),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_torchrun_trains_and_a_signal_to_it_saves(words, tmp_path):
    flags = ["--arch", "resnet10", "--epochs", 1000, "--knn_every", 0]
    process = torchrun("main.py", *words, *flags)
    try:
        end = time.monotonic() + 120
        while not list((tmp_path / "results").rglob("*.csv")) and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        output, _ = process.communicate(
            timeout=60
        )  # until the last process that could write is gone
    finally:
        process.kill()
    assert re.search(r"stopped at epoch \d+, step \d+, state saved", output), output
    assert process.returncode != 0
    assert "destroy_process_group" not in output and "Warning" not in output, output
    state = read(tmp_path / "results", ".state")
    assert f"--resume {state}" in output
    assert states.read_state(state)["progress"]["epoch"] >= 2
