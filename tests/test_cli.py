"""Wrong flags, and how a program ends: one line that says what is wrong, exit status 2."""

import re

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


# ---- how a program ends ----


def test_a_process_ends_with_one_line(script, tmp_path):
    results = tmp_path / "results"
    process = script("main.py", "--dataset_name", "cifar11", "--results", results)
    assert process.returncode == 2 and process.stdout == "" and not results.exists()
    assert re.fullmatch(r"error: --dataset_name .*cifar11.*cifar100.*\n", process.stderr)


def test_run_makes_one_line_of_any_message(capsys):
    def fail():
        print("so far")
        raise UserError("two\nlines of\ttext")

    with pytest.raises(SystemExit) as caught:
        cli.run(fail)
    assert caught.value.code == 2
    assert tuple(capsys.readouterr()) == ("so far\n", "error: two lines of text\n")


def test_run_passes_on_a_status_and_hides_no_bug():
    for status in (0, 143, None):
        with pytest.raises(SystemExit) as caught:
            cli.run(lambda status=status: status)
        assert caught.value.code == status
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


def out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")


@pytest.mark.parametrize(
    "fail, device", [(out_of_gpu_memory, "CUDA"), (lambda: torch.empty(2**60), "CPU")]
)
def test_out_of_memory_is_one_line(capsys, fail, device):
    with pytest.raises(SystemExit) as caught:
        cli.run(fail)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    advice = "use main.py's --grad_cache or a smaller --batch_size"
    assert said.startswith(f"error: {device} out of memory: {advice}") and said.count("\n") == 1


# ---- flags ----

MAIN = """--dataset_name cifar11, --temperature nan, --d_neg -0.5, --epochs two, --batch_size 1,
--num_pos 0, --knn_every -1, --save_every 0, --seed -1, --image_size 0, --weight_decay -1,
--feature_dim 0, --loss infonce, --arch resnet11, --precision fp16, --device toaster, --device meta,
--colour red, --loss dcl --tau_plus 1, --loss hcl --beta -1, --loss bcl --alpha 1.5"""
LINEAR = """--dataset_name cifar11, --temperature 0, --epochs 0, --lr -1, --seed -1, --image_size 0,
--arch resnet11, --encoder_mode thawed"""
WRONG = [(main, words) for words in [*MAIN.split(","), f"--device {CUDA}"]]
WRONG += [(linear, words) for words in LINEAR.split(",")]


@pytest.mark.parametrize("program, words", WRONG)
def test_bad_flags(
    refused, tiny, evaluation, encoder, results, nothing_loaded, contents, program, words
):
    given = tiny if program is main else [*evaluation, "--model_path", encoder]
    words = words.split()
    message = refused(program, *given, "--device", "cpu", *words)
    assert words[-2].strip("-") in message and words[-1] in message
    assert set(contents(encoder.parent)) == {"encoder.pth"} and not results.exists()


def test_no_flags(refused):
    assert "--model_path" in refused(linear)


@pytest.mark.parametrize("program, words", [(reproduce, []), (embed, ["--model_path", "random"])])
def test_programs_of_one_process(refused, monkeypatch, program, words):
    monkeypatch.setattr(processes, "world", lambda: 2)
    assert "start it without torchrun" in refused(program, *words)
