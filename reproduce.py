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
import math
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
from experiments.studies import Row, Study


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
    rows = studies.all_rows()
    unknown_dataset = any(dataset not in studies.TITLES for dataset in args.datasets)
    if unknown_dataset or any(not 1 <= number <= len(rows) for number in args.row):
        raise UserError(f"data sets are {', '.join(studies.TITLES)}; rows are 1 to {len(rows)}")
    if args.table:
        print_tables(args)
        return
    chosen = [
        number
        for number, row in enumerate(rows, 1)
        if number in args.row or row.dataset in args.datasets or (args.all and row.paper)
    ]
    planned = dict(enumerate(studies.with_flags(rows, args), 1))
    seeds = {seed: None for number in chosen for seed in planned[number][1].seeds}
    for seed in seeds:  # the first of every row before the second of any
        for number in chosen:
            row, study = planned[number]
            if seed in study.seeds:
                run(row, study, seed)
    print_rows({number: planned[number] for number in chosen or planned})


def run(row: Row, study: Study, seed: int) -> None:
    """Run the commands that pretrain and evaluate a row, unless they have been run already.

    Raises:
        UserError: A command failed; its own line says why. Or the images are not the study's.
    """
    result = results.read(row, study, seed)
    if result.evaluation:
        return
    results.check_images(study)
    weights = results.weights(row, study, seed)
    epochs = studies.epochs_of_run(row, study)
    common = ["--root", study.root, "--seed", str(seed)]
    pretrain = [script("main.py"), *results.pretraining_flags(row, study), *common]
    pretrain += ["--results", str(results.folder(row, study, seed))]
    pretrain += ["--epochs", str(epochs[-1]), "--save_every", str(math.gcd(*epochs))]
    evaluate = [script("linear.py"), "--dataset_name", results.dataset_name(row, study)]
    evaluate += [*common, "--model_path", str(weights), *study.linear]
    pretrained = result.pretraining is not None and weights.exists()
    for command in [evaluate] if pretrained else [pretrain, evaluate]:
        print(shlex.join(["python", *command]), flush=True)
        status = call([sys.executable, *command])
        if status:
            name = Path(command[0]).name
            raise UserError(f"{name} ended with status {status}; run the same again to resume it")


def script(name: str) -> str:
    """The path of a program of this repository, relative to the current folder."""
    return os.path.relpath(Path(__file__).with_name(name))


