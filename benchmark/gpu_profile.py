"""What a training step spends its time on, and which ways to take it are faster.

    make gpu-profile, or python -m benchmark.gpu_profile --device cuda
    python -m benchmark.gpu_profile --parts step "CUDA graph"           only these

Every part has a process of its own and is written to results/gpu-profile-{device}.json as soon as
it is measured; one that fails is null. On a CPU the sizes are tiny, to try the program itself.
"""

import argparse
import json
import re
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attentionce import cli
from attentionce.runs import files
from attentionce.training import devices, fallbacks
from attentionce.training.memory import expected_bytes
from attentionce.training.pretraining import Run
from benchmark import measuring, this_code
from benchmark.measuring import Call
from benchmark.report import summary
from benchmark.rows import images_of
from benchmark.step_variants import VARIANTS, with_fields

CUDA = {"arch": "resnet50", "batch_size": 256, "image_size": 32, "matmul": 8192, "copied": 2**31}
CUDA |= {"rounds": 7, "steps": 6, "compile": "auto"}  # steps per round
CPU = {"arch": "resnet10", "batch_size": 4, "image_size": 8, "matmul": 64, "copied": 2**20}
CPU |= {"rounds": 2, "steps": 1, "compile": "off"}


def training(args: argparse.Namespace, variant: str = "auto") -> tuple[Run, Tensor]:
    """A run as main.py assembles it, and a batch of photographs on the device."""
    pixels = images_of(2 * args.batch_size).pixels  # an epoch of two steps, always at the first
    run = this_code.assemble(args, variant, pixels)
    return run, run.pixels[: args.batch_size].to(run.device)


def ceilings(args: argparse.Namespace) -> dict[str, Any]:
    """How fast the device copies and multiplies."""
    source = torch.zeros(args.copied, dtype=torch.uint8, device=args.device)
    copy = partial(torch.empty_like(source).copy_, source)
    seconds = measuring.interleaved({"copy": copy}, 5, args.device, calls=10)
    copied = 2 * args.copied / min(seconds["copy"])  # read and written
    dtype = devices.choose_precision("auto", torch.device(args.device))
    rate = measuring.matmul_rate(dtype, args.matmul, args.device)
    return {"copy_gb_s": copied / 1e9, "matmul_tflop_s": rate / 1e12}


def step(args: argparse.Namespace) -> dict[str, Any]:
    """Twenty steps as main.py takes them, with no synchronisation in between; then a profile."""
    cuda, call = args.device == "cuda", with_fields(*training(args))
    measuring.seconds_of(call, args.device, 3)  # compiles
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    ms = 1000 * measuring.seconds_of(call, args.device, 20)
    return {
        "ms": ms,
        "images_per_second": 1000 * args.batch_size / ms,
        "allocated_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else None,
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


def variant(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A variant and the step as it is, timed in turn; whether their first steps agree.

    The variant's step agrees with a loss within 0.1 % and a gradient norm within 3 %.
    """
    steps, losses, norms = {}, {}, {}
    for way, prepare in (("as it is", with_fields), ("variant", VARIANTS[name])):
        run, batch = training(args)
        steps[way] = prepare(run, batch)
        steps[way]()
        losses[way] = run.progress["losses"][0].item()
        # Adam's mean of the gradient is now 1 - β₁ times the gradient.
        means = [state["exp_avg"] for state in run.optimizer.state.values()]
        scale = 1 - run.optimizer.param_groups[0]["betas"][0]
        norms[way] = torch.nn.utils.get_total_norm(means).item() / scale
        print(f"{name}: {way}, its first loss is {losses[way]:.4f}", flush=True)
    agrees = abs(losses["variant"] / losses["as it is"] - 1) < 1e-3
    agrees &= abs(norms["variant"] / norms["as it is"] - 1) < 0.03
    seconds = measuring.interleaved(steps, args.rounds, args.device, args.steps)
    ratios = [ours / plain for plain, ours in zip(*seconds.values(), strict=True)]
    return {
        "loss": losses,
        "gradient_norm": norms,
        "agrees": agrees,
        "ms": {way: summary([1000 * s for s in times]) for way, times in seconds.items()},
        "ratio_in_round": statistics.median(ratios),
    }


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """GB of a step in the four ways of docs/speed.md: as main.py expects, and as allocated."""
    result = {}
    for way in ("compiled", "not compiled", "grad_cache", "half of the activations"):
        compiled = "off" if way == "not compiled" else args.compile
        changed = argparse.Namespace(**{**vars(args), "compile": compiled})
        run, batch = training(changed, "auto grad_cache" if way == "grad_cache" else "auto")
        expected = expected_bytes(run.model, run.args, run.dtype, run.compiled) / 1e9
        if way == "half of the activations":  # main.py still expects all of them
            fallbacks.keep_fewer_activations(run)
        allocated = None
        if args.device == "cuda":
            step_of = partial(with_fields, run, batch)
            allocated = measuring.peak_bytes(step_of, args.device) / 1e9
        result[way] = {"expected_gb": expected, "allocated_gb": allocated}
    return result


PARTS: dict[str, tuple] = {"ceilings": (ceilings,), "step": (step,)}
PARTS |= {name: (variant, name) for name in VARIANTS} | {"memory": (memory,)}


def main() -> None:
    """Measure every part, and write and print its results."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: the first that exists")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--results", default="results", help="folder of the JSON file")
    args = parser.parse_args()
    device, began = devices.choose_device(args.device), time.monotonic()
    settings = {**vars(args), "device": device.type, **(CUDA if device.type == "cuda" else CPU)}
    path = files.writable_folder(Path(args.results)) / f"gpu-profile-{device.type}.json"
    results: dict[str, Any] = {"machine": devices.machine(device), "flags": settings}
    for part in args.parts:
        results[part] = measuring.in_fresh_process(*PARTS[part], argparse.Namespace(**settings))
        files.save_json(path, {**results, "minutes": (time.monotonic() - began) / 60})
        print(json.dumps({part: results[part]}, indent=1), flush=True)
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
