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
from helpers.faults import SOAK, At, signals
from helpers.outputs import check_end, last, rows
from helpers.programs import Program, wait_for

import main
from attentionce.runs import states

STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}
STOPPED = re.compile(r"stopped at epoch (\d+), step (\d+), state saved; to resume:\n(.*)\n")
FEW_STATES = ["--state_minutes", 10]


@pytest.mark.parametrize("number, step", [*zip(STATUSES, [1, 5, 6], strict=True)])
def test_signals(call, saving_flags, results, whole, stop_after, capsys, number, step):
    """The step is finished, and the printed command ends the run."""
    expected = whole(FEW_STATES)
    stop_after(step, number)
    assert call(main, *saving_flags, *FEW_STATES) == STATUSES[number]
    epoch, step_of_epoch, command = STOPPED.search(capsys.readouterr().out).groups()
    assert 3 * (int(epoch) - 1) + int(step_of_epoch) == step
    assert not list(results.rglob("*.lock")) and not list(results.rglob("*.tmp"))
    python, script, *words = shlex.split(command)
    assert script == "main.py" and words[-2:] == ["--resume", str(last(results, ".state"))]
    assert shutil.which(python) == sys.executable
    assert call(main, *words) == 0
    assert f"continuing from epoch {epoch}, step {step_of_epoch}" in capsys.readouterr().out
    check_end(results, expected)


def test_a_second_interrupt_leaves_at_once(call, saving_flags, results, whole, tmp_path):
    twice = At(4, signals, signal.SIGINT, signal.SIGINT)
    program = Program(tmp_path, saving_flags, twice)
    assert program.wait() == -signal.SIGINT  # which a shell calls 130
    assert states.read_state(last(results, ".state"))["progress"]["step"] == 1  # of epoch 2
    assert call(main, *saving_flags) == 0
    check_end(results, whole())


@pytest.mark.parametrize("number", STATUSES)
def test_signals_before_the_first_step(call, flags, results, monkeypatch, capsys, number):
    monkeypatch.setattr(main, "load", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as left:
        call(main, *flags)
    assert left.value.code == STATUSES[number]
    assert "stopped before the first step" in capsys.readouterr().out
    assert not [path for path in results.rglob("*") if path.is_file()]


def epochs_done(results):
    """How many epochs the table of metrics has."""
    return len(rows(results)) if list(results.rglob("*.csv")) else 0


@pytest.mark.soak
def test_the_printed_command_in_a_shell(call, flags, results, stop_after, capsys):
    """It resumes the run until the next signal, prints the next command, …"""
    stop_after(1)
    assert call(main, *flags, "--epochs", 3000) == 143
    output = capsys.readouterr().out
    for number in STATUSES if SOAK else [signal.SIGTERM]:
        epoch, step, command = STOPPED.search(output).groups()
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
            wait_for(lambda epoch=epoch: epochs_done(results) >= int(epoch))
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == STATUSES[number]
        assert f"continuing from epoch {epoch}, step {step}\n" in output
    assert [int(row["epoch"]) for row in rows(results)] == list(range(1, len(rows(results)) + 1))
