"""Seconds, bytes and ratios: how benchmark.py measures."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d

ROOT = Path(__file__).parents[1]  # of the code


def interleaved(
    sides: dict[str, Callable], repetitions: int, device: torch.device, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of every call, in rounds of one call each, after an uncounted round where `warm`."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(-int(warm), repetitions):
        for name, side in sides.items():
            torch.backends.cudnn.benchmark = (
                name != "reference"
            )  # PyTorch's default there, main.py's choice here
            synchronize(device)
            start = time.perf_counter()
            side()
            synchronize(device)
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait for all that was started on the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def fresh(function: str, *arguments: Any) -> Any:
    """What `module.function(*arguments)` returns in a process of its own; both ways as JSON. None, and why, if it fails."""
    module = function.rpartition(".")[0]
    code = f"import json, sys, {module}; print(json.dumps({function}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # else this process keeps what the other may need
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        print(f"{function}{arguments}: {why}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(build: Callable[[], Callable], device: torch.device) -> int | None:
    """The most memory held while the function that build() returns is called twice; None where no system tells.

    CUDA: allocated by tensors, in the second call. CPU (Linux): resident, over what was before build(), in a process
    that holds nothing else; what the allocator keeps for later counts.
    """
    before = resident("VmRSS")
    function = build()
    function()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - before if device.type == "cpu" and before else None


def resident(which: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM); 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return 1024 * int(re.search(which + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return 0


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken; 0 where the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    with contextlib.suppress(OSError):
        return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    return 0


def matmul_rate(dtype: torch.dtype, side: int, device: torch.device) -> float:
    """Floating-point operations a second of products of two side × side matrices: the best of several.

    On a CPU also of the same product as a 1×1 convolution, since convolutions are oneDNN's, whose float32 is up to twice
    as fast as the BLAS library's on AMD's processors: a limit must not be one that a step exceeds.
    """
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    image = a.view(1, side, 1, side).permute(0, 3, 1, 2)  # a pixel a row, channels last
    products = {"product": lambda: a @ b.T}
    if device.type == "cpu":
        products["convolution"] = lambda: conv2d(image, b[:, :, None, None])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(
        "high"
    )  # TF32 on CUDA, in which PyTorch computes float32's convolutions there
    seconds = interleaved(products, 5, device)
    torch.set_float32_matmul_precision(before)
    return 2 * side**3 / min(map(min, seconds.values()))
