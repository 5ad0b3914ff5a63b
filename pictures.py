"""Pictures of what an encoder sees: its attention, effective numbers, nearest neighbours and a map of its features."""

import argparse
import itertools
import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import attention
import views
import weights
from knn import features
from model import Model, constant_statistics
from utils import Images, UserError, load

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
        return weights.load_model(path)[0].eval().to(args.device)
    trained = next((other for other in args.model_path if other != "random"), None)
    arch = weights.load_model(trained)[1] if trained else "resnet10"
    torch.manual_seed(args.seed)
    return Model(arch=arch).eval().to(args.device)


def title_of(path: str) -> str:
    """What a picture calls a model."""
    return "untrained" if path == "random" else weights.title(path)


def show(axis: plt.Axes, pixels: Tensor, label: str = "") -> None:
    """One image, uint8 3×H×W or float in [0, 1], with a word below."""
    axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(
        visible=True, color="0.8", linewidth=0.5
    )  # or a white image would have no edge
    axis.set_xlabel(label, fontsize=9, labelpad=2)


def short(weight: Tensor) -> str:
    """Two digits, and no zero for what is only small."""
    return f"{weight:.2f}" if weight >= 0.005 else "< 0.01"


def displayed(view: Tensor) -> Tensor:
    """A normalised view as it looks, in [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.MEAN, views.STD))
    return (view.cpu() * std + mean).clamp(0, 1)


def some_views(pixels: Tensor, count: int, num_pos: int, size: int, seed: int) -> Tensor:
    """Views of `count` images drawn from the whole: (2 + num_pos) × count × 3 × size × size."""
    index = torch.randperm(len(pixels), generator=views.generator(seed, 0))[:count]
    draw = views.draw(2 + num_pos, count, *pixels.shape[2:], views.generator(seed, 0, 0))
    return views.make(pixels[index], draw, size)


@torch.no_grad()
def embed(model: Model, made: Tensor) -> Tensor:
    """Projections of views V×B×3×S×S: V×B×dim, on the CPU. BatchNorm uses each view's own statistics, as the loss sees them."""
    device = next(model.parameters()).device
    model.train()
    with constant_statistics(model):
        z = torch.stack([model(view.to(device))[1].cpu() for view in made])
    model.eval()
    return z


def attention_panel(
    figure: Figure, z: Tensor, made: Tensor, d_pos: float, d_neg: float, images: int, title: str
) -> None:
    """Rows of images: first anchor, positives with α, its hardest and easiest negatives with β (mean 1)."""
    alpha = attention.positive_weights(z, d_pos)[0]
    beta = attention.negative_weights(z, d_neg)[: z.shape[1]] * (2 * z.shape[1] - 2)
    anchors = made[:2].flatten(0, 1)
    columns = 1 + alpha.shape[1] + 6
    axes = figure.subplots(
        images,
        columns + 2,
        squeeze=False,
        width_ratios=[1] + [0.25] + [1] * alpha.shape[1] + [0.25] + [1] * 6,
    )
    figure.suptitle(
        f"{title}\nan anchor, its positives with α (d_pos {d_pos:g}), its three hardest and three easiest "
        f"negatives with β (d_neg {d_neg:g}, mean 1)",
        fontsize=10,
    )
    most_to_see = made[0].std((1, 2, 3)).argsort(descending=True)[:images].tolist()
    for row, axis in zip(most_to_see, axes, strict=True):
        negatives = beta[row].masked_fill(beta[row] == 0, -1).argsort(descending=True)
        negatives = [i for i in negatives.tolist() if i % z.shape[1] != row]
        show(axis[0], displayed(made[0, row]), "anchor")
        for m in range(alpha.shape[1]):
            show(axis[2 + m], displayed(made[2 + m, row]), f"α {short(alpha[row, m])}")
        for place, k in enumerate(negatives[:3] + negatives[-3:], 3 + alpha.shape[1]):
            show(axis[place], displayed(anchors[k]), f"β {short(beta[row, k])}")
        for gap in (1, 2 + alpha.shape[1]):
            axis[gap].axis("off")


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
