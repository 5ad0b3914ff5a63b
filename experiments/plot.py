"""Pictures of runs and of what the attention does, as PNG files in pic/.

python -m experiments.plot curves --csv results/photos/*.csv         loss and kNN against epochs
python -m experiments.plot attention --model_path random WEIGHTS     views with their α and β
python -m experiments.plot flags --model_path random WEIGHTS         how many of them count
python -m experiments.plot neighbours --model_path random WEIGHTS    nearest training images
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attentionce import cli
from attentionce.errors import UserError, as_user_error
from attentionce.evaluation.figures import attention_panel, projections, show, some_views
from attentionce.evaluation.knn import features
from attentionce.runs import files
from attentionce.training import devices
from experiments import results
from loss import effective_number, negative_weights, positive_weights
from model import ARCHS, load_encoder, load_model, untrained
from utils import DATASETS, load

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    print(f"error: pictures need pip install matplotlib ({error})", file=sys.stderr)
    raise SystemExit(2) from None

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
plt.switch_backend("Agg")
plt.rc("axes", grid=True, prop_cycle=plt.cycler(color=COLOURS))
plt.rc("axes.spines", top=False, right=False)
plt.rc("font", size=11)
plt.rc("figure", dpi=150)
plt.rc("grid", alpha=0.3)
plt.rc("savefig", bbox="tight")
X_AXES = {  # of the curves, by column of the metrics: unit and label
    "epoch": (1, "epochs"),
    "views": (1000, "encoded views (thousands)"),
    "seconds": (60, "minutes of training"),
}


def plot_curves(args: argparse.Namespace) -> plt.Figure:
    """Loss and kNN top-1 against epochs, views and time: mean and range of the seeds of a run."""
    runs: dict[str, list[np.ndarray]] = {}
    for path in args.csv:
        if not path.endswith("_linear.csv"):  # which linear.py writes beside main.py's
            runs.setdefault(results.title(Path(path)), []).append(read_metrics(path))
    if not runs:
        raise UserError("curves needs --csv, the tables of metrics of main.py, not of linear.py")
    look: dict[str, Any] = {"sharex": "col", "sharey": "row", "layout": "constrained"}
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), **look)
    for column, (name, (unit, label)) in zip(axes.T, X_AXES.items(), strict=True):
        for title, tables in runs.items():
            rows = min(len(table) for table in tables)  # as far as all have come
            for axis, measured, mark in zip(column, ("loss", "knn_top1"), ("", "."), strict=True):
                x, y = (np.stack([t[key][:rows] for t in tables]) for key in (name, measured))
                there = ~np.isnan(y).any(0)  # kNN accuracy is not measured after every epoch
                x, y = x[:, there].mean(0) / unit, y[:, there]
                (line,) = axis.plot(x, y.mean(0), marker=mark, label=title)
                axis.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.15, lw=0)
        column[1].set_xlabel(label)
        column[1].locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (each on its own scale)" if len(runs) > 1 else "loss")
    axes[1, 0].set_ylabel("kNN top-1 (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=2)
    return figure


def read_metrics(path: str) -> np.ndarray:
    """A table of main.py, a field per column, NaN where it has no figure; else a UserError."""
    names = ["epoch", "views", "seconds", "loss", "knn_top1"]
    with as_user_error(f"{path} is not a table of metrics of main.py"):
        table = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)[names]
        if not len(table):
            raise ValueError("it has no rows yet")
    return table


def opened(args: argparse.Namespace, head: bool) -> Iterator[tuple[str, Any]]:
    """The name of every `--model_path`, and its model with projection `head` or its encoder."""
    for path in args.model_path:
        if path == "random":
            name, model = "untrained", untrained(args.arch, None, args.seed)[0]
            found = model if head else model.f
        else:
            name, found = results.title(Path(path)), (load_model if head else load_encoder)(path)[0]
        yield name, found.to(args.device)


def embeddings(args: argparse.Namespace) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Views of test images, (2 + num_pos) × B × 3 × S × S, and each model's name and embeddings."""
    images = load(args.dataset_name, args.root, "test", args.store_size)
    count = min(args.batch_size, len(images.pixels))
    if count < 4:
        raise UserError(f"{count} images are too few: --batch_size must be at least 4")
    made = some_views(images.pixels, count, args.num_pos, args.image_size, args.seed)
    return made, [(name, projections(model, made)) for name, model in opened(args, head=True)]


