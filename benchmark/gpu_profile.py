"""What a training step spends its time on, and which settings make it faster.

    make gpu-profile, or python -m benchmark.gpu_profile --device cuda --results results

Meant to take under eight minutes on an H100, compiling included. Every part has a process of its
own: one that fails is null in results/gpu-profile-{device}.json, which is written after each part.
So is what a CPU cannot measure; there the sizes are tiny, to try the program itself.
"""

import argparse
import gc
import itertools
import json
import re
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attentionce import cli
from attentionce.runs import files
from attentionce.training import devices, fallbacks, one_step
from attentionce.training.memory import expected_bytes
from attentionce.training.pretraining import Run
from benchmark import measuring, this_code
from benchmark.measuring import Call
from benchmark.report import summary
from benchmark.rows import images_of
from benchmark.step_variants import VARIANTS

CUDA = {"arch": "resnet50", "batch_size": 256, "image_size": 32, "matmul": 8192, "copied": 2**31}
CUDA |= {"rounds": 7, "steps": 6}  # steps per round
CPU = {"arch": "resnet10", "batch_size": 4, "image_size": 8, "matmul": 64, "copied": 2**20}
CPU |= {"rounds": 2, "steps": 1}


def training(args: argparse.Namespace, variant: str = "auto") -> tuple[Run, Tensor]:
    """A run as main.py assembles it, and a batch of photographs on the device."""
    pixels = images_of(2 * args.batch_size).pixels  # an epoch of two steps, always at the first
    run = this_code.assemble(args, variant, pixels)
    return run, run.pixels[: args.batch_size].to(run.device)


def ceilings(args: argparse.Namespace) -> dict[str, Any]:
    """How fast the device copies and multiplies, and its clocks while it multiplies."""
    source = torch.zeros(args.copied, dtype=torch.uint8, device=args.device)
    copy = partial(torch.empty_like(source).copy_, source)
    seconds = measuring.interleaved("copy", {"copy": copy}, 5, args.device, calls=10)
    dtype, clocks = devices.choose_precision("auto", torch.device(args.device)), None
    rate = measuring.matmul_rate(dtype, args.matmul, args.device)
    if args.device == "cuda":
        matrix = torch.ones(args.matmul, args.matmul, dtype=dtype, device=args.device)
        for _ in range(500):  # about a second
            matrix @ matrix
        fields = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
        clocks = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    copied = 2 * args.copied / min(seconds["copy"]) / 1e9  # read and written
    return {"copy_gb_s": copied, "matmul_tflop_s": rate / 1e12, "clocks": clocks}


