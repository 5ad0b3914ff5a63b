"""make gpu: each of its parts is tried, whatever became of those before."""

import shutil
import subprocess

import pytest
from conftest import ROOT


@pytest.fixture
def make(tmp_path):
    """make(words), in a folder where everything is installed already."""
    (tmp_path / ".venv").mkdir()
    for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, tmp_path)
    for name in ("installed", "installed-tests"):
        (tmp_path / ".venv" / name).touch()
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60}
    return lambda *words: subprocess.run(["make", *words], **options)


@pytest.mark.parametrize("python, message", [("true", ""), ("false", "failed: tests benchmark tr")])
def test_gpu_continues_after_a_part_that_failed(make, python, message):
    done = make("gpu", f"PY={python}")
    assert (done.returncode == 0) == (python == "true")
    assert message in done.stdout
    for part in ("-m pytest", "-m benchmark --device cuda", "main.py --dataset_name cifar10"):
        assert f"{python} {part}" in done.stdout


def test_gpu_training_saves_its_state_when_its_time_is_up(make):
    done = make("-n", "gpu-train", "GPU_SECONDS=7", "GPU_DATA=--dataset_name photos", "PY=python")
    assert "--signal=USR1 7 python main.py --dataset_name photos --d_pos 1" in done.stdout
