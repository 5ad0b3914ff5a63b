"""How long something takes and how much memory; a cell that runs out of memory stays empty."""

import contextlib
import functools
import gc
import json
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d

Call = Callable[[], object]  # what is timed
Prepare = Callable[[], Call]  # makes it, untimed
# CUDA and MPS say the first, PyTorch's CPU allocator the next two, cuBLAS and cuDNN the last.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
PROGRAM = """
import importlib, json, sys
module, name, arguments = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))
"""


def interleaved(
    row: str, sides: Mapping[str, Prepare], repetitions: int, device: str, calls: int = 1
) -> dict[str, list[float]]:
    """Time the sides in rounds, one after the other, so that a slow minute slows all of them.

    All are prepared before the first round, which does not count (CUDA: the first two). The side
    called "reference" runs with PyTorch's own cuDNN setting, the others with that of main.py.

    Args:
        calls: on CUDA, of a side in a round before the host waits for the device; elsewhere one.

    Returns:
        The seconds of every call by side; nothing for a side that ran out of memory.
    """
    prepared: dict[str, Call] = {}
    for name, prepare in sides.items():
        with empty_if_out_of_memory(f"{row}, {name}"):
            prepared[name] = prepare()
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    warm, calls = (2, calls) if device == "cuda" else (1, 1)
    for repetition in range(warm + repetitions):
        if repetition == warm:
            retries = allocator_retries()
            gc.collect()
            gc.freeze()  # what lives now is not searched for garbage while a side is timed
        for name in list(seconds):
            torch.backends.cudnn.benchmark = name != "reference"
            taken = None
            with empty_if_out_of_memory(f"{row}, {name}"):
                taken = seconds_of(prepared[name], device, calls)
            if taken is None:
                del prepared[name], seconds[name]
            else:
                seconds[name].append(taken)
    gc.unfreeze()
    if allocator_retries() > retries:
        count = allocator_retries() - retries
        print(f"{row}: memory was short, {count} allocations had to wait", file=sys.stderr)
    return {name: seconds.get(name, [])[warm:] for name in sides}


def seconds_of(call: Call, device: str, calls: int) -> float:
    """Seconds per call of several calls, until the device has done all that they started."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def allocator_retries() -> int:
    """How often PyTorch's allocator had to free its cache on CUDA to find memory."""
    return torch.cuda.memory_stats().get("num_alloc_retries", 0)


def synchronize(device: str) -> None:
    """Wait until the device has done all that was started on it."""
    if device != "cpu":
        torch.accelerator.synchronize()


@functools.cache  # two rows need it
def matmul_rate(dtype: torch.dtype, side: int, device: str) -> float | None:
    """Floating-point operations per second of products of two side × side matrices, at best.

    The same product is also timed as a 1×1 convolution: in float32 that computes in TF32 on CUDA,
    and on AMD's processors up to twice as fast as the BLAS library. None if memory runs out.
    """

    def matrices() -> torch.Tensor:
        return torch.randn(2, side, side, device=device, dtype=dtype)

    def product() -> Call:
        a, b = matrices()
        return lambda: a @ b.T

    def convolution() -> Call:
        a, b = matrices()  # one row of `a` per pixel, channels last
        return lambda: conv2d(a.T[None, :, None], b[:, :, None, None])

    sides: dict[str, Prepare] = {"product": product, "convolution": convolution}
    times = sum(interleaved("limit", sides, 5, device).values(), [])
    return 2 * side**3 / min(times) if times else None


@contextlib.contextmanager
def empty_if_out_of_memory(cell: str) -> Iterator[None]:
    """If the block runs out of memory, print one line and go on after it; other errors pass."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not out and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{cell}: out of memory, left empty ({reason[:200]})", file=sys.stderr, flush=True)
        traceback.clear_frames(error.__traceback__)  # whose variables hold tensors
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak_bytes(prepare: Prepare, device: str) -> int | None:
    """The most memory held while the function that `prepare` returns is called twice.

    CUDA: allocated by tensors, during the second call. CPU (Linux): resident, beyond what was
    resident before `prepare`, in a process that has done nothing else; this includes what the
    allocator keeps for later. None where the system does not tell.
    """
    before = linux_bytes("/proc/self/status", "VmRSS")
    call = prepare()
    call()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    most = linux_bytes("/proc/self/status", "VmHWM")
    return most - before if device == "cpu" and before else None


def linux_bytes(table: str, name: str) -> int:
    """An entry of one of Linux's tables, which are in kB, in bytes; 0 if it is not there."""
    with contextlib.suppress(OSError):
        match = re.search(name + r":\s+(\d+)", Path(table).read_text())
        return 1024 * int(match[1]) if match else 0
    return 0


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function(*arguments) returns in a process that has done nothing else.

    Arguments and result travel as JSON. None, after one line on stderr, if the function failed.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # else this process keeps what the other may need
    module, name = function.__module__, function.__qualname__
    command = [sys.executable, "-c", PROGRAM, json.dumps([module, name, arguments])]
    folder = Path(__file__).parents[1]  # of the code
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    why = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
    shown = ", ".join(str(a) for a in arguments if not isinstance(a, dict))
    print(f"{module}.{name}({shown}), left empty: {why}", file=sys.stderr, flush=True)
    return None
