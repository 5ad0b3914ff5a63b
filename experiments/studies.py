"""What is trained and compared: the rows of the paper's tables and of the studies beside them.

`python reproduce.py` runs the rows and prints the tables; experiments/results.py reads the results.
"""

import argparse
import shlex
from typing import Any, NamedTuple

from attentionce import cli, presets
from model import ARCHS


class Study(NamedTuple):
    """A table, and how its rows are trained and evaluated unless flags change it."""

    name: str
    title: str
    dataset: str  # main.py's name of the images
    arch: str = "resnet50"
    epochs: int = 400
    batch_size: int = 256
    seeds: tuple[int, ...] = (0,)
    pretrain: list[str] = []  # further flags of main.py
    linear: list[str] = []  # flags of linear.py
    classes: str = ""  # the folders that its images must have; none: any
    root: str = "data"
    results: str = "results"


class Row(NamedTuple):
    """One line of a table. Rows that differ only in epochs are one run, measured several times."""

    study: Study
    loss: str
    flags: dict[str, Any]  # the loss's parameters, as flags of main.py
    epochs: int
    published: float | None = None  # linear accuracy of the best epoch, in percent
    weights: str | None = None  # their file on Google Drive
    seeds: tuple[int, ...] = ()  # none: those of the study
    stops: tuple[int, ...] = ()  # the epochs of all rows of its run; the last is the run's length

    @property
    def method(self) -> str:
        """The loss's name as tables and pictures print it."""
        return presets.title({"loss": self.loss, **self.flags})

    @property
    def settings(self) -> str:
        """The row's own flags on one line: `d_pos=1 d_neg=10`."""
        return " ".join(f"{key}={value}" for key, value in self.flags.items())


STUDIES = [
    Study("stl10", "STL10", "stl10"),
    Study("cifar10", "CIFAR-10", "cifar10"),
    Study("cifar100", "CIFAR-100", "cifar100"),
    Study("tinyImageNet", "TinyImageNet", "tinyImageNet"),
    Study(
        "photos",
        "The embedded photographs",
        "photos",
        "resnet10",
        10,
        64,
        seeds=(0, 1, 2),
        pretrain=shlex.split("--image_size 8 --k 20 --knn_every 5"),
        # The classifier's views are 32 pixels, as the test images are: with 8 the accuracy halved.
        linear=shlex.split("--image_size 32 --k 20 --batch_size 128 --epochs 8 --lr 0.01"),
    ),
    Study("folder", "Your own images", "folder"),
    # Losses of six views per image are trained for 4 epochs, those of two for 12: the same cost.
    # Compiling takes a GPU longer than it saves in so short a run.
    Study(
        "cifar10-small",
        "CIFAR-10 (JPEG), small",
        "folder",
        "resnet10",
        4,
        seeds=(0, 1, 2),
        pretrain=shlex.split("--image_size 16 --knn_every 2 --compile off"),
        linear=shlex.split("--image_size 32 --batch_size 256 --epochs 5 --lr 0.01 --compile off"),
        classes="airplane automobile bird cat deer dog frog horse ship truck",
    ),
]
NAMES = [study.name for study in STUDIES]

# The published figures, and files of the weights. DCL's, HCL's and BCL's are their authors', and on
# STL10 SimCLR's are those of DCL's repository.
PUBLISHED: dict[str, list[tuple[Any, ...]]] = {
    "stl10": [
        ("simclr", {}, 400, 80.15, "1qQE03ztnQCK4dtG-GPwCvF66nq_Mk_mo"),
        ("dcl", {"tau_plus": 0.1}, 400, 84.26, "1d8nfGHsHIuJYjU7mHtCtSXf98IbWMFAa"),
        ("hcl", {"tau_plus": 0.1, "beta": 1.0}, 400, 87.44),
        ("bcl", {"tau_plus": 0.1, "alpha": 0.7, "beta": 1.0}, 400, 87.51),
        (
            "attentionce",
            {"d_pos": 2, "d_neg": 0.5},
            200,
            87.12,
            "1f3d8LYeX_8VLtqK1oai6SywmHAV0TwK9",
        ),
        (
            "attentionce",
            {"d_pos": 2, "d_neg": 0.5},
            400,
            89.45,
            "1cQquMQA74GlQD6MQeP1l2zEhkJfdrKCA",
        ),
    ],
    "cifar10": [
        ("simclr", {}, 400, 91.12, "1AgKdRXnqBmhTPMAuzwsk1kE-X3OwVGpH"),
        ("bcl", {"tau_plus": 0.1, "alpha": 0.9, "beta": 0.9}, 400, 92.52),
        ("attentionce", {"d_pos": 1, "d_neg": 10}, 200, 92.42, "1Pq8bMZzqdN9-7c-HmyeKSxTlKhufaYf4"),
        ("attentionce", {"d_pos": 1, "d_neg": 10}, 400, 93.08, "1pKRs_QT4goC-l62tT48FxrDSRLxQ1Hfd"),
    ],
    "cifar100": [
        ("simclr", {}, 400, 66.55),
        ("bcl", {"tau_plus": 0.1, "alpha": 0.7, "beta": 1.0}, 400, 69.70),
        ("attentionce", {"d_pos": 1, "d_neg": 10}, 200, 69.78, "1hnQAvAgsNa3rOY1cRnZgUsWZLh6KOmUM"),
        ("attentionce", {"d_pos": 1, "d_neg": 10}, 400, 70.23, "1zGqa28oNiogYjriWJjp-MqkzwDjTskIO"),
    ],
    "tinyImageNet": [
        ("simclr", {}, 400, 53.40),
        ("bcl", {"tau_plus": 0.1, "alpha": 0.8, "beta": 1.0}, 400, 57.32),
        ("attentionce", {"d_pos": 4, "d_neg": 1}, 200, 56.58, "1oQaHY5fW2_3trpBe4xMP4K_x3cRW8UjL"),
        ("attentionce", {"d_pos": 4, "d_neg": 1}, 400, 58.61, "1lVRxeZBRP18uQsw4FVOtaoBQnK7hU0yG"),
    ],
}

