"""Every figure that a sentence about speed and memory takes from results/ is what the file says."""

import argparse

import pytest
import torch
from helpers.pages import RESULTS, found, last_row, says

import main
from attentionce.training.memory import expected_bytes
from model import Model


@pytest.fixture
def rows():
    """rows(path): the medians of a benchmark's file, by row and variant."""

    def function(path):
        return {(row["name"], row["variant"]): row for row in found(path)["rows"]}

    return function


def ratios(table, *keys):
    return [table[key]["ratio"]["of_medians"] for key in keys]


def test_speed(rows):
    table = rows("benchmark-cpu.json")
    fp32, bf16 = ratios(table, ("step", "fp32"), ("step", "bf16"))
    most, least = ratios(table, ("memory", "fp32"), ("memory", "bf16"))
    says(
        "README.md",
        f"a training step of resnet50 is {bf16:.2f} times as fast in bf16 as the published "
        f"scripts' recipe ({fp32:.2f} times in fp32) and takes {100 * least:.0f} % of its memory "
        f"({100 * most:.0f} %).",
    )
    eager, compiled = ratios(table, ("views", "cpu eager"), ("views", "cpu compiled"))
    slow, fast = (1 / r for r in ratios(table, ("linear", "fp32"), ("linear", "bf16")))
    says(
        "README.md",
        f"Making views is {eager:.0f} to {compiled:.0f} times as fast, an epoch of linear "
        f"evaluation {slow:.1f} to {fast:.1f} times",
    )
    says("docs/speed.md", f"the step is {fp32:.2f} times as fast as the recipe's")
    limits = [table["limit", precision]["ours"]["median"] for precision in ("bf16", "fp32")]
    says("docs/speed.md", f"bfloat16, in which it multiplies {limits[0] / limits[1]:.1f} times")
    making = table["view making", "bf16"]["ours"]["median"]
    says("docs/speed.md", f"Making views is {making:.1f} % of a step.")
    steps = [table["step", precision]["ours"]["median"] for precision in ("bf16", "fp32")]
    says("docs/speed.md", f"that is bf16, which is {steps[0] / steps[1]:.1f} times as fast")
    assert least < 0.5  # "less than half of the recipe's memory"


def test_memory(rows):
    """Measured for 16 × 6 views."""
    table, parameters = rows("benchmark-cpu.json"), found("scaling-cpu.json")["parameters"]
    variants = ("bf16", "fp32", "bf16 grad_cache")
    gb = [table["memory", variant]["ours"]["median"] / 1000 for variant in variants]
    says(
        "docs/speed.md",
        f"takes {gb[0]:.1f} GB in bf16, {gb[1]:.1f} GB in fp32 and {gb[2]:.1f} GB in bf16 with",
    )
    fixed = 4 * 4 * parameters / 1e9  # weights, gradients, two moments in float32
    says("docs/speed.md", f"Weights, gradients and optimiser are {fixed:.1f} GB of that.")


def test_second_cpu(rows):
    table = rows("without-bf16/benchmark-cpu.json")
    views = ratios(table, ("views", "cpu eager"), ("views", "cpu compiled"))
    step, epoch = ratios(table, ("step", "fp32"), ("epoch", "fp32"))
    memory = ratios(table, ("memory", "fp32"), ("memory", "fp32 grad_cache"))
    loss = ratios(table, *(("loss", f"batch {batch}") for batch in ("256", "1,024", "4,096")))
    linear = ratios(table, ("linear", "fp32"))
    assert f"{step:.2f}" == f"{epoch:.2f}"
    sentence = (
        "the ratios are {:.2f} and {:.2f} for views, {:.2f} for step and epoch, {:.2f} for memory "
        "({:.2f} with `--grad_cache`), {:.2f}, {:.2f} and {:.2f} for the loss, and {:.2f} for "
        "linear evaluation"
    )
    says("docs/speed.md", sentence.format(*views, step, *memory, *loss, *linear))


def test_scaling(rows):
    result = found("scaling-cpu.json")
    one, two = (measured["images_per_second"] for measured in result["measured"])
    says(
        "docs/several-gpus.md",
        f"one process reached {one:.1f} images/s and two reached {two:.1f}, {two / one / 2:.0%} of "
        "twice as many".replace("%", " %"),
    )
    gradients = 4 * result["parameters"]

    def megabytes(processes, images):
        anchors = 2 * images * 128 * 4
        per_gradient = 2 * (processes - 1) / processes
        return (per_gradient * gradients + 3 * (processes - 1) * anchors) / 1e6

    says("docs/several-gpus.md", f"times the gradients, {gradients / 1e6:.1f} MB for resnet50")
    eight, many, two = megabytes(8, 256), megabytes(512, 256), megabytes(2, 16)
    says(
        "docs/several-gpus.md",
        f"that is {eight:.0f} MB for n = 8 and {many:.0f} MB for n = 512, and {two:.1f} MB for",
    )
    says(
        "docs/several-gpus.md",
        f"At 50 GB/s per process {eight:.0f} MB take {eight / 50:.1f} ms, and {many:.0f} MB take "
        f"{many / 50:.1f} ms.",
    )
    step = 256 / rows("h100/compiled/benchmark-cuda.json")["step", "bf16"]["ours"]["median"]
    says("docs/several-gpus.md", f"An H100 takes [{1000 * step:.0f} ms]")
    shares = [round(amount / 50 / step / 10) for amount in (eight, many)]
    says(
        "docs/several-gpus.md",
        f"at most {shares[0]} % to the step of 8 GPUs and {shares[1]} % to that of 512",
    )


