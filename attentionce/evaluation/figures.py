"""Figures of an encoder that TensorBoard and `python -m experiments.plot` share."""

import argparse
import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from attentionce.data import views

if TYPE_CHECKING:  # matplotlib is optional and slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

EXTREMES = 3  # hardest negatives in the attention panel, and as many of the easiest


def short(weight: Tensor) -> str:
    """A weight with two digits; one that is small does not become 0."""
    return f"{weight:.2f}" if weight >= 0.005 else "< 0.01"


def show(axis: "Axes", pixels: Tensor, label: str = "") -> None:
    """Show an image, uint8 3×H×W or float in [0, 1], with a label below."""
    axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="0.8", linewidth=0.5)  # or white images have no edge
    axis.set_xlabel(label, fontsize=9, labelpad=2)


def displayed(made: Tensor) -> Tensor:
    """Undo the normalisation of views, …×3×S×S, for display: on the CPU, in [0, 1]."""
    std, mean = torch.tensor([views.STD, views.MEAN])[:, :, None, None]
    return (made.cpu() * std + mean).clamp(0, 1)


def some_views(pixels: Tensor, count: int, num_pos: int, size: int, seed: int) -> Tensor:
    """Normalised views of `count` images, (2 + num_pos) × count × 3 × size × size.

    The seed decides which of the images, uint8 N×3×H×W, and which views.
    """
    chosen = torch.randperm(len(pixels), generator=views.generator(seed, 0))[:count]
    height, width = pixels.shape[2:]
    draw = views.draw(2 + num_pos, count, height, width, views.generator(seed, 0, 0))
    return views.make(pixels[chosen], draw, size)


@torch.no_grad()
def projections(model: nn.Module, made: Tensor) -> Tensor:
    """Views V×B×3×S×S as the loss sees them, V×B×dim on the CPU.

    BatchNorm uses each view's own statistics. The model, which returns (feature, projection), is
    left as it is.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).train()  # a copy, because running statistics move in train mode
    return torch.stack([model(view.to(device))[1].cpu() for view in made])


def attention_panel(
    figure: "Figure | SubFigure",
    made: Tensor,
    alpha: Tensor,
    beta: Tensor,
    images: int,
    title: str,
) -> None:
    """Draw an anchor per row, its positives with α, its hardest and easiest negatives with β.

    Args:
        made: The views, V×B×3×S×S; the first two are the anchors.
        alpha: Of `loss.positive_weights`, 2×B×M.
        beta: Of `loss.negative_weights`, 2B×2B.
        images: Number of rows. They show the anchors of highest contrast.
        title: What stands above.
    """
    batch = made.shape[1]
    alpha, beta = alpha[0], beta * (2 * batch - 2)
    positives = alpha.shape[1]
    anchors = made[:2].flatten(0, 1)

    # Columns: the anchor, a gap, its positives, a gap, its hardest and its easiest negatives.
    gaps = (1, 2 + positives)
    widths = [1, 0.25, *[1] * positives, 0.25, *[1] * (2 * EXTREMES)]
    axes = figure.subplots(images, len(widths), squeeze=False, width_ratios=widths)
    legend = "an anchor, its positives with α, its three hardest and three easiest negatives with β"
    figure.suptitle(f"{title}\n{legend} (mean 1)", fontsize=10)
    contrast = made[0].std((1, 2, 3))
    rows = contrast.argsort(descending=True)[:images].tolist()
    for image, axis in zip(rows, axes, strict=True):
        show(axis[0], displayed(made[0, image]), "anchor")
        for m in range(positives):
            show(axis[2 + m], displayed(made[2 + m, image]), f"α {short(alpha[image, m])}")
        hardest_first = beta[image].argsort(descending=True).tolist()
        negatives = [k for k in hardest_first if k % batch != image]
        extremes = negatives[:EXTREMES] + negatives[-EXTREMES:]
        for column, k in enumerate(extremes, start=3 + positives):
            show(axis[column], displayed(anchors[k]), f"β {short(beta[image, k])}")
        for gap in gaps:
            axis[gap].axis("off")


@torch.no_grad()
def pretraining_pictures(
    model: nn.Module,
    pixels: Tensor,
    args: argparse.Namespace,
    weights: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
    epoch: int,
) -> dict[str, "Tensor | Figure"]:
    """Views of eight images, and the attention among 64; always the same images and views.

    Args:
        pixels: The images to choose from, uint8 N×3×H×W.
        args: The flags of main.py, for the views' size and the seed.
        weights: α and β of embeddings V×B×dim, or None for a loss without both.

    Returns:
        By name: a float image 3×H×W in [0, 1], and a figure.
    """
    from matplotlib.figure import Figure

    count = min(64, len(pixels))
    made = some_views(pixels.cpu(), count, args.num_pos or 0, args.image_size, args.seed)
    shown = [displayed(view) for view in made[:, :8].flatten(0, 1)]
    pictures: dict[str, Tensor | Figure] = {"views": make_grid(torch.stack(shown), nrow=8)}
    if weights is not None:
        figure = Figure(figsize=(11, 3.4))
        alpha, beta = weights(projections(model, made))
        attention_panel(figure, made, alpha, beta, min(3, count), f"epoch {epoch}")
        pictures["attention"] = figure
    return pictures