# The losses that encode two views per image, with the settings that their authors chose for CIFAR.
TWO_VIEWS: dict[str, dict[str, float]] = {
    "simclr": {},
    "dcl": {"tau_plus": 0.1},
    "hcl": {"tau_plus": 0.1, "beta": 1.0},
    "bcl": {"tau_plus": 0.1, "alpha": 0.9, "beta": 0.9},
}


def paper_rows(study: Study) -> list[Row]:
    """The published rows of a data set."""
    half = max(1, study.epochs // 2)
    return [
        Row(study, loss, flags, epochs // 200 * half, *published)
        for loss, flags, epochs, *published in PUBLISHED[study.name]
    ]


def photo_rows(study: Study) -> list[Row]:
    """All losses at equal epochs and at equal encoded views, numbers of positives, d_pos × d_neg.

    AttentioNCE with four positives encodes six views per image where the others encode two, so
    three times the epochs are as many views.
    """
    rows = []
    for loss, flags in TWO_VIEWS.items():
        rows += [Row(study, loss, flags, stop) for stop in (study.epochs, 3 * study.epochs)]
    positives = [(num_pos, 1, 10) for num_pos in (4, 1, 2, 8)]
    grid = [(4, d_pos, d_neg) for d_pos in (0.1, 1, 10) for d_neg in (0.1, 1, 10)]
    for num_pos, d_pos, d_neg in dict.fromkeys([*positives, *grid]):  # each once
        flags = {"num_pos": num_pos, "d_pos": d_pos, "d_neg": d_neg}
        rows.append(Row(study, "attentionce", flags, study.epochs))
    return rows


def small_rows(study: Study) -> list[Row]:
    """Is AttentioNCE's gain its attention, or its six views?

    The losses of two views are measured at equal epochs and, later in the same run, at equal
    numbers of encoded views.
    With d_pos and d_neg of a million all positives and all negatives count alike, which leaves
    SimCLR with the mean of four positives; with (0.1, 0.5) fewer of them count.
    """
    stops = (study.epochs, 3 * study.epochs)
    rows = [Row(study, "simclr", {}, stop) for stop in stops]
    for d_pos, d_neg in ((1, 10), (10**6, 10**6), (0.1, 0.5)):
        rows.append(Row(study, "attentionce", {"d_pos": d_pos, "d_neg": d_neg}, study.epochs))
    for loss in ("dcl", "hcl", "bcl"):
        rows += [Row(study, loss, TWO_VIEWS[loss], stop, seeds=(0,)) for stop in stops]
    return rows


def folder_rows(study: Study) -> list[Row]:
    """AttentioNCE as it trains; SimCLR at equal numbers of encoded views and, once, of epochs."""
    quarter = max(1, study.epochs // 4)
    flags = {"d_pos": 1, "d_neg": 10}
    rows = [Row(study, "attentionce", flags, part * quarter) for part in (1, 2, 4)]
    return rows + [Row(study, "simclr", {}, part * quarter) for part in (3, 4, 6, 12)]


OWN_ROWS = {"photos": photo_rows, "cifar10-small": small_rows, "folder": folder_rows}


def all_rows(args: argparse.Namespace) -> list[Row]:
    """Every row in the order of their numbers, their studies changed by the flags of `add_flags`.

    The rows of a study keep their exact proportions: of other epochs their common unit is scaled
    and rounded down.
    """
    given: dict[str, Any] = {name: getattr(args, name, None) for name in Study._fields}
    changes = {name: value for name, value in given.items() if value is not None}
    rows: list[Row] = []
    for study in STUDIES:
        rows += OWN_ROWS.get(study.name, paper_rows)(study._replace(**changes))
    complete = []
    for row in rows:
        stops = sorted(other.epochs for other in rows if other[:3] == row[:3])
        seeds = args.seeds or row.seeds or row.study.seeds
        complete.append(row._replace(seeds=seeds, stops=tuple(stops)))
    return complete


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose studies and change them; `all_rows` applies them."""
    add = parser.add_argument
    add("datasets", nargs="*", help="run what is missing of these: " + ", ".join(NAMES))
    add("--epochs", type=int, help="default: 400; photos: 10, cifar10-small: 4")
    add("--arch", choices=ARCHS, help="default: resnet50; photos, cifar10-small: resnet10")
    add("--batch_size", type=int, help="default: 256; photos: 64")
    add("--seeds", type=int, nargs="+", help="default: 0; photos, cifar10-small: 0 1 2")
    add("--pretrain", type=shlex.split, metavar="FLAGS", help="of main.py, instead of the study's")
    add("--linear", type=shlex.split, metavar="FLAGS", help="of linear.py, likewise")
    add("--root", default="data", help="folder of the data sets, or of the study's own images")
    add("--results", default="results", help="folder of the results")


def parse_flags(words: list[str]) -> argparse.Namespace:
    """The same flags on their own, as `python -m experiments.plot accuracy --study` takes them."""
    parser = cli.Parser(prog="--study")
    add_flags(parser)
    return parser.parse_args(words)
