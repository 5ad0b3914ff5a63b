"""Pictures of results: curves of runs, accuracy beside the published, accuracy on d_pos × d_neg.

Each takes the flags of experiments/plot.py.
"""

import argparse
import csv
import shlex
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from attentionce.errors import UserError
from experiments import results, studies
from experiments.style import COLOURS, plt

Metrics = dict[str, np.ndarray]  # the columns of a CSV file of main.py, NaN where it has no figure


def plot_curves(args: argparse.Namespace) -> plt.Figure:
    """Loss and kNN top-1 against epochs, views and time: mean and range of the seeds of a run.

    Raises:
        UserError: `--csv` has no tables of main.py.
    """
    runs: dict[str, list[Metrics]] = {}
    for path in args.csv:
        if not path.endswith("_linear.csv"):  # which linear.py writes beside main.py's
            runs.setdefault(results.title(Path(path)), []).append(read_metrics(path))
    if not runs:
        raise UserError("curves needs --csv, the tables of metrics of main.py, not of linear.py")
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
        for title, tables in runs.items():
            for axis, measured in zip(axes[:, column], ("loss", "knn_top1"), strict=True):
                rows = min(len(table["epoch"]) for table in tables)  # as far as all have come
                x, y = (np.stack([t[key][:rows] for t in tables]) for key in (name, measured))
                there = ~np.isnan(y).any(0)  # kNN accuracy is not measured after every epoch
                x, y = x[:, there].mean(0) / unit, y[:, there]
                (line,) = axis.plot(
                    x, y.mean(0), ".-" if axis is axes[1, column] else "-", label=title
                )
                axis.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15, lw=0)
        axes[1, column].set_xlabel(label)
        axes[1, column].locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (each on its own scale)" if len(runs) > 1 else "loss")
    axes[1, 0].set_ylabel("kNN top-1 (%)")
    lines, titles = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside lower center", ncol=2, fontsize=10)
    return figure


def read_metrics(path: str) -> Metrics:
    """The columns of a table of main.py that the curves need.

    Raises:
        UserError: It is not a table of main.py, or has no rows yet.
    """
    names = ("epoch", "views", "seconds", "loss", "knn_top1")
    try:
        with open(path, newline="") as file:
            rows = [
                [float("nan" if row[name] == "" else row[name]) for name in names]
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of metrics of main.py ({error!r})") from None
    if not rows:
        raise UserError(f"{path} has no rows yet")
    return dict(zip(names, np.array(rows).T, strict=True))


def plot_accuracy(args: argparse.Namespace) -> plt.Figure:
    """Linear accuracy of a study, best and last epoch; hollow marks are the published figures.

    Raises:
        UserError: There is nothing to draw.
    """
    options = studies.parse_flags(shlex.split(args.study))
    rows = [row for row in studies.all_rows(options) if row.study.name in options.datasets]
    curves: dict[str, list[studies.Row]] = {}
    for row in rows:
        if results.evaluations(row, 0) and results.evaluations(row, -1):
            curves.setdefault(f"{row.method} {row.settings}".strip(), []).append(row)
    paper = studies.all_rows(studies.parse_flags(options.datasets))
    published = [row for row in paper if row.published and row.study.name in options.datasets]
    if not curves and not published:
        raise UserError(
            f"no results of --study {args.study!r}: run python reproduce.py {args.study} first"
        )
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    style: dict[str, Any]
    for axis, text, views in (
        (axes[0], "epochs", lambda row: 1),
        (axes[1], "encoded views of each image", results.views_per_image),
    ):
        for number, (label, stops) in enumerate(curves.items()):
            x = [row.epochs * views(row) for row in stops]
            for epoch, fmt in (("best", ".-"), ("last", ".:")):
                top1 = [results.top1(row, epoch) for row in stops]
                deviations = [statistics.stdev(y) if len(y) > 1 else 0 for y in top1]
                style = {"fmt": fmt, "capsize": 3, "color": COLOURS[number % len(COLOURS)]}
                style["label"] = f"{label}, {epoch} epoch"
                axis.errorbar(x, [statistics.mean(y) for y in top1], deviations, **style)
        for row, mark in zip(published, "osD^vP", strict=False):
            style = {"marker": mark, "linestyle": "", "markerfacecolor": "none", "color": "black"}
            style["label"] = f"{row.method}, {row.epochs} epochs, best epoch (published)"
            axis.plot(row.epochs * views(row), row.published, **style)
        axis.set_xlabel(text)
    axes[0].set_ylabel("linear top-1 (%)")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncol=2, fontsize=8)
    return figure


def plot_grid(args: argparse.Namespace) -> plt.Figure:
    """kNN and linear accuracy of the photographs' d_pos × d_neg runs, mean over seeds.

    Raises:
        UserError: There are no results.
    """
    rows = {
        (row.flags["d_pos"], row.flags["d_neg"]): row
        for row in studies.all_rows(studies.parse_flags(["--results", args.results]))
        if row.study.name == "photos" and row.flags.get("num_pos") == 4
    }
    if not any(results.evaluations(row, 0) for row in rows.values()):
        raise UserError(f"no results in {args.results}: run python reproduce.py photos first")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    d_pos, d_neg = (sorted({pair[i] for pair in rows}) for i in (0, 1))
    for axis, label, measure in (
        (
            axes[0],
            "kNN top-1 (%)",
            lambda row: [e["knn_top1"] for e in results.evaluations(row, 0)],
        ),
        (axes[1], "linear top-1, last epoch (%)", lambda row: results.top1(row, "last")),
        (axes[2], "linear top-1, best epoch (%)", lambda row: results.top1(row, "best")),
    ):
        cells = [[measure(rows[p, n]) for n in d_neg] for p in d_pos]
        table = np.array([[np.mean(values or np.nan) for values in line] for line in cells])
        figure.colorbar(axis.imshow(table, cmap="cividis"), label=label)
        middle = (np.nanmax(table) + np.nanmin(table)) / 2
        for (i, j), mean in np.ndenumerate(table):
            text = results.mean_text(cells[i][j]).replace(" ", "\n", 1)
            colour = "white" if mean < middle else "black"
            axis.text(j, i, text, ha="center", va="center", color=colour)
        axis.set(xticks=range(len(d_neg)), xticklabels=d_neg, xlabel="d_neg")
        axis.set(yticks=range(len(d_pos)), yticklabels=d_pos, ylabel="d_pos")
        axis.grid(False)
    return figure
