"""A run that is interrupted anywhere and goes on ends with the bits of one that is not."""

import pytest
import torch
from helpers.faults import SOAK
from helpers.outputs import STEM, check_end, last, rows, same_bits
from helpers.programs import Small

import main
from attentionce.runs import files, states

# ---- the same bits ----

KINDS = {
    "attentionce": "",
    "knn": "--knn_every 1",
    "bcl": "--loss bcl",
    "grad_cache": "--grad_cache",
    "moco": "--estimator MoCo --queue 11 --momentum 0.9",
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["small", "resnet10"])
def test_interrupted_at_every_step(
    call, flags, results, tmp_path, stop_after, monkeypatch, kind, arch
):
    """One run, stopped after each of its steps. The short form has resnet10 for one kind only."""
    if arch == "small" or (not SOAK and kind != "moco"):
        monkeypatch.setattr(main, "Model", Small)
    steps, flags = 9, [*flags, *KINDS[kind].split()]
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    for step in range(1, steps + 1):
        stop_after(1)
        assert call(main, *flags) == 143, step
        assert states.read_state(last(results, ".state"))["progress"]["step"] in (step % 3, 3)
    stop_after(10**6)
    assert call(main, *flags) == 0
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
    assert call(main, *flags) == 0
    assert "extending the run of 2 epochs" in capsys.readouterr().out
    for path in results.rglob("*_[12]_*"):  # the shorter runs' files stay
        path.unlink()
    (results / "folder" / f"{STEM}.state.previous").touch()  # it ran one epoch, so it has none
    check_end(results, tmp_path / "whole")


def test_a_run_that_is_done_is_left_alone(call, flags, results, small_encoder, capsys, contents):
    call(main, *flags, "--epochs", 1)
    before = contents(results)
    assert call(main, *flags, "--epochs", 1) == 0
    assert contents(results) == before
    assert "already trained for 1 epochs" in capsys.readouterr().out


def test_a_state_of_another_folder(
    call, flags, results, tmp_path, stop_after, small_encoder, contents
):
    """The run goes on here, and leaves the state where it is as it is."""
    call(main, *flags, "--results", tmp_path / "whole")
    stop_after(5)
    call(main, *flags, "--results", tmp_path / "there")
    stop_after(10**6)
    before = contents(tmp_path / "there")
    assert call(main, *flags, "--resume", last(tmp_path / "there", ".state")) == 0
    assert contents(tmp_path / "there") == before
    one, other = (files.read(last(folder, ".pth")) for folder in (results, tmp_path / "whole"))
    assert same_bits(one, other)


def test_a_finished_state_of_another_folder(call, flags, results, tmp_path, small_encoder, refused):
    """Nothing is left to do but to write the files."""
    whole = tmp_path / "whole"
    call(main, *flags, "--results", whole)
    done = last(whole, ".state")
    assert call(main, *flags, "--resume", done) == 0
    one, other = (files.read(last(folder, ".pth")) for folder in (results, whole))
    assert same_bits(one, other)
    assert rows(results) == rows(whole)
    assert "has 3 epochs already" in refused(main, *flags, "--epochs", 2, "--resume", done)


def test_never(call, flags, results, stop_after, small_encoder):
    stop_after(5)
    call(main, *flags)
    stop_after(9)  # the last step
    assert call(main, *flags, "--resume", "never", "--seed", 1) == 143
    assert states.read_state(last(results, ".state"))["flags"]["seed"] == 1
