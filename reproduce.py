"""The paper's tables, row by row: python reproduce.py lists them, python reproduce.py cifar10 runs what is missing.

    python reproduce.py                      every row and this machine's state of it
    python reproduce.py cifar10 stl10        pretrain and evaluate what is missing of these data sets
    python reproduce.py --row 3              … of one row; --all: of every row of the paper
    python reproduce.py cifar10 --arch resnet18 --epochs 40 --seeds 0 1 2      a smaller study of the same shape
    python reproduce.py photos               the study on the embedded photographs
    python reproduce.py folder --root DIR    AttentioNCE beside SimCLR on your own images
    python reproduce.py --table              all tables in Markdown, as they stand in the README

What was begun is resumed. Results lie under results/{arch}-{epochs}/seed{seed}/.
"""

import argparse
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import linear as linear_evaluation
import main
from attentionce import cli
from attentionce.errors import UserError
from attentionce.runs import file_names, states
from experiments.studies import PAPER, PHOTOS, TITLES, Row, Study, all_rows
from model import ARCHS

NOT_THE_RESULT = {"root", "results", "device", "model_path", "export"}  # flags of linear.py


def study(row: Row, args: argparse.Namespace) -> tuple[Row, Study]:
    """The row and its study, changed by the flags. Rows keep the proportion of their epochs, which is why they are rounded."""
    base = PHOTOS if row.dataset == "photos" else PAPER
    changed = {
        name: getattr(args, name)
        for name in ("arch", "epochs", "batch_size", "seeds")
        if getattr(args, name)
    }
    changed |= {
        name: shlex.split(getattr(args, name))
        for name in ("pretrain", "linear")
        if getattr(args, name) is not None
    }
    unit = math.gcd(*(other.epochs for other in all_rows() if other.dataset == row.dataset))
    unit_here = max(1, unit * changed.get("epochs", base.epochs) // base.epochs)
    return row._replace(epochs=row.epochs // unit * unit_here), base._replace(**changed)


def words(row: Row, setting: Study) -> list[str]:
    """The flags of main.py that decide about the result."""
    flags = [word for key, value in row.flags.items() for word in (f"--{key}", str(value))]
    common = [
        "--dataset_name",
        row.dataset,
        "--arch",
        setting.arch,
        "--batch_size",
        str(setting.batch_size),
    ]
    return [*common, *flags, *setting.pretrain]


def name(row: Row, setting: Study, epoch: int) -> str:
    """The name of the row's files at an epoch."""
    return file_names.stem(main.parse_args(words(row, setting)), epoch)


def folder(row: Row, setting: Study, seed: int, args: argparse.Namespace) -> Path:
    """Where main.py writes: `--results` of that run."""
    return Path(args.results) / f"{setting.arch}-{setting.epochs}" / f"seed{seed}"


def whole_run(row: Row, args: argparse.Namespace) -> list[int]:
    """The epochs that the rows of the same run are measured after, in order; the last is the run's length."""
    rows = (study(other, args)[0] for other in all_rows())
    return sorted(
        other.epochs for other in rows if (other.dataset, other.flags) == (row.dataset, row.flags)
    )


def read_json(path: Path, wanted: argparse.Namespace, free: set[str]) -> dict[str, Any] | None:
    """A result file; None where there is none, or one of other flags than `wanted`, the free ones apart, made by hand perhaps.

    Raises:
        UserError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        flags = states.current_names(found.get("flags", {}))
        same = all(
            flags.get(key, value) == value for key, value in vars(wanted).items() if key not in free
        )
        if wanted.dataset_name == "folder":
            same &= Path(flags.get("root", wanted.root)).name == Path(wanted.root).name
        return found if same else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run its row again") from None


def results(
    row: Row, setting: Study, seed: int, args: argparse.Namespace
) -> tuple[dict | None, dict | None]:
    """What is known of a row and a seed: (pretraining, linear evaluation), each None where it was not begun so.

    An evaluation of weights that were pretrained with other flags is none either.
    """
    place, common = (
        folder(row, setting, seed, args) / row.dataset,
        ["--root", args.root, "--seed", str(seed)],
    )
    pretrain = main.parse_args([*words(row, setting), *common])
    linear = linear_evaluation.parse_args(
        ["--model_path", "", "--dataset_name", row.dataset, *common, *setting.linear]
    )
    path = place / f"{name(row, setting, whole_run(row, args)[-1])}.json"
    pretraining = read_json(path, pretrain, states.FREE_FLAGS)
    if pretraining is None and path.exists():
        return None, None
    return pretraining, read_json(
        place / f"{name(row, setting, row.epochs)}_linear.json", linear, NOT_THE_RESULT
    )


def state(row: Row, setting: Study, seed: int, args: argparse.Namespace) -> str:
    """In words: not run, where it stands and how long it will take, or done with its accuracy."""
    pretraining, linear = results(row, setting, seed, args)
    if linear:
        return f"done: {linear['best_epoch']['top1']:.2f} % best epoch, {linear['last_epoch']['top1']:.2f} % last"
    if not pretraining:
        return "not run"
    done = pretraining["epochs_done"]
    if done >= row.epochs:
        return "pretrained, to be evaluated"
    left = pretraining["hours"] / done * (row.epochs - done)
    return f"epoch {done} of {row.epochs}, {left:.1f} h left"


def run(row: Row, setting: Study, seed: int, args: argparse.Namespace) -> None:
    """Pretrain (on from where it stands) and evaluate, unless that is done; each is a command that is printed.

    Raises:
        UserError: a command failed; its own line says why.
    """
    pretraining, evaluation = results(row, setting, seed, args)
    if evaluation:
        return
    out, stops = folder(row, setting, seed, args), whole_run(row, args)
    file = out / row.dataset / f"{name(row, setting, row.epochs)}.pth"
    common = ["--root", args.root, "--seed", str(seed)]
    pretrain = [
        script("main.py"),
        *words(row, setting),
        *common,
        "--results",
        str(out),
        "--epochs",
        str(stops[-1]),
        "--save_every",
        str(math.gcd(*stops)),
    ]
    evaluate = [
        script("linear.py"),
        "--dataset_name",
        row.dataset,
        *common,
        "--model_path",
        str(file),
        *setting.linear,
    ]
    for command in ([] if pretraining and file.exists() else [pretrain]) + [evaluate]:
        print(shlex.join(["python", *command]), flush=True)
        status = call([sys.executable, *command])
        if status:
            raise UserError(
                f"{Path(command[0]).name} ended with status {status}; the same command again goes on from there"
            )


def call(command: list[str]) -> int:
    """Run a program to its end, however long it takes to save its state after a signal; returns its status."""
    with subprocess.Popen(command) as process:
        # The terminal sends Ctrl-C to both; others send their signals to this process alone.
        answers = {
            signal.SIGINT: lambda *_: None,
            signal.SIGTERM: lambda number, _: process.send_signal(number),
            signal.SIGUSR1: lambda number, _: process.send_signal(number),
        }
        before = {number: signal.signal(number, answer) for number, answer in answers.items()}
        status = process.wait()
        for number, answer in before.items():
            signal.signal(number, answer)
    return status


def script(name: str) -> str:
    """Where a script is, seen from the folder that the user is in."""
    return os.path.relpath(Path(__file__).with_name(name))


def settings_text(row: Row) -> str:
    """The row's own flags, short."""
    return " ".join(f"{key}={value}" for key, value in row.flags.items() if key != "loss")


def views_an_image(row: Row) -> int:
    """How many views of an image a step encodes."""
    return 2 + row.flags.get("num_pos", 4) if row.flags["loss"] == "attentionce" else 2


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the deviation of one is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean(values: list[float]) -> str:
    """`91.20 ± 0.31` over seeds, `91.20` of one, empty of none."""
    return (
        " ± ".join(f"{value:.2f}" for value in mean_and_spread(values)[: len(values)])
        if values
        else ""
    )


def table(dataset: str, rows: list[Row], args: argparse.Namespace) -> str:
    """A data set's table in Markdown, from the JSON files alone; empty where nothing was measured."""
    lines, roots = [], set()
    paper = any(row.paper for row in rows if row.dataset == dataset)
    for row, setting in (study(row, args) for row in rows if row.dataset == dataset):
        done = [pair for seed in setting.seeds if (pair := results(row, setting, seed, args))[1]]
        roots |= {Path(linear["flags"].get("root", "")).name for _, linear in done}
        best, last, knn = (
            mean([pick(linear) for _, linear in done])
            for pick in (
                lambda r: r["best_epoch"]["top1"],
                lambda r: r["last_epoch"]["top1"],
                lambda r: r["knn_top1"],
            )
        )
        hours = sum(
            (p["hours"] * row.epochs / p["epochs_done"] if p else 0) + linear["hours"]
            for p, linear in done
        )
        where = f"{done[0][1]['machine']['device_name']}, {hours:.2f} h" if done else ""
        views = views_an_image(row)
        cells = [
            row.method,
            *(row.flags.get(key, "–") for key in ("d_pos", "d_neg")),
            setting.arch,
            row.epochs,
        ]
        if paper:
            cells += [
                setting.batch_size,
                f"{row.paper:.2f}",
                f"[model]({row.link})" if row.link else "",
                best,
                last,
                where,
            ]
        else:
            cells += [views, views * row.epochs, best, last, knn, len(done), where]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    head = (
        "Method | d_pos | d_neg | Arch | Epochs | "
        + (
            "Batch size | Paper, % | Download | Here, best epoch, % | Here, last epoch, %"
            if paper
            else "Views an image | Views × epochs | Best epoch, % | Last epoch, % | kNN, % | Seeds"
        )
        + " | Hardware, hours in all"
    )
    rule = "|" + "|".join(["---"] + [":---:"] * head.count("|")) + "|"
    title = TITLES[dataset] + (
        f" ({', '.join(sorted(roots))})" if dataset == "folder" and roots else ""
    )
    return "\n".join([f"### {title}", "", f"| {head} |", rule, *lines, ""])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """What to run and how small."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("datasets", nargs="*", help="run what is missing of these: " + ", ".join(TITLES))
    add("--row", type=int, nargs="+", default=[], help="run what is missing of these rows")
    add("--all", action="store_true", help="run what is missing of every row of the paper")
    add(
        "--epochs",
        type=int,
        help="instead of the paper's 400 (photos: 10); rows of fewer or more in proportion, rounded down",
    )
    add("--arch", choices=ARCHS, help="default: resnet50; photos: resnet10")
    add("--batch_size", type=int, help="default: 256; photos: 64")
    add("--seeds", type=int, nargs="+", help="default: 0; photos: 0 1 2")
    add(
        "--pretrain",
        metavar="FLAGS",
        help="flags of main.py instead of the study's own, as in --pretrain='--k 20'",
    )
    add(
        "--linear",
        metavar="FLAGS",
        help="flags of linear.py likewise, as in --linear='--epochs 10 --lr 0.01'",
    )
    add("--root", default="data", help="folder of the data sets; of folder: of the images")
    add("--results", default="results", help="folder of the results")
    add("--table", action="store_true", help="print the tables in Markdown")
    return parser.parse_args(argv)


def list_and_run() -> None:
    """List, run or print."""
    args = parse_args()
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs must be at least 1, not {args.epochs}")
    rows = all_rows()
    unknown = [dataset for dataset in args.datasets if dataset not in TITLES]
    if unknown or any(not 1 <= number <= len(rows) for number in args.row):
        raise UserError(f"data sets are {', '.join(TITLES)}; rows are 1 to {len(rows)}")
    if args.table:
        wanted = args.datasets or [dataset for dataset in TITLES if dataset != "folder"]
        return print("\n".join(table(dataset, rows, args) for dataset in wanted))
    chosen = [
        row
        for number, row in enumerate(rows, 1)
        if number in args.row or row.dataset in args.datasets or (args.all and row.paper)
    ]
    for row, setting in (study(row, args) for row in chosen):
        for seed in setting.seeds:
            run(row, setting, seed, args)
    print(
        f"{'row':>3}  {'data set':12} {'method':12} {'settings':34} {'epochs':>6}  {'paper':>5}  state (seed: …)"
    )
    for number, (row, setting) in enumerate((study(row, args) for row in rows), 1):
        if chosen and rows[number - 1] not in chosen:
            continue
        states = {seed: state(row, setting, seed, args) for seed in setting.seeds}
        same = len(states) > 1 and len(set(states.values())) == 1
        text = (
            f"all: {states[setting.seeds[0]]}"
            if same
            else "; ".join(f"{seed}: {words}" for seed, words in states.items())
        )
        paper = f"{row.paper:.2f}" if row.paper else ""
        print(
            f"{number:3}  {row.dataset:12} {row.method:12} {settings_text(row):34} {row.epochs:6}  {paper:>5}  {text}"
        )


if __name__ == "__main__":
    cli.run(list_and_run)
