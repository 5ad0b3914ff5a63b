"""The paper's tables, row by row: python reproduce.py lists them, python reproduce.py cifar10 runs what is missing.

    python reproduce.py                      every row and this machine's state of it
    python reproduce.py cifar10 stl10        pretrain and evaluate what is missing of these data sets
    python reproduce.py --row 3              … of one row; --all: of every row of the paper
    python reproduce.py cifar10 --arch resnet18 --epochs 40 --seeds 0 1 2      a smaller study of the same shape
    python reproduce.py photos               the study on the embedded photographs
    python reproduce.py folder --root DIR    AttentionNCE beside SimCLR on your own images
    python reproduce.py --table              all tables in Markdown, as they stand in the README

What was begun is resumed. Results lie under results/{arch}-{epochs}/seed{seed}/.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import weights
from model import ARCHS
from utils import UserError


class Row(NamedTuple):
    """One line of a table. Rows with the same flags are one run, measured after different epochs."""

    dataset: str
    method: str
    flags: dict[str, Any]
    epochs: int
    paper: float | None = None  # linear accuracy, best epoch, in percent
    link: str | None = None  # the authors' weights


class Study(NamedTuple):
    """How a data set's rows are run."""

    arch: str
    epochs: int
    batch_size: int
    seeds: list[int]
    pretrain: list[str]  # further flags
    linear: list[str]


PAPER = Study("resnet50", 400, 256, [0], [], [])
# The classifier's views are as large as the test images, 32 pixels: trained on features of 8 it had half the accuracy.
PHOTOS = Study("resnet10", 10, 64, [0, 1, 2], ["--image_size", "8", "--k", "20", "--knn_every", "5"],
               ["--image_size", "32", "--k", "20", "--batch_size", "128", "--epochs", "8", "--lr", "0.01"])  # fmt: skip
TITLES = {"stl10": "STL10", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tinyImageNet": "TinyImageNet",
          "photos": "The embedded photographs", "folder": "Your own images"}  # fmt: skip
DRIVE = "https://drive.google.com/file/d/{}/view"


def paper_rows() -> list[Row]:
    """The tables of the paper, and what the authors of DCL, HCL and BCL report with their own settings."""

    def attention(dataset: str, d_pos: float, d_neg: float, half: float, full: float, *links: str) -> list[Row]:
        flags = {"loss": "attention_nce", "d_pos": d_pos, "d_neg": d_neg}
        figures = zip((200, 400), (half, full), links, strict=True)
        return [Row(dataset, "AttentionNCE", flags, *figure, DRIVE.format(link)) for *figure, link in figures]

    def other(dataset: str, loss: str, figure: float, link: str | None = None, **flags: float) -> Row:
        method = {"simclr": "SimCLR", "dcl": "DCL", "hcl": "HCL", "bcl": "BCL"}[loss]
        return Row(dataset, method, {"loss": loss, **flags}, 400, figure, DRIVE.format(link) if link else None)

    return [
        other("stl10", "simclr", 80.15, "1qQE03ztnQCK4dtG-GPwCvF66nq_Mk_mo"),
        other("stl10", "dcl", 84.26, tau_plus=0.1),
        other("stl10", "hcl", 87.44, tau_plus=0.1, beta=1.0),
        other("stl10", "bcl", 87.51, tau_plus=0.1, alpha=0.7, beta=1.0),
        *attention("stl10", 2, 0.5, 87.12, 89.45, "1f3d8LYeX_8VLtqK1oai6SywmHAV0TwK9", "1cQquMQA74GlQD6MQeP1l2zEhkJfdrKCA"),
        other("cifar10", "simclr", 91.12, "1AgKdRXnqBmhTPMAuzwsk1kE-X3OwVGpH"),
        other("cifar10", "bcl", 92.52, tau_plus=0.1, alpha=0.9, beta=0.9),
        *attention("cifar10", 1, 10, 92.42, 93.08, "1Pq8bMZzqdN9-7c-HmyeKSxTlKhufaYf4", "1pKRs_QT4goC-l62tT48FxrDSRLxQ1Hfd"),
        other("cifar100", "simclr", 66.55),
        other("cifar100", "bcl", 69.70, tau_plus=0.1, alpha=0.7, beta=1.0),
        *attention("cifar100", 1, 10, 69.78, 70.23, "1hnQAvAgsNa3rOY1cRnZgUsWZLh6KOmUM", "1zGqa28oNiogYjriWJjp-MqkzwDjTskIO"),
        other("tinyImageNet", "simclr", 53.40),
        other("tinyImageNet", "bcl", 57.32, tau_plus=0.1, alpha=0.8, beta=1.0),
        *attention("tinyImageNet", 4, 1, 56.58, 58.61,
                   "1oQaHY5fW2_3trpBe4xMP4K_x3cRW8UjL", "1lVRxeZBRP18uQsw4FVOtaoBQnK7hU0yG"),
    ]  # fmt: skip


