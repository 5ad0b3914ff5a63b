"""A disk that is full, read-only or gone."""

import os
import resource
import shutil
import subprocess

import pytest
from helpers import programs
from helpers.programs import (
    SOAK,
    At,
    Program,
    check_meanwhile,
    finish,
    last,
    small,
)

from attentionce.runs import states

STEM = "folder_SimCLR_1model_8_3_1.0_1.0"


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
def test_full_disk(saving_flags, results, whole, tmp_path, ending, size, step):
    more = (
        ["--state_minutes", 10, "--knn_every", 0] if ending != "state" else []
    )  # no larger state is written before
    expected, saving_flags = whole(small, more=more), [*saving_flags, *more]
    path = results / "folder" / f"{STEM}.{ending}"
    fault = (
        At(step, limit, size) if size else At(step, no_room_for, path.with_name(f"{path.name}.tmp"))
    )
    message = Program(tmp_path, saving_flags, small, fault).refusal()
    assert (
        f"cannot write {path}: {'File too large' if size else 'No space left on device'}" in message
    )
    assert "unharmed" in message
    assert check_meanwhile(results) == 0
    finish(saving_flags, results, expected, tmp_path, small)


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
def test_a_small_disk(saving_flags, tmp_path, whole, disk, megabytes):
    """With room for none, one or two states and the weights; then all is moved to where there is enough."""
    expected = whole()
    room, faults = disk(megabytes * 10**6)
    saving_flags = [*saving_flags, "--results", room / "results"]
    program = Program(tmp_path, saving_flags, *faults)
    message = program.refusal() if program.wait() else None
    assert message is None or "cannot write" in message
    assert message or megabytes > 200
    check_meanwhile(room)
    shutil.copytree(room / "results", tmp_path / "moved")
    finish([*saving_flags, "--results", tmp_path / "moved"], tmp_path / "moved", expected, tmp_path)


@pytest.mark.parametrize("step", [0, 2, 4, 8])
@pytest.mark.parametrize("save", ["state", "others"])
def test_folder_turns_read_only(saving_flags, results, whole, tmp_path, step, save):
    expected = whole(small)
    saving_flags = [*saving_flags, "--state_minutes", 0 if save == "state" else 10]
    where = results / "folder"
    message = Program(
        tmp_path, saving_flags, small, programs.obey_permissions, At(step, os.chmod, where, 0o555)
    ).refusal()
    assert f"cannot write {where / STEM}." in message and "Permission denied" in message
    message = Program(tmp_path, saving_flags, small, programs.obey_permissions).refusal()
    assert "cannot write to the results folder" in message  # before anything is trained
    check_meanwhile(results)
    where.chmod(0o755)
    finish(saving_flags, results, expected, tmp_path, small)


def replace_by_file(path):
    shutil.rmtree(path)
    path.touch()


@pytest.mark.parametrize(
    "action, cause",
    [(shutil.rmtree, "No such file or directory"), (replace_by_file, "Not a directory")],
)
def test_folder_vanishes(saving_flags, results, whole, tmp_path, action, cause):
    message = Program(tmp_path, saving_flags, small, At(4, action, results / "folder")).refusal()
    assert f"{STEM}.state: {cause}" in message
    shutil.rmtree(results)
    finish(saving_flags, results, whole(small), tmp_path, small)


def test_full_disk_under_tensorboard(saving_flags, results, tmp_path):
    """Its events lie in a file of their own, which grows beyond the limit; the state is as it was."""
    message = Program(
        tmp_path, [*saving_flags, "--tensorboard"], small, At(4, limit, 50_000)
    ).refusal()
    assert "TensorBoard" in message and "File too large" in message
    assert states.read_state(last(results, ".state"))["progress"]["epoch"] == 2
