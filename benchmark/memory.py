"""How much memory a step or a loss takes, each measured in a process that does nothing else."""

import argparse
import contextlib
import functools
import re
from collections.abc import Callable
from pathlib import Path

import torch

from benchmark import reference_recipe, this_code
from benchmark.comparison import loss_and_gradient, random_views
from benchmark.timing import Prepare


def reference_step_memory(settings: dict) -> int | None:
    """Peak bytes of a step of the reference recipe, weights and optimiser included.

    Args:
        settings: the benchmark's flags, as a dictionary.
    """
    args = argparse.Namespace(**settings)
    device, views = torch.device(args.device), random_views(args)

    def prepare() -> functools.partial:
        return functools.partial(reference_recipe.Recipe(args.arch, device).step, views)

    return peak_bytes(prepare, device)


def step_memory(settings: dict, precision: str, grad_cache: bool) -> int | None:
    """Peak bytes of a step of this code, weights and optimiser included.

    Args:
        settings: the benchmark's flags, as a dictionary.
    """
    args = argparse.Namespace(**settings)
    views = random_views(args)
    pixels = torch.zeros(args.batch_size, 3, 32, 32, dtype=torch.uint8)

    def prepare() -> Callable[[], None]:
        run = this_code.assemble(args, precision, pixels)
        return this_code.fixed_step(run, views, grad_cache)

    return peak_bytes(prepare, torch.device(args.device))


def loss_memory(side: str, batch: int, device_name: str) -> int | None:
    """Peak bytes of a loss and its gradient, the embeddings included."""
    device = torch.device(device_name)
    loss_and_gradient(side, 8, device)()  # threads and libraries do not count
    return peak_bytes(functools.partial(loss_and_gradient, side, batch, device), device)


def peak_bytes(prepare: Prepare, device: torch.device) -> int | None:
    """The most memory held while the function that `prepare` returns is called twice.

    CUDA: allocated by tensors, during the second call. CPU (Linux): resident, beyond what was
    resident before `prepare`, in a process that has done nothing else; this includes what the
    allocator keeps for later.

    Returns:
        Bytes; None where the system does not tell.
    """
    before = resident("VmRSS")
    call = prepare()
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - before if device.type == "cpu" and before else None


def resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS, now; VmHWM, the most so far. 0 if unknown."""
    return _kilobytes(Path("/proc/self/status"), which)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken, in bytes; 0 if unknown."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _kilobytes(table: Path, name: str) -> int:
    """An entry of one of Linux's tables, which are in kB, in bytes; 0 if it is not there."""
    with contextlib.suppress(OSError):
        found = re.search(name + r":\s+(\d+)", table.read_text())
        return 1024 * int(found[1]) if found else 0
    return 0
