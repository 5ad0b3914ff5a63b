"""Signals end a run after the current step, with its state saved."""

import os
import re
import shlex
import shutil
import signal
import sys
import time

import pytest
from helpers.faults import At, signals
from helpers.outputs import check_end, last
from helpers.programs import Program

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