def plot_attention(args: argparse.Namespace) -> plt.Figure:
    """The attention α and β of every model on the same views."""
    made, found = embeddings(args)
    figure = plt.figure(figsize=(11, 3.4 * len(found)))
    panels = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    for panel, (name, z) in zip(panels, found, strict=True):
        alpha, beta = positive_weights(z, args.d_pos), negative_weights(z, args.d_neg)
        text = f"{name}, d_pos {args.d_pos:g}, d_neg {args.d_neg:g}"
        attention_panel(panel, made, alpha, beta, 3, text)
    return figure


def plot_flags(args: argparse.Namespace) -> plt.Figure:
    """Effective numbers of positives and negatives against d_pos and d_neg."""
    made, found = embeddings(args)
    values = torch.logspace(-2, 1.3, 30).tolist()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, flag, kind, count, weights in (
        (axes[0], "d_pos", "positives", args.num_pos, positive_weights),
        (axes[1], "d_neg", "negatives", 2 * made.shape[1] - 2, negative_weights),
    ):
        for name, z in found:
            numbers = [effective_number(weights(z, value)).mean() for value in values]
            axis.plot(values, numbers, label=name)
        axis.set(xlabel=flag, ylabel=f"effective number of {kind} (of {count})")
        axis.set(xscale="log", ylim=(0, None))
    axes[0].legend(fontsize=8)
    return figure


def plot_neighbours(args: argparse.Namespace) -> plt.Figure:
    """Six test images, each with its six nearest training images, one panel per model.

    Nearest is by cosine in the model's feature space; a frame marks images of the same class.
    """
    source = args.dataset_name, args.root
    train, test = (load(*source, split, args.store_size) for split in ("train", "test"))
    chosen = torch.linspace(0, len(test.pixels) - 1, 6).long()
    figure = plt.figure(figsize=(5.2 * len(args.model_path), 5))
    panels = figure.subfigures(1, len(args.model_path), squeeze=False)[0]
    for panel, (name, f) in zip(panels, opened(args, head=False), strict=True):
        bank, queries = (
            normalize(features(f, pixels, args.device, torch.float32), dim=1)
            for pixels in (train.pixels, test.pixels[chosen])
        )
        nearest = (queries @ bank.T).topk(6).indices.cpu()
        text = f"{name}\ntest image, its nearest training images (framed: same class)"
        panel.suptitle(text, fontsize=9)
        spaces = {"wspace": 0.08, "hspace": 0.08}
        grid = panel.subplots(6, 8, width_ratios=[1, 0.3] + [1] * 6, gridspec_kw=spaces)
        for axes, image, neighbours in zip(grid, chosen, nearest, strict=True):
            show(axes[0], test.pixels[image])
            axes[1].axis("off")
            for axis, neighbour in zip(axes[2:], neighbours, strict=True):
                show(axis, train.pixels[neighbour])
                if train.labels[neighbour] == test.labels[image]:
                    axis.spines[:].set(visible=True, color=COLOURS[0], linewidth=3)
    return figure


PICTURES = {"curves": plot_curves, "attention": plot_attention}
PICTURES |= {"flags": plot_flags, "neighbours": plot_neighbours}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Which pictures, and of what."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="+", choices=PICTURES, metavar="PICTURE", help=", ".join(PICTURES))
    add("--csv", nargs="+", default=[], help="metrics of main.py")
    add("--model_path", nargs="+", default=["random"], help="weights; random: untrained")
    add("--arch", default="resnet10", choices=ARCHS, help="of random weights")
    add("--dataset_name", default="photos", choices=DATASETS)
    add("--root", default="data", help="folder of the data sets")
    add("--store_size", type=int, default=64, help="side of the images of a folder, in pixels")
    add("--image_size", type=int, default=32, help="side of a view, in pixels")
    add("--batch_size", type=int, default=256, help="images whose anchors are negatives")
    add("--num_pos", type=int, default=4, help="positives per image")
    add("--d_pos", type=float, default=1.0)
    add("--d_neg", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--device", help="cuda, mps or cpu (default: the first available)")
    add("--out", default="pic", help="folder of the pictures")
    return parser.parse_args(argv)


def main() -> None:
    """Draw the pictures that are asked for, and print their paths."""
    args = parse_args()
    args.device = devices.choose_device(args.device)
    out = files.writable_folder(Path(args.out))
    for picture in args.pictures:
        figure = PICTURES[picture](args)
        figure.savefig(out / f"{picture}.png")
        plt.close(figure)
        print(out / f"{picture}.png")


if __name__ == "__main__":
    cli.run(main)
