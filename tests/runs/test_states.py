"""States: when they are written, and what happens when one is damaged or missing."""

import signal
import types

import pytest
from helpers.faults import SOAK, KillInSave
from helpers.outputs import STEM, check_end, last
from helpers.programs import Program

import main
from attentionce.runs import states
from attentionce.training import one_epoch, one_step


def test_states_in_mid_epoch(call, flags, small_encoder, monkeypatch):
    """Every --state_minutes, by the clock that never jumps, and at the end."""
    now, saved, take_step, state_of = [0.0], [], one_step.take_step, main.state_of

    def half_a_minute(run, batch):
        now[0] += 25
        take_step(run, batch)

    def watched(run):
        saved.append(run.progress["step"])
        return state_of(run)

    monkeypatch.setattr(one_step, "take_step", half_a_minute)
    monkeypatch.setattr(main, "state_of", watched)
    for module in (main, one_epoch):  # for threads time goes on
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    call(main, *flags, "--epochs", 1, "--state_minutes", 0.5)
    assert saved == [2, 0]
    saved.clear()
    call(main, *flags, "--epochs", 2, "--state_minutes", 0)
    assert saved == [1, 2, 3, 0]


def test_the_command_that_resumes_eight_processes(monkeypatch):
    monkeypatch.setattr(states.processes, "world", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    command = states.resume_command(["main.py", "--epochs", "3", "--resume", "never"], "a.state")
    launcher = "torchrun --nnodes=2 --nproc_per_node=4"
    assert command == f"{launcher} main.py --epochs 3 --resume a.state"


def test_what_is_not_a_state(call, flags, results, refused, small_encoder, tmp_path):
    assert str(tmp_path) in refused(main, *flags, "--resume", tmp_path)
    call(main, *flags, "--epochs", 1)
    weights, state = last(results, ".pth"), last(results, ".state")
    message = refused(main, *flags, "--resume", weights)
    assert f"{weights} is not a training state; {state} is" in message


@pytest.fixture
def stopped(call, saving_flags, results, stop_after, small_encoder):
    """The path of the state after step 5, beside that after step 4."""
    stop_after(5)
    assert call(main, *saving_flags) == 143
    return results / "folder" / f"{STEM}.state"


def cut(path):
    """Take its last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_state(call, saving_flags, results, whole, stopped, capsys):
    """The run resumes from the one before it and says so."""
    expected = whole()
    cut(stopped)
    assert call(main, *saving_flags) == 0
    said = capsys.readouterr().out
    assert f"continuing from {stopped}.previous" in said
    assert "continuing from epoch 2, step 1" in said
    assert stopped.with_name(f"{stopped.name}.damaged").exists()
    check_end(results, expected)


@pytest.mark.soak
@pytest.mark.parametrize("line", range(25) if SOAK else [8, 14, 20])
def test_a_damaged_state_never_takes_the_place_of_a_good_one(
    call, saving_flags, results, whole, tmp_path, stopped, line
):
    """The run falls back and is killed in the next save."""
    expected = whole()
    cut(stopped)
    assert Program(tmp_path, saving_flags, KillInSave(line)).wait() == -signal.SIGKILL
    assert call(main, *saving_flags) == 0
    check_end(results, expected)


def test_both_states_damaged(saving_flags, refused, stopped, call, contents, results):
    cut(stopped)
    cut(states.previous(stopped))
    before = contents(results)
    message = refused(main, *saving_flags)
    for advice in (f"{stopped} is", f"{stopped}.previous is", "start over with --resume never"):
        assert advice in message
    assert contents(results) == before
    assert call(main, *saving_flags, "--resume", "never") == 0


def test_only_the_previous_state_is_left(call, saving_flags, results, whole, stopped):
    """As after a crash between the two renamings."""
    expected = whole()
    stopped.unlink()
    assert call(main, *saving_flags, "--resume", stopped) == 0
    check_end(results, expected)
