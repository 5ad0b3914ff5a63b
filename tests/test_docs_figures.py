"""Every figure that a sentence about speed and memory takes from results/ is what the file says."""

import argparse
from statistics import mean

import torch
from helpers.pages import RESULTS, found, last_row, says, says_all

import main
from attentionce.training.memory import expected_bytes
from model import Model

FILES = {"": "", "older ": "without-bf16/", "now ": "loss/", "h100 ": "h100/compiled/"}


def measured():
    """Of the benchmark's rows, this code's medians, and with a × their ratios to the recipe."""
    values = {}
    for prefix, folder in FILES.items():
        for row in found(f"{folder}benchmark-{'cuda' if 'h100' in prefix else 'cpu'}.json")["rows"]:
            name = f"{prefix}{row['name']} {row['variant']}"
            values[name] = (row["ours"] or {}).get("median")
            values[f"{name} ×"] = (row["ratio"] or {}).get("of_medians")
    return values


def calculated():
    """What the pages calculate from that."""
    values = measured()
    parameters = sum(p.numel() for p in Model().parameters())
    values["fixed GB"] = 4 * 4 * parameters / 1e9  # weights, gradients, two moments in float32
    for name in ("memory fp32", "memory bf16", "memory bf16 grad_cache"):
        values[f"{name} GB"] = values[name] / 1000
    for name in ("limit", "step"):
        values[f"bf16 / fp32 {name}"] = values[f"{name} bf16"] / values[f"{name} fp32"]
    for name in ("fp32", "bf16"):
        values[f"1 / linear {name}"] = 1 / values[f"linear {name} ×"]
    one, two = (case["images_per_second"] for case in found("scaling-cpu.json")["measured"])
    values |= {"one": one, "two": two, "efficiency": two / one / 2}
    gradients = 4 * parameters
    for n, images in ((2, 16), (8, 256), (512, 256)):  # what each of n processes sends, in MB
        values[f"MB {n}"] = (2 * (n - 1) / n * gradients + 3 * (n - 1) * 1024 * images) / 1e6
    values["gradients MB"] = gradients / 1e6
    runs = (RESULTS / "cifar10-small-resnet10-4/seed0/folder").glob("*mean*noisy*[0-9].csv")
    last = [last_row(path) for path in runs]  # of the second fourteen, which shared a GPU
    values["per run"] = mean(float(row["views"]) / float(row["seconds"]) for row in last) / 1000
    return values | on_a_gpu(values)


