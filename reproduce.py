"""The paper's tables, row by row. Without arguments it lists the rows.

    python reproduce.py                      every row and its status on this machine
    python reproduce.py cifar10 stl10        pretrain and evaluate what these data sets lack
    python reproduce.py --row 3              the same for one row; --all: for every row of the paper
    python reproduce.py cifar10 --arch resnet18 --epochs 40 --seeds 0 1 2      a smaller study
    python reproduce.py photos               the study on the embedded photographs
    python reproduce.py cifar10-small --root DIR     attention or six views? at a small size
    python reproduce.py folder --root DIR    AttentioNCE beside SimCLR on your own images
    python reproduce.py --table              the tables of the documentation, in Markdown

Interrupted runs are resumed. Results are in results/{arch}-{epochs}/seed{seed}/, those of
cifar10-small in results/cifar10-small-{arch}-{epochs}/seed{seed}/.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.errors import UserError
from attentionce.training import processes
from experiments import results, studies
from experiments.studies import Row
from model import ARCHS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """What to run, and how small."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = ", ".join(studies.NAMES)
    add("datasets", nargs="*", help=f"run what is missing of these: {names}")
    add("--row", type=int, nargs="+", default=[], help="run what is missing of these rows")
    add("--all", action="store_true", help="run what is missing of every row of the paper")
    add("--epochs", type=int, help="default: 400; photos: 10, cifar10-small: 4")
    add("--arch", choices=ARCHS, help="default: resnet50; photos, cifar10-small: resnet10")
    add("--batch_size", type=int, help="default: 256; photos: 64")
    add("--seeds", type=int, nargs="+", help="default: 0; photos, cifar10-small: 0 1 2")
    add("--pretrain", type=shlex.split, metavar="FLAGS", help="of main.py, instead of the study's")
    add("--linear", type=shlex.split, metavar="FLAGS", help="of linear.py, likewise")
    add("--root", default="data", help="folder of the data sets, or of the study's own images")
    add("--results", default="results", help="folder of the results")
    add("--table", action="store_true", help="print the tables in Markdown")
    return parser.parse_args(argv)


def main() -> None:
    """Run the chosen rows, then list them; or print the tables."""
    args = parse_args()
    if processes.world() > 1:
        raise UserError("reproduce.py runs one program after another: start it without torchrun")
    if args.epochs is not None:
        cli.check_at_least(args, epochs=1)
    rows = dict(enumerate(studies.all_rows(args), 1))
    if not set(args.datasets) <= set(studies.NAMES) or not set(args.row) <= set(rows):
        raise UserError(f"data sets are {', '.join(studies.NAMES)}; rows are 1 to {len(rows)}")
    if args.table:
        names = args.datasets or [name for name in studies.NAMES if name != "folder"]
        print("\n".join(table(name, args) for name in names))
        return
    chosen = {
        number: row
        for number, row in rows.items()
        if number in args.row or row.study.name in args.datasets or (args.all and row.published)
    }
    for seed in dict.fromkeys(seed for row in chosen.values() for seed in row.seeds):
        for row in chosen.values():  # the first seed of every row before the second of any
            if seed in row.seeds:
                run(row, seed)
    print_rows(chosen or rows)


def run(row: Row, seed: int) -> None:
    """Run the commands that pretrain and evaluate a row, unless they have been run already.

    Raises:
        UserError: A command failed or left no results, or the images are not the study's.
    """
    pretraining, evaluations = results.read(row, seed)
    missing = [mode for mode in results.modes(row) if mode not in evaluations]
    if not missing:
        return
    train, classes = Path(row.study.root, "train"), row.study.classes
    there = sorted(path.name for path in train.glob("*") if path.is_dir())
    if classes and there != classes.split():
        raise UserError(f"{train} needs the folders {classes}: docs/study-cifar10.md makes them")
    commands = [["linear.py", *results.evaluation_flags(row, seed, mode)] for mode in missing]
    if not pretraining or not results.run_file(row, seed, row.epochs, ".pth").exists():
        commands.insert(0, ["main.py", *results.pretraining_flags(row, seed)])
    for program, *flags in commands:
        command = [os.path.relpath(Path(__file__).with_name(program)), *flags]
        print(shlex.join(["python", *command]), flush=True)
        status = call([sys.executable, *command])
        if status:
            raise UserError(f"{program} ended with status {status}; run the same again to resume")
    if results.read(row, seed).evaluations.keys() != set(results.modes(row)):
        raise UserError("these commands left no result of this row: see --pretrain and --linear")


