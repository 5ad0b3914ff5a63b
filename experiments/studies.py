"""What is trained and compared: the rows of the paper's tables and of the studies beside them.

`python reproduce.py` runs the rows and prints the tables; experiments/results.py reads the results.
"""

import argparse
import math
import shlex
from typing import Any, NamedTuple

from attentionce import cli
from loss import LOSSES
from model import ARCHS

TITLES = {
    "stl10": "STL10",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tinyImageNet": "TinyImageNet",
    "photos": "The embedded photographs",
    "cifar10-small": "CIFAR-10 (JPEG), small",
    "folder": "Your own images",
}


class Row(NamedTuple):
    """One line of a table. Rows that differ only in epochs are one run, measured several times."""

    dataset: str  # a data set of main.py, or the name of a study on one
    loss: str
    flags: dict[str, Any]  # the loss's parameters, as flags of main.py
    epochs: int
    paper: float | None = None  # published linear accuracy of the best epoch, in percent
    link: str | None = None  # the authors' weights
    seeds: list[int] | None = None  # None: those of the study

    @property
    def method(self) -> str:
        """The loss's name as tables and pictures print it."""
        return LOSSES[self.loss].title

    @property
    def settings(self) -> str:
        """The row's own flags on one line: `d_pos=1 d_neg=10`."""
        return " ".join(f"{key}={value}" for key, value in self.flags.items())

    def same_run(self, other: "Row") -> bool:
        """Whether the two rows differ in nothing but their epochs."""
        return (self.dataset, self.loss, self.flags) == (other.dataset, other.loss, other.flags)


class Study(NamedTuple):
    """How the rows of a data set are trained and evaluated."""

    arch: str
    epochs: int
    batch_size: int
    seeds: list[int]
    pretrain: list[str]  # further flags of main.py
    linear: list[str]  # flags of linear.py
    root: str = "data"
    results: str = "results"
    images: str | None = None  # main.py's name of the data set, if the study has one of its own
    classes: tuple[str, ...] = ()  # that its folder must have; none: any


PAPER = Study("resnet50", 400, 256, seeds=[0], pretrain=[], linear=[])
PHOTOS = Study(
    "resnet10",
    10,
    64,
    seeds=[0, 1, 2],
    pretrain=shlex.split("--image_size 8 --k 20 --knn_every 5"),
    # The classifier's views are 32 pixels, as the test images are: with 8 the accuracy halved.
    linear=shlex.split("--image_size 32 --k 20 --batch_size 128 --epochs 8 --lr 0.01"),
)
# Losses of six views per image are trained for 4 epochs, those of two for 12: the same cost.
# Compiling takes a GPU longer than it saves in so short a run.
SMALL = Study(
    "resnet10",
    4,
    256,
    seeds=[0, 1, 2],
    pretrain=shlex.split("--image_size 16 --knn_every 2 --compile off"),
    linear=shlex.split("--image_size 32 --batch_size 256 --epochs 5 --lr 0.01 --compile off"),
    images="folder",
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
)
OWN_STUDIES = {"photos": PHOTOS, "cifar10-small": SMALL}  # those that are not sized as the paper's


# The authors' files on Google Drive, by data set, loss and epochs.
WEIGHTS = {
    ("stl10", "simclr", 400): "1qQE03ztnQCK4dtG-GPwCvF66nq_Mk_mo",
    ("stl10", "attentionce", 200): "1f3d8LYeX_8VLtqK1oai6SywmHAV0TwK9",
    ("stl10", "attentionce", 400): "1cQquMQA74GlQD6MQeP1l2zEhkJfdrKCA",
    ("cifar10", "simclr", 400): "1AgKdRXnqBmhTPMAuzwsk1kE-X3OwVGpH",
    ("cifar10", "attentionce", 200): "1Pq8bMZzqdN9-7c-HmyeKSxTlKhufaYf4",
    ("cifar10", "attentionce", 400): "1pKRs_QT4goC-l62tT48FxrDSRLxQ1Hfd",
    ("cifar100", "attentionce", 200): "1hnQAvAgsNa3rOY1cRnZgUsWZLh6KOmUM",
    ("cifar100", "attentionce", 400): "1zGqa28oNiogYjriWJjp-MqkzwDjTskIO",
    ("tinyImageNet", "attentionce", 200): "1oQaHY5fW2_3trpBe4xMP4K_x3cRW8UjL",
    ("tinyImageNet", "attentionce", 400): "1lVRxeZBRP18uQsw4FVOtaoBQnK7hU0yG",
}


