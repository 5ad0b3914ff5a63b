"""Pictures of runs and of what the attention does, as PNG files in pic/.

python -m experiments.plot curves --csv results/photos/*.csv             loss and kNN against epochs, views and hours
python -m experiments.plot attention --model_path random WEIGHTS         views with α, negatives with β, untrained and trained
python -m experiments.plot numbers --model_path random WEIGHTS …         histogram of β's effective number of negatives
python -m experiments.plot flags --model_path random WEIGHTS             how d_pos and d_neg move the effective numbers
python -m experiments.plot neighbours --model_path random WEIGHTS        nearest training images of test images
python -m experiments.plot map --model_path random WEIGHTS               t-SNE of test features
python -m experiments.plot accuracy --study cifar10                      linear accuracy against epochs and views, beside the paper's
python -m experiments.plot grid                                          d_pos × d_neg, from the results of reproduce.py
"""

import argparse
import csv
import itertools
import shlex
from pathlib import Path

import numpy as np

import reproduce
from attentionce import cli
from attentionce.errors import UserError
from attentionce.runs import file_names, files
from attentionce.training import devices
from experiments import encoder_figures, studies
from experiments.encoder_figures import plt
from utils import DATASETS, load


def plot_curves(args: argparse.Namespace) -> plt.Figure:
    """Loss and kNN top-1 of main.py's CSV files against epochs, views and time; mean and range of files of one name."""
    runs: dict[str, list[list[dict[str, str]]]] = {}
    for path in (
        path for path in args.csv if not path.endswith("_linear.csv")
    ):  # linear.py's lie beside main.py's
        runs.setdefault(file_names.title(path), []).append(metrics(path))
    if not runs:
        raise UserError(
            "none of the tables of --csv is main.py's: those that end in _linear.csv are linear.py's"
        )
    longest = max(float(rows[-1]["seconds"]) for seeds in runs.values() for rows in seeds)
    time, seconds = ("hours", 3600) if longest > 3600 else ("minutes", 60)
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 6), sharex="col", sharey="row", layout="constrained"
    )
    for label, seeds in runs.items():
        for column, key, unit in zip(
            axes.T, ("epoch", "views", "seconds"), (1, 1000, seconds), strict=True
        ):
            for axis, what in zip(column, ("loss", "knn_top1"), strict=True):
                known = [[row for row in rows if row[what]] for rows in seeds]
                known = [rows[: min(map(len, known))] for rows in known]  # what all seeds have
                x, y = (
                    np.array([[float(row[name]) for row in rows] for rows in known])
                    for name in (key, what)
                )
                (line,) = axis.plot(
                    x.mean(0) / unit, y.mean(0), "-" if what == "loss" else ".-", label=label
                )
                axis.fill_between(
                    x.mean(0) / unit,
                    y.min(0),
                    y.max(0),
                    color=line.get_color(),
                    alpha=0.15,
                    linewidth=0,
                )
    for axis, label in zip(
        axes[1], ("epochs", "encoded views (thousands)", f"{time} of training"), strict=True
    ):
        axis.set_xlabel(label)
        axis.locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (each on its own scale)" if len(runs) > 1 else "loss")
    axes[1, 0].set_ylabel("kNN top-1 (%)")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=2, fontsize=10
    )
    return figure


def metrics(path: str) -> list[dict[str, str]]:
    """The rows of a table of metrics.

    Raises:
        UserError: it is none of main.py's.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            _ = [float(row[key]) for key in ("epoch", "views", "seconds", "loss")], row["knn_top1"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no table of metrics of main.py ({error!r})") from None
    if not rows:
        raise UserError(f"{path} has no rows yet")
    return rows


def plot_accuracy(args: argparse.Namespace) -> plt.Figure:
    """Linear accuracy (best epoch, mean and deviation over seeds) of a study of reproduce.py; hollow: the paper's figures.

    Raises:
        UserError: nothing was measured, and the paper has no figures either.
    """
    options = reproduce.parse_args(shlex.split(args.study))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    lines: dict[str, list[tuple[int, int, list[float]]]] = {}
    for row, setting in (
        reproduce.study(row, options)
        for row in studies.all_rows()
        if row.dataset in options.datasets
    ):
        found = [
            linear["best_epoch"]["top1"]
            for seed in setting.seeds
            if (linear := reproduce.results(row, setting, seed, options)[1])
        ]
        if found:
            label = f"{row.method} {reproduce.settings_text(row)}".strip()
            lines.setdefault(label, []).append(
                (row.epochs, row.epochs * reproduce.views_an_image(row), found)
            )
    for number, (label, points) in enumerate(lines.items()):
        for axis, place in zip(axes, (0, 1), strict=True):
            means, spreads = zip(
                *(reproduce.mean_and_spread(point[2]) for point in points), strict=True
            )
            axis.errorbar(
                [p[place] for p in points],
                means,
                spreads,
                fmt=".-",
                capsize=3,
                label=label,
                color=f"C{number % 7}",
            )
    published = [
        row
        for row in studies.paper_rows()
        if row.dataset == (args.beside or next(iter(options.datasets), ""))
    ]
    for row, mark in zip(published, "osD^vP", strict=False):
        for axis, x in zip(
            axes, (row.epochs, row.epochs * reproduce.views_an_image(row)), strict=True
        ):
            axis.plot(
                x,
                row.paper,
                mark,
                mfc="none",
                color="black",
                label=f"{row.method}, {row.epochs} epochs (published)",
            )
    if not lines and not published:
        raise UserError(
            f"no results of --study {args.study!r}: run python reproduce.py {args.study} first"
        )
    axes[0].set(xlabel="epochs", ylabel="linear top-1, best epoch (%)")
    axes[1].set(xlabel="encoded views of each image")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=8
    )
    return figure


def plot_grid(args: argparse.Namespace) -> plt.Figure:
    """kNN and linear accuracy of the photographs' d_pos × d_neg runs, mean over seeds."""
    options = reproduce.parse_args(["--results", args.results])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, title, pick in zip(
        axes,
        ("kNN top-1 (%)", "linear top-1, best epoch (%)"),
        (lambda found: found["knn_top1"], lambda found: found["best_epoch"]["top1"]),
        strict=True,
    ):
        cells = {}
        for row, setting in (reproduce.study(row, options) for row in studies.photo_rows()):
            found = [reproduce.results(row, setting, seed, options)[1] for seed in setting.seeds]
            if row.flags.get("num_pos") == 4 and any(found):
                cells[row.flags["d_pos"], row.flags["d_neg"]] = [
                    pick(linear) for linear in found if linear
                ]
        if not cells:
            raise UserError(f"no results in {args.results}: run python reproduce.py photos first")
        figure.colorbar(heat_map(axis, cells), label=title)
    return figure


