"""Signals end a run after the current step, with its state saved."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers.programs import (
    SOAK,
    At,
    Program,
    check_end,
    last,
    rows,
    signals,
    small,
    wait_for,
)

import main
from attentionce.runs import states

STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


# ---- signals ----
@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("step", [0, 4, 5])
def test_signals(flags, results, tmp_path, number, step):
    """Sent to a process of its own in mid-step: the step is finished, and the printed command ends the run."""
    program = Program(tmp_path, flags, small, At(step, signals, number))
    assert program.wait() == STOPS[number], program.output()
    stem = last(results, ".state")
    stopped = re.search(
        r"stopped at epoch (\d), step (\d), state saved; to go on:\n(.*)\n", program.output()
    )
    assert 3 * (int(stopped[1]) - 1) + int(stopped[2]) == step + 1
    assert not list(results.rglob("*.lock")) and not list(results.rglob("*.tmp"))
    python, script, *words = shlex.split(stopped[3])
    assert script == "main.py" and words[-2:] == ["--resume", str(stem)]
    assert shutil.which(python) == sys.executable
    program = Program(tmp_path, words, small)
    assert (
        program.wait() == 0
        and f"going on from epoch {stopped[1]}, step {stopped[2]}" in program.output()
    )
    assert Program(tmp_path, [*flags, "--results", tmp_path / "whole"], small).wait() == 0
    check_end(results, tmp_path / "whole")


def test_a_second_interrupt_leaves_at_once(flags, results, tmp_path):
    program = Program(
        tmp_path,
        [*flags, "--state_minutes", 0],
        small,
        At(4, signals, signal.SIGINT, signal.SIGINT),
    )
    assert program.wait() == -signal.SIGINT  # which a shell calls 130
    assert states.read_state(last(results, ".state"))["progress"]["step"] == 1  # of epoch 2
    assert Program(tmp_path, flags, small).wait() == 0
    assert Program(tmp_path, [*flags, "--results", tmp_path / "whole"], small).wait() == 0
    check_end(results, tmp_path / "whole")


class BeforeLoading:
    def __init__(self, number):
        self.number = number

    def __call__(self):
        load = main.load
        main.load = lambda *arguments: (signals(self.number), load(*arguments))[1]


@pytest.mark.parametrize("number", STOPS)
def test_signals_before_the_first_step(flags, results, tmp_path, number, monkeypatch):
    program = Program(tmp_path, flags, small, BeforeLoading(number))
    assert program.wait() == STOPS[number], program.output()
    assert (
        "Traceback" not in program.output() and "stopped before the first step" in program.output()
    )
    assert not [path for path in results.rglob("*") if path.is_file()]


def resume_count(results):
    """How many epochs the table of metrics has."""
    return len(rows(results)) if list(results.rglob("*.csv")) else 0


@pytest.mark.soak
def test_the_commands_as_a_user_gives_them(flags, results):
    """main.py by its name, three signals, and the command that is printed each time, in a shell."""
    command, at = (
        shlex.join([sys.executable, "main.py", *map(str, flags), "--epochs", "3000"]),
        None,
    )
    for number, status in STOPS.items() if SOAK else [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)]:
        process = subprocess.Popen(
            f"exec {command}",
            shell=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            seen = resume_count(results)
            wait_for(lambda seen=seen: resume_count(results) > seen)
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == status
        assert at is None or f"going on from epoch {at[1]}, step {at[2]}\n" in output
        at = re.search(
            r"stopped at epoch (\d+), step (\d+), state saved; to go on:\n(.*)\n", output
        )
        command = at[3]
    assert [int(row["epoch"]) for row in rows(results)] == list(range(1, len(rows(results)) + 1))
