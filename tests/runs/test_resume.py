"""A run that is interrupted anywhere and goes on ends with the bits of one that is not; signals, flags, locks."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT
from helpers.programs import (
    SOAK,
    At,
    Program,
    Small,
    check_end,
    last,
    rows,
    same_bits,
    signals,
    small,
    wait_for,
)

import main
from attentionce.errors import UserError
from attentionce.runs import files, locks, states
from attentionce.training import devices, one_epoch, one_step

STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


@pytest.fixture
def flags(tiny):
    """Of a run of 3 epochs of 3 steps, on the CPU, where bits repeat."""
    return [*tiny, "--epochs", 3, "--num_pos", 1, "--k", 5, "--device", "cpu"]


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(steps): the next run gets a SIGTERM during its so-manieth step."""
    left, take_step = [10**6], one_step.take_step

    def watched(*arguments):
        left[0] -= 1
        if left[0] == 0:
            signals(signal.SIGTERM)
        take_step(*arguments)

    monkeypatch.setattr(one_step, "take_step", watched)
    return lambda steps: left.__setitem__(0, steps)


@pytest.fixture
def small_encoder(monkeypatch):
    monkeypatch.setattr(main, "Model", Small)


# ---- the same bits ----


KINDS = {
    "attentionce": (),
    "knn": ("--knn_every", 1),
    "bcl": ("--loss", "bcl"),
    "grad_cache": ("--grad_cache",),
    "moco": ("--estimator", "MoCo", "--queue", 11, "--momentum", 0.9),
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["small", "resnet10"])
def test_interrupted_at_every_step(
    call, flags, results, tmp_path, stop_after, monkeypatch, kind, arch
):
    """One run that is stopped after each of its steps and goes on each time; in the short form, resnet10 for one kind."""
    if arch == "small" or not SOAK and kind != "moco":
        monkeypatch.setattr(main, "Model", Small)
    steps, other = 9, KINDS[kind]
    assert call(main, *flags, *other, "--results", tmp_path / "whole") == 0
    for step in range(1, steps + 1):
        stop_after(1)
        assert call(main, *flags, *other) == 143, step
        assert states.read_state(last(results, ".state"))["progress"]["step"] in (step % 3, 3)
    stop_after(10**6)
    assert call(main, *flags, *other) == 0
    check_end(results, tmp_path / "whole")


@pytest.mark.parametrize("steps", range(1, 9))
def test_interrupted_once_at_any_step(
    call, flags, results, tmp_path, stop_after, small_encoder, steps
):
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    stop_after(steps)
    assert call(main, *flags) == 143
    stop_after(10**6)
    assert call(main, *flags) == 0
    check_end(results, tmp_path / "whole")


def test_what_was_drawn_before_does_not_matter(
    call, flags, results, tmp_path, stop_after, small_encoder
):
    call(main, *flags, "--results", tmp_path / "whole")
    stop_after(4)
    call(main, *flags)
    stop_after(10**6)
    torch.rand(17)
    call(main, *flags, "--seed", 0, "--state_minutes", 0)
    check_end(results, tmp_path / "whole")


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


# ---- more epochs, another place ----


def test_more_epochs_extend_a_finished_run(call, flags, results, tmp_path, small_encoder, capsys):
    call(main, *flags, "--results", tmp_path / "whole")
    call(main, *flags, "--epochs", 1)
    call(main, *flags, "--epochs", 2)
    assert "extending the run of 1 epochs" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "one", ignore_errors=True)
    assert call(main, *flags) == 0
    assert "extending the run of 2 epochs" in capsys.readouterr().out
    for path in results.rglob("*_[12]_*"):  # the shorter runs' files stay
        path.unlink()
    results.joinpath("folder", "folder_SimCLR_1model_8_3_1.0_1.0.state.previous").touch()
    check_end(results, tmp_path / "whole")


def test_a_run_that_is_done_is_left_alone(call, flags, results, small_encoder, capsys, contents):
    call(main, *flags, "--epochs", 1)
    before = contents(results)
    assert call(main, *flags, "--epochs", 1) == 0
    assert contents(results) == before and "already trained for 1 epochs" in capsys.readouterr().out


def test_a_state_of_another_folder(
    call, flags, results, tmp_path, stop_after, small_encoder, refused, contents
):
    """Goes on here, is not touched there, also when nothing but the files is left to be written."""
    call(main, *flags, "--results", tmp_path / "whole")
    stop_after(5)
    call(main, *flags, "--results", tmp_path / "there")
    stop_after(10**6)
    before = contents(tmp_path / "there")
    assert call(main, *flags, "--resume", last(tmp_path / "there", ".state")) == 0
    assert contents(tmp_path / "there") == before
    assert same_bits(
        files.read(last(results, ".pth")), files.read(last(tmp_path / "whole", ".pth"))
    )

    done = last(tmp_path / "whole", ".state")
    assert call(main, *flags, "--resume", done, "--results", tmp_path / "third") == 0
    assert same_bits(
        files.read(last(tmp_path / "third", ".pth")),
        files.read(last(tmp_path / "whole", ".pth")),
    )
    assert rows(tmp_path / "third") == rows(tmp_path / "whole")
    assert "has 3 epochs already" in refused(main, *flags, "--epochs", 2, "--resume", done)