def paper_rows() -> list[Row]:
    """The paper's tables, and what the authors of DCL, HCL and BCL report with their settings."""
    rows = [
        Row("stl10", "simclr", {}, 400, 80.15),
        Row("stl10", "dcl", {"tau_plus": 0.1}, 400, 84.26),
        Row("stl10", "hcl", {"tau_plus": 0.1, "beta": 1.0}, 400, 87.44),
        Row("stl10", "bcl", {"tau_plus": 0.1, "alpha": 0.7, "beta": 1.0}, 400, 87.51),
        Row("stl10", "attentionce", {"d_pos": 2, "d_neg": 0.5}, 200, 87.12),
        Row("stl10", "attentionce", {"d_pos": 2, "d_neg": 0.5}, 400, 89.45),
        Row("cifar10", "simclr", {}, 400, 91.12),
        Row("cifar10", "bcl", {"tau_plus": 0.1, "alpha": 0.9, "beta": 0.9}, 400, 92.52),
        Row("cifar10", "attentionce", {"d_pos": 1, "d_neg": 10}, 200, 92.42),
        Row("cifar10", "attentionce", {"d_pos": 1, "d_neg": 10}, 400, 93.08),
        Row("cifar100", "simclr", {}, 400, 66.55),
        Row("cifar100", "bcl", {"tau_plus": 0.1, "alpha": 0.7, "beta": 1.0}, 400, 69.70),
        Row("cifar100", "attentionce", {"d_pos": 1, "d_neg": 10}, 200, 69.78),
        Row("cifar100", "attentionce", {"d_pos": 1, "d_neg": 10}, 400, 70.23),
        Row("tinyImageNet", "simclr", {}, 400, 53.40),
        Row("tinyImageNet", "bcl", {"tau_plus": 0.1, "alpha": 0.8, "beta": 1.0}, 400, 57.32),
        Row("tinyImageNet", "attentionce", {"d_pos": 4, "d_neg": 1}, 200, 56.58),
        Row("tinyImageNet", "attentionce", {"d_pos": 4, "d_neg": 1}, 400, 58.61),
    ]
    return [with_link(row) for row in rows]


def with_link(row: Row) -> Row:
    """The row with the link to its weights, if the authors published any."""
    name = WEIGHTS.get((row.dataset, row.loss, row.epochs))
    return row._replace(link=f"https://drive.google.com/file/d/{name}/view") if name else row


# The losses that encode two views per image, with the settings that their authors chose for CIFAR.
TWO_VIEWS: dict[str, dict[str, float]] = {
    "simclr": {},
    "dcl": {"tau_plus": 0.1},
    "hcl": {"tau_plus": 0.1, "beta": 1.0},
    "bcl": {"tau_plus": 0.1, "alpha": 0.9, "beta": 0.9},
}


def photo_rows() -> list[Row]:
    """All losses at equal epochs and at equal encoded views, numbers of positives, d_pos × d_neg.

    AttentioNCE with four positives encodes six views per image where the others encode two, so
    three times the epochs are as many views.
    """
    rows = []
    for loss, flags in TWO_VIEWS.items():
        for epochs in (PHOTOS.epochs, 3 * PHOTOS.epochs):
            rows.append(Row("photos", loss, flags, epochs))
    settings: list[tuple[int, float, float]] = [(num_pos, 1, 10) for num_pos in (4, 1, 2, 8)]
    for d_pos in (0.1, 1, 10):
        for d_neg in (0.1, 1, 10):
            if (d_pos, d_neg) != (1, 10):
                settings.append((4, d_pos, d_neg))
    for num_pos, d_pos, d_neg in settings:
        flags = {"num_pos": num_pos, "d_pos": d_pos, "d_neg": d_neg}
        rows.append(Row("photos", "attentionce", flags, PHOTOS.epochs))
    return rows


