"""Real faults that happen to real processes; after each the last good files open, and the run goes on to the same bits."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from helpers import programs
from helpers.programs import (
    SOAK,
    At,
    KillInSave,
    Program,
    Small,
    check_end,
    check_meanwhile,
    last,
    rows,
    small,
    wait_for,
)
from PIL import Image

import main
from attentionce.data import image_folder
from attentionce.runs import states
from attentionce.training import one_step
from model import load_model

KILLS = 20 if SOAK else 3
STEM = "folder_SimCLR_1model_8_3_1.0_1.0"


@pytest.fixture
def flags(tiny):
    """Of a run of 9 steps that writes its state after each of them."""
    return [
        *tiny,
        "--epochs",
        3,
        "--num_pos",
        1,
        "--k",
        5,
        "--knn_every",
        2,
        "--device",
        "cpu",
        "--state_minutes",
        0,
    ]


@pytest.fixture
def whole(flags, tmp_path):
    """whole(*faults): the results of a run that nothing interrupts; `more`: further flags."""

    def function(*faults, more=()):
        program = Program(tmp_path, [*flags, *more, "--results", tmp_path / "whole"], *faults)
        assert program.wait() == 0, program.output()
        return tmp_path / "whole"

    return function


def finish(flags, results, whole, tmp_path, *faults):
    """The same command once more: it ends, and all is as if nothing had been."""
    program = Program(tmp_path, flags, *faults)
    assert program.wait() == 0, program.output()
    check_end(results, whole)


# ---- the process dies ----


@pytest.mark.soak
def test_killed_at_random_moments(flags, results, whole, tmp_path):
    """Most of such a run's time goes into writing 60 MB after every step, so most moments are in the middle of that."""
    draw, expected, killed, writing = random.Random(0), whole(), 0, 0
    while killed < KILLS:
        program = Program(tmp_path, flags)
        wait_for(
            lambda program=program: list(results.rglob("*.lock")) or program.process.exitcode == 0
        )
        program.process.join(draw.uniform(0.2, 3))
        if program.process.is_alive():
            program.kill()
        status = program.wait()
        writing += check_meanwhile(results)
        if status == 0:
            check_end(results, expected)
            shutil.rmtree(results)
            continue
        assert status == -signal.SIGKILL, program.output()
        killed += 1
    print(f"{killed} kills, {writing} of them while a file was written")
    finish(flags, results, expected, tmp_path)


@pytest.mark.soak
def test_killed_at_every_event_of_every_save(flags, results, whole, tmp_path):
    """Before each write, flush, check and renaming of a run with a small encoder; in the short form, of some of them."""
    expected, event = whole(small), 0 if SOAK else 1
    while True:
        program = Program(tmp_path, flags, small, KillInSave(event))
        if program.wait() == 0:
            break
        assert program.process.exitcode == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        finish(flags, results, expected, tmp_path, small)
        shutil.rmtree(results)
        event += 1 if SOAK else 17
    print(f"{event} events")
    assert event > 60


def test_killed_again_and_again(flags, results, whole, tmp_path):
    """A run that never gets further than the few saves of an epoch's end before it is killed ends all the same."""
    expected, kills = whole(small), 0
    while (program := Program(tmp_path, flags, small, KillInSave(25))).wait() != 0:
        assert program.process.exitcode == -signal.SIGKILL, program.output()
        check_meanwhile(results)
        kills += 1
        assert kills < 20
    assert kills >= 3
    check_end(results, expected)


# ---- the disk is full, read-only or gone ----