def test_on_a_gpu(rows):
    table = rows("h100/compiled/benchmark-cuda.json")
    step, making = table["step", "bf16"], table["view making", "bf16"]["ours"]["median"]
    ratio = step["ratio"]["of_medians"]
    says("README.md", f"{ratio:.2f} times as fast, in bf16 and compiled, as the recipe's on views")
    says("docs/speed.md", f"Making them adds {making:.1f} % to this code's compiled step.")
    least, most = (f"{step['ours'][which]:,.0f}" for which in ("min", "max"))
    says("docs/speed.md", f"the compiled step reached {least} to {most} images/s")
    says("docs/speed.md", f"the step reaches {step['share_of_limit']:.0%}".replace("%", " %"))
    runs = (RESULTS / "cifar10-small-resnet10-4").glob("seed*/folder/*[0-9].csv")
    last = [last_row(path) for path in runs]
    assert len(last) == 15
    together = sum(float(row["views"]) for row in last) / max(float(row["seconds"]) for row in last)
    assert round(together, -4) == 100_000
    says("docs/speed.md", "encoded about 100 thousand views per second together")


def test_what_to_expect_of_a_gpu(rows):
    """Hours of 400 epochs, from a step and the making of its views."""
    table = rows("h100/compiled/benchmark-cuda.json")
    making = table["view making", "bf16"]["ours"]["median"] / 100
    step = 256 / table["step", "bf16"]["ours"]["median"]
    seconds = step * (1 + making)
    rate = 256 * 6 / seconds
    says(
        "docs/speed.md",
        f"{1000 * seconds:.0f} ms for 256 × 6 views, or {rate / 1000:.1f} thousand views per",
    )
    for images, name in (
        (50_000, "CIFAR-10 or CIFAR-100"),
        (100_000, "TinyImageNet"),
        (105_000, "STL10"),
    ):
        views = 400 * (images // 256) * 256 * 6
        hours = f"{views / rate / 3600:.1f} hours"
        says("docs/speed.md", f"| AttentioNCE on {name} | {views / 1e6:.0f} million | {hours} |")
        if images == 50_000:
            says("README.md", f"we calculate {hours} for 400 epochs of CIFAR-10")
            slowest = 256 / table["step", "bf16"]["ours"]["min"] * (1 + making)
            hours = views / (256 * 6) * slowest / 3600
            says("docs/speed.md", f"400 epochs of CIFAR-10 would take {hours:.1f} hours.")
    says("docs/speed.md", "moves about 160 GB")
    share = f"{160 / step / 3350:.0%}".replace("%", " %")
    says(
        "docs/speed.md",
        f"In the {1000 * step:.0f} ms that it takes without making views, that is {share}",
    )


def test_expected_memory():
    """The calculated figures of docs/speed.md; half of the activations are the compiler's own."""
    args = main.parse_args([])
    model = Model(args.feature_dim, args.arch)

    def expected(**flags):
        changed = argparse.Namespace(**{**vars(args), **flags})
        compiled = not changed.grad_cache and changed.compile != "off"
        return expected_bytes(model, changed, 6, torch.bfloat16, compiled) / 1e9

    says("docs/speed.md", f"| compiled, as on CUDA by default | {expected():.1f} GB |")
    off, cached = expected(compile="off"), expected(grad_cache=True)
    says("docs/speed.md", f"which recomputes the first stage | {off:.1f} GB |")
    says("docs/speed.md", f"| `--grad_cache` | {cached:.1f} GB |")
    assert cached < 8 < 12 < off < 16 < expected() < 24


def test_the_loss_as_it_is_now(rows):
    table = rows("loss/benchmark-cpu.json")
    small, middle, large = ratios(
        table, *(("loss", f"batch {batch}") for batch in ("256", "1,024", "4,096"))
    )
    most = table["loss memory", "batch 16,384"]["ours"]["median"]
    says(
        "docs/speed.md",
        f"takes {small:.2f}, {middle:.2f} and {large:.2f} of the recipe's time at batches of 256, "
        f"1,024 and 4,096, and {most:.0f} MB at 16,384",
    )
