"""What main.py and linear.py left of a row: where the files are, and what is in them."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import linear
import main
from attentionce.data.folder_layout import find_split
from attentionce.errors import UserError
from attentionce.runs import file_names, states
from experiments.studies import Row, Study, epochs_of_run
from loss import LOSSES

# Flags of linear.py that do not change its result.
LINEAR_FREE_FLAGS = {
    "cache",
    "compile",
    "device",
    "export",
    "model_path",
    "results",
    "root",
    "skip_broken",
}


class Result(NamedTuple):
    """The content of the JSON files of a row and a seed; None where there is no such file yet."""

    pretraining: dict[str, Any] | None
    evaluation: dict[str, Any] | None


def dataset_name(row: Row, study: Study) -> str:
    """What main.py and linear.py call the row's images."""
    return study.images or row.dataset


def pretraining_flags(row: Row, study: Study) -> list[str]:
    """The flags of main.py that decide the result, except seed and epochs."""
    flags = ["--dataset_name", dataset_name(row, study), "--arch", study.arch]
    flags += ["--batch_size", str(study.batch_size), "--loss", row.loss]
    for key, value in row.flags.items():
        flags += [f"--{key}", str(value)]
    return flags + study.pretrain


def file_stem(row: Row, study: Study, epoch: int) -> str:
    """The name of the row's files at an epoch, without its ending."""
    args = main.parse_args(pretraining_flags(row, study))
    return file_names.file_stem(args, epoch, LOSSES[args.loss])


def check_images(study: Study) -> None:
    """Refuse a folder that does not hold the images which the study's results are of.

    Raises:
        UserError: `--root` lacks a class of the study, has another, or has no images.
    """
    if study.classes and find_split(study.root, "pretrain", None)[0].classes != list(study.classes):
        raise UserError(
            f"--root {study.root}: the folder train must have the folders "
            f"{', '.join(study.classes)}, as docs/study-cifar10.md makes them"
        )


def views_per_image(row: Row, study: Study) -> int:
    """How many views of every image are encoded per epoch."""
    args = main.parse_args(pretraining_flags(row, study))
    return LOSSES[args.loss].views(args.num_pos)


def folder(row: Row, study: Study, seed: int) -> Path:
    """What main.py gets as `--results`."""
    name = f"{study.arch}-{study.epochs}"
    if study.images:
        name = f"{row.dataset}-{name}"
    return Path(study.results) / name / f"seed{seed}"


def weights(row: Row, study: Study, seed: int) -> Path:
    """The row's weights, which main.py writes and linear.py evaluates."""
    name = f"{file_stem(row, study, row.epochs)}.pth"
    return folder(row, study, seed) / dataset_name(row, study) / name


def read(row: Row, study: Study, seed: int) -> Result:
    """What is known of a row and a seed. Files that were made with other flags do not count.

    Raises:
        UserError: A file is damaged.
    """
    common = ["--dataset_name", dataset_name(row, study), "--root", study.root, "--seed", str(seed)]
    pretrain_args = main.parse_args([*pretraining_flags(row, study), *common])
    linear_args = linear.parse_args(["--model_path", "", *common, *study.linear])
    pretrained = weights(row, study, seed)
    length = epochs_of_run(row, study)[-1]
    path = pretrained.with_name(f"{file_stem(row, study, length)}.json")
    own = row.dataset == "folder"
    pretraining = read_json(path, pretrain_args, states.FREE_FLAGS, own)
    if pretraining is None and path.exists():
        return Result(None, None)  # an evaluation would be of the other flags' weights
    path = pretrained.with_name(f"{pretrained.stem}_linear.json")
    return Result(pretraining, read_json(path, linear_args, LINEAR_FREE_FLAGS, own))


def read_json(
    path: Path, wanted: argparse.Namespace, free: set[str], own: bool
) -> dict[str, Any] | None:
    """A result file. None if there is none, or if it was made with other flags than `wanted`.

    Args:
        path: The file.
        wanted: The flags that it must have been made with, as far as it names them.
        free: The flags that may differ.
        own: Whether the images are the user's own, so that another folder means other images.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        flags = states.current_names(found.get("flags", {}))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run its row again") from None
    for key, value in vars(wanted).items():
        if key not in free and flags.get(key, value) != value:
            return None
    root = flags.get("root", wanted.root)
    if own and Path(root).name != Path(wanted.root).name:
        return None
    return found


def evaluations(row: Row, study: Study) -> list[dict[str, Any]]:
    """The linear evaluations of the study's seeds that there are."""
    found = [read(row, study, seed).evaluation for seed in study.seeds]
    return [evaluation for evaluation in found if evaluation]


def hours(row: Row, study: Study) -> float:
    """The hours of pretraining and evaluation of all seeds that were evaluated.

    Pretraining counts in proportion to the row's epochs, if its run was longer.
    """
    total = 0.0
    for seed in study.seeds:
        pretraining, evaluation = read(row, study, seed)
        if evaluation:
            total += evaluation["hours"]
            if pretraining:
                total += pretraining["hours"] * row.epochs / pretraining["epochs_done"]
    return total


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the deviation of a single value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_text(values: list[float]) -> str:
    """`91.20 ± 0.31` over seeds, `91.20` for one, empty for none."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f} ± {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"
