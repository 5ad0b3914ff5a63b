"""Figures of an encoder that TensorBoard and the pictures share."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attentionce import attention
from attentionce.data import views
from attentionce.training.batchnorm import constant_statistics

if TYPE_CHECKING:  # it is slow to import and optional
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def short(weight: Tensor) -> str:
    """Two digits, and no zero for what is only small."""
    return f"{weight:.2f}" if weight >= 0.005 else "< 0.01"


def show(axis: "Axes", pixels: Tensor, label: str = "") -> None:
    """One image, uint8 3×H×W or float in [0, 1], with a word below."""
    axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(
        visible=True, color="0.8", linewidth=0.5
    )  # or a white image would have no edge
    axis.set_xlabel(label, fontsize=9, labelpad=2)


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
def embed(model: nn.Module, made: Tensor) -> Tensor:
    """Projections of views V×B×3×S×S: V×B×dim, on the CPU. BatchNorm uses each view's own statistics, as the loss sees them."""
    device = next(model.parameters()).device
    model.train()
    with constant_statistics(model):
        z = torch.stack([model(view.to(device))[1].cpu() for view in made])
    model.eval()
    return z


def attention_panel(
    figure: "Figure", z: Tensor, made: Tensor, d_pos: float, d_neg: float, images: int, title: str
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
