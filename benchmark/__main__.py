"""How fast this code is, as ratios to the reference recipe (recipe.py) measured side by side in one run.

    python -m benchmark               every row of the table, about 12 minutes on two CPU cores
    python -m benchmark --quick       small sizes, under 2 minutes
    python -m benchmark --scaling     1, 2, … processes, and what a step exchanges (scaling.py)
    python -m benchmark --table       what was measured, in Markdown, as it stands in the README

Repetitions alternate (reference, ours, reference, …) after a round that does not count; medians with the smallest and the
largest are printed and written to results/benchmark-{device}.json. A ratio is ours / reference in the row's unit.
Memory and start-up are measured in processes of their own. What this machine cannot measure stays empty.
"""

import argparse
import contextlib
import functools
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

import loss
from attentionce import cli
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import devices
from attentionce.training.pretraining import Run
from benchmark import reference_recipe, scaling, this_code
from benchmark.report import HEADER, Row, line, markdown, record
from benchmark.this_code import DIM, VIEWS
from benchmark.timing import free_bytes, fresh, interleaved, matmul_rate, peak_bytes
from model import ARCHS, Model, cost
from utils import load

# `view_images`, `linear_images`: passed over once a repetition; `epoch_steps`: length of the epoch; `matmul`: side of the
# matrices. On a CPU a step of resnet50 takes seconds, so its epoch is one of 48 images.
SIZES = {
    "quick": {
        "arch": "resnet10",
        "batch_size": 16,
        "repetitions": 3,
        "view_images": 256,
        "epoch_steps": 4,
        "loss_batches": [256, 1024],
        "linear_images": 128,
        "matmul": 2048,
    },
    "cpu": {
        "arch": "resnet50",
        "batch_size": 16,
        "repetitions": 5,
        "view_images": 1024,
        "epoch_steps": 3,
        "loss_batches": [256, 1024, 4096, 16384],
        "linear_images": 128,
        "matmul": 4096,
    },
    "cuda": {
        "arch": "resnet50",
        "batch_size": 256,
        "repetitions": 5,
        "view_images": 2048,
        "epoch_steps": 40,
        "loss_batches": [256, 1024, 4096, 16384],
        "linear_images": 8192,
        "matmul": 8192,
    },
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, with what they leave open filled in from SIZES."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    add("--arch", choices=ARCHS, help="encoder (default: resnet50; --quick: resnet10)")
    add(
        "--batch_size",
        type=int,
        help="images a step; --scaling: of each process (default: 16; CUDA: 256)",
    )
    add("--image_size", type=int, default=32, help="side of a view, in pixels (default: 32)")
    add(
        "--precision",
        default="auto",
        choices=devices.PRECISIONS,
        help="auto: fp32, and bf16 where the device has it",
    )
    add(
        "--compile",
        default="auto",
        choices=["auto", "on", "off"],
        help="the encoder, as in main.py; views are measured both ways except with off",
    )
    add("--quick", action="store_true", help="small sizes, under 2 minutes")
    add(
        "--rows", nargs="+", default=list(ROWS), choices=ROWS, help="what to measure (default: all)"
    )
    add(
        "--scaling",
        action="store_true",
        help="instead of the table: 1, 2, … processes, up to the cores or GPUs",
    )
    add("--table", action="store_true", help="instead of measuring: print the results in Markdown")
    add(
        "--link_gb_s",
        type=float,
        default=50,
        help="--scaling: each process's link, assumed, in GB/s (default: 50)",
    )
    add("--results", default="results", help="folder for the JSON file")
    args = parser.parse_args(argv)
    device = devices.choose_device(args.device)
    if device.index is not None:
        raise UserError(f"--device {device}: name no number; CUDA_VISIBLE_DEVICES chooses the GPU")
    args.device = device.type
    for name, value in SIZES[
        "quick" if args.quick else "cuda" if args.device == "cuda" else "cpu"
    ].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    for name, least in {"batch_size": 2, "image_size": 4}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    return args


def precisions(asked: str, device: torch.device) -> list[str]:
    """What this code is measured in: bfloat16 only where the device multiplies in it, without which it is slow."""
    if asked != "auto":
        devices.choose_precision(asked, device)
        return [asked]
    bf16 = devices.choose_precision("auto", device) == torch.bfloat16
    if device.type == "cpu":
        with contextlib.suppress(OSError):
            bf16 = bool(
                {"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split())
            )
    return ["fp32", "bf16"] if bf16 else ["fp32"]


class Bench:
    """What the rows share: flags, device, images, and the two programs, made when a row first needs them."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.precisions = precisions(args.precision, self.device)
        self.photos = load("photos", "", "pretrain")

    def images(self, count: int) -> Images:
        """That many of the embedded photographs' crops (32×32 pixels), repeated where there are fewer."""
        times = -(-count // len(self.photos.pixels))
        pixels, labels = self.photos.pixels.repeat(times, 1, 1, 1), self.photos.labels.repeat(times)
        return Images(pixels[:count], labels[:count], self.photos.classes)

    def loader(self, images: Images, count: int, batch_size: int) -> reference_recipe.DataLoader:
        """The reference's way to `count` views of every image."""
        dataset = reference_recipe.Views(
            images.pixels, images.labels, reference_recipe.augmentation(self.args.image_size), count
        )
        return reference_recipe.loader(dataset, batch_size, self.device)

    @functools.cached_property
    def reference(self) -> reference_recipe.Recipe:
        return reference_recipe.Recipe(self.args.arch, self.device)

    @functools.cached_property
    def runs(self) -> dict[str, Run]:
        """Ours, by precision."""
        pixels = self.images(self.args.epoch_steps * self.args.batch_size).pixels
        return {
            precision: this_code.assemble(self.args, precision, pixels)
            for precision in self.precisions
        }

    @functools.cached_property
    def limits(self) -> dict[str, float]:
        """Images/s, by precision, that products of large matrices allow: a step's multiply-adds × 6, forward and backward."""
        flops = 6 * VIEWS * cost(Model(DIM, self.args.arch), self.args.image_size)[1]
        return {
            p: matmul_rate(run.dtype, self.args.matmul, self.device) / flops
            for p, run in self.runs.items()
        }


def some_views(args: argparse.Namespace) -> Tensor:
    """What a step is timed on: V×B×3×S×S on the device."""
    return torch.randn(
        VIEWS, args.batch_size, 3, args.image_size, args.image_size, device=args.device
    )


# ---------------------------------------------------------------------------------------------- rows


def view_rows(bench: Bench) -> Iterator[Row]:
    """Views from images in memory: the reference's two workers, this code on the same cores and on the accelerator."""
    args, images = bench.args, bench.images(bench.args.view_images)
    batch = min(256, len(images.pixels))
    loader = bench.loader(images, VIEWS, batch)
    sides: dict[str, Callable] = {"reference": lambda: [None for _ in loader]}
    for device in dict.fromkeys(("cpu", args.device)):
        ops = {"eager": views.Ops()}
        if args.compile != "off" and any(map(shutil.which, ("c++", "g++", "clang++"))):
            ops["compiled"] = views.compiled()
        for how in ops:
            make_view = functools.partial(views.make_view, size=args.image_size, ops=ops[how])
            sides[f"{device} {how}"] = functools.partial(
                this_code.make_views, images.pixels.to(device), batch, make_view
            )
    seconds = interleaved(sides, args.repetitions, bench.device)
    rates = {name: [VIEWS * len(images.pixels) / s for s in seconds[name]] for name in sides}
    for name in list(sides)[1:]:
        yield Row("views", name, "views/s", rates["reference"], rates[name])


def step_rows(bench: Bench) -> Iterator[Row]:
    """Training steps on views made beforehand; what making them adds to a step; what matrix products would allow."""
    args, made, last = bench.args, some_views(bench.args), bench.precisions[-1]
    sides: dict[str, Callable] = {"reference": lambda: bench.reference.step(made)}
    sides |= {precision: this_code.fixed_step(run, made) for precision, run in bench.runs.items()}
    sides[f"{last} grad_cache"] = this_code.fixed_step(bench.runs[last], made, grad_cache=True)
    pixels = bench.images(args.batch_size).pixels.to(bench.device)
    sides["views"] = functools.partial(
        this_code.make_views, pixels, args.batch_size, bench.runs[last].make_view
    )
    seconds = interleaved(sides, args.repetitions, bench.device)
    rates = {name: [args.batch_size / s for s in seconds[name]] for name in sides}
    for name in list(sides)[1:-1]:
        yield Row(
            "step", name, "images/s", rates["reference"], rates[name], bench.limits[name.split()[0]]
        )
    share = [
        100 * making / step for making, step in zip(seconds["views"], seconds[last], strict=True)
    ]
    yield Row("view making", last, "% of a step", [], share)
    for precision, limit in bench.limits.items():
        yield Row("limit", precision, "images/s", [], [limit])


def epoch_rows(bench: Bench) -> Iterator[Row]:
    """Images in memory to trained weights: a whole epoch of both programs."""
    args, images = bench.args, bench.images(bench.args.epoch_steps * bench.args.batch_size)
    loader = bench.loader(images, VIEWS, args.batch_size)
    sides: dict[str, Callable] = {"reference": lambda: bench.reference.epoch(loader)}
    sides |= {
        precision: functools.partial(this_code.epoch, run) for precision, run in bench.runs.items()
    }
    seconds = interleaved(sides, max(2, args.repetitions - 2), bench.device)
    rates = {name: [len(images.pixels) / s for s in seconds[name]] for name in sides}
    for name in bench.precisions:
        yield Row("epoch", name, "images/s", rates["reference"], rates[name], bench.limits[name])


def memory_rows(bench: Bench) -> Iterator[Row]:
    """A step's peak, weights and optimiser included."""
    peaks = {}
    for name in ["reference", *(p + how for p in bench.precisions for how in ("", " grad_cache"))]:
        peaks[name] = megabytes(fresh("benchmark.__main__.step_memory", vars(bench.args), name))
    for name in list(peaks)[1:]:
        yield Row("memory", name, "MB", peaks["reference"], peaks[name])


def step_memory(settings: dict, name: str) -> int | None:
    """Peak bytes of a step, in a process that does nothing else."""
    args = argparse.Namespace(**settings)
    device, made = torch.device(args.device), some_views(args)
    if name == "reference":
        return peak_bytes(
            lambda: functools.partial(reference_recipe.Recipe(args.arch, device).step, made), device
        )
    pixels = torch.zeros(args.batch_size, 3, 32, 32, dtype=torch.uint8)
    return peak_bytes(
        lambda: this_code.fixed_step(
            this_code.assemble(args, name.split()[0], pixels), made, "grad_cache" in name
        ),
        device,
    )


def megabytes(count: int | None) -> list[float]:
    """A row's only repetition, or none."""
    return [] if count is None else [count / 1e6]


def loss_rows(bench: Bench) -> Iterator[Row]:
    """AttentioNCE forward and backward: time and peak memory; the reference's where its matrices fit."""
    args, on_cpu = bench.args, bench.device.type == "cpu"
    for batch in args.loss_batches:
        fits = 12 * 4 * (2 * batch) ** 2 < free_bytes(
            bench.device
        )  # about a dozen float32 matrices at its peak
        names = ["reference", "ours"] if fits else ["ours"]
        sides = {name: loss_side(name, batch, bench.device) for name in names}
        slow = on_cpu and batch > 2048  # seconds, beside which no first call is slower than others
        rounds = (
            6 * args.repetitions if batch <= 1024 else args.repetitions
        )  # of milliseconds a few say little
        seconds = interleaved(sides, 2 if slow else rounds, bench.device, warm=not slow)
        times = {name: [1000 * s for s in seconds[name]] for name in names}
        peaks = {
            name: megabytes(fresh("benchmark.__main__.loss_memory", name, batch, args.device))
            for name in names
        }
        for name, unit, values in (("loss", "ms", times), ("loss memory", "MB", peaks)):
            yield Row(name, f"batch {batch:,}", unit, values.get("reference", []), values["ours"])


def loss_side(name: str, batch: int, device: torch.device) -> Callable[[], object]:
    """The loss and its gradient for random embeddings."""
    z = normalize(torch.randn(VIEWS, batch, DIM, device=device), dim=-1).requires_grad_()
    function = reference_recipe.attentionce if name == "reference" else loss.attentionce
    return lambda: torch.autograd.grad(function(z), z)


def loss_memory(name: str, batch: int, device: str) -> int | None:
    """Peak bytes of the loss, its embeddings included, in a process that does nothing else."""
    loss_side(name, 8, torch.device(device))()  # threads and libraries are not the loss's
    return peak_bytes(lambda: loss_side(name, batch, torch.device(device)), torch.device(device))


def linear_rows(bench: Bench) -> Iterator[Row]:
    """An epoch of linear evaluation, its test included; this code encodes the test images once for all epochs."""
    args, device, count = bench.args, bench.device, bench.args.linear_images
    data, test, batch = bench.images(count), bench.images(count // 2), min(512, count // 2)
    model = Model(DIM, args.arch)
    theirs = reference_recipe.Linear(model.f, model.feature_size, len(data.classes), device)
    tests = reference_recipe.loader(
        reference_recipe.Views(test.pixels, test.labels, reference_recipe.evaluation()),
        batch,
        device,
        shuffle=False,
    )
    loader = bench.loader(data, 1, batch)
    this = this_code.Linear(args.arch, data, test, batch, args.image_size, device)
    once = interleaved(
        {p: functools.partial(this.encode, p) for p in bench.precisions}, args.repetitions, device
    )
    sides: dict[str, Callable] = {"reference": lambda: theirs.epoch(loader, tests)}
    sides |= {p: functools.partial(this.epoch, p) for p in bench.precisions}
    seconds = interleaved(sides, args.repetitions, device)
    for precision in bench.precisions:
        yield Row("linear", precision, "s an epoch", seconds["reference"], seconds[precision])
        yield Row("linear, once", precision, "s", [], once[precision])


def startup_rows(bench: Bench) -> Iterator[Row]:
    """From the command line to the end of the first step, on the embedded photographs."""
    args = bench.args
    calls = {
        "reference": (
            "benchmark.reference_recipe.first_step",
            args.arch,
            args.batch_size,
            args.image_size,
            VIEWS,
            args.device,
        ),
        "ours": ("benchmark.this_code.first_step", vars(args)),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(1, args.repetitions // 2)):
        for name, call in calls.items():
            start = time.time()
            end = fresh(*call)
            taken[name] += [end - start] if end else []
    yield Row("start-up", "", "s", **taken)


ROWS = {
    "views": view_rows,
    "step": step_rows,
    "epoch": epoch_rows,
    "memory": memory_rows,
    "loss": loss_rows,
    "linear": linear_rows,
    "startup": startup_rows,
}


def main() -> None:
    """Measure and print row after row; the JSON file is written at the end."""
    args = parse_args()
    path = Path(args.results) / f"benchmark-{args.device}.json"
    if args.table:
        if not path.exists():
            raise UserError(f"there is no {path}: python -m benchmark measures")
        return print(markdown(json.loads(path.read_text())))
    if args.scaling:
        return scaling.main(args, precisions(args.precision, torch.device(args.device))[-1])
    files.writable_folder(Path(args.results))
    bench, began, records = Bench(args), time.monotonic(), []
    machine = devices.machine(bench.device)
    print(
        f"{machine['device_name']}: {args.arch}, batches of {args.batch_size} × {VIEWS} views of {args.image_size} px"
    )
    print(HEADER)
    for name in args.rows:
        for row in ROWS[name](bench):
            records.append(record(row))
            print(line(records[-1]), flush=True)
    facts = {"machine": machine, "flags": vars(args), "command": shlex.join(["python", *sys.argv])}
    files.save_json(path, {**facts, "minutes": (time.monotonic() - began) / 60, "rows": records})
    print(f"ratio: this code / reference; {path} has it all")


if __name__ == "__main__":
    cli.run(main)