def call(command: list[str]) -> int:
    """Run a program and return its status. After a signal it has as long as it needs to save."""
    with subprocess.Popen(command) as process:

        def ignore(number: int, frame: FrameType | None) -> None:
            """A terminal sends Ctrl-C to the program as well."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            """Other signals reach this process alone."""
            process.send_signal(number)

        handlers = {signal.SIGINT: ignore, signal.SIGTERM: pass_on, signal.SIGUSR1: pass_on}
        before = {number: signal.signal(number, handlers[number]) for number in handlers}
        status = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return status


# ---- the list ----


def print_rows(planned: dict[int, tuple[Row, Study]]) -> None:
    """One line for each of these numbered rows: its settings, published accuracy and status."""
    line = "{:>3}  {:13} {:12} {:34} {:>6}  {:>5}  {}"
    head = "row", "data set", "method", "settings", "epochs", "paper", "status (seed: …)"
    print(line.format(*head))
    for number, (row, study) in planned.items():
        paper = f"{row.paper:.2f}" if row.paper else ""
        texts = row.dataset, row.method, row.settings, row.epochs, paper
        print(line.format(number, *texts, status_of_seeds(row, study)))


def status_of_seeds(row: Row, study: Study) -> str:
    """The status of every seed: `0: not run; 1: …`, or `all: not run` if all have the same."""
    found = {seed: status(row, study, seed) for seed in study.seeds}
    if len(found) > 1 and len(set(found.values())) == 1:
        return f"all: {found[study.seeds[0]]}"
    return "; ".join(f"{seed}: {text}" for seed, text in found.items())


def status(row: Row, study: Study, seed: int) -> str:
    """Not run, begun and how long the rest will take, pretrained, or done and how accurate."""
    pretraining, evaluation = results.read(row, study, seed)
    if evaluation:
        best, last = (evaluation[f"{which}_epoch"]["top1"] for which in ("best", "last"))
        return f"done: {best:.2f} % best epoch, {last:.2f} % last"
    if not pretraining:
        return "not run"
    done = pretraining["epochs_done"]
    if done >= row.epochs:
        return "pretrained, to be evaluated"
    seconds_left = 3600 * pretraining["hours"] / done * (row.epochs - done)
    return f"epoch {done} of {row.epochs}, {tqdm.format_interval(seconds_left)} left"


# ---- the tables ----

COLUMNS = ["Method", "d_pos", "d_neg", "Arch", "Epochs"]
PAPER_COLUMNS = ["Batch size", "Paper, %", "Download", "Here, best epoch, %", "Here, last epoch, %"]
STUDY_COLUMNS = ["Views per image", "Views × epochs", "Best epoch, %", "Last epoch, %"]
STUDY_COLUMNS += ["kNN, %", "Seeds"]
HARDWARE = ["Hardware, total hours"]


def print_tables(args: argparse.Namespace) -> None:
    """The tables of these data sets; of all but your own images if none is named."""
    datasets = args.datasets or [dataset for dataset in studies.TITLES if dataset != "folder"]
    print("\n".join(table(dataset, args) for dataset in datasets))


def table(dataset: str, args: argparse.Namespace) -> str:
    """A data set's table in Markdown, from the JSON files alone.

    Args:
        dataset: One of `studies.TITLES`.
        args: The flags of `parse_args`, which select arch, epochs, seeds and the results' folder.

    Returns:
        Heading, table and an empty line. Cells of rows that were not run are empty.
    """
    rows = [row for row in studies.all_rows() if row.dataset == dataset]
    published = any(row.paper for row in rows)
    columns = COLUMNS + (PAPER_COLUMNS if published else STUDY_COLUMNS) + HARDWARE
    lines = [markdown(columns), "|---|" + ":---:|" * (len(columns) - 1)]
    roots = set()
    for row, study in studies.with_flags(rows, args):
        lines.append(markdown(cells(row, study, published)))
        for evaluation in results.evaluations(row, study):
            roots.add(Path(evaluation["flags"].get("root", "")).name)
    title = studies.TITLES[dataset]
    if dataset == "folder" and roots:
        title += f" ({', '.join(sorted(roots))})"
    return "\n".join([f"### {title}", "", *lines, ""])


def cells(row: Row, study: Study, published: bool) -> list[Any]:
    """A row's cells: mean and deviation over seeds, in percent. What was not measured is empty.

    Args:
        row: The row.
        study: Its study.
        published: Whether the table is one of the paper's.
    """
    found = results.evaluations(row, study)
    best = results.mean_text([evaluation["best_epoch"]["top1"] for evaluation in found])
    last = results.mean_text([evaluation["last_epoch"]["top1"] for evaluation in found])
    knn = results.mean_text([evaluation["knn_top1"] for evaluation in found])
    d_pos, d_neg = (row.flags.get(name, "–") for name in ("d_pos", "d_neg"))
    line: list[Any] = [row.method, d_pos, d_neg, study.arch, row.epochs]
    if published:
        link = f"[model]({row.link})" if row.link else ""
        line += [study.batch_size, f"{row.paper:.2f}", link, best, last]
    else:
        views = results.views_per_image(row, study)
        line += [views, views * row.epochs, best, last, knn, len(found)]
    if found:
        device = found[0]["machine"]["device_name"]
        return [*line, f"{device}, {results.hours(row, study):.2f} h"]
    return [*line, ""]


def markdown(line: list[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in line) + " |"


if __name__ == "__main__":
    cli.run(main)
