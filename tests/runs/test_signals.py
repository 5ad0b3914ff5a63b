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
from helpers.faults import SOAK, At, signals
from helpers.outputs import check_end, last, rows
from helpers.programs import Program, wait_for

import main
from attentionce.runs import states

STATUSES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0, signal.SIGHUP: 129}
STOPPED = re.compile(r"stopped at epoch (\d+), step (\d+), state saved; to resume:\n(.*)\n")
FEW_STATES = ["--state_minutes", 10]


@pytest.mark.parametrize("number, step", [*zip(STATUSES, [1, 5, 6, 2], strict=True)])
def test_signals(call, saving_flags, results, whole, stop_after, capfd, number, step):
    """The step is finished, and the printed command ends the run."""
    expected = whole(FEW_STATES)
    stop_after(step, number)
    assert call(main, *saving_flags, *FEW_STATES) == STATUSES[number]
    out, err = capfd.readouterr()
    assert f"{number.name}: saving after this step" in err
    epoch, step_of_epoch, command = STOPPED.search(out).groups()
    assert 3 * (int(epoch) - 1) + int(step_of_epoch) == step
    assert not list(results.rglob("*.lock")) and not list(results.rglob("*.tmp"))
    python, script, *words = shlex.split(command)
    assert script == "main.py" and words[-2:] == ["--resume", str(last(results, ".state"))]
    assert shutil.which(python) == sys.executable
    assert call(main, *words) == 0
    assert f"continuing from epoch {epoch}, step {step_of_epoch}" in capfd.readouterr().out
    check_end(results, expected)


def test_a_second_interrupt_leaves_at_once(call, saving_flags, results, whole, tmp_path):
    twice = At(4, signals, signal.SIGINT, signal.SIGINT)
    program = Program(tmp_path, saving_flags, twice)
    assert program.wait() == 130
    state = last(results, ".state")
    assert program.output().endswith(f"interrupted; the newest state is {state}\n")
    assert states.read_state(state)["progress"]["step"] == 1  # of epoch 2
    assert not list(results.rglob("*.lock*"))
    assert call(main, *saving_flags) == 0
    check_end(results, whole())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGXCPU])
def test_signals_before_the_first_step(call, flags, results, monkeypatch, capsys, number):
    monkeypatch.setattr(main, "load", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as left:
        call(main, *flags)
    assert left.value.code == 128 + number
    assert "stopped before the first step" in capsys.readouterr().out
    assert not [path for path in results.rglob("*") if path.is_file()]


def evaluation_is_interrupted():
    def watched(*arguments):
        signals(signal.SIGTERM)
        time.sleep(60)

    main.knn = watched


def test_a_signal_ends_the_evaluation(call, saving_flags, results, whole, tmp_path):
    program = Program(tmp_path, saving_flags, evaluation_is_interrupted)
    assert program.wait(30) == 143, program.output()
    assert STOPPED.search(program.output()).groups()[:2] == ("2", "3")
    assert not list(results.rglob("*.lock*")) and not list(results.rglob("*.tmp"))
    assert call(main, *saving_flags) == 0
    check_end(results, whole())


def as_nohup_does():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_an_ignored_signal_stays_ignored(flags, tmp_path):
    program = Program(tmp_path, flags, as_nohup_does, At(4, signals, signal.SIGHUP))
    assert program.wait() == 0, program.output()


def lose_readers(*descriptors):
    """From now on nobody reads these of this process's streams."""
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in descriptors:
        os.dup2(writing, descriptor)


@pytest.mark.parametrize("descriptors", [(1,), (1, 2)])
def test_a_lost_reader_costs_nothing(descriptors, call, saving_flags, results, whole, tmp_path):
    """As `| head` and `| tee` do. What stdout can no longer show is on stderr."""
    faults = At(0, lose_readers, *descriptors), At(7, signals, signal.SIGTERM)
    program = Program(tmp_path, saving_flags, *faults)
    assert program.wait() == 143, program.output()
    assert bool(STOPPED.search(program.output())) == (descriptors == (1,))
    assert call(main, *saving_flags) == 0
    check_end(results, whole())


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