def step(args: argparse.Namespace) -> dict[str, Any]:
    """Twenty steps as main.py takes them, with no synchronisation in between; then a profile."""
    cuda, (run, batch) = args.device == "cuda", training(args)
    call = partial(one_step.take_step, run, batch)
    measuring.seconds_of(call, args.device, 3)  # compiles
    gc.collect()
    gc.freeze()
    host, events = [], [torch.cuda.Event(enable_timing=True) for _ in range(21 * cuda)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    retries, began = measuring.allocator_retries(), time.perf_counter()
    for number in range(21):
        host.append(time.perf_counter())
        if cuda:
            events[number].record()
        if number < 20:
            call()
    measuring.synchronize(args.device)
    ms = 1000 * (time.perf_counter() - began) / 20
    host_ms = [1000 * (end - start) for start, end in itertools.pairwise(host)]
    return {
        "ms": ms,
        "images_per_second": 1000 * args.batch_size / ms,
        "gpu_ms": summary([start.elapsed_time(end) for start, end in itertools.pairwise(events)]),
        "host_ms": summary(host_ms),  # until a step is enqueued; a full queue makes the host wait
        "first_host_ms": host_ms[0],  # into an empty queue
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else None,
        "allocator_retries": measuring.allocator_retries() - retries,
        **profile(call, ms, args.device),
    }


# What a kernel's name (on a CPU: an operator's) says it does: the first expression that it matches.
GROUPS = {
    "copies": "memcpy|memset|nchwtonhwc|nhwctonchw",
    "optimiser": "adam",
    "loss, gradient norm": "softmax|log_?sigmoid|logsumexp|lpnorm|vector_norm|::reduce_kernel",
    "casts": r"triton_poi_fused__to_copy_\d*$|copy_kernel|aten::(_to_)?copy",
    "counters, additions": r"triton_poi_fused_add_\d*$|functor\w*_add|addfunctor|aten::add_?$",
    "elementwise": "triton_poi|vectorized_elementwise|unrolled_elementwise|aten::(mul|div|relu)",
    "BatchNorm, backward": "batch_norm_backward|bn_bw",
    "BatchNorm, statistics": "batch_norm|bn_fw",
    "convolution, data": "dgrad|convolution_backward",
    "convolution, weights": "wgrad",
    "convolution, forward": "fprop|conv",
    "matrix products": "gemm|cutlass|nvjet|cublas|aten::(b?mm|addmm)",
    "other": "",
}


def profile(call: Call, ms: float, device: str) -> dict[str, Any]:
    """Three steps under torch.profiler, summed by group: ms and launches per step.

    On CUDA `idle_ms` is what the kernels leave of the `ms` of a step that is not profiled.
    """
    with torch.profiler.profile() as profiler:
        measuring.seconds_of(call, device, 3)
    groups, kernels = {name: {"ms": 0.0, "launches": 0.0} for name in GROUPS}, []
    for event in profiler.key_averages():
        cuda = event.device_type.name == "CUDA"
        if event.is_user_annotation or cuda != (device == "cuda"):
            continue
        spent = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 3000
        kernels.append({"name": event.key[:150], "ms": spent, "launches": event.count / 3})
        name = next(name for name, words in GROUPS.items() if re.search(words, event.key.lower()))
        groups[name]["ms"] += spent
        groups[name]["launches"] += event.count / 3
    kernels.sort(key=lambda kernel: -kernel["ms"])
    idle = ms - sum(group["ms"] for group in groups.values()) if device == "cuda" else None
    return {"groups": groups, "idle_ms": idle, "longest": kernels[:20]}


def variants(args: argparse.Namespace) -> dict[str, Any]:
    """Every variant's time, in one process in rotating order; its first loss and gradient norm."""
    result: dict[str, Any] = dict.fromkeys(VARIANTS)
    steps: dict[str, Call] = {}
    for name, prepare in VARIANTS.items():
        run, batch = training(args)
        try:
            call = prepare(run, batch)
            if call is None:
                continue
            call()
            # Adam's mean of the gradient is now 1 - β₁ times the gradient.
            means = [state["exp_avg"] for state in run.optimizer.state.values()]
            scale = 1 - run.optimizer.param_groups[0]["betas"][0]
            norm = torch.nn.utils.get_total_norm(means).item() / scale
            result[name] = {"loss": run.progress["losses"][0].item(), "gradient_norm": norm}
            steps[name] = call
        except Exception as error:  # the other variants are still measured
            result[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"{name}: {result[name]}", flush=True)
    seconds = measuring.interleaved("variants", steps, args.rounds, args.device, args.steps)
    plain = result["as it is"]
    for name, times in seconds.items():
        row, ratios = result[name], [t / p for t, p in zip(times, seconds["as it is"], strict=True)]
        same = abs(row["loss"] / plain["loss"] - 1) < 1e-3
        same &= abs(row["gradient_norm"] / plain["gradient_norm"] - 1) < 0.03
        row |= {"agrees": same, "ms": summary([1000 * s for s in times])}
        row["ratio_in_round"] = statistics.median(ratios)
    return result


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """GB of a step in the four ways of docs/speed.md: as main.py expects, and as allocated."""
    result: dict[str, Any] = {}
    for way in ("compiled", "not compiled", "grad_cache", "half of the activations"):
        compiled = "off" if way == "not compiled" else args.compile
        changed = argparse.Namespace(**{**vars(args), "compile": compiled})
        run, batch = training(changed, "auto grad_cache" if way == "grad_cache" else "auto")
        expected = expected_bytes(run.model, run.args, run.dtype, run.compiled) / 1e9
        result[way] = {"expected_gb": expected, "allocated_gb": None}
        if way == "half of the activations":
            fallbacks.keep_fewer_activations(run)
            result[way]["expected_gb"] = None  # the compiler decides
        if args.device == "cuda":
            step_of = partial(partial, one_step.take_step, run, batch)
            result[way]["allocated_gb"] = measuring.peak_bytes(step_of, args.device) / 1e9
            del step_of
        del run
    return result


PARTS = {part.__name__: part for part in (ceilings, step, variants, memory)}


def main() -> None:
    """Measure every part, and write and print its results."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: the first that exists")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--results", default="results", help="folder of the JSON file")
    args = parser.parse_args()
    device, began = devices.choose_device(args.device), time.monotonic()
    settings = {**vars(args), "device": device.type, **(CUDA if device.type == "cuda" else CPU)}
    path = files.writable_folder(Path(args.results)) / f"gpu-profile-{device.type}.json"
    results: dict[str, Any] = {"machine": devices.machine(device), "flags": settings}
    for part in args.parts:
        results[part] = measuring.in_fresh_process(PARTS[part], argparse.Namespace(**settings))
        files.save_json(path, {**results, "minutes": (time.monotonic() - began) / 60})
        print(json.dumps({part: results[part]}, indent=1), flush=True)
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
