"""What main.py and linear.py left of a row: where the files are, and what is in them."""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import linear
import main
from attentionce import presets
from attentionce.errors import as_user_error
from attentionce.evaluation import linear_classifier
from attentionce.runs import states
from experiments.studies import Row
from loss import NEGATIVES, POSITIVES


class Result(NamedTuple):
    """The content of the JSON files of a row and a seed, as far as there are any."""

    pretraining: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]  # by mode


def modes(row: Row) -> tuple[str, ...]:
    """How the row is evaluated: a published one as it was published, too."""
    return ("reference", "frozen") if row.published else ("frozen",)


def pretraining_flags(row: Row, seed: int) -> list[str]:
    """The flags of main.py that train the row's run."""
    study = row.study
    name = f"{study.arch}-{study.epochs}"
    if study.classes:  # apart from other images that main.py also calls a folder
        name = f"{study.name}-{name}"
    flags = {"dataset_name": study.dataset, "loss": row.loss, **row.flags}
    flags |= {"arch": study.arch, "batch_size": study.batch_size}
    last = {"root": study.root, "seed": seed, "results": Path(study.results, name, f"seed{seed}")}
    last |= {"epochs": row.stops[-1], "save_every": math.gcd(*row.stops)}
    return [*words(flags), *study.pretrain, *words(last)]


def evaluation_flags(row: Row, seed: int, mode: str) -> list[str]:
    """The flags of linear.py that evaluate the row in one of its modes."""
    flags = {"dataset_name": row.study.dataset, "root": row.study.root, "seed": seed}
    flags |= {"model_path": run_file(row, seed, row.epochs, ".pth"), "encoder_mode": mode}
    return [*words(flags), *row.study.linear]


def words(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line has them."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def run_file(row: Row, seed: int, epochs: int, ending: str) -> Path:
    """A file of the row's run after these epochs."""
    args = main.parse_args(pretraining_flags(row, seed))
    return Path(args.results, args.dataset_name, presets.file_stem(args, epochs) + ending)


def views_per_image(row: Row) -> int:
    """How many views of every image are encoded per epoch."""
    return 2 + (main.parse_args(pretraining_flags(row, 0)).num_pos or 0)


def title(path: Path) -> str:
    """What a file of main.py is of, by the flags in the JSON file beside it; else its name.

    `AttentioNCE (d_pos 2, d_neg 0.5), 400 epochs`, for example.
    """
    flags = states.flags_beside(path)
    if "loss" not in flags:
        return path.stem
    positives, negatives = presets.ingredients_of(flags)
    taken = {**POSITIVES[positives][1], **NEGATIVES[negatives][1]}
    numbers = [f"{name} {flags[name]:g}" for name in presets.PARAMETERS if name in taken]
    if positives != "pair" and flags["num_pos"] != 4:
        numbers.append(f"{flags['num_pos']} positives")
    settings = f" ({', '.join(numbers)})" if numbers else ""
    return f"{presets.title(flags)}{settings}, {path.stem.split('_')[4]} epochs"


def read(row: Row, seed: int) -> Result:
    """What was measured of a row and a seed. Files that were made with other flags do not count."""
    args = main.parse_args(pretraining_flags(row, seed))
    path = run_file(row, seed, row.stops[-1], ".json")
    pretraining = read_json(path, args, states.FREE_FLAGS, row)
    if path.exists() and pretraining is None:
        return Result(None, {})  # an evaluation would be of the other flags' weights
    evaluations, free = {}, linear_classifier.FREE_FLAGS - {"epochs"}
    for mode in modes(row):
        args = linear.parse_args(evaluation_flags(row, seed, mode))
        name = linear.result_path(args.model_path[0], "", args).name
        evaluation = read_json(path.with_name(f"{name}.json"), args, free, row)
        if evaluation is not None:
            evaluations[mode] = evaluation
    return Result(pretraining, evaluations)


def read_json(
    path: Path, args: argparse.Namespace, free: set[str], row: Row
) -> dict[str, Any] | None:
    """A result that was made with these flags, those in `free` and newer ones aside, or None.

    Of your own images, other ones are those in a folder of another name. A damaged file is a
    UserError.
    """
    if not path.exists():
        return None
    with as_user_error(f"{path} is damaged: remove it and run its row again"):
        found = json.loads(path.read_text())
        flags = dict(found["flags"])
    same = not states.differing_flags(args, vars(args) | flags, free)
    if row.study.name == "folder":
        same &= Path(flags.get("root", args.root)).name == Path(args.root).name
    return found if same else None


def evaluations(row: Row, which: int) -> list[dict[str, Any]]:
    """The linear evaluations of the row's seeds that there are, in the first (0) or last mode (-1).

    As published, and frozen; both are the same for rows that were not published.
    """
    mode, found = modes(row)[which], [read(row, seed).evaluations for seed in row.seeds]
    return [evaluations[mode] for evaluations in found if mode in evaluations]


def hours(row: Row) -> float:
    """The hours of all seeds that were evaluated, of a longer pretraining in proportion."""
    total = 0.0
    for pretraining, evaluations in (read(row, seed) for seed in row.seeds):
        total += sum(evaluation["hours"] for evaluation in evaluations.values())
        if evaluations and pretraining:
            total += pretraining["hours"] * row.epochs / pretraining["epochs_done"]
    return total


def mean_text(values: list[float]) -> str:
    """`91.20 ± 0.31` over seeds, `91.20` for one, empty for none."""
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    return f"{values[0]:.2f}" if values else ""
