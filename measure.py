"""Seconds, bytes and ratios: how benchmark.py measures."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import conv2d


class Row(NamedTuple):
    """A line of the table: what each repetition gave on both sides, in the unit; empty where a side was not measured."""

    name: str
    variant: str
    unit: str
    reference: list[float]
    ours: list[float]
    limit: float | None = None  # the most that the machine allows, in the unit


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
    code = f"import json, sys, {function.split('.')[0]}; print(json.dumps({function}(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # else this process keeps what the other may need
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
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


def record(row: Row) -> dict[str, Any]:
    """A row as the JSON file has it: medians with smallest and largest, and ours / reference, whose spread is the rounds'."""
    reference, ours = summary(row.reference), summary(row.ours)
    result = {
        **row._asdict(),
        "reference": reference,
        "ours": ours,
        "ratio": None,
        "share_of_limit": None,
    }
    if reference and ours:
        rounds = [o / r for o, r in zip(row.ours, row.reference, strict=True)]
        result["ratio"] = {
            "of_medians": ours["median"] / reference["median"],
            "min": min(rounds),
            "max": max(rounds),
        }
    if row.limit and ours:
        result["share_of_limit"] = ours["median"] / row.limit
    return result


def summary(values: list[float]) -> dict[str, float] | None:
    """Median and spread; None of nothing."""
    if not values:
        return None
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repetitions": len(values),
    }


HEADER = f"{'':16}{'':17}{'':14}{'reference':>28}{'this code':>28}{'ratio':>20}{'of limit':>10}"


def line(result: dict[str, Any]) -> str:
    """A record as a line of the table: median (smallest … largest)."""
    cells = [f"{result['name']:16}{result['variant']:17}{result['unit']:14}"]
    for side in ("reference", "ours"):
        values = result[side]
        one = values and values["repetitions"] == 1
        spread = "" if not values or one else f" ({short(values['min'])} … {short(values['max'])})"
        cells.append(f"{short(values['median']) + spread if values else '':>28}")
    ratio, share = result["ratio"], result["share_of_limit"]
    of_rounds = f" ({ratio['min']:.2f} … {ratio['max']:.2f})" if ratio and not one else ""
    cells.append(f"{short(ratio['of_medians']) + of_rounds if ratio else '':>20}")
    cells.append(f"{share:10.1%}" if share else "")
    return "".join(cells).rstrip()


def short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(found: dict[str, Any]) -> str:
    """What a JSON file of the benchmark says, as the table of the README: medians of both sides and their ratio."""
    flags, machine = found["flags"], found["machine"]
    size = f"batches of {flags['batch_size']} × 6 views of {flags['image_size']} px"
    lines = [
        f"{machine['device_name']}, torch {machine['torch'].split('+')[0]}, {flags['arch']}, {size}:",
        "",
        "| | | unit | reference recipe | this code | ratio | of limit |",
        "| --- | --- | --- | :---: | :---: | :---: | :---: |",
    ]
    for row in found["rows"]:
        if row["ratio"]:
            medians = [short(row[side]["median"]) for side in ("reference", "ours")]
            share = f"{row['share_of_limit']:.0%}" if row["share_of_limit"] else ""
            cells = [
                row["name"],
                row["variant"],
                row["unit"],
                *medians,
                f"{row['ratio']['of_medians']:.2f}",
                share,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
