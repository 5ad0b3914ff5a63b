"""The rows of the table: what is measured on both sides, and in which unit."""

import argparse
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import normalize

import loss
from attentionce.data.images import Images
from attentionce.training import devices
from benchmark import DIM, VIEWS, measuring, reference_recipe, this_code
from benchmark.report import row
from model import Model, cost
from utils import load

CALLS = 10  # of a step or a loss between two synchronisations with a GPU
Rows = Iterator[dict[str, Any]]


@cache
def images_of(count: int) -> Images:
    """`count` of the embedded photographs (32×32 pixels), repeated if there are fewer."""
    photos = load("photos", "", "pretrain")
    index = torch.arange(count) % len(photos.pixels)
    return Images(photos.pixels[index], photos.labels[index], photos.classes)


def rates(
    args: argparse.Namespace, sides: Mapping[str, measuring.Call], count: int, calls=1
) -> dict[str, list[float]]:
    """How many per second each repetition did, by side; `count` in one call."""
    seconds = measuring.interleaved(sides, args.repetitions, args.device, calls)
    return {side: [count / s for s in times] for side, times in seconds.items()}


def limit(args: argparse.Namespace, precision: str) -> float:
    """Images per second if a step were as fast as products of large matrices.

    A step takes two operations per multiply-add of the encoder in the forward pass and four in the
    backward pass.
    """
    dtype = devices.choose_precision(precision, torch.device(args.device))
    _, multiply_adds = cost(Model(DIM, args.arch), args.image_size)
    assert multiply_adds is not None  # without thop, which requirements.txt has
    return measuring.matmul_rate(dtype, args.matmul, args.device) / (6 * VIEWS * multiply_adds)


def view_rows(args: argparse.Namespace) -> Rows:
    """Views of images in memory.

    The reference uses two workers; this code uses the same cores, and the accelerator if any.
    """
    images = images_of(args.view_images)
    sides = {"reference": reference_recipe.view_making(args, images)}
    compiler = args.compile != "off" and any(map(shutil.which, ("c++", "g++", "clang++")))
    for name in dict.fromkeys(["cpu", args.device]):
        sides[f"{name} eager"] = this_code.view_making(args, images, name, False)
        if compiler:
            sides[f"{name} compiled"] = this_code.view_making(args, images, name, True)
    reference, *ours = rates(args, sides, VIEWS * args.view_images).items()
    for name, found in ours:
        yield row("views", name, "views/s", reference[1], found)


def step_rows(args: argparse.Namespace) -> Rows:
    """Training steps on views that were made beforehand.

    Then how long making the views takes in comparison, and what matrix products would allow.
    """
    last, batch = args.precisions[-1], images_of(args.batch_size)
    variants = [*args.precisions, f"{last} grad_cache"]
    sides = {"reference": reference_recipe.step(args)}
    sides |= {variant: this_code.step(args, variant) for variant in variants}
    compiled = devices.wants_compiler(args.compile, torch.device(args.device))
    sides["making"] = this_code.view_making(args, batch, args.device, compiled)
    found = rates(args, sides, args.batch_size, CALLS)
    most = {precision: limit(args, precision) for precision in args.precisions}
    for name in variants:
        yield row("step", name, "images/s", found["reference"], found[name], most[name.split()[0]])
    pairs = zip(found[last], found["making"], strict=True)
    yield row("view making", last, "% of a step", [], [100 * step / made for step, made in pairs])
    for precision, rate in most.items():
        yield row("limit", precision, "images/s", [], [rate])


def epoch_rows(args: argparse.Namespace) -> Rows:
    """A whole epoch of both programs, from images in memory to trained weights."""
    images = images_of(args.epoch_steps * args.batch_size)
    sides = {"reference": reference_recipe.epoch(args, images)}
    sides |= {name: this_code.epoch(args, name, images) for name in args.precisions}
    found = rates(args, sides, len(images.pixels))
    for name in args.precisions:
        yield row("epoch", name, "images/s", found["reference"], found[name], limit(args, name))


def memory_rows(args: argparse.Namespace) -> Rows:
    """The peak of a training step, weights and optimiser included."""
    reference = measuring.peak(partial(reference_recipe.step, args), args.device)
    for precision in args.precisions:
        for variant in (precision, f"{precision} grad_cache"):
            ours = measuring.peak(partial(this_code.step, args, variant), args.device)
            yield row("memory", variant, "MB", reference, ours)


def loss_rows(args: argparse.Namespace) -> Rows:
    """Time and peak memory of AttentioNCE, forward and backward.

    On a CPU the reference is left out above 4,096 images, where its matrices take 50 GB.
    """
    for batch in args.loss_batches:
        with_reference = args.device == "cuda" or batch <= 4096
        names = ["reference", "this code"] if with_reference else ["this code"]
        prepare = {name: partial(loss_and_gradient, name, batch, args.device) for name in names}
        sides, variant = {name: make() for name, make in prepare.items()}, f"batch {batch:,}"
        repetitions = 6 * args.repetitions if batch <= 1024 else 2  # milliseconds vary a lot
        seconds = measuring.interleaved(sides, repetitions, args.device, CALLS)
        ms = {name: [1000 * s for s in times] for name, times in seconds.items()}
        yield row("loss", variant, "ms", ms.get("reference", []), ms["this code"])
        mb = {name: measuring.peak(make, args.device) for name, make in prepare.items()}
        yield row("loss memory", variant, "MB", mb.get("reference", []), mb["this code"])


def loss_and_gradient(side: str, batch: int, device: str) -> measuring.Call:
    """AttentioNCE and its gradient for random embeddings."""
    z = normalize(torch.randn(VIEWS, batch, DIM, device=device), dim=-1).requires_grad_()
    function = reference_recipe.attentionce if side == "reference" else loss.attentionce
    return lambda: torch.autograd.grad(function(z), z)


def linear_rows(args: argparse.Namespace) -> Rows:
    """An epoch of linear evaluation with its test.

    This code encodes the test images only once for all epochs, which has a row of its own.
    """
    data = images_of(args.linear_images), images_of(args.linear_images // 2)
    sides = {"reference": reference_recipe.linear_epoch(args, *data)}
    for name in args.precisions:
        sides[name], sides[f"{name}, once"] = this_code.linear_evaluation(args, name, *data)
    seconds = measuring.interleaved(sides, args.repetitions, args.device)
    for name in args.precisions:
        yield row("linear", name, "s per epoch", seconds["reference"], seconds[name])
        yield row("linear, once", name, "s", [], seconds[f"{name}, once"])


def startup_rows(args: argparse.Namespace) -> Rows:
    """From starting a process to the end of its first step, on the embedded photographs."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(max(1, args.repetitions // 2)):
        for times, program in zip(seconds, (reference_recipe, this_code), strict=True):
            start = time.time()
            end = measuring.in_fresh_process(program.first_step, args)
            times += [] if end is None else [end - start]
    reference, ours = seconds
    yield row("start-up", "", "s", reference if len(reference) == len(ours) else [], ours)


ROWS = {"views": view_rows, "step": step_rows, "epoch": epoch_rows, "memory": memory_rows}
ROWS |= {"loss": loss_rows, "linear": linear_rows, "startup": startup_rows}