def heat_map(
    axis: plt.Axes, cells: dict[tuple[float, float], list[float]]
) -> plt.cm.ScalarMappable:
    """What was found for every (d_pos, d_neg), as colour and in figures."""
    rows, columns = (sorted({key[i] for key in cells}) for i in (0, 1))
    table = np.array(
        [[np.mean(cells[r, c]) if (r, c) in cells else np.nan for c in columns] for r in rows]
    )
    image = axis.imshow(table, cmap="cividis")
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        light = table[i, j] < (np.nanmax(table) + np.nanmin(table)) / 2
        axis.text(
            j,
            i,
            reproduce.mean(cells.get((r, c), [])).replace(" ", "\n", 1),
            ha="center",
            va="center",
            color="white" if light else "black",
        )
    axis.set(
        xticks=range(len(columns)),
        xticklabels=columns,
        yticks=range(len(rows)),
        yticklabels=rows,
        xlabel="d_neg",
        ylabel="d_pos",
    )
    axis.grid(False)
    return image


OF_ENCODERS = {
    "attention": encoder_figures.plot_attention,
    "numbers": encoder_figures.plot_numbers,
    "flags": encoder_figures.plot_flags,
    "neighbours": encoder_figures.plot_neighbours,
    "map": encoder_figures.plot_map,
}
OF_RESULTS = {"curves": plot_curves, "accuracy": plot_accuracy, "grid": plot_grid}
PICTURES = {**OF_ENCODERS, **OF_RESULTS}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Which picture, of what."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="+", choices=PICTURES, metavar="PICTURE", help=", ".join(PICTURES))
    add("--csv", nargs="+", default=[], help="metrics of main.py")
    add(
        "--model_path",
        nargs="+",
        default=["random"],
        metavar="PATH",
        help="weights; random: untrained",
    )
    add("--dataset_name", default="photos", choices=DATASETS)
    add("--root", default="data", help="folder of the data sets")
    add(
        "--store_size",
        type=int,
        default=64,
        help="side that the images of a folder are kept at, in pixels",
    )
    add("--image_size", type=int, default=32, help="side of a view, in pixels")
    add(
        "--batch_size",
        type=int,
        default=256,
        help="images whose anchors are each other's negatives",
    )
    add("--num_pos", type=int, default=4, help="positives an image")
    add("--d_pos", type=float, default=1.0)
    add("--d_neg", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    add("--results", default="results", help="folder of reproduce.py's results")
    add("--study", default="cifar10", help="accuracy: data set and flags, as given to reproduce.py")
    add(
        "--beside",
        choices=studies.TITLES,
        help="accuracy: whose published figures are drawn (default: the study's)",
    )
    add("--out", default="pic", help="folder of the pictures")
    return parser.parse_args(argv)


def main() -> None:
    """Draw what is asked for."""
    args = parse_args()
    args.device = devices.choose_device(args.device)
    out = files.writable_folder(Path(args.out))
    if "curves" in args.pictures and not args.csv:
        raise UserError("curves needs --csv, main.py's tables of metrics")
    needs_images = set(args.pictures) & set(OF_ENCODERS)
    images = load(args.dataset_name, args.root, "test", args.store_size) if needs_images else None
    if images is not None:
        args.batch_size = min(args.batch_size, len(images.pixels))
        if args.batch_size < 4:
            raise UserError(
                f"{args.batch_size} images are too few for a picture: --batch_size must be at least 4"
            )
    for picture in args.pictures:
        figure = PICTURES[picture](*([args, images] if picture in needs_images else [args]))
        figure.savefig(out / f"{picture}.png")
        plt.close(figure)
        print(out / f"{picture}.png")


if __name__ == "__main__":
    cli.run(main)
