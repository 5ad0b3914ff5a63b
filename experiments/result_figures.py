"""Pictures of results: curves of runs, accuracy beside the paper's, accuracy against d_pos, d_neg.

Each takes the flags of experiments/plot.py.
"""

import argparse
import csv
import shlex
from typing import Any, NamedTuple

import numpy as np

from attentionce.errors import UserError
from attentionce.runs import file_names
from experiments import results, studies
from experiments.style import COLOURS, Axes, AxesImage, Figure, plt
from loss import LOSSES

Metrics = dict[str, np.ndarray]  # the columns of a CSV file of main.py, NaN where it has no figure
Cells = dict[tuple[float, float], list[float]]  # accuracies of all seeds, by (d_pos, d_neg)


# ---- curves ----


def plot_curves(args: argparse.Namespace) -> Figure:
    """Loss and kNN top-1 against epochs, views and time: mean and range of files with one name.

    Raises:
        UserError: `--csv` has no tables of main.py.
    """
    runs = metrics_by_title(args.csv)
    longest = max(table["seconds"][-1] for seeds in runs.values() for table in seeds)
    time, seconds = ("hours", 3600) if longest > 3600 else ("minutes", 60)
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 6), sharex="col", sharey="row", layout="constrained"
    )
    for column, name, unit, label in (
        (0, "epoch", 1, "epochs"),
        (1, "views", 1000, "encoded views (thousands)"),
        (2, "seconds", seconds, f"{time} of training"),
    ):
        for title, seeds in runs.items():
            draw_range(axes[0, column], seeds, name, unit, "loss", "-", title)
            draw_range(axes[1, column], seeds, name, unit, "knn_top1", ".-", title)
        axes[1, column].set_xlabel(label)
        axes[1, column].locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (each on its own scale)" if len(runs) > 1 else "loss")
    axes[1, 0].set_ylabel("kNN top-1 (%)")
    lines, titles = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside lower center", ncol=2, fontsize=10)
    return figure


def metrics_by_title(paths: list[str]) -> dict[str, list[Metrics]]:
    """The tables of main.py among these, those of one name (the seeds of a run) together.

    Raises:
        UserError: None of them is main.py's, or one cannot be read.
    """
    runs: dict[str, list[Metrics]] = {}
    for path in paths:
        if not path.endswith("_linear.csv"):  # which linear.py writes beside main.py's
            runs.setdefault(file_names.title(path, LOSSES), []).append(read_metrics(path))
    if not runs:
        raise UserError(
            "--csv has no tables of main.py: those that end in _linear.csv are linear.py's"
        )
    return runs


def read_metrics(path: str) -> Metrics:
    """The columns of a table of main.py that the curves need.

    Raises:
        UserError: It is not a table of main.py, or has no rows yet.
    """
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {
            name: np.array([float(row[name]) for row in rows])
            for name in ("epoch", "views", "seconds", "loss")
        }
        # kNN accuracy is not measured after every epoch.
        columns["knn_top1"] = np.array([float(row["knn_top1"] or "nan") for row in rows])
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of metrics of main.py ({error!r})") from None
    if not rows:
        raise UserError(f"{path} has no rows yet")
    return columns


def draw_range(
    axis: Axes, seeds: list[Metrics], name: str, unit: float, measured: str, style: str, title: str
) -> None:
    """A line through the mean of the seeds at the epochs that all measured, and their range.

    Args:
        axis: Where to draw.
        seeds: The metrics of every seed.
        name: The column on the x axis, shown in multiples of `unit`.
        unit: See `name`.
        measured: The column on the y axis.
        style: The line's style, as matplotlib has it.
        title: The line's name in the legend.
    """
    common = set.intersection(*(set(t["epoch"][~np.isnan(t[measured])]) for t in seeds))
    where = [np.isin(table["epoch"], sorted(common)) for table in seeds]
    x = np.stack([table[name][rows] for table, rows in zip(seeds, where, strict=True)])
    y = np.stack([table[measured][rows] for table, rows in zip(seeds, where, strict=True)])
    x = x.mean(0) / unit
    (line,) = axis.plot(x, y.mean(0), style, label=title)
    axis.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15, linewidth=0)


# ---- accuracy ----


class Point(NamedTuple):
    """The accuracy of a row, in percent: mean and standard deviation over seeds."""

    epochs: int
    views: int  # encoded views of every image
    mean: float
    deviation: float


