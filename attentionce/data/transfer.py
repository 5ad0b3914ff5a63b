"""Copies from the CPU to the device that computes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to a device, without waiting for the copy where that is safe.

    Only a copy from pinned memory to CUDA is asynchronous: PyTorch keeps the pinned memory until
    such a copy is done. It gives no such promise for MPS, where an asynchronous copy of a temporary
    tensor may read memory that is already in use for something else, and no error is raised.
    """
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def batches(
    pixels: Tensor, order: Sequence[Tensor] | Tensor, device: torch.device
) -> Iterator[Tensor]:
    """Batch after batch, uint8 B×3×H×W on `device`; the host waits for no copy to CUDA.

    Args:
        pixels: uint8 N×3×H×W, on `device` or on the CPU, where they may be memory-mapped.
        order: The indices of each batch, on the CPU.
    """
    for index in order:
        yield to_device(pixels[to_device(index, pixels.device)], device)