def photo_rows() -> list[Row]:
    """All losses at equal epochs and at equal numbers of encoded views, then the number of positives, then d_pos × d_neg.

    AttentionNCE encodes six views of an image where the others encode two: three times the epochs are as many views.
    """
    epochs = PHOTOS.epochs
    others = {"SimCLR": {"loss": "simclr"}, "DCL": {"loss": "dcl", "tau_plus": 0.1},
              "HCL": {"loss": "hcl", "tau_plus": 0.1, "beta": 1.0},
              "BCL": {"loss": "bcl", "tau_plus": 0.1, "alpha": 0.9, "beta": 0.9}}  # fmt: skip
    rows = [Row("photos", method, flags, e) for method, flags in others.items() for e in (epochs, 3 * epochs)]
    grid = [(4, 1, 10), (1, 1, 10), (2, 1, 10), (8, 1, 10)]
    grid += [(4, d_pos, d_neg) for d_pos in (0.1, 1, 10) for d_neg in (0.1, 1, 10) if (d_pos, d_neg) != (1, 10)]
    for num_pos, d_pos, d_neg in grid:
        flags = {"loss": "attention_nce", "num_pos": num_pos, "d_pos": d_pos, "d_neg": d_neg}
        rows.append(Row("photos", "AttentionNCE", flags, epochs))
    return rows


