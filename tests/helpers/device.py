"""The device that tests run on: that of ATTENTIONCE_DEVICE, else a GPU, else the CPU."""

import contextlib
import os
from collections.abc import Iterator

import torch


def _choose() -> torch.device:
    named = os.environ.get("ATTENTIONCE_DEVICE")
    if named:
        return torch.device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")  # MPS only by name: it has no float64


DEVICE = _choose()
# By default cuDNN rounds what it multiplies to 10 bits. Tests tell right from wrong by more.
torch.backends.cudnn.allow_tf32 = False
ON_CPU = DEVICE.type == "cpu"


def rounding(dtype: torch.dtype) -> float:
    """The smallest relative tolerance to ask for on this device; 0 on a CPU.

    Sums run in another order on a GPU, and not always in the same.
    """
    return 0.0 if ON_CPU else {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """Whatever makes the host wait for the GPU in here is an error; on CUDA only."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
