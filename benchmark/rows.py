"""The rows of the table: what is measured on both sides, and in which unit."""

import functools
import shutil
import time
from collections.abc import Callable, Iterator

import torch

from benchmark import memory, reference_recipe, this_code
from benchmark.comparison import Comparison, loss_and_gradient, random_views
from benchmark.fresh_process import in_fresh_process
from benchmark.report import Row
from benchmark.this_code import VIEWS
from benchmark.timing import Call, Prepare, interleaved


def view_rows(comparison: Comparison) -> Iterator[Row]:
    """Views of images in memory.

    The reference uses two workers; this code uses the same cores, and the accelerator if any.
    """
    args, device = comparison.args, comparison.device
    images = comparison.images(args.view_images)
    batch = min(256, len(images.pixels))

    def reference() -> Call:
        loader = comparison.loader(images, VIEWS, batch)
        return functools.partial(pass_over, loader)

    ways = {"eager": False}
    if args.compile != "off" and any(map(shutil.which, ("c++", "g++", "clang++"))):
        ways["compiled"] = True
    places = [torch.device("cpu")]
    if device.type != "cpu":
        places.append(device)
    sides: dict[str, Prepare] = {"reference": reference}
    for place in places:
        for way, compiled in ways.items():
            sides[f"{place} {way}"] = functools.partial(
                this_code.view_making, images.pixels, place, batch, args.image_size, compiled
            )
    seconds = interleaved(sides, args.repetitions, device, row="views")
    rates = per_second(VIEWS * len(images.pixels), seconds)
    reference_rate = rates.pop("reference")
    for name, rate in rates.items():
        yield Row("views", name, "views/s", reference_rate, rate)


def pass_over(batches: torch.utils.data.DataLoader) -> None:
    """Load every batch."""
    for _ in batches:
        pass


def step_rows(comparison: Comparison) -> Iterator[Row]:
    """Training steps on views that were made beforehand.

    Then how long making the views takes in comparison, and what matrix products would allow.
    """
    args, precisions = comparison.args, comparison.precisions
    last, views = precisions[-1], random_views(args)
    variants: dict[str, Prepare] = {}
    for precision in precisions:
        variants[precision] = functools.partial(comparison.step, precision, views)
    cached = f"{last} grad_cache"
    variants[cached] = functools.partial(comparison.step, last, views, grad_cache=True)
    sides: dict[str, Prepare] = {
        "reference": functools.partial(comparison.reference_step, views),
        **variants,
        "view making": functools.partial(comparison.view_making, last),
    }
    seconds = interleaved(sides, args.repetitions, comparison.device, row="step")
    rates = per_second(args.batch_size, seconds)
    limits = comparison.limits
    for name in variants:
        limit = limits[last if name == cached else name]
        yield Row("step", name, "images/s", rates["reference"], rates[name], limit)
    yield Row("view making", last, "% of a step", [], shares(seconds["view making"], seconds[last]))
    for precision, limit in limits.items():
        yield Row("limit", precision, "images/s", [], [] if limit is None else [limit])


def epoch_rows(comparison: Comparison) -> Iterator[Row]:
    """A whole epoch of both programs, from images in memory to trained weights."""
    args = comparison.args
    sides: dict[str, Prepare] = {"reference": comparison.reference_epoch}
    for precision in comparison.precisions:
        sides[precision] = functools.partial(comparison.epoch, precision)
    seconds = interleaved(sides, max(2, args.repetitions - 2), comparison.device, row="epoch")
    rates = per_second(args.epoch_steps * args.batch_size, seconds)
    limits = comparison.limits
    for precision in comparison.precisions:
        rate, limit = rates[precision], limits[precision]
        yield Row("epoch", precision, "images/s", rates["reference"], rate, limit)


def memory_rows(comparison: Comparison) -> Iterator[Row]:
    """The peak of a training step, weights and optimiser included."""
    settings = vars(comparison.args)
    reference = megabytes(in_fresh_process(memory.reference_step_memory, settings))
    for precision in comparison.precisions:
        for grad_cache in (False, True):
            name = f"{precision} grad_cache" if grad_cache else precision
            peak = in_fresh_process(memory.step_memory, settings, precision, grad_cache)
            yield Row("memory", name, "MB", reference, megabytes(peak))


