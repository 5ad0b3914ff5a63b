"""A disk that is full, read-only or gone: one line, whole files, and the run can go on."""

import os
import shutil
import subprocess

import pytest
from helpers.faults import SOAK, At, Limit, limit, obey_permissions, small
from helpers.outputs import STEM, check_meanwhile, last
from helpers.programs import Program, finish

from attentionce.runs import states

# ---- full ----


def no_room_for(path):
    """Whatever is written under this name meets a full disk."""
    path.symlink_to("/dev/full")


# What cannot be written; the size that files may have (None: there is no room for it at all); and
# the step before which that begins. Weights are written at the end only. JSON files, weights and
# states have 1.9, 12.5 and 37 kB.
FULL = [(ending, None, step) for ending in ("csv", "json", "state") for step in (0, 4, 8)]
FULL += [("json", 1_500, step) for step in (0, 4, 8)]
FULL += [("state", size, step) for size in (4_000, 12_000, 36_000) for step in (0, 4, 8)]
FULL += [("pth", None, 8), ("pth", 9_000, 8)]


@pytest.mark.parametrize("ending, size, step", FULL)
def test_full_disk(saving_flags, results, whole, tmp_path, ending, size, step):
    path = results / "folder" / f"{STEM}.{ending}"
    more = []
    if ending != "state":  # then no state, which is larger, is written before
        more = ["--state_minutes", 10, "--knn_every", 0]
    if size:
        fault, cause = At(step, limit, size), "File too large"
    else:
        temporary = path.with_name(f"{path.name}.tmp")
        fault, cause = At(step, no_room_for, temporary), "No space left on device"
    expected, flags = whole(small, more=more), [*saving_flags, *more]
    message = Program(tmp_path, flags, small, fault).refusal()
    assert f"cannot write {path}: {cause}" in message
    assert "unharmed" in message
    assert check_meanwhile(results) == 0
    finish(flags, results, expected, tmp_path, small)


@pytest.fixture
def disk(tmp_path):
    """disk(bytes): a folder with that much room, and the faults that limit a program to it."""
    mounted = []

    def make(size):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path]
        if subprocess.run(command, capture_output=True).returncode:
            return path, [Limit(size // 3)]  # not every user may mount: then files are limited
        mounted.append(path)
        return path, []

    yield make
    for path in mounted:
        subprocess.run(["umount", path], check=True)


@pytest.mark.soak
@pytest.mark.parametrize("megabytes", range(10, 240, 12) if SOAK else [30, 150])
def test_a_small_disk(saving_flags, tmp_path, whole, disk, megabytes):
    """With room for none, one or two states and the weights; what is there is then moved."""
    expected = whole()
    room, faults = disk(megabytes * 10**6)
    program = Program(tmp_path, [*saving_flags, "--results", room / "results"], *faults)
    message = program.refusal() if program.wait() else None
    assert message is None or "cannot write" in message
    assert message or megabytes > 200
    check_meanwhile(room)
    moved = tmp_path / "moved"
    shutil.copytree(room / "results", moved)
    finish([*saving_flags, "--results", moved], moved, expected, tmp_path)


def test_full_disk_under_tensorboard(saving_flags, results, tmp_path):
    """Its events have a separate file, which grows beyond the limit; the state is as it was."""
    flags = [*saving_flags, "--tensorboard"]
    message = Program(tmp_path, flags, small, At(4, limit, 50_000)).refusal()
    assert "TensorBoard" in message and "File too large" in message
    assert states.read_state(last(results, ".state"))["progress"]["epoch"] == 2


# ---- read-only or gone ----


@pytest.mark.parametrize("step", [0, 2, 4, 8])
@pytest.mark.parametrize("save", ["state", "others"])
def test_folder_turns_read_only(saving_flags, results, whole, tmp_path, step, save):
    expected, folder = whole(small), results / "folder"
    flags = [*saving_flags, "--state_minutes", 0 if save == "state" else 10]
    read_only = At(step, os.chmod, folder, 0o555)
    message = Program(tmp_path, flags, small, obey_permissions, read_only).refusal()
    assert f"cannot write {folder / STEM}." in message and "Permission denied" in message
    message = Program(tmp_path, flags, small, obey_permissions).refusal()
    assert "cannot write to the results folder" in message  # before anything is trained
    check_meanwhile(results)
    folder.chmod(0o755)
    finish(flags, results, expected, tmp_path, small)


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