def test_never(call, flags, results, stop_after, small_encoder):
    stop_after(5)
    call(main, *flags)
    stop_after(9)
    assert call(main, *flags, "--resume", "never", "--seed", 1) == 143  # the ninth step is the last
    assert states.read_state(last(results, ".state"))["flags"]["seed"] == 1


# ---- flags ----

CHANGES = {
    "seed": 1,
    "lr": 0.5,
    "temperature": 0.1,
    "weight_decay": 1,
    "arch": "resnet18",
    "stem": "imagenet",
    "feature_dim": 7,
    "image_size": 9,
    "store_size": 9,
    "momentum": 0.5,
    "queue": 99,
    "tau_plus": 0.3,
    "alpha": 0.8,
    "beta": 0.7,
    "precision": "fp32",
    "d_pos": 2,
    "d_neg": 2,
    "num_pos": 2,
    "loss": "simclr",
    "batch_size": 12,
    "estimator": "MoCo",
}
FREE = {"k": 3, "knn_every": 1, "save_every": 1, "state_minutes": 0, "compile": "off", "epochs": 4}


@pytest.fixture
def stopped(call, flags, results, stop_after, small_encoder):
    """A state of a run that was stopped in its fourth step."""
    stop_after(4)
    assert call(main, *flags) == 143
    stop_after(10**6)
    return last(results, ".state")


def test_flags_that_change_the_result_are_named(stopped, flags, refused, contents, results):
    before = contents(results)
    for name, value in CHANGES.items():
        state = [] if name in states.RECOVERY else ["--resume", stopped]  # else this command's own
        message = refused(main, *flags, f"--{name}", value, *state)
        assert (
            f"--{name} {type(vars(main.parse_args([]))[name])(value)} (there: " in message
            and "never" in message
        )
        assert message.count("(there: ") == 1
    message = refused(main, *flags, "--seed", 1, "--lr", 0.5)
    assert "--seed 1 (there: 0)" in message and "--lr 0.5 (there: 0.001)" in message
    assert contents(results) == before


def test_a_named_state_goes_on_with_another_rate(call, stopped, flags, results):
    """As after a run that diverged: what it learns with is the flag's, not the state's."""
    assert call(main, *flags, "--lr", 0.5, "--weight_decay", 0.25, "--resume", stopped) == 0
    group = states.read_state(last(results, ".state"))["optimizer"]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("epochs", [2, 5])
def test_weights_of_another_run_are_not_overwritten(
    call, stopped, flags, refused, contents, results, epochs
):
    """A run of other flags, but with files of the same names, shorter or longer: also where no state is left."""
    stopped.unlink()
    before = contents(results)
    assert "--seed 1 (there: 0)" in refused(main, *flags, "--epochs", epochs, "--seed", 1)
    assert contents(results) == before
    assert call(main, *flags, "--epochs", epochs) == 0


def test_flags_that_change_no_result_go_through(call, stopped, flags, tmp_path, pictures):
    known = vars(main.parse_args([])).keys()
    elsewhere = {
        "root",
        "results",
        "resume",
        "device",
        "dataset_name",
        "deterministic",
        "grad_cache",
        "tensorboard",
        "bn",
    }
    assert CHANGES.keys() | FREE.keys() | elsewhere == known  # no flag is forgotten
    shutil.copytree(pictures, tmp_path / "moved")
    other = [word for name, value in FREE.items() for word in (f"--{name}", value)]
    assert (
        call(
            main,
            *flags,
            *other,
            "--root",
            tmp_path / "moved",
            "--deterministic",
            "--resume",
            stopped,
        )
        == 0
    )
    devices.reproducible(False)


def test_the_old_name_of_the_loss_is_the_new_one(call, stopped, flags, results, capsys):
    """States and result files from before the project was called AttentioNCE have `attention_nce`."""
    state = states.read_state(stopped)
    state["flags"]["loss"] = "attention_nce"
    states.save_state(stopped, state)
    made = last(results, ".json")
    made.write_text(made.read_text().replace('"attentionce"', '"attention_nce"'))
    assert call(main, *flags) == 0 and "going on from epoch 2, step 1" in capsys.readouterr().out
    assert states.read_state(stopped)["flags"]["loss"] == "attentionce"


def test_other_versions_are_said(call, stopped, flags, capsys):
    state = states.read_state(stopped)
    state["machine"]["torch"] = "2.11.0"
    states.save_state(stopped, state)
    assert call(main, *flags) == 0
    assert f"saved with torch 2.11.0 (here: {torch.__version__})" in capsys.readouterr().out