def limit(size):
    """No file may be larger, as if the disk was full there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def no_room_for(path):
    """Whatever is written under this name meets a full disk."""
    path.symlink_to("/dev/full")


class Limit:
    def __init__(self, size):
        self.size = size

    def __call__(self):
        limit(self.size)


FULL = [(ending, None) for ending in ("csv", "json", "pth", "state")]
LIMIT = [
    ("json", 1_500),
    ("pth", 9_000),
    ("state", 4_000),
    ("state", 12_000),
    ("state", 36_000),
]  # of 1.9, 12.5 and 37 kB


CASES = [
    (*case, step) for case in FULL + LIMIT for step in (0, 4, 8) if step == 8 or case[0] != "pth"
]


@pytest.mark.parametrize("ending, size, step", CASES)
def test_full_disk(flags, results, whole, tmp_path, ending, size, step):
    more = (
        ["--state_minutes", 10, "--knn_every", 0] if ending != "state" else []
    )  # no larger state is written before
    expected, flags = whole(small, more=more), [*flags, *more]
    path = results / "folder" / f"{STEM}.{ending}"
    fault = (
        At(step, limit, size) if size else At(step, no_room_for, path.with_name(f"{path.name}.tmp"))
    )
    message = Program(tmp_path, flags, small, fault).refusal()
    assert (
        f"cannot write {path}: {'File too large' if size else 'No space left on device'}" in message
    )
    assert "unharmed" in message
    assert check_meanwhile(results) == 0
    finish(flags, results, expected, tmp_path, small)


@pytest.fixture
def disk(tmp_path):
    """disk(bytes): a folder with as much room, and what a process must do to feel its limit."""
    mounted = []

    def make(size):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True
        )
        if done.returncode:  # not for everybody: then no file may be as large as that
            return path, [Limit(size // 3)]
        mounted.append(path)
        return path, []

    yield make
    for path in mounted:
        subprocess.run(["umount", path], check=True)


@pytest.mark.soak
@pytest.mark.parametrize("megabytes", range(10, 240, 12) if SOAK else [30, 150])
def test_a_small_disk(flags, tmp_path, whole, disk, megabytes):
    """With room for none, one or two states and the weights; then all is moved to where there is enough."""
    expected = whole()
    room, faults = disk(megabytes * 10**6)
    flags = [*flags, "--results", room / "results"]
    program = Program(tmp_path, flags, *faults)
    message = program.refusal() if program.wait() else None
    assert message is None or "cannot write" in message
    assert message or megabytes > 200
    check_meanwhile(room)
    shutil.copytree(room / "results", tmp_path / "moved")
    finish([*flags, "--results", tmp_path / "moved"], tmp_path / "moved", expected, tmp_path)


@pytest.mark.parametrize("step", [0, 2, 4, 8])
@pytest.mark.parametrize("save", ["state", "others"])
def test_folder_turns_read_only(flags, results, whole, tmp_path, step, save):
    expected = whole(small)
    flags = [*flags, "--state_minutes", 0 if save == "state" else 10]
    where = results / "folder"
    message = Program(
        tmp_path, flags, small, programs.obey_permissions, At(step, os.chmod, where, 0o555)
    ).refusal()
    assert f"cannot write {where / STEM}." in message and "Permission denied" in message
    message = Program(tmp_path, flags, small, programs.obey_permissions).refusal()
    assert "cannot write to the results folder" in message  # before anything is trained
    check_meanwhile(results)
    where.chmod(0o755)
    finish(flags, results, expected, tmp_path, small)


def replace_by_file(path):
    shutil.rmtree(path)
    path.touch()


@pytest.mark.parametrize(
    "action, cause",
    [(shutil.rmtree, "No such file or directory"), (replace_by_file, "Not a directory")],
)
def test_folder_vanishes(flags, results, whole, tmp_path, action, cause):
    message = Program(tmp_path, flags, small, At(4, action, results / "folder")).refusal()
    assert f"{STEM}.state: {cause}" in message
    shutil.rmtree(results)
    finish(flags, results, whole(small), tmp_path, small)


def test_full_disk_under_tensorboard(flags, results, tmp_path):
    """Its events lie in a file of their own, which grows beyond the limit; the state is as it was."""
    message = Program(tmp_path, [*flags, "--tensorboard"], small, At(4, limit, 50_000)).refusal()
    assert "TensorBoard" in message and "File too large" in message
    assert states.read_state(last(results, ".state"))["progress"]["epoch"] == 2


# ---- the files are damaged ----


@pytest.fixture
def stopped(call, flags, results, monkeypatch):
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
    assert call(main, *flags) == 143
    kept = {path.name: path.read_bytes() for path in (state, states.previous(state))}

    def again():
        shutil.rmtree(results)
        state.parent.mkdir(parents=True)
        for name, content in kept.items():
            (state.parent / name).write_bytes(content)
        return state

    return again


def damaged(content, draw):
    """The bytes cut short, or with some of them changed."""
    if draw.random() < 0.5:
        return content[: draw.randrange(len(content))]
    content = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


@pytest.mark.soak
def test_a_damaged_state(call, flags, results, whole, tmp_path, stopped, capsys):
    """The one before it is taken, which is said; or nothing that matters has changed. The end is the same."""
    draw, expected, refused = random.Random(1), whole(small), 0
    for _ in range(300 if SOAK else 12):
        state = stopped()
        content = state.read_bytes()
        state.write_bytes(damaged(content, draw))
        assert call(main, *flags) == 0
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
    flags, results, whole, tmp_path, stopped
):
    """Killed at every event of the first save after the fall back."""
    expected = whole(small)
    for event in range(12):
        state = stopped()
        state.write_bytes(state.read_bytes()[:-1])
        assert Program(tmp_path, flags, small, KillInSave(event)).wait() == -signal.SIGKILL
        finish(flags, results, expected, tmp_path, small)


def test_both_states_damaged(flags, refused, stopped, call, contents, results):
    state = stopped()
    for path in (state, states.previous(state)):
        path.write_bytes(path.read_bytes()[:-1])
    before = contents(results)
    message = refused(main, *flags)
    assert str(state) in message and f"{state}.previous" in message and "--resume never" in message
    assert contents(results) == before
    assert call(main, *flags, "--resume", "never") == 0


def test_only_the_previous_state_is_left(call, flags, results, whole, tmp_path, stopped):
    """As a crash between the two renamings leaves it."""
    expected, state = whole(small), stopped()
    state.unlink()
    assert call(main, *flags, "--resume", state) == 0
    check_end(results, expected)


# ---- the clock ----


def test_the_clock_jumps(call, flags, results, whole, tmp_path, monkeypatch):
    """By up to years in both directions at every look; how many states are written does not depend on it."""
    expected, draw, saved = whole(small), random.Random(2), []
    save_state = states.save_state
    monkeypatch.setattr(main, "Model", Small)
    monkeypatch.setattr(states, "save_state", lambda *a: (saved.append(1), save_state(*a)))
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: draw.randrange(10**9, 2 * 10**9))
    monkeypatch.setattr("tqdm.std.time", time.time)
    assert call(main, *flags, "--state_minutes", 10) == 0
    assert (
        len(saved) == 3 + 2
    )  # after every epoch, and before the evaluations after the second and the third
    assert all(0 < float(row["seconds"]) < 60 for row in rows(results))
    check_end(results, expected)


# ---- two at once ----


def test_two_on_one_folder(flags, results, whole, tmp_path):
    """The second names the first, also with other --epochs, which write the same weights; SIGKILL leaves no lock."""
    first = Program(tmp_path, flags, small, At(4, programs.hold, tmp_path / "held"))
    wait_for((tmp_path / "held").exists)
    for other in ([], ["--epochs", 7], ["--seed", 1, "--resume", "never"]):
        message = Program(tmp_path, [*flags, *other], small).refusal()
        assert (
            f"process {first.process.pid} on {socket.gethostname()} is at work on this run"
            in message
        )
    assert (
        Program(tmp_path, [*flags, "--loss", "simclr"], small).wait() == 0
    )  # another run, beside it
    first.kill()
    assert first.wait() == -signal.SIGKILL
    for path in results.rglob("*simclr*"):
        path.unlink()
    finish(flags, results, whole(small), tmp_path, small)


def test_many_at_the_same_moment(flags, results, whole, tmp_path):
    programs = [Program(tmp_path, flags, small) for _ in range(6)]
    statuses = [program.wait() for program in programs]
    assert set(statuses) <= {0, 2} and statuses.count(0) >= 1
    check_end(results, whole(small))


# ---- temporary files ----


def test_temporary_files_of_killed_runs_are_removed(call, flags, results, monkeypatch):
    """Those of this run and of the same with other --epochs; not those of others, who may be writing them."""
    monkeypatch.setattr(main, "Model", Small)
    where = results / "folder"
    where.mkdir(parents=True)
    ours = [
        STEM.replace("_3_", f"_{epoch}_") + ending
        for epoch in (3, 12)
        for ending in (".pth", ".state", ".csv", ".json")
    ]
    others = [
        f"{STEM}_linear.csv",
        STEM.replace("1.0_1.0", "1.0_2.0") + ".state",
        "folder_SimCLR_bcl_8_3_0.1_0.9_0.9.csv",
    ]
    for name in ours + others:
        (where / f"{name}.tmp").write_text("half")
    assert call(main, *flags) == 0
    assert {path.name for path in where.glob("*.tmp")} == {f"{name}.tmp" for name in others}


def test_half_a_cache_of_images_is_removed(tmp_path):
    """A run that is killed while it decodes more images than memory holds leaves a large file; the next one removes it."""
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(
                tmp_path / split / "a" / f"{i}.png"
            )
    words = "image_folder.memory_limit = lambda: 1; image_folder.decode = lambda *_: (print('here', flush=True), time.sleep(99))"
    code = f"import time; from attentionce.data import image_folder; {words}; image_folder.image_folder({str(tmp_path)!r}, 'train', 8)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    (part,) = tmp_path.glob(".train-*.tmp")
    image_folder.remove_parts(str(tmp_path))
    assert part.exists()  # its owner lives
    process.kill()
    process.wait()
    image_folder.remove_parts(str(tmp_path))
    assert not part.exists()


def test_linear_goes_on_after_a_kill(call, flags, results, tmp_path):
    """The weights of a run that was killed are those of its last epoch that ended; they open in the evaluation."""
    program = Program(
        tmp_path, [*flags, "--save_every", 1], At(8, signal.raise_signal, signal.SIGKILL)
    )
    assert program.wait() == -signal.SIGKILL
    found = sorted(path.name for path in results.rglob("*.pth"))
    assert found == [f"folder_SimCLR_1model_8_{epoch}_1.0_1.0.pth" for epoch in (1, 2)]
    for name in found:
        assert load_model(results / "folder" / name)[1] == "resnet10"
