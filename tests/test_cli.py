"""Wrong flags, and how a program ends: one line that says what is wrong, exit status 2."""

import io
import sys

import pytest
import torch

import embed
import linear
import main
import reproduce
from attentionce import cli
from attentionce.errors import UserError
from attentionce.training import processes

CUDA = "cuda" if not torch.cuda.is_available() else "cuda:99"


def status_of(function):
    """The exit status that `cli.run` ends with."""
    with pytest.raises(SystemExit) as caught:
        cli.run(function)
    return caught.value.code


# ---- how a program ends ----


def test_run_passes_on_a_status_and_hides_no_bug(capsys):
    def fail():
        print("so far")
        raise UserError("two\nlines of\ttext")

    assert status_of(fail) == 2
    assert tuple(capsys.readouterr()) == ("so far\n", "error: two lines of text\n")
    for status in (0, 143, None):
        assert status_of(lambda status=status: status) == status
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


def out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")


def test_out_of_memory_is_one_line(capsys):
    for fail, device in ((out_of_gpu_memory, "CUDA"), (lambda: torch.empty(2**60), "CPU")):
        assert status_of(fail) == 2
        said = capsys.readouterr().err
        advice = "use main.py's --grad_cache or a smaller --batch_size"
        assert said.startswith(f"error: {device} out of memory: {advice}") and said.count("\n") == 1


def test_a_terminal_without_a_character_prints_another(monkeypatch):
    """The help has …, which ASCII lacks."""
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert status_of(lambda: linear.main(["--help"])) == 0
    terminal.flush()
    assert b"results/cifar10/?.pth" in terminal.buffer.getvalue()


# ---- flags ----

MAIN = """--dataset_name cifar11, --temperature nan, --d_neg -0.5, --batch_size 1, --num_pos 0,
--knn_every -1, --save_every 0, --seed -1, --seed 18446744073709551616, --image_size 7,
--stem imagenet --image_size 31, --weight_decay -1, --feature_dim 0, --precision fp16,
--device toaster, --device meta, --loss dcl --tau_plus 1, --loss hcl --beta -1,
--loss bcl --alpha 1.5, --estimator MoCo --batch_size 12 --queue 11"""
LINEAR = "--temperature 0, --epochs 0, --lr -1, --seed 18446744073709551616, --image_size 0"
WRONG = [(main, words) for words in [*MAIN.split(","), f"--device {CUDA}"]]
WRONG += [(linear, words) for words in LINEAR.split(",")]


@pytest.mark.parametrize("program, words", WRONG)
def test_bad_flags(refused, tiny, evaluation, encoder, results, nothing_loaded, program, words):
    given = tiny if program is main else [*evaluation, "--model_path", encoder]
    words = words.split()
    message = refused(program, *given, "--device", "cpu", *words)
    assert words[-2].strip("-") in message
    assert words[-1] in message or "2**63" in message
    assert not results.exists()


@pytest.mark.parametrize("program, words", [(reproduce, []), (embed, ["--model_path", "random"])])
def test_programs_of_one_process(refused, monkeypatch, program, words):
    monkeypatch.setattr(processes, "world", lambda: 2)
    assert "start it without torchrun" in refused(program, *words)


def test_every_path_expands_the_home_folder(monkeypatch):
    """A shell leaves ~ alone in --results=~/runs."""
    monkeypatch.setenv("HOME", "/home/me")
    args = main.parse_args(["--results=~/runs", "--root=~/data", "--resume=~/a", "--init=~/b"])
    found = [args.results, args.root, args.resume, args.init]
    assert found == ["/home/me/runs", "/home/me/data", "/home/me/a", "/home/me/b"]
    args = linear.parse_args(["--model_path", "~/a.pth", "random", "--export=~/b", "--results=~"])
    assert [*args.model_path, args.export] == ["/home/me/a.pth", "random", "/home/me/b"]