def folder_rows() -> list[Row]:
    """AttentionNCE as it goes on, and SimCLR at equal numbers of encoded views and, once, at equal epochs."""
    epochs, flags = PAPER.epochs, {"loss": "attention_nce", "d_pos": 1, "d_neg": 10}
    stops = (epochs // 4, epochs // 2, epochs)
    rows = [Row("folder", "AttentionNCE", flags, stop) for stop in stops]
    return rows + [Row("folder", "SimCLR", {"loss": "simclr"}, stop) for stop in sorted([epochs, *(3 * s for s in stops)])]


def all_rows() -> list[Row]:
    """Every row, in the order of their numbers."""
    return paper_rows() + photo_rows() + folder_rows()


def study(row: Row, args: argparse.Namespace) -> tuple[Row, Study]:
    """The row and its study, changed by the flags; `--epochs` is the paper's 400, other rows follow in proportion."""
    base = PHOTOS if row.dataset == "photos" else PAPER
    changed = {name: getattr(args, name) for name in ("arch", "epochs", "batch_size", "seeds") if getattr(args, name)}
    changed |= {name: shlex.split(getattr(args, name)) for name in ("pretrain", "linear") if getattr(args, name) is not None}
    row = row._replace(epochs=max(1, round(row.epochs * changed.get("epochs", base.epochs) / base.epochs)))
    return row, base._replace(**changed)


def name(row: Row, setting: Study, epoch: int) -> str:
    """The name of the row's files at an epoch."""
    flags = {"num_pos": 4, "estimator": "SimCLR", "dataset_name": row.dataset, "batch_size": setting.batch_size, **row.flags}
    return weights.stem(argparse.Namespace(**flags), epoch)


def folder(row: Row, setting: Study, seed: int, args: argparse.Namespace) -> Path:
    """Where main.py writes: `--results` of that run."""
    return Path(args.results) / f"{setting.arch}-{setting.epochs}" / f"seed{seed}"


def whole_run(row: Row, args: argparse.Namespace) -> list[int]:
    """The epochs that the rows of the same run are measured after, in order; the last is the run's length."""
    rows = (study(other, args)[0] for other in all_rows())
    return sorted(other.epochs for other in rows if (other.dataset, other.flags) == (row.dataset, row.flags))


def read_json(path: Path) -> dict[str, Any] | None:
    """A result file, or None where there is none."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run its row again") from None


def results(row: Row, setting: Study, seed: int, args: argparse.Namespace) -> tuple[dict | None, dict | None]:
    """What is known of a row and a seed: (pretraining, linear evaluation), each None where it was not begun.

    An evaluation with other flags than the study's, made by hand perhaps, is none.
    """
    place = folder(row, setting, seed, args) / row.dataset
    pretraining = read_json(place / f"{name(row, setting, whole_run(row, args)[-1])}.json")
    linear = read_json(place / f"{name(row, setting, row.epochs)}_linear.json")
    wanted = zip(setting.linear[::2], setting.linear[1::2], strict=True)
    as_wanted = linear and all(str(linear["flags"].get(flag.removeprefix("--"))) == value for flag, value in wanted)
    return pretraining, linear if as_wanted else None


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
    if results(row, setting, seed, args)[1]:
        return
    out = folder(row, setting, seed, args)
    flags = [word for key, value in row.flags.items() for word in (f"--{key}", str(value))]
    common = ["--dataset_name", row.dataset, "--root", args.root, "--seed", str(seed)]
    file = out / row.dataset / f"{name(row, setting, row.epochs)}.pth"
    stops = whole_run(row, args)
    pretrain = [script("main.py"), *common, *flags, "--arch", setting.arch, "--batch_size", str(setting.batch_size),
                "--results", str(out), "--epochs", str(stops[-1]), "--save_every", str(math.gcd(*stops)), *setting.pretrain]
    linear = [script("linear.py"), *common, "--model_path", str(file), *setting.linear]
    for command in ([] if file.exists() else [pretrain]) + [linear]:
        print("python", *command, flush=True)
        status = subprocess.run([sys.executable, *command]).returncode
        if status:
            raise UserError(f"{Path(command[0]).name} ended with status {status}; the same command again goes on from there")


def script(name: str) -> str:
    """Where a script is, seen from the folder that the user is in."""
    return os.path.relpath(Path(__file__).with_name(name))


def settings_text(row: Row) -> str:
    """The row's own flags, short."""
    return " ".join(f"{key}={value}" for key, value in row.flags.items() if key != "loss")


def views_an_image(row: Row) -> int:
    """How many views of an image a step encodes."""
    return 2 + row.flags.get("num_pos", 4) if row.flags["loss"] == "attention_nce" else 2


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the deviation of one is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean(values: list[float]) -> str:
    """`91.20 ± 0.31` over seeds, `91.20` of one, empty of none."""
    return " ± ".join(f"{value:.2f}" for value in mean_and_spread(values)[: len(values)]) if values else ""


def table(dataset: str, rows: list[Row], args: argparse.Namespace) -> str:
    """A data set's table in Markdown, from the JSON files alone; empty where nothing was measured."""
    lines, roots = [], set()
    paper = any(row.paper for row in rows if row.dataset == dataset)
    for row, setting in (study(row, args) for row in rows if row.dataset == dataset):
        done = [pair for seed in setting.seeds if (pair := results(row, setting, seed, args))[1]]
        roots |= {Path(linear["flags"].get("root", "")).name for _, linear in done}
        best, last, knn = (mean([pick(linear) for _, linear in done]) for pick in (
            lambda r: r["best_epoch"]["top1"], lambda r: r["last_epoch"]["top1"], lambda r: r["knn_top1"]))  # fmt: skip
        hours = sum((p["hours"] * row.epochs / p["epochs_done"] if p else 0) + linear["hours"] for p, linear in done)
        where = f"{done[0][1]['machine']['device_name']}, {hours:.2f} h" if done else ""
        views = views_an_image(row)
        cells = [row.method, *(row.flags.get(key, "–") for key in ("d_pos", "d_neg")), setting.arch, row.epochs]
        if paper:
            cells += [setting.batch_size, f"{row.paper:.2f}", f"[model]({row.link})" if row.link else "", best, last, where]
        else:
            cells += [views, views * row.epochs, best, last, knn, len(done), where]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    head = "Method | d_pos | d_neg | Arch | Epochs | " + (
        "Batch size | Paper, % | Download | Here, best epoch, % | Here, last epoch, % | Hardware and hours" if paper else
        "Views an image | Views × epochs | Best epoch, % | Last epoch, % | kNN, % | Seeds | Hardware and hours")  # fmt: skip
    rule = "|" + "|".join(["---"] + [":---:"] * head.count("|")) + "|"
    title = TITLES[dataset] + (f" ({', '.join(sorted(roots))})" if dataset == "folder" and roots else "")
    return "\n".join([f"### {title}", "", f"| {head} |", rule, *lines, ""])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """What to run and how small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("datasets", nargs="*", help="run what is missing of these: " + ", ".join(TITLES))
    add("--row", type=int, nargs="+", default=[], help="run what is missing of these rows")
    add("--all", action="store_true", help="run what is missing of every row of the paper")
    add("--epochs", type=int, help="what stands for the paper's 400 (photos: 10); rows of fewer or more follow in proportion")
    add("--arch", choices=ARCHS, help="default: resnet50; photos: resnet10")
    add("--batch_size", type=int, help="default: 256; photos: 64")
    add("--seeds", type=int, nargs="+", help="default: 0; photos: 0 1 2")
    add("--pretrain", metavar="FLAGS", help="flags of main.py instead of the study's own, as in --pretrain '--precision bf16'")
    add("--linear", metavar="FLAGS", help="flags of linear.py likewise, as in --linear '--epochs 10 --lr 0.01'")
    add("--root", default="data", help="folder of the data sets; of folder: of the images")
    add("--results", default="results", help="folder of the results")
    add("--table", action="store_true", help="print the tables in Markdown")
    return parser.parse_args(argv)


def main() -> None:
    """List, run or print."""
    args = parse_args()
    rows = all_rows()
    unknown = [dataset for dataset in args.datasets if dataset not in TITLES]
    if unknown or any(not 1 <= number <= len(rows) for number in args.row):
        raise UserError(f"data sets are {', '.join(TITLES)}; rows are 1 to {len(rows)}")
    if args.table:
        wanted = args.datasets or [dataset for dataset in TITLES if dataset != "folder"]
        return print("\n".join(table(dataset, rows, args) for dataset in wanted))
    chosen = [row for number, row in enumerate(rows, 1)
              if number in args.row or row.dataset in args.datasets or (args.all and row.paper)]  # fmt: skip
    for row, setting in (study(row, args) for row in chosen):
        for seed in setting.seeds:
            run(row, setting, seed, args)
    print(f"{'row':>3}  {'data set':12} {'method':12} {'settings':34} {'epochs':>6}  {'paper':>5}  state (seed: …)")
    for number, (row, setting) in enumerate((study(row, args) for row in rows), 1):
        if chosen and rows[number - 1] not in chosen:
            continue
        states = {seed: state(row, setting, seed, args) for seed in setting.seeds}
        same = len(states) > 1 and len(set(states.values())) == 1
        text = f"all: {states[setting.seeds[0]]}" if same else "; ".join(f"{seed}: {words}" for seed, words in states.items())
        paper = f"{row.paper:.2f}" if row.paper else ""
        print(f"{number:3}  {row.dataset:12} {row.method:12} {settings_text(row):34} {row.epochs:6}  {paper:>5}  {text}")


if __name__ == "__main__":
    from runtime import run as run_main

    run_main(main)
