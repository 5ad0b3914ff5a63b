"""The rows of the paper's tables and of the studies beside them: what was trained, for how long, and the published figures."""

from typing import Any, NamedTuple

from attentionce.runs import file_names


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
PHOTOS = Study(
    "resnet10",
    10,
    64,
    [0, 1, 2],
    ["--image_size", "8", "--k", "20", "--knn_every", "5"],
    ["--image_size", "32", "--k", "20", "--batch_size", "128", "--epochs", "8", "--lr", "0.01"],
)
TITLES = {
    "stl10": "STL10",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tinyImageNet": "TinyImageNet",
    "photos": "The embedded photographs",
    "folder": "Your own images",
}
DRIVE = "https://drive.google.com/file/d/{}/view"


def paper_rows() -> list[Row]:
    """The tables of the paper, and what the authors of DCL, HCL and BCL report with their own settings."""

    def attention(
        dataset: str, d_pos: float, d_neg: float, half: float, full: float, *links: str
    ) -> list[Row]:
        flags = {"loss": "attentionce", "d_pos": d_pos, "d_neg": d_neg}
        figures = zip((200, 400), (half, full), links, strict=True)
        return [
            Row(dataset, "AttentioNCE", flags, *figure, DRIVE.format(link))
            for *figure, link in figures
        ]

    def other(
        dataset: str, loss: str, figure: float, link: str | None = None, **flags: float
    ) -> Row:
        return Row(
            dataset,
            file_names.METHODS[loss],
            {"loss": loss, **flags},
            400,
            figure,
            DRIVE.format(link) if link else None,
        )

    return [
        other("stl10", "simclr", 80.15, "1qQE03ztnQCK4dtG-GPwCvF66nq_Mk_mo"),
        other("stl10", "dcl", 84.26, tau_plus=0.1),
        other("stl10", "hcl", 87.44, tau_plus=0.1, beta=1.0),
        other("stl10", "bcl", 87.51, tau_plus=0.1, alpha=0.7, beta=1.0),
        *attention(
            "stl10",
            2,
            0.5,
            87.12,
            89.45,
            "1f3d8LYeX_8VLtqK1oai6SywmHAV0TwK9",
            "1cQquMQA74GlQD6MQeP1l2zEhkJfdrKCA",
        ),
        other("cifar10", "simclr", 91.12, "1AgKdRXnqBmhTPMAuzwsk1kE-X3OwVGpH"),
        other("cifar10", "bcl", 92.52, tau_plus=0.1, alpha=0.9, beta=0.9),
        *attention(
            "cifar10",
            1,
            10,
            92.42,
            93.08,
            "1Pq8bMZzqdN9-7c-HmyeKSxTlKhufaYf4",
            "1pKRs_QT4goC-l62tT48FxrDSRLxQ1Hfd",
        ),
        other("cifar100", "simclr", 66.55),
        other("cifar100", "bcl", 69.70, tau_plus=0.1, alpha=0.7, beta=1.0),
        *attention(
            "cifar100",
            1,
            10,
            69.78,
            70.23,
            "1hnQAvAgsNa3rOY1cRnZgUsWZLh6KOmUM",
            "1zGqa28oNiogYjriWJjp-MqkzwDjTskIO",
        ),
        other("tinyImageNet", "simclr", 53.40),
        other("tinyImageNet", "bcl", 57.32, tau_plus=0.1, alpha=0.8, beta=1.0),
        *attention(
            "tinyImageNet",
            4,
            1,
            56.58,
            58.61,
            "1oQaHY5fW2_3trpBe4xMP4K_x3cRW8UjL",
            "1lVRxeZBRP18uQsw4FVOtaoBQnK7hU0yG",
        ),
    ]


def photo_rows() -> list[Row]:
    """All losses at equal epochs and at equal numbers of encoded views, then the number of positives, then d_pos × d_neg.

    AttentioNCE encodes six views of an image where the others encode two: three times the epochs are as many views.
    """
    epochs = PHOTOS.epochs
    others = {
        "SimCLR": {"loss": "simclr"},
        "DCL": {"loss": "dcl", "tau_plus": 0.1},
        "HCL": {"loss": "hcl", "tau_plus": 0.1, "beta": 1.0},
        "BCL": {"loss": "bcl", "tau_plus": 0.1, "alpha": 0.9, "beta": 0.9},
    }
    rows = [
        Row("photos", method, flags, e)
        for method, flags in others.items()
        for e in (epochs, 3 * epochs)
    ]
    grid = [(4, 1, 10), (1, 1, 10), (2, 1, 10), (8, 1, 10)]
    grid += [
        (4, d_pos, d_neg)
        for d_pos in (0.1, 1, 10)
        for d_neg in (0.1, 1, 10)
        if (d_pos, d_neg) != (1, 10)
    ]
    for num_pos, d_pos, d_neg in grid:
        flags = {"loss": "attentionce", "num_pos": num_pos, "d_pos": d_pos, "d_neg": d_neg}
        rows.append(Row("photos", "AttentioNCE", flags, epochs))
    return rows


def folder_rows() -> list[Row]:
    """AttentioNCE as it goes on, and SimCLR at equal numbers of encoded views and, once, at equal epochs."""
    epochs, flags = PAPER.epochs, {"loss": "attentionce", "d_pos": 1, "d_neg": 10}
    stops = (epochs // 4, epochs // 2, epochs)
    rows = [Row("folder", "AttentioNCE", flags, stop) for stop in stops]
    return rows + [
        Row("folder", "SimCLR", {"loss": "simclr"}, stop)
        for stop in sorted([epochs, *(3 * s for s in stops)])
    ]


def all_rows() -> list[Row]:
    """Every row, in the order of their numbers."""
    return paper_rows() + photo_rows() + folder_rows()
