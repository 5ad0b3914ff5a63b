"""How fast this code is compared with a reference recipe, both measured in one run.

    python -m benchmark               every row of the table, about 12 minutes on two CPU cores
    python -m benchmark --quick       small sizes, under 2 minutes
    python -m benchmark --table       what was measured, in Markdown

Repetitions alternate (reference, this code, reference, …) after a round that does not count. Their
medians are printed; results/benchmark-{device}.json also has the smallest and the largest value,
row by row as they are measured. Memory and start-up are measured in processes of their own.
"""

import argparse
import itertools
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
from benchmark import report
from benchmark.rows import ROWS
from model import ARCHS

# What the flags leave open, for --quick, a CPU and CUDA. `view_images` and `linear_images` are
# passed over once per repetition, `matmul` is the side of matrices whose product is the limit.
SIZES: dict[str, tuple[Any, Any, Any]] = {
    "arch": ("resnet10", "resnet50", "resnet50"),
    "batch_size": (16, 16, 256),
    "repetitions": (3, 5, 5),
    "view_images": (256, 1024, 2048),
    "epoch_steps": (4, 3, 40),
    "loss_batches": ([256, 1024], [256, 1024, 4096, 16384], [256, 1024, 4096, 16384]),
    "linear_images": (128, 128, 8192),
    "matmul": (2048, 4096, 8192),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags. What they leave open is filled in from SIZES."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m benchmark", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "mps", "cpu"], help="default: the first that exists")
    add("--arch", choices=ARCHS, help="encoder (default: resnet50; --quick: resnet10)")
    add("--batch_size", type=int, help="images per step (default: 16; CUDA: 256)")
    add("--image_size", type=int, default=32, help="side of a view, in pixels (default: 32)")
    precision = "of this code; auto: fp32, and bf16 where the device supports it natively"
    add("--precision", default="auto", choices=devices.PRECISIONS, help=precision)
    compiled = "the encoder, as in main.py; views are measured both ways unless it is off"
    add("--compile", default="auto", choices=["auto", "on", "off"], help=compiled)
    add("--quick", action="store_true", help="small sizes, under 2 minutes")
    rows = list(ROWS)
    add("--rows", nargs="+", default=rows, choices=rows, help="what to measure (default: all)")
    add("--table", action="store_true", help="print the results in Markdown, measure nothing")
    add("--results", default="results", help="folder of the JSON file")
    args = parser.parse_args(argv)
    if args.table and args.device:  # the table of another machine may be printed here
        return args
    device = devices.choose_device(args.device)
    devices.choose_precision(args.precision, device)  # refuses what the device cannot
    args.device, args.precisions = device.type, [args.precision]
    if args.precision == "auto":
        args.precisions = ["fp32"] + ["bf16"] * (devices.half_precision(device) == "bf16")
    for name, values in SIZES.items():
        if getattr(args, name, None) is None:
            setattr(args, name, values[0 if args.quick else 2 if args.device == "cuda" else 1])
    cli.check_at_least(args, batch_size=2, image_size=8)
    return args


def main() -> None:
    """Measure the rows and print them, or print the table of what was measured."""
    args = parse_args()
    path = Path(args.results) / f"benchmark-{args.device}.json"
    if not args.table:
        measure(args, path)
    elif path.exists():
        print(report.markdown(json.loads(path.read_text())))
    else:
        raise UserError(f"there is no {path}; python -m benchmark measures it")


def measure(args: argparse.Namespace, path: Path) -> None:
    """Measure and print row after row; the JSON file has every row as soon as it is measured."""
    files.writable_folder(path.parent)
    began = time.monotonic()
    results: dict[str, Any] = {
        "machine": devices.machine(torch.device(args.device)),
        "flags": vars(args),
        "command": shlex.join(["python", "-m", "benchmark", *sys.argv[1:]]),
        "rows": [],
    }
    print(report.markdown(results))
    for row in itertools.chain.from_iterable(ROWS[name](args) for name in args.rows):
        results["rows"].append(row)
        results["minutes"] = (time.monotonic() - began) / 60
        files.save_json(path, results)
        spread = "{min:.2f} … {max:.2f}".format(**row["ratio"]) if row["ratio"] else ""
        print(report.line(row), spread, flush=True)
    print(f"ratio: this code / reference, with its range over the rounds; written to {path}")


if __name__ == "__main__":
    cli.run(main)
