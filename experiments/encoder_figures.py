"""Pictures of what encoders see: attention, effective numbers, neighbours, a map of features.

Each takes the flags of experiments/plot.py and the test images.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce import attention
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.evaluation.figures import attention_panel, embed, show, some_views
from attentionce.evaluation.knn import features
from attentionce.runs import file_names
from experiments.style import COLOURS, Axes, Figure, plt, withStroke
from loss import LOSSES
from model import Model, load_encoder, load_model, stem_of
from utils import load


def open_model(path: str, args: argparse.Namespace) -> Model:
    """The model of these weights. `random` is an untrained one, like the first weights' encoder."""
    if path != "random":
        return load_model(path)[0].eval().to(args.device)
    arch, stem = "resnet10", "small"
    trained = [other for other in args.model_path if other != "random"]
    if trained:
        f, arch = load_encoder(trained[0])
        stem = stem_of(f.state_dict()["0.weight"])
    torch.manual_seed(args.seed)
    return Model(arch=arch, stem=stem).eval().to(args.device)


def open_encoder(path: str, args: argparse.Namespace) -> nn.Sequential:
    """The encoder `f` alone, also of weights without a projection head."""
    if path == "random":
        return open_model(path, args).f
    return load_encoder(path)[0].eval().to(args.device)


def title_of(path: str) -> str:
    """A model's name in pictures."""
    return "untrained" if path == "random" else file_names.title(path, LOSSES)


def views_of(images: Images, args: argparse.Namespace) -> Tensor:
    """The views that all models are shown: (2 + num_pos) × batch_size × 3 × size × size."""
    return some_views(images.pixels, args.batch_size, args.num_pos, args.image_size, args.seed)


def plot_attention(args: argparse.Namespace, images: Images) -> Figure:
    """The attention α and β of every model on the same views."""
    made = views_of(images, args)
    figure = plt.figure(figsize=(11, 3.4 * len(args.model_path)))
    panels = figure.subfigures(len(args.model_path), 1, squeeze=False)[:, 0]
    for panel, path in zip(panels, args.model_path, strict=True):
        z = embed(open_model(path, args), made)
        attention_panel(panel, z, made, args.d_pos, args.d_neg, 3, title_of(path))
    return figure


