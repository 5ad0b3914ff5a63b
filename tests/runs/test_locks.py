"""One program at a time works on a run, and removes what killed ones left half-written."""

import os
import signal
import socket

import pytest
from helpers.faults import At, hold
from helpers.outputs import STEM, check_end
from helpers.programs import Program, wait_for

import main
from attentionce.errors import UserError
from attentionce.runs import locks


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


def test_two_on_one_folder(call, refused, saving_flags, results, whole, tmp_path):
    """The second names the first, also with other --epochs, which write the same weights."""
    held = tmp_path / "held"
    first = Program(tmp_path, saving_flags, At(4, hold, held))
    wait_for(held.exists)
    owner = f"process {first.process.pid} on {socket.gethostname()} is at work on this run"
    for other in ([], ["--epochs", 7], ["--seed", 1, "--resume", "never"]):
        assert owner in refused(main, *saving_flags, *other)
    # Another run may go on beside it.
    assert call(main, *saving_flags, "--loss", "simclr") == 0
    first.kill()
    assert first.wait() == -signal.SIGKILL  # which leaves the file, but no lock
    for path in results.rglob("*simclr*"):
        path.unlink()
    expected = whole()
    assert call(main, *saving_flags) == 0
    check_end(results, expected)


def test_many_at_the_same_moment(saving_flags, results, whole, tmp_path):
    programs = [Program(tmp_path, saving_flags) for _ in range(6)]
    statuses = [program.wait() for program in programs]
    assert set(statuses) <= {0, 2} and statuses.count(0) >= 1
    check_end(results, whole())


def test_temporary_files_of_killed_runs_are_removed(call, saving_flags, results, small_encoder):
    """Those of this run, also with other --epochs; not those of other runs, which may be alive."""
    folder = results / "folder"
    folder.mkdir(parents=True)
    own = [
        STEM.replace("_3_", f"_{epoch}_") + ending
        for epoch in (3, 12)
        for ending in (".pth", ".state", ".csv", ".json")
    ]
    others = [
        f"{STEM}_linear.csv",
        STEM.replace("1.0_1.0", "1.0_2.0") + ".state",
        "folder_SimCLR_bcl_8_3_0.1_0.9_0.9.csv",
    ]
    for name in own + others:
        (folder / f"{name}.tmp").write_text("half")
    assert call(main, *saving_flags) == 0
    assert {path.name for path in folder.glob("*.tmp")} == {f"{name}.tmp" for name in others}
