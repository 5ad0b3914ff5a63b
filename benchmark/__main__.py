"""How fast this code is compared with a reference recipe, both measured in one run.

    python -m benchmark               every row of the table, about 12 minutes on two CPU cores
    python -m benchmark --quick       small sizes, under 2 minutes
    python -m benchmark --scaling     1, 2, … processes, and what a step exchanges
    python -m benchmark --table       what was measured, in Markdown

Repetitions alternate (reference, this code, reference, …) after a round that does not count. The
medians with the smallest and the largest value are printed, and written to
results/benchmark-{device}.json row by row. A ratio is this code / reference in the row's unit.
Memory and start-up are measured in processes of their own. What this machine cannot measure, and
what runs out of memory, stays empty.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from attentionce import cli
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import devices
from benchmark import rows, scaling, this_code
from benchmark.comparison import Comparison
from benchmark.out_of_memory import empty_if_out_of_memory
from benchmark.report import HEADER, line, markdown, record
from benchmark.this_code import VIEWS
from model import ARCHS

# `view_images` and `linear_images` are passed over once per repetition, `epoch_steps` is the length
# of an epoch, `matmul` the side of the matrices. On a CPU a step of resnet50 takes seconds, so an
# epoch there has 48 images.
SIZES: dict[str, dict[str, Any]] = {
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

ROWS = {
    "views": rows.view_rows,
    "step": rows.step_rows,
    "epoch": rows.epoch_rows,
    "memory": rows.memory_rows,
    "loss": rows.loss_rows,
    "linear": rows.linear_rows,
    "startup": rows.startup_rows,
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags. What they leave open is filled in from SIZES.

    Raises:
        UserError: a flag that cannot work.
    """
    args = make_parser().parse_args(argv)
    if args.table and args.device:  # the table of another machine may be printed here
        return args
    device = devices.choose_device(args.device)
    if device.index is not None:
        advice = "leave out the number and choose the GPU with CUDA_VISIBLE_DEVICES"
        raise UserError(f"--device {device}: {advice}")
    args.device = device.type
    size = "cuda" if args.device == "cuda" else "cpu"
    for name, value in SIZES["quick" if args.quick else size].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    for name, least in {"batch_size": 2, "image_size": 4}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    return args


def make_parser() -> argparse.ArgumentParser:
    """The parser of the flags."""
    parser = cli.Parser(
        prog="python -m benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", help="cuda, mps or cpu (default: the first that exists)")
    add("--arch", choices=ARCHS, help="encoder (default: resnet50; --quick: resnet10)")
    per_step = "images per step; --scaling: per process and step (default: 16; CUDA: 256)"
    add("--batch_size", type=int, help=per_step)
    add("--image_size", type=int, default=32, help="side of a view, in pixels (default: 32)")
    precision = "of this code; auto: fp32, and bf16 where the device supports it natively"
    add("--precision", default="auto", choices=devices.PRECISIONS, help=precision)
    compiled = "the encoder, as in main.py; views are measured both ways unless it is off"
    add("--compile", default="auto", choices=["auto", "on", "off"], help=compiled)
    add("--quick", action="store_true", help="small sizes, under 2 minutes")
    names = list(ROWS)
    add("--rows", nargs="+", default=names, choices=names, help="what to measure (default: all)")
    processes = "measure 1, 2, … processes, up to one per core or GPU, instead of the table"
    add("--scaling", action="store_true", help=processes)
    add("--table", action="store_true", help="print the results in Markdown, measure nothing")
    link = "--scaling: assumed speed of each process's link, in GB/s (default: 50)"
    add("--link_gb_s", type=float, default=50, help=link)
    add("--results", default="results", help="folder of the JSON file")
    return parser


def main() -> None:
    """Measure the rows, or do what --scaling or --table asks for."""
    args = parse_args()
    if args.table:
        print_table(args)
    elif args.scaling:
        precisions = this_code.precisions(args.precision, torch.device(args.device))
        scaling.main(args, precisions[-1])
    else:
        measure(args)


def results_path(args: argparse.Namespace) -> Path:
    """The JSON file of the rows."""
    return Path(args.results) / f"benchmark-{args.device}.json"


def print_table(args: argparse.Namespace) -> None:
    """Print what was measured as a table in Markdown.

    Raises:
        UserError: nothing was measured yet.
    """
    path = results_path(args)
    if not path.exists():
        raise UserError(f"there is no {path}; python -m benchmark measures it")
    print(markdown(json.loads(path.read_text())))


def measure(args: argparse.Namespace) -> None:
    """Measure and print row after row; the JSON file has every row as soon as it is measured."""
    files.writable_folder(Path(args.results))
    path, began = results_path(args), time.monotonic()
    comparison = Comparison(args)
    machine = devices.machine(comparison.device)
    results: dict[str, Any] = {
        "machine": machine,
        "flags": vars(args),
        "command": shlex.join(["python", "-m", "benchmark", *sys.argv[1:]]),
        "minutes": 0.0,
        "rows": [],
    }

    def save() -> None:
        results["minutes"] = (time.monotonic() - began) / 60
        files.save_json(path, results)

    size = f"batches of {args.batch_size} × {VIEWS} views of {args.image_size} px"
    print(f"{machine['device_name']}: {args.arch}, {size}")
    print(HEADER)
    for name in args.rows:
        with empty_if_out_of_memory(name):
            for row in ROWS[name](comparison):
                results["rows"].append(record(row))
                save()
                print(line(results["rows"][-1]), flush=True)
    save()
    print(f"ratio: this code / reference; written to {path}")


if __name__ == "__main__":
    cli.run(main)
