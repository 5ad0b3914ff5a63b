"""What reproduce.py trains and compares: the rows of the paper's tables and of other studies."""

import argparse
import shlex
from typing import Any, NamedTuple

from attentionce import presets


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
    flags: dict[str, Any]  # of main.py, where they are not its defaults
    epochs: int
    published: float | None = None  # linear accuracy of the best epoch, in percent
    weights: str | None = None  # their file on Google Drive
    seeds: tuple[int, ...] = ()  # none: those of the study
    stops: tuple[int, ...] = ()  # the epochs of all rows of its run; the last is the run's length

    @property
    def method(self) -> str:
        """The loss, and how many positives are noisy, as tables and pictures print it."""
        return presets.title({"loss": self.loss, **self.flags})

    @property
    def settings(self) -> str:
        """The row's numbers on one line: `d_pos=1 d_neg=10`."""
        in_method = {"positives", "negatives", "noisy_positives"}
        return " ".join(f"{k}={value}" for k, value in self.flags.items() if k not in in_method)


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

# The paper's settings of AttentioNCE; those of the other losses are main.py's defaults.
CIFAR: dict[str, Any] = {"d_pos": 1, "d_neg": 10}
PAPER: dict[str, dict[str, Any]] = {
    "stl10": {"d_pos": 2, "d_neg": 0.5},
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tinyImageNet": {"d_pos": 4, "d_neg": 1},
}
# Study, loss, epochs, published accuracy, file of the weights. DCL's, HCL's and BCL's figures are
# their authors', and on STL10 SimCLR's are those of DCL's repository.
PUBLISHED: list[tuple[Any, ...]] = [
    ("stl10", "simclr", 400, 80.15, "1qQE03ztnQCK4dtG-GPwCvF66nq_Mk_mo"),
    ("stl10", "dcl", 400, 84.26, "1d8nfGHsHIuJYjU7mHtCtSXf98IbWMFAa"),
    ("stl10", "hcl", 400, 87.44),
    ("stl10", "bcl", 400, 87.51),
    ("stl10", "attentionce", 200, 87.12, "1f3d8LYeX_8VLtqK1oai6SywmHAV0TwK9"),
    ("stl10", "attentionce", 400, 89.45, "1cQquMQA74GlQD6MQeP1l2zEhkJfdrKCA"),
    ("cifar10", "simclr", 400, 91.12, "1AgKdRXnqBmhTPMAuzwsk1kE-X3OwVGpH"),
    ("cifar10", "bcl", 400, 92.52),
    ("cifar10", "attentionce", 200, 92.42, "1Pq8bMZzqdN9-7c-HmyeKSxTlKhufaYf4"),
    ("cifar10", "attentionce", 400, 93.08, "1pKRs_QT4goC-l62tT48FxrDSRLxQ1Hfd"),
    ("cifar100", "simclr", 400, 66.55),
    ("cifar100", "bcl", 400, 69.70),
    ("cifar100", "attentionce", 200, 69.78, "1hnQAvAgsNa3rOY1cRnZgUsWZLh6KOmUM"),
    ("cifar100", "attentionce", 400, 70.23, "1zGqa28oNiogYjriWJjp-MqkzwDjTskIO"),
    ("tinyImageNet", "simclr", 400, 53.40),
    ("tinyImageNet", "bcl", 400, 57.32),
    ("tinyImageNet", "attentionce", 200, 56.58, "1oQaHY5fW2_3trpBe4xMP4K_x3cRW8UjL"),
    ("tinyImageNet", "attentionce", 400, 58.61, "1lVRxeZBRP18uQsw4FVOtaoBQnK7hU0yG"),
]


