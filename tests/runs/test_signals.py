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
from helpers.faults import SOAK, At, BeforeLoading, signals, small
from helpers.outputs import check_end, last, rows
from helpers.programs import Program, wait_for

from attentionce.runs import states

STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}
STOPPED = re.compile(r"stopped at epoch (\d+), step (\d+), state saved; to resume:\n(.*)\n")


def check_finish(results, flags, tmp_path):
    """The run in `results` ended like one with these flags that nothing interrupts."""
    whole = tmp_path / "whole"
    assert Program(tmp_path, [*flags, "--results", whole], small).wait() == 0
    check_end(results, whole)


@pytest.mark.parametrize("number", STATUSES)
@pytest.mark.parametrize("step", [0, 4, 5])
def test_signals(flags, results, tmp_path, number, step):
    """The step is finished, and the printed command ends the run."""
    program = Program(tmp_path, flags, small, At(step, signals, number))
    assert program.wait() == STATUSES[number], program.output()
    epoch, step_of_epoch, command = STOPPED.search(program.output()).groups()
    assert 3 * (int(epoch) - 1) + int(step_of_epoch) == step + 1
    assert not list(results.rglob("*.lock")) and not list(results.rglob("*.tmp"))
    python, script, *words = shlex.split(command)
    assert script == "main.py" and words[-2:] == ["--resume", str(last(results, ".state"))]
    assert shutil.which(python) == sys.executable
    program = Program(tmp_path, words, small)
    assert program.wait() == 0
    assert f"continuing from epoch {epoch}, step {step_of_epoch}" in program.output()
    check_finish(results, flags, tmp_path)


def test_a_second_interrupt_leaves_at_once(flags, results, tmp_path):
    twice = At(4, signals, signal.SIGINT, signal.SIGINT)
    program = Program(tmp_path, [*flags, "--state_minutes", 0], small, twice)
    assert program.wait() == -signal.SIGINT  # which a shell calls 130
    assert states.read_state(last(results, ".state"))["progress"]["step"] == 1  # of epoch 2
    assert Program(tmp_path, flags, small).wait() == 0
    check_finish(results, flags, tmp_path)


@pytest.mark.parametrize("number", STATUSES)
def test_signals_before_the_first_step(flags, results, tmp_path, number):
    program = Program(tmp_path, flags, small, BeforeLoading(number))
    assert program.wait() == STATUSES[number], program.output()
    assert "Traceback" not in program.output()
    assert "stopped before the first step" in program.output()
    assert not [path for path in results.rglob("*") if path.is_file()]


def epochs_done(results):
    """How many epochs the table of metrics has."""
    return len(rows(results)) if list(results.rglob("*.csv")) else 0


@pytest.mark.soak
def test_the_commands_as_a_user_gives_them(flags, results):
    """main.py by its name in a shell, a signal, the command that it prints, the next signal, …"""
    numbers = STATUSES if SOAK else [signal.SIGTERM, signal.SIGUSR1]
    words = [sys.executable, "main.py", *map(str, flags), "--epochs", "3000"]
    command, going_on = shlex.join(words), ""
    for number in numbers:
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
            seen = epochs_done(results)
            wait_for(lambda seen=seen: epochs_done(results) > seen)
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == STATUSES[number]
        assert going_on in output
        epoch, step, command = STOPPED.search(output).groups()
        going_on = f"continuing from epoch {epoch}, step {step}\n"
    assert [int(row["epoch"]) for row in rows(results)] == list(range(1, len(rows(results)) + 1))
