"""The rows of the table: what is measured on both sides, and in which unit."""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

import loss
from attentionce.data.images import Images
from attentionce.training import devices
from benchmark import DIM, VIEWS, measuring, reference_recipe, this_code
from benchmark.report import Row
from model import Model, cost
from utils import load

CALLS = 10  # of a step or a loss between two synchronisations with a GPU


@cache
def images_of(count: int) -> Images:
    """`count` of the embedded photographs (32×32 pixels), repeated if there are fewer."""
    photos = load("photos", "", "pretrain")
    index = torch.arange(count) % len(photos.pixels)
    return Images(photos.pixels[index], photos.labels[index], photos.classes)


def random_views(args: argparse.Namespace) -> Tensor:
    """What a training step is timed on: V×B×3×S×S on the device."""
    size = args.image_size
    return torch.randn(VIEWS, args.batch_size, 3, size, size, device=args.device)


def per_second(count: int, seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """How many per second each repetition did, by side."""
    return {side: [count / s for s in times] for side, times in seconds.items()}


def megabytes(count: int | None) -> list[float]:
    """A row's only repetition, from bytes; no repetition if they are unknown."""
    return [] if count is None else [count / 1e6]


def limit(args: argparse.Namespace, precision: str) -> float | None:
    """Images per second if a step were as fast as products of large matrices; None: no memory.

    A step takes two operations per multiply-add of the encoder in the forward pass and four in the
    backward pass.
    """
    dtype = devices.choose_precision(precision, torch.device(args.device))
    rate = measuring.matmul_rate(dtype, args.matmul, args.device)
    _, multiply_adds = cost(Model(DIM, args.arch), args.image_size)
    return rate / (6 * VIEWS * multiply_adds) if rate and multiply_adds else None


def view_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Views of images in memory.

    The reference uses two workers; this code uses the same cores, and the accelerator if any.
    """
    images = images_of(args.view_images)
    sides = {"reference": partial(reference_recipe.view_making, args, images)}
    compiler = args.compile != "off" and any(map(shutil.which, ("c++", "g++", "clang++")))
    for name in dict.fromkeys(["cpu", args.device]):
        sides[f"{name} eager"] = partial(this_code.view_making, args, images, name, False)
        if compiler:
            sides[f"{name} compiled"] = partial(this_code.view_making, args, images, name, True)
    seconds = measuring.interleaved("views", sides, args.repetitions, args.device)
    rates = per_second(VIEWS * args.view_images, seconds)
    for name in list(sides)[1:]:
        yield Row("views", name, "views/s", rates["reference"], rates[name])


def step_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Training steps on views that were made beforehand.

    Then how long making the views takes in comparison, and what matrix products would allow.
    """
    last, views = args.precisions[-1], random_views(args)
    variants = [*args.precisions, f"{last} grad_cache"]
    sides = {"reference": partial(reference_recipe.step, args, views)}
    for variant in variants:
        sides[variant] = partial(this_code.step, args, variant, views)
    batch, compiled = images_of(args.batch_size), devices.wants_compiler(args.compile, views.device)
    sides["making"] = partial(this_code.view_making, args, batch, args.device, compiled)
    seconds = measuring.interleaved("step", sides, args.repetitions, args.device, CALLS)
    rates = per_second(args.batch_size, seconds)
    for name in variants:
        most = limit(args, name.split()[0])
        yield Row("step", name, "images/s", rates["reference"], rates[name], most)
    pairs = zip(seconds["making"], seconds[last], strict=False)  # one may not be measured
    yield Row("view making", last, "% of a step", [], [100 * part / whole for part, whole in pairs])
    for precision in args.precisions:
        rate = limit(args, precision)
        yield Row("limit", precision, "images/s", [], [rate] if rate else [])


def epoch_rows(args: argparse.Namespace) -> Iterator[Row]:
    """A whole epoch of both programs, from images in memory to trained weights."""
    images = images_of(args.epoch_steps * args.batch_size)
    sides = {"reference": partial(reference_recipe.epoch, args, images)}
    for precision in args.precisions:
        sides[precision] = partial(this_code.epoch, args, precision, images)
    repetitions = max(2, args.repetitions - 2)
    seconds = measuring.interleaved("epoch", sides, repetitions, args.device)
    rates = per_second(len(images.pixels), seconds)
    for name in args.precisions:
        yield Row("epoch", name, "images/s", rates["reference"], rates[name], limit(args, name))


def memory_rows(args: argparse.Namespace) -> Iterator[Row]:
    """The peak of a training step, weights and optimiser included."""
    reference = megabytes(measuring.in_fresh_process(step_memory, vars(args), "reference"))
    for precision in args.precisions:
        for variant in (precision, f"{precision} grad_cache"):
            peak = measuring.in_fresh_process(step_memory, vars(args), variant)
            yield Row("memory", variant, "MB", reference, megabytes(peak))


def step_memory(settings: dict, side: str) -> int | None:
    """Peak bytes of a step of the reference, or of this code's variant of that name."""
    args = argparse.Namespace(**settings)
    prepare = partial(this_code.step, args, side, random_views(args))
    if side == "reference":
        prepare = partial(reference_recipe.step, args, random_views(args))
    return measuring.peak_bytes(prepare, args.device)


def loss_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Time and peak memory of AttentioNCE, forward and backward.

    The reference is left out where its matrices would fill a CPU's memory.
    """
    for batch in args.loss_batches:
        matrix = 4 * (2 * batch) ** 2  # bytes in float32; the reference needs a dozen at its peak
        free = measuring.linux_bytes("/proc/meminfo", "MemAvailable")
        fits = args.device == "cuda" or 12 * matrix < free
        names = ["reference", "this code"] if fits else ["this code"]
        sides = {name: partial(loss_and_gradient, name, batch, args.device) for name in names}
        # A call of milliseconds varies a lot; one of seconds does not.
        repetitions = 6 * args.repetitions if batch <= 1024 else 2
        variant = f"batch {batch:,}"
        seconds = measuring.interleaved(f"loss, {variant}", sides, repetitions, args.device, CALLS)
        times = {name: [1000 * s for s in taken] for name, taken in seconds.items()}
        yield Row("loss", variant, "ms", times.get("reference", []), times["this code"])
        peaks = {
            n: megabytes(measuring.in_fresh_process(loss_memory, n, batch, args.device))
            for n in names
        }
        yield Row("loss memory", variant, "MB", peaks.get("reference", []), peaks["this code"])


def loss_and_gradient(side: str, batch: int, device: str) -> measuring.Call:
    """AttentioNCE and its gradient for random embeddings."""
    z = normalize(torch.randn(VIEWS, batch, DIM, device=device), dim=-1).requires_grad_()
    function = reference_recipe.attentionce if side == "reference" else loss.attentionce
    return lambda: torch.autograd.grad(function(z), z)


def loss_memory(side: str, batch: int, device: str) -> int | None:
    """Peak bytes of a loss and its gradient, the embeddings included."""
    loss_and_gradient(side, 8, device)()  # threads and libraries do not count
    return measuring.peak_bytes(partial(loss_and_gradient, side, batch, device), device)


def linear_rows(args: argparse.Namespace) -> Iterator[Row]:
    """An epoch of linear evaluation with its test.

    This code encodes the test images only once for all epochs, which has a row of its own.
    """
    count = args.linear_images
    data = images_of(count), images_of(count // 2)
    sides = {"reference": partial(reference_recipe.linear_epoch, args, *data)}
    for name in args.precisions:
        sides[name] = partial(this_code.linear_evaluation, args, name, *data)
        sides[f"{name}, once"] = partial(this_code.linear_evaluation, args, name, *data, once=True)
    seconds = measuring.interleaved("linear", sides, args.repetitions, args.device)
    for name in args.precisions:
        yield Row("linear", name, "s per epoch", seconds["reference"], seconds[name])
        yield Row("linear, once", name, "s", [], seconds[f"{name}, once"])


def startup_rows(args: argparse.Namespace) -> Iterator[Row]:
    """From starting a process to the end of its first step, on the embedded photographs."""
    reference: list[float] = []
    ours: list[float] = []
    for _ in range(max(1, args.repetitions // 2)):
        reference += seconds_until(reference_recipe.first_step, args)
        ours += seconds_until(this_code.first_step, args)
    same = len(reference) == len(ours)
    yield Row("start-up", "", "s", reference if same else [], ours)


def seconds_until(first_step: Callable[[dict], float], args: argparse.Namespace) -> list[float]:
    """Seconds from starting a process to the time that its function returns; none if it failed."""
    start = time.time()
    end = measuring.in_fresh_process(first_step, vars(args))
    return [] if end is None else [end - start]