def test_another_precision_is_said(call, stopped, flags, capsys):
    """What --precision auto means differs from machine to machine."""
    state = states.read_state(stopped)
    state["machine"]["precision"] = "bfloat16"
    states.save_state(stopped, state)
    assert call(main, *flags) == 0
    assert "saved with precision bfloat16 (here: float32)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "each, launcher",
    [(8, "torchrun --nproc_per_node=8"), (4, "torchrun --nnodes=2 --nproc_per_node=4")],
)
def test_the_command_that_goes_on_with_several_processes(monkeypatch, each, launcher):
    monkeypatch.setattr(states.processes, "world", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(each))
    command = states.resume_command(["main.py", "--epochs", "3", "--resume", "never"], "some.state")
    assert command == f"{launcher} main.py --epochs 3 --resume some.state"


def test_other_images_are_refused(stopped, flags, refused, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "more")
    shutil.copy(pictures / "train" / "red" / "0.png", tmp_path / "more" / "train" / "red" / "x.png")
    assert "24 images, here are 25" in refused(main, *flags, "--root", tmp_path / "more")


@pytest.mark.parametrize("path", ["missing.state", "."])
def test_a_state_that_is_not_there(flags, refused, path, tmp_path):
    assert str(tmp_path / path) in refused(main, *flags, "--resume", tmp_path / path)


def test_weights_are_no_state(call, flags, results, refused, small_encoder):
    call(main, *flags, "--epochs", 1)
    assert "not a training state" in refused(main, *flags, "--resume", last(results, ".pth"))


# ---- numbers that go wrong ----


def not_finite_at(monkeypatch, *steps):
    """The loss of these steps is infinite; returns a function that begins to count anew."""
    mean_loss, count = one_step.mean_loss, [-1]

    def watched(run, z):
        count[0] += 1
        return mean_loss(run, z) * (float("inf") if count[0] in steps else 1)

    monkeypatch.setattr(one_step, "mean_loss", watched)
    return lambda: count.__setitem__(0, -1)


def test_the_state_before_a_bad_step_is_kept(
    call, flags, results, tmp_path, stop_after, small_encoder, refused, monkeypatch
):
    stop_after(5)
    call(main, *flags, "--results", tmp_path / "stopped")
    stop_after(10**6)
    not_finite_at(monkeypatch, 5)
    message = refused(main, *flags, "--save_every", 1)
    assert "not finite at epoch 2, step 3" in message and "--lr 0.001" in message
    kept = last(results, ".nonfinite.state")
    assert str(kept) in message
    state, stopped = (
        states.read_state(path) for path in (kept, last(tmp_path / "stopped", ".state"))
    )
    assert same_bits(
        [state[part] for part in ("model", "optimizer")],
        [stopped[part] for part in ("model", "optimizer")],
    )
    assert state["progress"]["epoch"] == 2 and state["progress"]["step"] == 2
    assert files.read(last(results, "_1_1.0_1.0.pth"))  # the last good weights


def test_skipped_steps_are_counted_and_shown(
    call, flags, results, tmp_path, monkeypatch, small_encoder, stop_after, capfd
):
    """With fp16's gradient scaler a loss that overflows moves nothing; also in a run that is interrupted."""
    assemble = main.assemble

    def scaled(*arguments):
        run = assemble(*arguments)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return run

    monkeypatch.setattr(main, "assemble", scaled)
    again = not_finite_at(monkeypatch, 1, 4, 5)
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    assert [row["skipped"] for row in rows(tmp_path / "whole")] == ["1", "3", "3"]
    assert "skipped=3" in capfd.readouterr().err
    again()
    stop_after(7)
    assert call(main, *flags) == 143
    stop_after(10**6)
    state = states.read_state(last(results, ".state"))
    assert state["scaler"]["scale"] == 2.0**7 and state["progress"]["skipped"] == 3
    assert call(main, *flags) == 0
    check_end(results, tmp_path / "whole")


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


@pytest.mark.parametrize("number", STOPS)
def test_signals_before_the_first_step(flags, results, tmp_path, number, monkeypatch):
    program = Program(tmp_path, flags, small, BeforeLoading(number))
    assert program.wait() == STOPS[number], program.output()
    assert (
        "Traceback" not in program.output() and "stopped before the first step" in program.output()
    )
    assert not [path for path in results.rglob("*") if path.is_file()]


class BeforeLoading:
    def __init__(self, number):
        self.number = number

    def __call__(self):
        load = main.load
        main.load = lambda *arguments: (signals(self.number), load(*arguments))[1]


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


def resume_count(results):
    """How many epochs the table of metrics has."""
    return len(rows(results)) if list(results.rglob("*.csv")) else 0


# ---- lock ----


def test_a_lock_names_its_owner_and_is_not_left_behind(tmp_path):
    path = tmp_path / "run.lock"
    held = locks.lock(path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* is at work on this run"):
        locks.lock(path)
    locks.unlock(path, held)
    assert not path.exists()
    path.write_text("process 1 on a machine that crashed")
    locks.unlock(path, locks.lock(path))
    with pytest.raises(UserError, match="cannot lock"):
        locks.lock(tmp_path / "missing" / "run.lock")
