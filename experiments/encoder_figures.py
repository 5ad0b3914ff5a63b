"""Pictures of what an encoder sees: its attention, effective numbers, nearest neighbours and a map of its features."""

import argparse
import itertools
import sys

import numpy as np
import torch
from torch.nn.functional import normalize

from attentionce import attention
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.evaluation.figures import attention_panel, embed, show, some_views
from attentionce.evaluation.knn import features
from attentionce.runs import file_names
from model import Model, load_model
from utils import load

try:
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
except ImportError as error:
    print(
        f"error: pictures need two more packages: pip install matplotlib scikit-learn ({error})",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

COLOURS = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
]  # Okabe and Ito's
plt.switch_backend("Agg")
plt.rcParams.update(
    {
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "figure.dpi": 150,
        "savefig.bbox": "tight",
    }
)


def open_model(path: str, args: argparse.Namespace) -> Model:
    """Weights, or an untrained encoder for `random`, with the arch of the first weights named."""
    if path != "random":
        return load_model(path)[0].eval().to(args.device)
    trained = next((other for other in args.model_path if other != "random"), None)
    arch = load_model(trained)[1] if trained else "resnet10"
    torch.manual_seed(args.seed)
    return Model(arch=arch).eval().to(args.device)


def title_of(path: str) -> str:
    """What a picture calls a model."""
    return "untrained" if path == "random" else file_names.title(path)


def plot_attention(args: argparse.Namespace, images: Images) -> Figure:
    """Every model's α and β on the same views."""
    made = some_views(images.pixels, args.batch_size, args.num_pos, args.image_size, args.seed)
    figure = plt.figure(figsize=(11, 3.4 * len(args.model_path)))
    panels = figure.subfigures(len(args.model_path), 1, squeeze=False)[:, 0]
    for panel, path in zip(panels, args.model_path, strict=True):
        attention_panel(
            panel,
            embed(open_model(path, args), made),
            made,
            args.d_pos,
            args.d_neg,
            3,
            title_of(path),
        )
    return figure


def plot_numbers(args: argparse.Namespace, images: Images) -> Figure:
    """Histograms over anchors of β's effective number of negatives, a row a model."""
    made = some_views(images.pixels, args.batch_size, args.num_pos, args.image_size, args.seed)
    numbers = {
        path: attention.effective_number(
            attention.negative_weights(embed(open_model(path, args), made), args.d_neg)
        )
        for path in args.model_path
    }
    figure, axes = plt.subplots(
        len(numbers),
        1,
        figsize=(8, 0.6 + 1.1 * len(numbers)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    bins = torch.linspace(0, max(n.max() for n in numbers.values()), 41).numpy()
    for axis, (path, found), colour in zip(
        axes[:, 0], numbers.items(), itertools.cycle(COLOURS), strict=False
    ):
        axis.hist(found.numpy(), bins=bins, color=colour, alpha=0.7)
        axis.text(
            0.99,
            0.9,
            f"{title_of(path)}: median {found.median():.0f}",
            ha="right",
            va="top",
            transform=axis.transAxes,
        )
    axes[-1, 0].set_xlabel(
        f"effective number of negatives, of {2 * args.batch_size - 2} (d_neg {args.d_neg:g})"
    )
    figure.supylabel("anchors", fontsize=11)
    return figure


def plot_flags(args: argparse.Namespace, images: Images) -> Figure:
    """Effective numbers of positives and negatives against d_pos and d_neg."""
    made = some_views(images.pixels, args.batch_size, args.num_pos, args.image_size, args.seed)
    values = torch.logspace(-2, 1.3, 30).tolist()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for path in args.model_path:
        z = embed(open_model(path, args), made)
        for axis, weigh in (
            (left, attention.positive_weights),
            (right, attention.negative_weights),
        ):
            axis.plot(
                values,
                [attention.effective_number(weigh(z, d)).mean() for d in values],
                label=title_of(path),
            )
    left.set(
        xscale="log",
        xlabel="d_pos",
        ylabel=f"effective number of positives (of {args.num_pos})",
        ylim=(0, None),
    )
    right.set(
        xscale="log",
        xlabel="d_neg",
        ylabel=f"effective number of negatives (of {2 * args.batch_size - 2})",
        ylim=(0, None),
    )
    left.legend(fontsize=8)
    return figure


def plot_neighbours(args: argparse.Namespace, images: Images) -> Figure:
    """Six test images, each with its six nearest training images in every model's feature space; a frame: same class."""
    train = load(args.dataset_name, args.root, "train", args.store_size)
    chosen = torch.linspace(0, len(images.pixels) - 1, 6).long()
    figure = plt.figure(figsize=(5.2 * len(args.model_path), 5))
    for panel, path in zip(
        figure.subfigures(1, len(args.model_path), squeeze=False)[0], args.model_path, strict=True
    ):
        f = open_model(path, args).f
        bank, asked = (
            features(f, p, args.device, torch.float32)
            for p in (train.pixels, images.pixels[chosen])
        )
        panel.suptitle(
            f"{title_of(path)}\ntest image, its nearest training images (framed: same class)",
            fontsize=9,
        )
        grid = panel.subplots(
            6, 8, width_ratios=[1, 0.3] + [1] * 6, gridspec_kw={"wspace": 0.08, "hspace": 0.08}
        )
        nearest = (normalize(asked, dim=1) @ normalize(bank, dim=1).T).topk(6).indices
        for row, (axes, near) in enumerate(zip(grid, nearest, strict=True)):
            show(axes[0], images.pixels[chosen[row]])
            axes[1].axis("off")
            for axis, i in zip(axes[2:], near, strict=True):
                show(axis, train.pixels[i])
                if train.labels[i] == images.labels[chosen[row]]:
                    axis.spines[:].set(visible=True, color=COLOURS[0], linewidth=3)
    return figure


def plot_map(args: argparse.Namespace, images: Images) -> Figure:
    """t-SNE of up to 1,000 test images' features, a panel a model; colour, mark and, of few classes, a name tell the class.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("the map needs one more package: pip install scikit-learn") from None
    chosen = torch.randperm(len(images.pixels), generator=views.generator(args.seed))[:1000]
    labels = images.labels[chosen]
    figure, axes = plt.subplots(
        1,
        len(args.model_path),
        figsize=(5.4 * len(args.model_path), 5.2),
        squeeze=False,
        layout="constrained",
    )
    for axis, path in zip(axes[0], args.model_path, strict=True):
        feature = normalize(
            features(
                open_model(path, args).f, images.pixels[chosen], args.device, torch.float32
            ).cpu(),
            dim=1,
        )
        flat = TSNE(metric="cosine", init="pca", random_state=args.seed).fit_transform(
            feature.numpy()
        )
        for label in labels.unique():
            mark = "os^Dv*"[int(label) // len(COLOURS) % 6]
            points, colour = flat[labels == label], COLOURS[int(label) % len(COLOURS)]
            axis.plot(*points.T, mark, color=colour, markersize=4)
            if len(labels.unique()) <= 20:
                axis.annotate(
                    images.classes[label],
                    np.median(points, axis=0),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )
        axis.set_title(title_of(path), fontsize=11)
        axis.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    return figure