def small_rows() -> list[Row]:
    """Is AttentioNCE's gain its attention, or its six views?

    The losses of two views are measured at equal epochs and, later in the same run, at equal
    numbers of encoded views.
    With d_pos and d_neg of a million all positives and all negatives count alike, which leaves
    SimCLR with the mean of four positives; with (0.1, 0.5) fewer of them count.
    """
    name, epochs, rows = "cifar10-small", SMALL.epochs, []
    for stop in (epochs, 3 * epochs):
        rows.append(Row(name, "simclr", {}, stop))
    for d_pos, d_neg in ((1, 10), (10**6, 10**6), (0.1, 0.5)):
        rows.append(Row(name, "attentionce", {"d_pos": d_pos, "d_neg": d_neg}, epochs))
    for loss in ("dcl", "hcl", "bcl"):
        for stop in (epochs, 3 * epochs):
            rows.append(Row(name, loss, TWO_VIEWS[loss], stop, seeds=[0]))
    return rows


def folder_rows() -> list[Row]:
    """AttentioNCE as it trains; SimCLR at equal numbers of encoded views and, once, of epochs."""
    epochs = PAPER.epochs
    stops = [epochs // 4, epochs // 2, epochs]
    rows = [Row("folder", "attentionce", {"d_pos": 1, "d_neg": 10}, stop) for stop in stops]
    as_many_views = [3 * stop for stop in stops]
    rows += [Row("folder", "simclr", {}, stop) for stop in sorted([epochs, *as_many_views])]
    return rows


def all_rows() -> list[Row]:
    """Every row, in the order of their numbers."""
    return paper_rows() + photo_rows() + folder_rows() + small_rows()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose data sets and change their studies; `with_flags` applies them."""
    add = parser.add_argument
    add("datasets", nargs="*", help="run what is missing of these: " + ", ".join(TITLES))
    add(
        "--epochs",
        type=int,
        help="instead of the paper's 400 (photos: 10, cifar10-small: 4); rows of fewer or more "
        "epochs keep their proportion, rounded down",
    )
    add("--arch", choices=ARCHS, help="default: resnet50; photos, cifar10-small: resnet10")
    add("--batch_size", type=int, help="default: 256; photos: 64")
    add(
        "--seeds", type=int, nargs="+", help="default: 0; photos, cifar10-small: 0 1 2, some rows 0"
    )
    add(
        "--pretrain",
        metavar="FLAGS",
        type=shlex.split,
        help="flags of main.py instead of the study's own, as in --pretrain='--k 20'",
    )
    add(
        "--linear",
        metavar="FLAGS",
        type=shlex.split,
        help="flags of linear.py, likewise, as in --linear='--epochs 10 --lr 0.01'",
    )
    add(
        "--root",
        default="data",
        help="folder of the data sets; for folder and cifar10-small: of the images",
    )
    add("--results", default="results", help="folder of the results")


def parse_flags(words: list[str]) -> argparse.Namespace:
    """The same flags on their own, as `python -m experiments.plot accuracy --study` takes them."""
    parser = cli.Parser(prog="--study")
    add_flags(parser)
    return parser.parse_args(words)


def with_flags(rows: list[Row], args: argparse.Namespace) -> list[tuple[Row, Study]]:
    """The rows and their studies, changed by the flags of `add_flags`."""
    changes = {
        name: getattr(args, name)
        for name in ("arch", "epochs", "batch_size", "seeds", "pretrain", "linear")
        if getattr(args, name) is not None
    }
    changed = []
    for row in rows:
        study = default_study(row.dataset)
        if row.seeds is not None:
            study = study._replace(seeds=row.seeds)
        study = study._replace(root=args.root, results=args.results, **changes)
        changed.append((scaled(row, study), study))
    return changed


def default_study(dataset: str) -> Study:
    """How the data set's rows are run unless flags change it."""
    return OWN_STUDIES.get(dataset, PAPER)


def scaled(row: Row, study: Study) -> Row:
    """The row with its epochs in proportion to the study's.

    The rows of a data set keep their exact ratios: their common unit is scaled and rounded down.
    """
    unit = math.gcd(*(other.epochs for other in all_rows() if other.dataset == row.dataset))
    scaled_unit = max(1, unit * study.epochs // default_study(row.dataset).epochs)
    return row._replace(epochs=row.epochs // unit * scaled_unit)


def epochs_of_run(row: Row, study: Study) -> list[int]:
    """The epochs after which the rows of the same run are measured; the last is its length."""
    return sorted(scaled(other, study).epochs for other in all_rows() if row.same_run(other))
