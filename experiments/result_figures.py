"""The picture of results: curves of runs, by the flags of experiments/plot.py."""

import argparse
from pathlib import Path

import numpy as np

from attentionce.errors import UserError, as_user_error
from experiments import results
from experiments.style import plt


def plot_curves(args: argparse.Namespace) -> plt.Figure:
    """Loss and kNN top-1 against epochs, views and time: mean and range of the seeds of a run.

    Raises:
        UserError: `--csv` has no tables of main.py.
    """
    runs: dict[str, list[np.ndarray]] = {}
    for path in args.csv:
        if not path.endswith("_linear.csv"):  # which linear.py writes beside main.py's
            runs.setdefault(results.title(Path(path)), []).append(read_metrics(path))
    if not runs:
        raise UserError("curves needs --csv, the tables of metrics of main.py, not of linear.py")
    figure, axes = plt.subplots(
        2, 3, figsize=(11, 6), sharex="col", sharey="row", layout="constrained"
    )
    for column, (name, unit, label) in enumerate(
        (
            ("epoch", 1, "epochs"),
            ("views", 1000, "encoded views (thousands)"),
            ("seconds", 60, "minutes of training"),
        )
    ):
        for title, tables in runs.items():
            rows = min(len(table) for table in tables)  # as far as all have come
            for axis, measured in zip(axes[:, column], ("loss", "knn_top1"), strict=True):
                x, y = (np.stack([t[key][:rows] for t in tables]) for key in (name, measured))
                there = ~np.isnan(y).any(0)  # kNN accuracy is not measured after every epoch
                x, y = x[:, there].mean(0) / unit, y[:, there]
                mark = "." if measured == "knn_top1" else ""
                (line,) = axis.plot(x, y.mean(0), marker=mark, label=title)
                axis.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15, lw=0)
        axes[1, column].set_xlabel(label)
        axes[1, column].locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (each on its own scale)" if len(runs) > 1 else "loss")
    axes[1, 0].set_ylabel("kNN top-1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=2)
    return figure


def read_metrics(path: str) -> np.ndarray:
    """A table of main.py: an array with a field per column, NaN where it has no figure.

    Raises:
        UserError: It is not a table of main.py, or has no rows yet.
    """
    names = ["epoch", "views", "seconds", "loss", "knn_top1"]
    with as_user_error(f"{path} is not a table of metrics of main.py"):
        table = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)[names]
        if not len(table):
            raise ValueError("it has no rows yet")
    return table
