"""Wrong flags, and how a program ends: one line that says what is wrong, exit status 2."""

import pytest
import torch

import linear
import main
from attentionce import cli
from attentionce.errors import UserError

CUDA = "cuda" if not torch.cuda.is_available() else "cuda:99"


# ---- how a program ends ----


def one_line(process):
    """The one line that a process must have ended with, and exit status 2."""
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and line.isprintable()
    return line


def test_a_process_ends_with_one_line(script, tmp_path, encoder):
    results = tmp_path / "results"
    process = script("main.py", "--dataset_name", "cifar11", "--results", results)
    assert "--dataset_name cifar11" in one_line(process) and "cifar100" in one_line(process)
    assert process.stdout == "" and not results.exists()

    encoder.write_bytes(encoder.read_bytes()[:1000])
    process = script("linear.py", "--dataset_name", "photos", "--model_path", encoder)
    assert str(encoder) in one_line(process)
    assert process.stdout == ""
    assert [path.name for path in encoder.parent.iterdir()] == ["encoder.pth"]


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


def test_out_of_gpu_memory_is_one_line(capsys):
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"

    def fail():
        raise torch.OutOfMemoryError(message)

    with pytest.raises(SystemExit) as caught:
        cli.run(fail)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    advice = "use main.py's --grad_cache or a smaller --batch_size"
    assert said.startswith(f"error: CUDA out of memory: {advice}") and said.count("\n") == 1


# ---- flags ----

MAIN = """
--dataset_name cifar11
--temperature 0
--temperature -1
--temperature nan
--d_pos 0
--d_pos inf
--d_neg -0.5
--epochs 0
--epochs -3
--epochs two
--batch_size 1
--batch_size 0
--num_pos 0
--k 0
--lr 0
--lr nan
--knn_every -1
--save_every -1
--save_every 0
--seed -1
--image_size 0
--store_size 0
--weight_decay -1
--feature_dim 0
--loss infonce
--arch resnet11
--precision fp8
--precision fp16
--device toaster
--device meta
--estimator BYOL
--colour red
--state_minutes nan
"""
LINEAR = """
--dataset_name cifar11
--temperature 0
--epochs 0
--batch_size 1
--k 0
--lr 0
--lr -1
--seed -1
--image_size 0
--weight_decay -1
--arch resnet11
--precision fp16
--encoder_mode thawed
--colour red
"""


def pairs(lines):
    """(flag, value) per line, and a GPU that is not there."""
    return [*(line.split() for line in lines.splitlines() if line), ("--device", CUDA)]


@pytest.mark.parametrize(("flag", "value"), pairs(MAIN))
def test_bad_flags_of_main(refused, tiny, results, nothing_loaded, flag, value):
    message = refused(main, *tiny, "--device", "cpu", flag, value)
    assert flag in message and value in message
    assert not results.exists()


@pytest.mark.parametrize(("flag", "value"), pairs(LINEAR))
def test_bad_flags_of_linear(
    refused, evaluation, encoder, results, nothing_loaded, contents, flag, value
):
    message = refused(linear, *evaluation, "--model_path", encoder, "--device", "cpu", flag, value)
    assert flag in message and value in message
    assert set(contents(encoder.parent)) == {"encoder.pth"} and not results.exists()


@pytest.mark.parametrize(
    ("loss", "flag", "value"),
    [
        ("dcl", "tau_plus", 1),
        ("dcl", "tau_plus", -0.1),
        ("hcl", "beta", -1),
        ("bcl", "alpha", 1.5),
        ("bcl", "beta", 2),
    ],
)
def test_bad_parameters_of_a_loss(refused, tiny, results, nothing_loaded, loss, flag, value):
    message = refused(main, *tiny, "--loss", loss, f"--{flag}", value)
    assert flag in message and loss in message and not results.exists()


def test_no_flags(refused):
    assert "--model_path" in refused(linear)
