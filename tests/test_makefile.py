"""What make runs."""

import subprocess

from conftest import ROOT


def test_gpu_training_saves_its_state_when_its_time_is_up():
    words = ["make", "-n", "gpu-train", "GPU_SECONDS=7", "PY=python"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "--signal=USR1 7 python main.py --dataset_name cifar10 --d_pos 1" in done.stdout
