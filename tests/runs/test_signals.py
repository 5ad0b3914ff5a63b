"""Signals end a run after the current step, with its state saved."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from helpers.faults import SOAK, At, BeforeLoading, signals, small
from helpers.outputs import check_end, last, rows
from helpers.programs import Program, wait_for

import main
from attentionce.runs import states

STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0, signal.SIGHUP: 129}
STOPPED = re.compile(r"stopped at epoch (\d+), step (\d+), state saved; to resume:\n(.*)\n")


def check_finish(results, flags, tmp_path):
    """The run in `results` ended like one with these flags that nothing interrupts."""
    whole = tmp_path / "whole"
    assert Program(tmp_path, [*flags, "--results", whole], small).wait() == 0
    check_end(results, whole)


@pytest.mark.parametrize("number, step", [*zip(STATUSES, (0, 4, 5, 7), strict=True)])
def test_signals(flags, results, tmp_path, number, step):
    """The step is finished, and the printed command ends the run."""
    program = Program(tmp_path, flags, small, At(step, signals, number))
    assert program.wait() == STATUSES[number], program.output()
    assert f"{number.name}: saving after this step" in program.output()
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
    assert program.wait() == 130
    state = last(results, ".state")
    assert program.output().endswith(f"interrupted; the newest state is {state}\n")
    assert states.read_state(state)["progress"]["step"] == 1  # of epoch 2
    assert not list(results.rglob("*.lock*"))
    assert Program(tmp_path, flags, small).wait() == 0
    check_finish(results, flags, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGXCPU])
def test_signals_before_the_first_step(flags, results, tmp_path, number):
    program = Program(tmp_path, flags, small, BeforeLoading(number))
    assert program.wait() == 128 + number, program.output()
    assert "Traceback" not in program.output()
    assert "stopped before the first step" in program.output()
    assert not [path for path in results.rglob("*") if path.is_file()]


def evaluation_is_interrupted():
    def watched(*arguments):
        signals(signal.SIGTERM)
        time.sleep(60)

    main.knn = watched


def test_a_signal_ends_the_evaluation(saving_flags, results, tmp_path):
    program = Program(tmp_path, saving_flags, small, evaluation_is_interrupted)
    assert program.wait(30) == 143, program.output()
    assert STOPPED.search(program.output()).groups()[:2] == ("2", "3")
    assert not list(results.rglob("*.lock*")) and not list(results.rglob("*.tmp"))
    assert Program(tmp_path, saving_flags, small).wait() == 0
    check_finish(results, saving_flags, tmp_path)


def as_nohup_does():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_an_ignored_signal_stays_ignored(flags, tmp_path):
    program = Program(tmp_path, flags, as_nohup_does, small, At(4, signals, signal.SIGHUP))
    assert program.wait() == 0, program.output()


def lose_readers(*descriptors):
    """From now on nobody reads these of this process's streams."""
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in descriptors:
        os.dup2(writing, descriptor)


@pytest.mark.parametrize("descriptors", [(1,), (1, 2)])
def test_a_lost_reader_costs_nothing(descriptors, flags, results, tmp_path):
    """As `| head` and `| tee` do. What stdout can no longer show is on stderr."""
    faults = small, At(0, lose_readers, *descriptors), At(7, signals, signal.SIGTERM)
    program = Program(tmp_path, flags, *faults)
    assert program.wait() == 143, program.output()
    assert bool(STOPPED.search(program.output())) == (descriptors == (1,))
    assert Program(tmp_path, flags, small).wait() == 0
    check_finish(results, flags, tmp_path)


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
