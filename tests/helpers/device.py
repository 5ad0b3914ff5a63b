"""The device that tests run on: that of ATTENTIONCE_DEVICE, else a GPU, else the CPU."""

import os

import torch


def _choose() -> torch.device:
    named = os.environ.get("ATTENTIONCE_DEVICE")
    if named:
        return torch.device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")  # MPS only by name: it has no float64


DEVICE = _choose()
ON_CPU = DEVICE.type == "cpu"


def tolerance(on_cpu: float, elsewhere: float) -> float:
    """A relative tolerance: sums run in another order on a GPU."""
    return on_cpu if ON_CPU else elsewhere
