"""A run that is interrupted anywhere and resumed ends with the bits of one that is not."""

import pytest
from helpers.outputs import STEM, check_end, last, rows, same_bits

import main
from attentionce.runs import files, states

KINDS = ["", "--knn_every 1", "--loss bcl", "--grad_cache"]
KINDS += ["--estimator MoCo --queue 11 --momentum 0.9"]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_every_step(call, flags, results, tmp_path, stop_after, small_encoder, kind):
    """One run, stopped after each of its steps."""
    flags = [*flags, *kind.split()]
    assert call(main, *flags, "--results", tmp_path / "whole") == 0
    for step in range(1, 10):
        stop_after(1)
        assert call(main, *flags) == 143, step
        assert states.read_state(last(results, ".state"))["progress"]["step"] in (step % 3, 3)
    assert call(main, *flags) == 0
    check_end(results, tmp_path / "whole")


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


@pytest.mark.parametrize("stopped", [True, False])
def test_a_state_of_another_folder(
    call, refused, saving_flags, results, tmp_path, whole, stop_after, contents, stopped
):
    """The run resumes here, or only writes its files; the state stays as it is."""
    expected, there = whole(), tmp_path / "there"
    if stopped:
        stop_after(5)
    call(main, *saving_flags, "--results", there)
    before, state = contents(there), last(there, ".state")
    assert call(main, *saving_flags, "--resume", state) == 0
    assert contents(there) == before
    one, other = (files.read(last(folder, ".pth")) for folder in (results, expected))
    assert same_bits(one, other)
    assert [row["loss"] for row in rows(results)] == [row["loss"] for row in rows(expected)]
    if not stopped:
        message = refused(main, *saving_flags, "--epochs", 2, "--resume", state)
        assert "has 3 epochs already" in message


def test_never(call, flags, results, stop_after, small_encoder):
    stop_after(5)
    call(main, *flags)
    stop_after(9)  # the last step
    assert call(main, *flags, "--resume", "never", "--seed", 1) == 143
    assert states.read_state(last(results, ".state"))["flags"]["seed"] == 1
