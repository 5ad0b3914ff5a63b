"""One program at a time works on a run, and removes what killed ones left half-written."""

import fcntl
import os
import signal
import socket
import threading

import pytest
from helpers.faults import At, hold
from helpers.outputs import STEM, check_end
from helpers.programs import Program, wait_for

import main
from attentionce.errors import UserError
from attentionce.runs import locks


def test_a_lock_names_its_owner_and_leaves_no_file(tmp_path):
    path = tmp_path / "run.lock"
    for _ in range(2):
        with locks.held(path, "this run"):
            for _ in range(2):  # the first refusal must not erase the name
                with pytest.raises(
                    UserError, match=f"^process {os.getpid()} on .* at work on this run"
                ):
                    with locks.held(path, "this run"):
                        pass
        assert not list(tmp_path.iterdir())
        for file in (path, tmp_path / "run.lock.owner"):
            file.write_text("process 1 on a machine that crashed")


def test_a_lock_can_be_waited_for(tmp_path):
    entered = threading.Event()

    def second():
        with locks.held(tmp_path / "a.lock", None):
            entered.set()

    thread = threading.Thread(target=second)
    with locks.held(tmp_path / "a.lock", None):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set() and not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(524, "the kernel's ENOTSUPP, which some network file systems let through")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.held(tmp_path / "a.lock", None), locks.held(tmp_path / "a.lock", "this run"):
        pass
    (one, other) = capsys.readouterr().out.splitlines()
    assert one == other == f"{tmp_path} has no locks: start this only once at a time"
    assert not list(tmp_path.iterdir())


def test_two_on_one_folder(call, refused, saving_flags, results, whole, tmp_path):
    """The second names the first, also with other --epochs, which write the same weights."""
    held = tmp_path / "held"
    first = Program(tmp_path, saving_flags, At(4, hold, held))
    wait_for(held.exists)
    owner = f"process {first.process.pid} on {socket.gethostname()} is at work on this run"
    for other in ([], ["--epochs", 7], ["--seed", 1, "--resume", "never"]):
        assert owner in refused(main, *saving_flags, *other)
    # Another run may work beside it.
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
    mine = [f"{STEM.replace('_3_', '_12_')}.state.1.tmp", f"{STEM}.csv.1.tmp"]
    others = [f"{STEM}_linear.csv.1.tmp", STEM.replace("1.0_1.0", "1.0_2.0") + ".state.1.tmp"]
    for name in mine + others:
        (folder / name).write_text("half")
    assert call(main, *saving_flags) == 0
    assert sorted(path.name for path in folder.glob("*.tmp")) == sorted(others)
