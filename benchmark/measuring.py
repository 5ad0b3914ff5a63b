"""How long something takes and how much memory, in this process or in one of its own."""

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d

from benchmark import VIEWS

Call = Callable[[], object]  # what is timed
Prepare = Callable[[], Call]  # makes it, untimed


def random_views(args: argparse.Namespace) -> torch.Tensor:
    """What a training step is timed on: V×B×3×S×S on the device."""
    size = args.image_size
    return torch.randn(VIEWS, args.batch_size, 3, size, size, device=args.device)


def interleaved(
    sides: Mapping[str, Call], repetitions: int, device: str, calls: int = 1
) -> dict[str, list[float]]:
    """Time the sides in rounds, in rotating order, so that a slow minute slows all of them.

    The first round does not count (CUDA: the first two). On CUDA a round has several calls before
    the host waits. The side called "reference" runs with PyTorch's own cuDNN setting, the others
    with that of main.py. Returns by side the seconds of a call in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    warm, calls = (2, calls) if device == "cuda" else (1, 1)
    order = list(sides)
    for repetition in range(warm + repetitions):
        if repetition == warm:
            gc.collect()
            gc.freeze()  # what lives now is not searched for garbage while a side is timed
        for name in order:
            torch.backends.cudnn.benchmark = name != "reference"
            seconds[name].append(seconds_of(sides[name], device, calls))
        order = order[1:] + order[:1]
    gc.unfreeze()
    return {name: times[warm:] for name, times in seconds.items()}


def seconds_of(call: Call, device: str, calls: int) -> float:
    """Seconds per call of several calls, until the device has done all that they started."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def synchronize(device: str) -> None:
    """Wait until the device has done all that was started on it."""
    if device != "cpu":
        torch.accelerator.synchronize()


@functools.cache  # several rows need it
def matmul_rate(dtype: torch.dtype, side: int, device: str) -> float:
    """Floating-point operations per second of products of two side × side matrices, at best.

    The product is also timed as a 1×1 convolution, which in float32 is faster on CUDA (TF32) and on
    AMD's processors.
    """
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    image, kernel = a.T[None, :, None], b[:, :, None, None]  # a row of `a` per pixel, channels last
    sides = {"product": lambda: a @ b.T, "convolution": lambda: conv2d(image, kernel)}
    return 2 * side**3 / min(sum(interleaved(sides, 5, device).values(), []))


def peak(prepare: Prepare, device: str) -> list[float]:
    """The most MB held while what `prepare` makes is called twice, in a process of its own.

    CUDA: allocated by tensors, during the second call. CPU (Linux): resident, beyond what was
    resident before; this includes what the allocator keeps for later. Empty if it is unknown.
    """
    found = in_fresh_process(peak_bytes, prepare, device)
    return [found / 1e6] if found else []


def peak_bytes(prepare: Prepare, device: str) -> int:
    """`peak` in bytes, in this process, which has done nothing else."""
    small = torch.ones(64, 64, device=device, requires_grad=True)
    (small @ small).sum().backward()  # threads and libraries do not count
    before = resident_bytes("VmRSS")
    call = prepare()
    call()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resident_bytes("VmHWM") - before


def resident_bytes(name: str) -> int:
    """What this process holds (VmRSS) or has held at most (VmHWM), as Linux says."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What function(*arguments) returns in a process that has done nothing else.

    None, after one line on stderr, if it failed.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # else this process keeps what the other may need
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments).result()
        except Exception as error:
            name = f"{function.__module__}.{function.__qualname__}"
            print(f"{name}, left empty: {error!r}", file=sys.stderr, flush=True)
    return None
