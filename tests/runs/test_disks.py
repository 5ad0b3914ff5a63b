"""A disk that is full, read-only or gone: one line, whole files, and the run can be resumed."""

import os
import shutil

import pytest
from helpers.faults import At, limit, obey_permissions
from helpers.outputs import STEM, check_end, check_meanwhile, last
from helpers.programs import Program

import main
from attentionce.runs import states


# What meets a full disk, and in which of the nine steps that begins.
@pytest.mark.parametrize("ending, step", [("csv", 1), ("json", 5), ("state", 5), ("pth", 9)])
def test_full_disk(call, refused, saving_flags, results, whole, in_step, ending, step):
    expected, path = whole(), results / "folder" / f"{STEM}.{ending}"
    in_step(step, os.symlink, "/dev/full", f"{path}.{os.getpid()}.tmp")
    message = refused(main, *saving_flags)
    assert f"cannot write {path}: No space left on device" in message
    assert "unharmed" in message
    assert check_meanwhile(results) == 0
    assert call(main, *saving_flags) == 0
    check_end(results, expected)


def test_full_disk_under_tensorboard(saving_flags, results, tmp_path):
    """Its events have a separate file, which grows beyond the limit; the state is as it was."""
    flags = [*saving_flags, "--tensorboard"]
    message = Program(tmp_path, flags, At(4, limit, 50_000)).refusal()
    assert "TensorBoard" in message and "File too large" in message
    assert states.read_state(last(results, ".state"))["progress"]["epoch"] == 2


def test_folder_turns_read_only(call, saving_flags, results, whole, tmp_path):
    expected, folder = whole(), results / "folder"
    read_only = At(2, os.chmod, folder, 0o555)
    message = Program(tmp_path, saving_flags, obey_permissions, read_only).refusal()
    assert f"cannot write {folder / STEM}.state: Permission denied" in message
    message = Program(tmp_path, saving_flags, obey_permissions).refusal()
    assert "cannot write to the results folder" in message  # before anything is trained
    check_meanwhile(results)
    folder.chmod(0o755)
    assert call(main, *saving_flags) == 0
    check_end(results, expected)


def test_folder_vanishes(call, refused, saving_flags, results, whole, in_step):
    expected = whole()
    in_step(5, shutil.rmtree, results / "folder")
    assert f"{STEM}.state: No such file or directory" in refused(main, *saving_flags)
    assert call(main, *saving_flags) == 0
    check_end(results, expected)
