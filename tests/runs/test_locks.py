"""One process at a time works on a run; what killed ones left is removed."""

import os
import signal
import socket

import pytest
from helpers import programs
from helpers.programs import (
    At,
    Program,
    Small,
    check_end,
    finish,
    small,
    wait_for,
)

import main
from attentionce.errors import UserError
from attentionce.runs import locks

STEM = "folder_SimCLR_1model_8_3_1.0_1.0"


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


# ---- two at once ----
def test_two_on_one_folder(saving_flags, results, whole, tmp_path):
    """The second names the first, also with other --epochs, which write the same weights; SIGKILL leaves no lock."""
    first = Program(tmp_path, saving_flags, small, At(4, programs.hold, tmp_path / "held"))
    wait_for((tmp_path / "held").exists)
    for other in ([], ["--epochs", 7], ["--seed", 1, "--resume", "never"]):
        message = Program(tmp_path, [*saving_flags, *other], small).refusal()
        assert (
            f"process {first.process.pid} on {socket.gethostname()} is at work on this run"
            in message
        )
    assert (
        Program(tmp_path, [*saving_flags, "--loss", "simclr"], small).wait() == 0
    )  # another run, beside it
    first.kill()
    assert first.wait() == -signal.SIGKILL
    for path in results.rglob("*simclr*"):
        path.unlink()
    finish(saving_flags, results, whole(small), tmp_path, small)


def test_many_at_the_same_moment(saving_flags, results, whole, tmp_path):
    programs = [Program(tmp_path, saving_flags, small) for _ in range(6)]
    statuses = [program.wait() for program in programs]
    assert set(statuses) <= {0, 2} and statuses.count(0) >= 1
    check_end(results, whole(small))


# ---- temporary files ----
def test_temporary_files_of_killed_runs_are_removed(call, saving_flags, results, monkeypatch):
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
    assert call(main, *saving_flags) == 0
    assert {path.name for path in where.glob("*.tmp")} == {f"{name}.tmp" for name in others}