def plot_accuracy(args: argparse.Namespace) -> Figure:
    """Linear accuracy (best epoch) of a study; hollow marks are the paper's figures.

    Raises:
        UserError: There is nothing to draw.
    """
    options = studies.parse_flags(shlex.split(args.study))
    curves = accuracies(options)
    dataset = args.beside or next(iter(options.datasets), "")
    published = [row for row in studies.paper_rows() if row.dataset == dataset]
    if not curves and not published:
        raise UserError(
            f"no results of --study {args.study!r}: run python reproduce.py {args.study} first"
        )
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for number, (label, points) in enumerate(curves.items()):
        mean, deviation = [p.mean for p in points], [p.deviation for p in points]
        style: dict[str, Any] = {"fmt": ".-", "capsize": 3, "label": label}
        style["color"] = COLOURS[number % len(COLOURS)]
        left.errorbar([p.epochs for p in points], mean, deviation, **style)
        right.errorbar([p.views for p in points], mean, deviation, **style)
    for row, mark in zip(published, "osD^vP", strict=False):
        style = {"marker": mark, "linestyle": "", "markerfacecolor": "none", "color": "black"}
        style["label"] = f"{row.method}, {row.epochs} epochs (published)"
        views = row.epochs * results.views_per_image(row, studies.PAPER)
        left.plot(row.epochs, row.paper, **style)
        right.plot(views, row.paper, **style)
    left.set(xlabel="epochs", ylabel="linear top-1, best epoch (%)")
    right.set(xlabel="encoded views of each image")
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncol=3, fontsize=8)
    return figure


def accuracies(options: argparse.Namespace) -> dict[str, list[Point]]:
    """What was measured of the data sets, by method and settings."""
    rows = [row for row in studies.all_rows() if row.dataset in options.datasets]
    curves: dict[str, list[Point]] = {}
    for row, study in studies.with_flags(rows, options):
        top1 = [found["best_epoch"]["top1"] for found in results.evaluations(row, study)]
        if top1:
            label = f"{row.method} {row.settings}".strip()
            views = row.epochs * results.views_per_image(row, study)
            point = Point(row.epochs, views, *results.mean_and_deviation(top1))
            curves.setdefault(label, []).append(point)
    return curves


# ---- d_pos × d_neg ----


def plot_grid(args: argparse.Namespace) -> Figure:
    """kNN and linear accuracy of the photographs' d_pos × d_neg runs, mean over seeds.

    Raises:
        UserError: There are no results.
    """
    options = studies.parse_flags(["--results", args.results])
    rows = [row for row in studies.photo_rows() if row.flags.get("num_pos") == 4]
    knn: Cells = {}
    linear: Cells = {}
    for row, study in studies.with_flags(rows, options):
        found = results.evaluations(row, study)
        if found:
            place = row.flags["d_pos"], row.flags["d_neg"]
            knn[place] = [evaluation["knn_top1"] for evaluation in found]
            linear[place] = [evaluation["best_epoch"]["top1"] for evaluation in found]
    if not knn:
        raise UserError(f"no results in {args.results}: run python reproduce.py photos first")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    figure.colorbar(heat_map(left, knn), label="kNN top-1 (%)")
    figure.colorbar(heat_map(right, linear), label="linear top-1, best epoch (%)")
    return figure


def heat_map(axis: Axes, cells: Cells) -> AxesImage:
    """The accuracy of every (d_pos, d_neg), as a colour and in figures."""
    d_pos = sorted({place[0] for place in cells})
    d_neg = sorted({place[1] for place in cells})
    table = np.full((len(d_pos), len(d_neg)), np.nan)
    for place, values in cells.items():
        table[d_pos.index(place[0]), d_neg.index(place[1])] = np.mean(values)
    image = axis.imshow(table, cmap="cividis")
    middle = (np.nanmax(table) + np.nanmin(table)) / 2
    for place, values in cells.items():
        i, j = d_pos.index(place[0]), d_neg.index(place[1])
        colour = "white" if table[i, j] < middle else "black"
        text = results.mean_text(values).replace(" ", "\n", 1)
        axis.text(j, i, text, ha="center", va="center", color=colour)
    axis.set(xticks=range(len(d_neg)), xticklabels=d_neg, xlabel="d_neg")
    axis.set(yticks=range(len(d_pos)), yticklabels=d_pos, ylabel="d_pos")
    axis.grid(False)
    return image
