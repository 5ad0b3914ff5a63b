"""States: when they are written, and what happens when one is damaged or missing."""

import os
import random
import shutil
import signal
import time
import types

import pytest
from helpers.programs import (
    SOAK,
    KillInSave,
    Program,
    Small,
    check_end,
    finish,
    last,
    rows,
    small,
)

import main
from attentionce.runs import states
from attentionce.training import one_epoch, one_step

STEM = "folder_SimCLR_1model_8_3_1.0_1.0"


# ---- the files are damaged ----
@pytest.fixture
def stopped(call, saving_flags, results, monkeypatch):
    """stopped(): a fresh results folder with the states after steps 4 and 5, from which any number of runs can go on."""
    monkeypatch.setattr(main, "Model", Small)
    state = results / "folder" / f"{STEM}.state"
    take_step = one_step.take_step

    def watched(run, batch):
        if not watched.done and (run.progress["epoch"], run.progress["step"]) == (2, 1):
            watched.done = True
            os.kill(os.getpid(), signal.SIGTERM)
        take_step(run, batch)

    watched.done = False
    monkeypatch.setattr(one_step, "take_step", watched)
    assert call(main, *saving_flags) == 143
    kept = {path.name: path.read_bytes() for path in (state, states.previous(state))}

    def again():
        shutil.rmtree(results)
        state.parent.mkdir(parents=True)
        for name, content in kept.items():
            (state.parent / name).write_bytes(content)
        return state

    return again


def test_states_in_mid_epoch(call, flags, results, small_encoder, monkeypatch):
    """By the clock that never jumps: every --state_minutes, and after every epoch."""
    saved, now = [], [0.0]
    save_state, take_step = states.save_state, one_step.take_step
    monkeypatch.setattr(
        states, "save_state", lambda *a: (saved.append(a[1]["progress"]["step"]), save_state(*a))
    )
    monkeypatch.setattr(
        one_step, "take_step", lambda *a: (now.__setitem__(0, now[0] + 25), take_step(*a))
    )
    monkeypatch.setattr(
        one_epoch, "time", types.SimpleNamespace(monotonic=lambda: now[0])
    )  # for threads time goes on
    call(main, *flags, "--epochs", 1, "--state_minutes", 0.5)
    assert saved == [2, 0]
    saved.clear()
    call(main, *flags, "--epochs", 2, "--state_minutes", 0)
    assert saved == [1, 2, 3, 0]


def test_a_state_is_saved_before_an_evaluation(call, flags, monkeypatch, small_encoder):
    """Which may take minutes, in which a machine may go away."""
    events, save_state, knn = [], states.save_state, main.knn
    monkeypatch.setattr(
        states, "save_state", lambda *a: (events.append(a[1]["progress"]["step"]), save_state(*a))
    )
    monkeypatch.setattr(main, "knn", lambda *a: (events.append("knn"), knn(*a))[1])
    call(main, *flags, "--epochs", 2, "--knn_every", 2)
    assert events == [0, 3, "knn", 0]


@pytest.mark.parametrize("path", ["missing.state", "."])
def test_a_state_that_is_not_there(flags, refused, path, tmp_path):
    assert str(tmp_path / path) in refused(main, *flags, "--resume", tmp_path / path)


def test_weights_are_no_state(call, flags, results, refused, small_encoder):
    call(main, *flags, "--epochs", 1)
    assert "not a training state" in refused(main, *flags, "--resume", last(results, ".pth"))


@pytest.mark.parametrize(
    "each, launcher",
    [(8, "torchrun --nproc_per_node=8"), (4, "torchrun --nnodes=2 --nproc_per_node=4")],
)
def test_the_command_that_goes_on_with_several_processes(monkeypatch, each, launcher):
    monkeypatch.setattr(states.processes, "world", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(each))
    command = states.resume_command(["main.py", "--epochs", "3", "--resume", "never"], "some.state")
    assert command == f"{launcher} main.py --epochs 3 --resume some.state"


def damaged(content, draw):
    """The bytes cut short, or with some of them changed."""
    if draw.random() < 0.5:
        return content[: draw.randrange(len(content))]
    content = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


@pytest.mark.soak
def test_a_damaged_state(call, saving_flags, results, whole, tmp_path, stopped, capsys):
    """The one before it is taken, which is said; or nothing that matters has changed. The end is the same."""
    draw, expected, refused = random.Random(1), whole(small), 0
    for _ in range(300 if SOAK else 12):
        state = stopped()
        content = state.read_bytes()
        state.write_bytes(damaged(content, draw))
        assert call(main, *saving_flags) == 0
        said = capsys.readouterr().out
        fell_back = f"going on from {state}.previous" in said
        assert (
            "going on from epoch 2, step 1" if fell_back else "going on from epoch 2, step 2"
        ) in said
        assert state.with_name(f"{state.name}.damaged").exists() == fell_back
        check_end(results, expected)
        refused += fell_back
    assert refused > (200 if SOAK else 6)


def test_a_damaged_state_never_takes_the_place_of_a_good_one(
    saving_flags, results, whole, tmp_path, stopped
):
    """Killed at every event of the first save after the fall back."""
    expected = whole(small)
    for event in range(12):
        state = stopped()
        state.write_bytes(state.read_bytes()[:-1])
        assert Program(tmp_path, saving_flags, small, KillInSave(event)).wait() == -signal.SIGKILL
        finish(saving_flags, results, expected, tmp_path, small)


def test_both_states_damaged(saving_flags, refused, stopped, call, contents, results):
    state = stopped()
    for path in (state, states.previous(state)):
        path.write_bytes(path.read_bytes()[:-1])
    before = contents(results)
    message = refused(main, *saving_flags)
    assert str(state) in message and f"{state}.previous" in message and "--resume never" in message
    assert contents(results) == before
    assert call(main, *saving_flags, "--resume", "never") == 0


def test_only_the_previous_state_is_left(call, saving_flags, results, whole, tmp_path, stopped):
    """As a crash between the two renamings leaves it."""
    expected, state = whole(small), stopped()
    state.unlink()
    assert call(main, *saving_flags, "--resume", state) == 0
    check_end(results, expected)


# ---- the clock ----
def test_the_clock_jumps(call, saving_flags, results, whole, tmp_path, monkeypatch):
    """By up to years in both directions at every look; how many states are written does not depend on it."""
    expected, draw, saved = whole(small), random.Random(2), []
    save_state = states.save_state
    monkeypatch.setattr(main, "Model", Small)
    monkeypatch.setattr(states, "save_state", lambda *a: (saved.append(1), save_state(*a)))
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: draw.randrange(10**9, 2 * 10**9))
    monkeypatch.setattr("tqdm.std.time", time.time)
    assert call(main, *saving_flags, "--state_minutes", 10) == 0
    assert (
        len(saved) == 3 + 2
    )  # after every epoch, and before the evaluations after the second and the third
    assert all(0 < float(row["seconds"]) < 60 for row in rows(results))
    check_end(results, expected)
