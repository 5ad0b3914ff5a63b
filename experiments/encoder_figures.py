"""Pictures of what encoders see: attention, effective numbers, neighbours.

Each takes the flags of experiments/plot.py and shows every encoder of `--model_path`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce.errors import UserError
from attentionce.evaluation.figures import attention_panel, projections, show, some_views
from attentionce.evaluation.knn import features
from experiments import results
from experiments.style import COLOURS, plt
from loss import effective_number, negative_weights, positive_weights
from model import load_encoder, load_model, untrained
from utils import load


def opened(args: argparse.Namespace, part: str) -> Iterator[tuple[str, nn.Module]]:
    """The name and the model, or its encoder alone (part "f"), of every `--model_path`."""
    for path in args.model_path:
        if path == "random":
            model = untrained(args.arch, None, args.seed)[0]
            yield "untrained", (model.f if part == "f" else model).to(args.device)
        else:
            found = load_encoder(path)[0] if part == "f" else load_model(path)[0]
            yield results.title(Path(path)), found.to(args.device)


def embeddings(args: argparse.Namespace) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The same views of test images, (2 + num_pos) × B × 3 × S × S, as every model embeds them.

    Returns:
        The views, and for every model its name and the embeddings.

    Raises:
        UserError: There are too few images.
    """
    images = load(args.dataset_name, args.root, "test", args.store_size)
    count = min(args.batch_size, len(images.pixels))
    if count < 4:
        raise UserError(f"{count} images are too few: --batch_size must be at least 4")
    made = some_views(images.pixels, count, args.num_pos, args.image_size, args.seed)
    return made, [(name, projections(model, made)) for name, model in opened(args, "model")]


def features_of(f: nn.Module, pixels: Tensor, args: argparse.Namespace) -> Tensor:
    """Features of length 1 on the CPU."""
    return normalize(features(f, pixels, args.device, torch.float32), dim=1).cpu()


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
    for panel, (name, f) in zip(panels, opened(args, "f"), strict=True):
        bank, queries = (features_of(f, p, args) for p in (train.pixels, test.pixels[chosen]))
        nearest = (queries @ bank.T).topk(6).indices
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
