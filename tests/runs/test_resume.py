"""A run that is interrupted anywhere and goes on ends with the bits of one that is not."""

import shutil

import pytest
import torch
from helpers.programs import (
    SOAK,
    Small,
    check_end,
    last,
    rows,
    same_bits,
)

import main
from attentionce.runs import files, states

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
