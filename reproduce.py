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

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.errors import UserError
from attentionce.training import processes
from experiments import results, studies
from experiments.studies import Row


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """What to run, and how small."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--row", type=int, nargs="+", default=[], help="run what is missing of these rows")
    add("--all", action="store_true", help="run what is missing of every row of the paper")
    studies.add_flags(parser)
    add("--table", action="store_true", help="print the tables in Markdown")
    return parser.parse_args(argv)


def main() -> None:
    """Run the rows that are asked for, then list them; or print the tables.

    Raises:
        UserError: A flag names something that does not exist, or a command failed.
    """
    args = parse_args()
    if processes.world() > 1:
        raise UserError("reproduce.py runs one program after another: start it without torchrun")
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs must be at least 1, not {args.epochs}")
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
        UserError: A command failed; its own line says why. Or the images are not the study's, or a
            flag makes a program write something else than results.
    """
    pretraining, evaluations = results.read(row, seed)
    missing = [mode for mode in results.modes(row) if mode not in evaluations]
    if not missing:
        return
    check_images(row)
    commands = [["linear.py", *results.evaluation_flags(row, seed, mode)] for mode in missing]
    if not pretraining or not results.run_file(row, seed, row.epochs, ".pth").exists():
        commands.insert(0, ["main.py", *results.pretraining_flags(row, seed)])
    for program, *flags in commands:
        command = [os.path.relpath(Path(__file__).with_name(program)), *flags]
        print(shlex.join(["python", *command]), flush=True)
        status = call([sys.executable, *command])
        if status:
            raise UserError(
                f"{program} ended with status {status}; run the same again to resume it"
            )
    if results.read(row, seed).evaluations.keys() != set(results.modes(row)):
        raise UserError("these commands left no result of this row: see --pretrain and --linear")


def check_images(row: Row) -> None:
    """Refuse a folder that does not hold the images which the study's results are of.

    Raises:
        UserError: `--root` lacks a class of the study, or has another.
    """
    train, classes = Path(row.study.root, "train"), row.study.classes.split()
    if classes and sorted(path.name for path in train.glob("*") if path.is_dir()) != classes:
        raise UserError(
            f"{train} must have the folders {', '.join(classes)}: docs/study-cifar10.md makes them"
        )


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


# ---- the list ----


def print_rows(rows: dict[int, Row]) -> None:
    """One line for each of these numbered rows: its settings, published accuracy and status."""
    line = "{:>3}  {:13} {:12} {:34} {:>6}  {:>9}  {}"
    head = "row", "data set", "method", "settings", "epochs", "published", "status (seed: …)"
    print(line.format(*head))
    for number, row in rows.items():
        published = f"{row.published:.2f}" if row.published else ""
        texts = row.study.name, row.method, row.settings, row.epochs, published
        seeds = "; ".join(f"{seed}: {status(row, seed)}" for seed in row.seeds)
        print(line.format(number, *texts, seeds))


def status(row: Row, seed: int) -> str:
    """Not run, begun and how long the rest will take, pretrained, or done and how accurate."""
    pretraining, evaluations = results.read(row, seed)
    if len(evaluations) == len(results.modes(row)):
        texts = []
        for mode, found in evaluations.items():
            best, last = (found[f"{which}_epoch"]["top1"] for which in ("best", "last"))
            texts.append(f"{mode} {best:.2f} % best epoch, {last:.2f} % last".strip())
        return f"done: {', '.join(texts)}"
    if not pretraining:
        return "not run"
    done = pretraining["epochs_done"]
    if done >= row.epochs:
        return "pretrained, to be evaluated"
    seconds_left = 3600 * pretraining["hours"] / done * (row.epochs - done)
    return f"epoch {done} of {row.epochs}, {tqdm.format_interval(seconds_left)} left"


# ---- the tables ----

COLUMNS = ["Method", "d_pos", "d_neg", "Arch", "Epochs"]
PUBLISHED = ["Batch size", "Published, %", "Download"]
PUBLISHED += ["As published, best epoch, %", "Frozen, last epoch, %"]
OWN = ["Views per image", "Views × epochs", "Best epoch, %", "Last epoch, %", "kNN, %", "Seeds"]


def table(name: str, args: argparse.Namespace) -> str:
    """A study's table in Markdown, from the JSON files alone.

    Args:
        name: The study's.
        args: The flags of `parse_args`, which select arch, epochs, seeds and the results' folder.

    Returns:
        Heading, table and an empty line. Cells of rows that were not run are empty.
    """
    rows = [row for row in studies.all_rows(args) if row.study.name == name]
    columns = [*COLUMNS, *(PUBLISHED if rows[0].published else OWN), "Hardware, total hours"]
    lines = [markdown(columns), "|---|" + ":---:|" * (len(columns) - 1)]
    lines += [markdown(cells(row)) for row in rows]
    title = rows[0].study.title
    if name == "folder" and any(results.evaluations(row, 0) for row in rows):
        title += f" ({Path(rows[0].study.root).name})"
    return "\n".join([f"### {title}", "", *lines, ""])


def cells(row: Row) -> list[Any]:
    """A row's cells: mean and deviation over seeds, in percent. What was not measured is empty."""
    d_pos, d_neg = (row.flags.get(name, "–") for name in ("d_pos", "d_neg"))
    line: list[Any] = [row.method, d_pos, d_neg, row.study.arch, row.epochs]
    best, last = (results.mean_text(results.top1(row, epoch)) for epoch in ("best", "last"))
    found = results.evaluations(row, -1)
    if row.published:
        url = f"https://drive.google.com/file/d/{row.weights}/view"
        link = f"[model]({url})" if row.weights else ""
        line += [row.study.batch_size, f"{row.published:.2f}", link, best, last]
    else:
        views = results.views_per_image(row)
        knn = results.mean_text([evaluation["knn_top1"] for evaluation in found])
        line += [views, views * row.epochs, best, last, knn, len(found)]
    hardware = f"{found[0]['machine']['device_name']}, {results.hours(row):.2f} h" if found else ""
    return [*line, hardware]


def markdown(line: list[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in line) + " |"


if __name__ == "__main__":
    cli.run(main)