def paper_rows(study: Study) -> list[Row]:
    """The published rows of a data set."""
    half = max(1, study.epochs // 2)
    rows = []
    for name, loss, epochs, *published in PUBLISHED:
        if name == study.name:
            flags = PAPER[name] if loss == "attentionce" else {}
            rows.append(Row(study, loss, flags, epochs // 200 * half, *published))
    return rows


def two_view_rows(study: Study, *losses: str, seeds: tuple[int, ...] = ()) -> list[Row]:
    """Losses of two views per image at equal epochs and at equal numbers of encoded views.

    AttentioNCE with four positives encodes six views, so three times the epochs are as many.
    """
    stops = (study.epochs, 3 * study.epochs)
    return [Row(study, loss, {}, stop, seeds=seeds) for loss in losses for stop in stops]


def six_view_rows(study: Study, flags: list[dict[str, Any]]) -> list[Row]:
    """AttentioNCE with each of these flags."""
    return [Row(study, "attentionce", chosen, study.epochs) for chosen in flags]


def photo_rows(study: Study) -> list[Row]:
    """All losses, numbers of positives, d_pos × d_neg."""
    flags = [CIFAR, *({"num_pos": count, **CIFAR} for count in (1, 2, 8))]
    values = (0.1, 1, 10)
    flags += [{"d_pos": p, "d_neg": n} for p in values for n in values if (p, n) != (1, 10)]
    return two_view_rows(study, "simclr", "dcl", "hcl", "bcl") + six_view_rows(study, flags)


def small_rows(study: Study) -> list[Row]:
    """Is AttentioNCE's gain its attention, or its six views?

    With d_pos and d_neg of a million all positives and all negatives count alike, which leaves
    SimCLR with the mean of four positives; with (0.1, 0.5) fewer of them count.
    """
    flags = [{"d_pos": p, "d_neg": n} for p, n in ((1, 10), (10**6, 10**6), (0.1, 0.5))]
    more = two_view_rows(study, "dcl", "hcl", "bcl", seeds=(0,))
    return two_view_rows(study, "simclr") + six_view_rows(study, flags) + more


def folder_rows(study: Study) -> list[Row]:
    """AttentioNCE as it trains; SimCLR at equal numbers of encoded views and, once, of epochs."""
    quarter = max(1, study.epochs // 4)
    rows = [Row(study, "attentionce", CIFAR, part * quarter) for part in (1, 2, 4)]
    return rows + [Row(study, "simclr", {}, part * quarter) for part in (3, 4, 6, 12)]


def combined_rows(study: Study) -> list[Row]:
    """What six views bring every loss, and what attention brings where positives are noisy."""
    positives: list[dict[str, Any]] = [{"positives": "mean"}, {"positives": "each"}]
    positives += [{"d_pos": 1}, {"d_pos": 0.1}]  # attention
    negatives: list[dict[str, Any]] = [{"negatives": "uniform"}, {"d_neg": 10}]  # and attention
    more = [{"negatives": "hard"}, {"negatives": "bayes"}]
    flags = [p | n for p in positives for n in negatives + more]
    for noise in (0.25, 0.5):
        flags += [p | n | {"noisy_positives": noise} for p in positives for n in negatives]
    return six_view_rows(study, flags)


OWN_ROWS = {"photos": photo_rows, "cifar10-small": small_rows, "folder": folder_rows}


def all_rows(args: argparse.Namespace) -> list[Row]:
    """Every row in the order of their numbers, their studies changed by the flags of reproduce.py.

    The rows of a study keep the exact proportions of their epochs.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    changes = {name: given[name] for name in Study._fields if name in given}
    changed = [study._replace(**changes) for study in STUDIES]
    rows = [row for study in changed for row in OWN_ROWS.get(study.name, paper_rows)(study)]
    for study in changed:  # after all others, whose numbers stay
        if study.name in ("photos", "cifar10-small"):
            rows += [row for row in combined_rows(study) if row not in rows]
    complete = []
    for row in rows:
        stops = sorted(other.epochs for other in rows if other[:3] == row[:3])
        seeds = args.seeds or row.seeds or row.study.seeds
        complete.append(row._replace(seeds=seeds, stops=tuple(stops)))
    return complete