def plot_numbers(args: argparse.Namespace, images: Images) -> Figure:
    """Histograms over anchors of β's effective number of negatives, one row per model."""
    made = views_of(images, args)
    numbers = {}
    for path in args.model_path:
        beta = attention.negative_weights(embed(open_model(path, args), made), args.d_neg)
        numbers[path] = attention.effective_number(beta)
    size = (8, 0.6 + 1.1 * len(numbers))
    figure, axes = plt.subplots(
        len(numbers), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    largest = max(found.max().item() for found in numbers.values())
    bins = np.linspace(0, largest, 41)
    for row, (path, found) in enumerate(numbers.items()):
        axis = axes[row, 0]
        axis.hist(found.numpy(), bins=bins, color=COLOURS[row % len(COLOURS)], alpha=0.7)
        text = f"{title_of(path)}: median {found.median():.0f}"
        axis.text(0.99, 0.9, text, ha="right", va="top", transform=axis.transAxes)
    negatives = 2 * args.batch_size - 2
    axes[-1, 0].set_xlabel(f"effective number of negatives, of {negatives} (d_neg {args.d_neg:g})")
    figure.supylabel("anchors", fontsize=11)
    return figure


def plot_flags(args: argparse.Namespace, images: Images) -> Figure:
    """Effective numbers of positives and negatives against d_pos and d_neg."""
    made = views_of(images, args)
    values = torch.logspace(-2, 1.3, 30).tolist()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for path in args.model_path:
        z = embed(open_model(path, args), made)
        positives, negatives = [], []
        for value in values:
            alpha = attention.positive_weights(z, value)
            beta = attention.negative_weights(z, value)
            positives.append(attention.effective_number(alpha).mean())
            negatives.append(attention.effective_number(beta).mean())
        left.plot(values, positives, label=title_of(path))
        right.plot(values, negatives, label=title_of(path))
    left.set(xlabel="d_pos", ylabel=f"effective number of positives (of {args.num_pos})")
    of_all = 2 * args.batch_size - 2
    right.set(xlabel="d_neg", ylabel=f"effective number of negatives (of {of_all})")
    for axis in (left, right):
        axis.set(xscale="log", ylim=(0, None))
    left.legend(fontsize=8)
    return figure


def plot_neighbours(args: argparse.Namespace, images: Images) -> Figure:
    """Six test images, each with its six nearest training images, one panel per model.

    Nearest is by cosine in the model's feature space; a frame marks images of the same class.
    """
    train = load(args.dataset_name, args.root, "train", args.store_size)
    chosen = torch.linspace(0, len(images.pixels) - 1, 6).long()
    figure = plt.figure(figsize=(5.2 * len(args.model_path), 5))
    panels = figure.subfigures(1, len(args.model_path), squeeze=False)[0]
    for panel, path in zip(panels, args.model_path, strict=True):
        f = open_encoder(path, args)
        bank = features(f, train.pixels, args.device, torch.float32)
        asked = features(f, images.pixels[chosen], args.device, torch.float32)
        nearest = (normalize(asked, dim=1) @ normalize(bank, dim=1).T).topk(6).indices
        panel.suptitle(
            f"{title_of(path)}\ntest image, its nearest training images (framed: same class)",
            fontsize=9,
        )
        spaces = {"wspace": 0.08, "hspace": 0.08}
        grid = panel.subplots(6, 8, width_ratios=[1, 0.3] + [1] * 6, gridspec_kw=spaces)
        for axes, image, near in zip(grid, chosen, nearest, strict=True):
            show(axes[0], images.pixels[image])
            axes[1].axis("off")
            for axis, neighbour in zip(axes[2:], near, strict=True):
                show(axis, train.pixels[neighbour])
                if train.labels[neighbour] == images.labels[image]:
                    axis.spines[:].set(visible=True, color=COLOURS[0], linewidth=3)
    return figure


def plot_map(args: argparse.Namespace, images: Images) -> Figure:
    """t-SNE of up to 1,000 test images' features, one panel per model.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("the map needs one more package: pip install scikit-learn") from None
    chosen = torch.randperm(len(images.pixels), generator=views.generator(args.seed))[:1000]
    size = (5.4 * len(args.model_path), 5.2)
    figure, axes = plt.subplots(
        1, len(args.model_path), figsize=size, squeeze=False, layout="constrained"
    )
    for axis, path in zip(axes[0], args.model_path, strict=True):
        f = open_encoder(path, args)
        feature = features(f, images.pixels[chosen], args.device, torch.float32).cpu()
        tsne = TSNE(
            metric="cosine",
            init="pca",
            perplexity=min(30, len(chosen) / 3),  # it must be less than the number of images
            random_state=args.seed,
        )
        draw_classes(axis, tsne.fit_transform(normalize(feature, dim=1).numpy()), images, chosen)
        axis.set_title(title_of(path), fontsize=11)
        axis.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    return figure


def draw_classes(axis: Axes, points: np.ndarray, images: Images, chosen: Tensor) -> None:
    """Points N×2 of the N chosen images. Colours and marks tell classes, and names if few."""
    labels = images.labels[chosen]
    for label in labels.unique().tolist():
        colour = COLOURS[label % len(COLOURS)]
        mark = "os^Dv*"[label // len(COLOURS) % 6]
        own = points[(labels == label).numpy()]
        axis.plot(*own.T, mark, color=colour, markersize=4)
        if len(labels.unique()) <= 20:
            axis.annotate(
                images.classes[label],
                np.median(own, axis=0),
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
