"""How long something takes: the sides of a row in turn, and what the machine could do at most."""

import contextlib
import time
from collections.abc import Callable

import torch
from torch.nn.functional import conv2d

from benchmark.out_of_memory import empty_if_out_of_memory

Call = Callable[[], object]  # what is timed
Prepare = Callable[[], Call]  # makes it, untimed


def interleaved(
    sides: dict[str, Prepare],
    repetitions: int,
    device: torch.device,
    warm: bool = True,
    row: str | None = None,
) -> dict[str, list[float]]:
    """Time the sides in rounds of one call per side, so that a slow minute slows all of them.

    Args:
        sides: by name; each prepares its work and returns the function to time. All are prepared
            before the first round. The one called "reference" runs with PyTorch's own cuDNN
            setting, the others with that of main.py.
        warm: whether a round that does not count comes first.
        row: the name of the row, for the line that is printed when a side runs out of memory.

    Returns:
        The seconds of every call by side; nothing for a side that ran out of memory.

    Raises:
        RuntimeError: a side ran out of memory and `row` is None.
    """
    calls: dict[str, Call] = {}
    for name, prepare in sides.items():
        with _sparing(row, name):
            calls[name] = prepare()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-int(warm), repetitions):
        for name in list(calls):
            torch.backends.cudnn.benchmark = name != "reference"
            taken = None
            with _sparing(row, name):
                taken = seconds_of(calls[name], device)
            if taken is None:
                del calls[name]
                seconds[name] = []
            elif repetition >= 0:
                seconds[name].append(taken)
    return seconds


def _sparing(row: str | None, side: str) -> contextlib.AbstractContextManager[None]:
    if row is None:
        return contextlib.nullcontext()
    return empty_if_out_of_memory(f"{row}, {side}")


def seconds_of(call: Call, device: torch.device) -> float:
    """Seconds of one call, until the device has done all that it started."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was started on it."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def matmul_rate(dtype: torch.dtype, side: int, device: torch.device) -> float:
    """Floating-point operations per second of products of two side × side matrices, at best.

    On a CPU the same product is also timed as a 1×1 convolution. Convolutions are computed by
    oneDNN, which in float32 is up to twice as fast as the BLAS library on AMD's processors, and a
    training step must not exceed its limit.
    """
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    image = a.view(1, side, 1, side).permute(0, 3, 1, 2)  # one row per pixel, channels last
    kernel = b[:, :, None, None]

    def product() -> torch.Tensor:
        return a @ b.T

    def convolution() -> torch.Tensor:
        return conv2d(image, kernel)

    sides: dict[str, Prepare] = {"product": lambda: product}
    if device.type == "cpu":
        sides["convolution"] = lambda: convolution
    before = torch.get_float32_matmul_precision()
    # TF32 on CUDA, in which PyTorch computes convolutions of float32 there.
    torch.set_float32_matmul_precision("high")
    try:
        seconds = interleaved(sides, 5, device)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * side**3 / min(min(times) for times in seconds.values())