def loss_rows(comparison: Comparison) -> Iterator[Row]:
    """Time and peak memory of AttentioNCE, forward and backward.

    The reference is left out where its matrices do not fit into memory.
    """
    args, device = comparison.args, comparison.device
    for batch in args.loss_batches:
        names = ["this code"]
        matrix = 4 * (2 * batch) ** 2  # bytes in float32; the reference needs a dozen at its peak
        if 12 * matrix < memory.free_bytes(device):
            names.insert(0, "reference")
        times = loss_milliseconds(comparison, batch, names)
        variant = f"batch {batch:,}"
        yield Row("loss", variant, "ms", times.get("reference", []), times["this code"])
        peaks = {}
        for name in names:
            peak = in_fresh_process(memory.loss_memory, name, batch, args.device)
            peaks[name] = megabytes(peak)
        yield Row("loss memory", variant, "MB", peaks.get("reference", []), peaks["this code"])


def loss_milliseconds(
    comparison: Comparison, batch: int, names: list[str]
) -> dict[str, list[float]]:
    """Milliseconds of the loss and its gradient, by side."""
    device, repetitions = comparison.device, comparison.args.repetitions
    sides: dict[str, Prepare] = {}
    for name in names:
        sides[name] = functools.partial(loss_and_gradient, name, batch, device)
    # A call of seconds is not slower the first time; a call of milliseconds varies a lot.
    slow = device.type == "cpu" and batch > 2048
    if slow:
        repetitions = 2
    elif batch <= 1024:
        repetitions *= 6
    row = f"loss, batch {batch:,}"
    seconds = interleaved(sides, repetitions, device, warm=not slow, row=row)
    return {name: [1000 * s for s in times] for name, times in seconds.items()}


def linear_rows(comparison: Comparison) -> Iterator[Row]:
    """An epoch of linear evaluation with its test.

    This code encodes the test images only once for all epochs, which has a row of its own.
    """
    repetitions, device = comparison.args.repetitions, comparison.device
    encodings: dict[str, Prepare] = {}
    sides: dict[str, Prepare] = {"reference": comparison.reference_linear_epoch}
    for precision in comparison.precisions:
        encodings[precision] = functools.partial(comparison.linear_encoding, precision)
        sides[precision] = functools.partial(comparison.linear_epoch, precision)
    once = interleaved(encodings, repetitions, device, row="linear, once")
    seconds = interleaved(sides, repetitions, device, row="linear")
    for precision in comparison.precisions:
        reference, this = seconds["reference"], seconds[precision]
        yield Row("linear", precision, "s per epoch", reference, this)
        yield Row("linear, once", precision, "s", [], once[precision])


def startup_rows(comparison: Comparison) -> Iterator[Row]:
    """From the command line to the end of the first step, on the embedded photographs."""
    args = comparison.args
    settings = (args.arch, args.batch_size, args.image_size, VIEWS, args.device)
    reference, this = [], []
    for _ in range(max(1, args.repetitions // 2)):
        reference.append(seconds_until(reference_recipe.first_step, *settings))
        this.append(seconds_until(this_code.first_step, vars(args)))
    yield Row("start-up", "", "s", all_or_none(reference), all_or_none(this))


def seconds_until(first_step: Callable[..., float], *arguments: object) -> float | None:
    """Seconds from starting a process to the time that its function returns; None if it failed."""
    start = time.time()
    end = in_fresh_process(first_step, *arguments)
    return None if end is None else end - start


def all_or_none(values: list[float | None]) -> list[float]:
    """The values, or none of them if one is missing."""
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else []


def megabytes(count: int | None) -> list[float]:
    """A row's only repetition, from bytes; no repetition if they are unknown."""
    return [] if count is None else [count / 1e6]


def per_second(count: int, seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """How many per second each repetition did, by side."""
    return {side: [count / s for s in times] for side, times in seconds.items()}


def shares(part: list[float], whole: list[float]) -> list[float]:
    """Percentages, repetition by repetition; none if one of the two was not measured."""
    if not part or not whole:
        return []
    return [100 * p / w for p, w in zip(part, whole, strict=True)]