def call(command: list[str]) -> int:
    """Run a program and return its status. After a signal it has as long as it needs to save."""
    with subprocess.Popen(command) as process:

        def pass_on(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGINT:  # which a terminal sends to the program as well
                process.send_signal(number)

        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, pass_on) for number in signals}
        status = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return status


def print_rows(rows: dict[int, Row]) -> None:
    """One line for each of these numbered rows: its settings, published accuracy and status."""
    line = "{:>3}  {:13} {:31} {:27} {:>6}  {:>9}  {}".format
    print(line("row", "data set", "method", "settings", "epochs", "published", "status (seed: …)"))
    for number, row in rows.items():
        published = f"{row.published:.2f}" if row.published else ""
        seeds = "; ".join(f"{seed}: {status(row, seed)}" for seed in row.seeds)
        name, method, settings = row.study.name, row.method, row.settings
        print(line(number, name, method, settings, row.epochs, published, seeds))


def status(row: Row, seed: int) -> str:
    """Not run, how far it has come, or done and how accurate."""
    pretraining, evaluations = results.read(row, seed)
    if len(evaluations) == len(results.modes(row)):
        texts = []
        for mode, found in evaluations.items():
            best, last = found["best_epoch"]["top1"], found["last_epoch"]["top1"]
            texts.append(f"{mode} {best:.2f} % best epoch, {last:.2f} % last")
        return f"done: {', '.join(texts)}"
    if not pretraining:
        return "not run"
    if pretraining["epochs_done"] >= row.epochs:
        return "pretrained, to be evaluated"
    return f"epoch {pretraining['epochs_done']} of {row.epochs}"


def table(name: str, args: argparse.Namespace) -> str:
    """A study's table in Markdown, from the JSON files of the flags' arch, epochs and seeds.

    Rows that were not run are empty where they are published, and else only counted.
    """
    rows = [row for row in studies.all_rows(args) if row.study.name == name]
    shown = [row for row in rows if row.published or results.evaluations(row, 0)]
    columns, title, missing = list(cells(rows[0])), rows[0].study.title, len(rows) - len(shown)
    lines = [markdown(columns), "|---|" + ":---:|" * (len(columns) - 1)]
    lines += [*(markdown([*cells(row).values()]) for row in shown), ""]
    if name == "folder" and shown:
        title += f" ({Path(rows[0].study.root).name})"
    if missing:
        lines += [f"{missing} more rows have not been run: `python reproduce.py` lists them.", ""]
    return "\n".join([f"### {title}", "", *lines])


def cells(row: Row) -> dict[str, Any]:
    """A row's cells: mean and deviation over seeds, in percent. What was not measured is empty."""
    line: dict[str, Any] = {"Method": row.method, "d_pos": "–", "d_neg": "–"}
    line |= {name: value for name, value in row.flags.items() if name in line}
    line |= {"Arch": row.study.arch, "Epochs": row.epochs}
    found = results.evaluations(row, -1)
    best = results.mean_text([one["best_epoch"]["top1"] for one in results.evaluations(row, 0)])
    last = results.mean_text([one["last_epoch"]["top1"] for one in found])
    if row.published:
        url = f"https://drive.google.com/file/d/{row.weights}/view"
        line |= {"Batch size": row.study.batch_size, "Published, %": f"{row.published:.2f}"}
        line |= {"Download": f"[model]({url})" if row.weights else ""}
        line |= {"As published, best epoch, %": best, "Frozen, last epoch, %": last}
    else:
        views = results.views_per_image(row)
        knn = results.mean_text([one["knn_top1"] for one in found])
        line |= {"Views per image": views, "Views × epochs": views * row.epochs}
        line |= {"Best epoch, %": best, "Last epoch, %": last, "kNN, %": knn, "Seeds": len(found)}
    hardware = f"{found[0]['machine']['device_name']}, {results.hours(row):.2f} h" if found else ""
    return line | {"Hardware, total hours": hardware}


def markdown(line: list[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, line)) + " |"


if __name__ == "__main__":
    cli.run(main)