def on_a_gpu(values):
    """Hours of 400 epochs, from a step of 256 × 6 views and the making of its views."""
    rows = found("h100/compiled/benchmark-cuda.json")["rows"]
    row = next(row for row in rows if (row["name"], row["variant"]) == ("step", "bf16"))
    making, rates = 1 + values["h100 view making bf16"] / 100, row["ours"]
    step, slowest = 256 / rates["median"], 256 / rates["min"]
    hours = {
        f"{images} hours": 400 * (images // 256) * step * making / 3600
        for images in (50_000, 100_000, 105_000)
    }
    return hours | {
        "least": rates["min"],
        "most": rates["max"],
        "of limit": row["share_of_limit"],
        "ms": 1000 * step * making,
        "ms without": 1000 * step,
        "thousand views": 256 * 6 / step / making / 1000,
        "slowest hours": 400 * (50_000 // 256) * slowest * making / 3600,
        **profiled(),
    }


def profiled():
    """ms and launches of a step by the groups of the table, and what it all amounts to."""
    step = found("h100/gpu-profile-cuda.json")["step"]
    groups = step["groups"]
    values = {"step ms": step["ms"], "idle": step["idle_ms"], "allocated": step["allocated_gb"]}
    values |= {"reserved": step["reserved_gb"]}
    values["kernels"] = sum(group["ms"] for group in groups.values())
    values["launches"] = sum(group["launches"] for group in groups.values())
    values["at 260 ms"] = 400 * (50_000 // 256) * step["ms"] / 3.6e6
    for name, words in {"conv": "convolution", "norm": "BatchNorm"}.items():
        chosen = [group for name, group in groups.items() if name.startswith(words)]
        values[name] = sum(group["ms"] for group in chosen)
        values[f"{name} launches"] = sum(group["launches"] for group in chosen)
    return values


SENTENCES = """
README.md
    of resnet50 is {step bf16 ×:.2f} times as fast in bf16 as the published scripts' recipe
    recipe and takes {memory bf16 ×:.0%} of its memory; in fp32 it is {step fp32 ×:.2f} times
    times as fast and takes {memory fp32 ×:.0%}.
    Making views is {views cpu eager ×:.0f} to {views cpu compiled ×:.0f} times as fast, an epoch
    an epoch of linear evaluation {1 / linear fp32:.1f} to {1 / linear bf16:.1f} times
    {h100 step bf16 ×:.2f} times as fast, in bf16 and compiled, as the recipe's on views
    we calculate {50000 hours:.1f} hours for 400 epochs of CIFAR-10
docs/speed.md
    the step is {step fp32 ×:.2f} times as fast as the recipe's
    bfloat16, in which it multiplies {bf16 / fp32 limit:.1f} times
    Making views is {view making bf16:.1f}% of a step.
    that is bf16, which is {bf16 / fp32 step:.1f} times as fast
    takes {memory bf16 GB:.1f} GB in bf16, {memory fp32 GB:.1f} GB in fp32 and
    and {memory bf16 grad_cache GB:.1f} GB in bf16 with
    Weights, gradients and optimiser are {fixed GB:.1f} GB of that.
    ratios are {older views cpu eager ×:.2f} and {older views cpu compiled ×:.2f} for views
    {older step fp32 ×:.2f} for step and epoch, {older memory fp32 ×:.2f} for memory
    {older epoch fp32 ×:.2f} for step and epoch
    ({older memory fp32 grad_cache ×:.2f} with `--grad_cache`), {older loss batch 256 ×:.2f},
    , {older loss batch 1,024 ×:.2f} and {older loss batch 4,096 ×:.2f} for the loss, and
    and {older linear fp32 ×:.2f} for linear evaluation
    takes {now loss batch 256 ×:.2f}, {now loss batch 1,024 ×:.2f} and {now loss batch 4,096 ×:.2f}
    and {now loss memory batch 16,384:.0f} MB at 16,384
    Making them adds {h100 view making bf16:.1f}% to this code's compiled step.
    the compiled step reached {least:,.0f} to {most:,.0f} images/s
    {ms:.0f} ms for 256 × 6 views, or {thousand views:.1f} thousand views per
    | AttentioNCE on CIFAR-10 or CIFAR-100 | 120 million | {50000 hours:.1f} hours |
    | AttentioNCE on TinyImageNet | 240 million | {100000 hours:.1f} hours |
    | AttentioNCE on STL10 | 252 million | {105000 hours:.1f} hours |
    400 epochs of CIFAR-10 would take {slowest hours:.1f} hours.
    each at about {per run:.0f} thousand views per second
    measured on an H100: {allocated:.1f} GB allocated, {reserved:.1f} GB with what
    the same compiled step took {step ms:.0f} ms instead of {ms without:.0f}
    | convolutions | {conv:.1f} | {conv launches:.0f} |
    | BatchNorm's statistics and gradients | {norm:.1f} | {norm launches:,.0f} |
    | all kernels | {kernels:.1f} | {launches:,.0f} |
    | the GPU waits for the CPU | {idle:.1f} | |
    is slower](#where-the-steps-time-goes) would take {at 260 ms:.1f}, without making views.
docs/several-gpus.md
    one process reached {one:.1f} images/s and two reached {two:.1f}, {efficiency:.0%} of twice
    times the gradients, {gradients MB:.1f} MB for resnet50
    {MB 8:.0f} MB for n = 8 and {MB 512:.0f} MB for n = 512, and {MB 2:.1f} MB for the two
    {MB 8:.0f} MB take 3.6 ms, and {MB 512:.0f} MB take 12.0 ms
"""


def test_sentences():
    values = calculated()
    says_all(SENTENCES, values)
    assert values["memory bf16 ×"] < 0.5  # "less than half of the recipe's memory"


def test_expected_memory():
    """The calculated figures of docs/speed.md; half of the activations are the compiler's own."""
    args = main.parse_args([])
    model = Model(args.feature_dim, args.arch)

    def expected(**flags):
        changed = argparse.Namespace(**{**vars(args), **flags})
        compiled = not changed.grad_cache and changed.compile != "off"
        return expected_bytes(model, changed, torch.bfloat16, compiled) / 1e9

    off, cached = expected(compile="off"), expected(grad_cache=True)
    says("docs/speed.md", f"| compiled, as on CUDA by default | {expected():.1f} GB |")
    says("docs/speed.md", f"which recomputes the first stage | {off:.1f} GB |")
    says("docs/speed.md", f"| `--grad_cache` | {cached:.1f} GB |")
    assert cached < 8 < 12 < off < 16 < expected() < 24
