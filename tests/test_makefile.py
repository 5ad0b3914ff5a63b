"""make gpu: each of its parts is tried, whatever became of those before."""

import subprocess

import pytest
from conftest import ROOT


def make(*words):
    """make, with nothing to be installed."""
    installed = ["-o", ".venv/installed", "-o", ".venv/installed-tests"]
    command = ["make", *installed, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "python, failed", [("true", ""), ("false", "failed: tests benchmark train")]
)
def test_gpu_goes_on_after_a_part_that_failed(python, failed):
    done = make("gpu", f"PY={python}")
    assert (done.returncode == 0) == (failed == "")
    assert failed in done.stdout
    for part in ("-m pytest", "-m benchmark --device cuda", "main.py --dataset_name cifar10"):
        assert f"{python} {part}" in done.stdout


def test_gpu_training_saves_its_state_when_its_time_is_up():
    done = make("-n", "gpu-train", "GPU_SECONDS=7", "GPU_DATA=--dataset_name photos", "PY=python")
    assert "--signal=USR1 7 python main.py --dataset_name photos --d_pos 1" in done.stdout


def test_help_lists_every_target_with_a_word_on_it():
    listed = [line.split("\t")[0] for line in make("help").stdout.splitlines()]
    targets = "help install demo test soak peers clean "
    targets += "gpu gpu-profile gpu-tests gpu-benchmark gpu-train"
    assert set(targets.split()) <= set(listed)
