"""Draw pic/framework.png, the picture of the method in the README.

    python -m experiments.framework

All of it is computed. Five of scikit-image's photographs give views of 32 pixels for the encoder
and, from the same crops, of 96 for the reader. An untrained resnet10 whose head has two outputs
embeds them on a circle. The seeds make a readable picture. Positions and sizes are in inches.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle
from PIL import Image, ImageOps
from skimage import data

from attentionce.data import views
from attentionce.evaluation.figures import displayed, projections
from loss import negative_weights, positive_weights
from model import Model

PHOTOS = ["chelsea", "astronaut", "coffee", "rocket", "retina"]
NAMES = ["$a_1$", "$a_2$", "$p_1$", "$p_2$", "$p_3$", "$p_4$"]  # the views of a photograph
VIEWS_SEED, MODEL_SEED, D_POS, D_NEG, NEGATIVES = 1, 41, 1.0, 1.0, 2 * len(PHOTOS) - 2
CENTRE, RADIUS, RING = np.array([7.45, 4.08]), 1.27, 1.8  # of the circle; of the views around it
ANCHOR, POSITIVE, NEGATIVE, GRAY, PALE = "#0072B2", "#009E73", "#D55E00", "#555555", "#F5F5F5"


def show(ax: Axes, pixels: torch.Tensor, x: float, y: float, size: float, colour: str) -> None:
    """A square image, 3×S×S, with its centre at (x, y), in a frame."""
    image = OffsetImage(pixels.permute(1, 2, 0).numpy(), zoom=72 * size / pixels.shape[2])
    ax.add_artist(AnnotationBbox(image, (x, y), pad=0, bboxprops={"ec": colour, "lw": 3.5}))


def write(ax: Axes, x: float, y: float, text: str, colour="black", size=9.5, **look: Any) -> None:
    """Text or a formula at (x, y). Small formulas are as tall as the words beside them."""
    look = {"ha": "center", "va": "center", "color": colour, "fontsize": size} | look
    ax.text(x, y, text, zorder=7, math_fontfamily="cm" if size >= 12 else "dejavusans", **look)


def line(ax: Axes, start: Any, end: Any, colour: str, width: float, alpha=1.0, head=0.0) -> None:
    """A line between two positions; with a head, an arrow."""
    look = {"arrowstyle": "-|>" if head else "-", "mutation_scale": head, "shrinkA": 0}
    look |= {"color": colour, "linewidth": width, "alpha": alpha, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=look, zorder=7 if head else 2)


def draw_inputs(ax: Axes, photos: torch.Tensor, shown: torch.Tensor) -> None:
    """The batch, the views of its first photograph, the network that they go through, a legend."""
    write(ax, 0.9, 6.63, "a batch", size=12)
    show(ax, photos[0], 0.9, 5.6, 1.3, "black")
    write(ax, 0.9, 4.69, "the other images", GRAY)
    for i, photo in enumerate(photos[1:]):
        show(ax, photo, 0.57 + 0.66 * (i % 2), 4.15 - 0.66 * (i // 2), 0.59, GRAY)
    write(ax, 2.45, 6.63, "2 + M views each", size=12)
    for view, y in enumerate((5.95, 5.27, 4.37, 3.69, 3.01, 2.33)):
        colour = ANCHOR if view < 2 else POSITIVE
        show(ax, shown[view, 0], 2.53, y, 0.6, colour)
        write(ax, 2.05, y, NAMES[view], colour, 14)
    write(ax, 2.98, 5.61, "2 anchors", ANCHOR, rotation=90)
    write(ax, 2.98, 3.35, "$M=4$ positives", POSITIVE, rotation=90)
    write(ax, 4.03, 6.63, "one network", size=12)
    ax.fill([3.38, 3.38, 3.98, 3.98], [3.5, 4.9, 4.6, 3.8], facecolor=PALE, edgecolor=GRAY)
    ax.fill([4.23, 4.23, 4.63, 4.63], [3.8, 4.6, 4.45, 3.95], facecolor=PALE, edgecolor=GRAY)
    write(ax, 3.68, 5.05, "encoder")
    write(ax, 3.68, 4.2, "$f$", size=16)
    write(ax, 4.43, 4.75, "head")
    write(ax, 4.43, 4.2, "$g$", size=16)
    for x, y in ((1.65, 5.6), (3.12, 4.2), (3.99, 4.2), (4.64, 4.2)):
        line(ax, (x, y), (x + 0.24, y), GRAY, 1.5, head=12)
    for y, marker, colour, text in (
        (3.05, "o", ANCHOR, "anchor"),
        (2.77, "*", "black", "prototype of $a_1$"),
        (2.49, "o", POSITIVE, "positive, its $\\alpha$"),
        (2.13, "o", NEGATIVE, "negative (an anchor of\nanother image), its $\\beta$"),
    ):
        ax.plot(3.42, y, marker, color=colour, markersize=12 if marker == "*" else 8)
        write(ax, 3.57, y, text, ha="left")


def draw_circle(ax: Axes, shown: torch.Tensor, z: torch.Tensor) -> None:
    """The embeddings on the circle; around it their views, each with its name or weight."""
    write(ax, CENTRE[0], 6.63, "embeddings on the unit sphere", size=12)
    ax.add_patch(Circle(tuple(CENTRE), RADIUS, facecolor=PALE, edgecolor=GRAY, zorder=1))
    alpha = positive_weights(z, D_POS)[0, 0]
    beta = NEGATIVES * negative_weights(z, D_NEG)[0].view(2, -1)[:, 1:].flatten()
    prototype = CENTRE + RADIUS * (alpha @ z[2:, 0]).numpy()
    # The views of the first photograph, then the anchors of the others.
    z, shown = (torch.cat([of[:, 0], of[:2, 1:].flatten(0, 1)]) for of in (z, shown))
    points = CENTRE + RADIUS * z.numpy()
    colours = [ANCHOR] * 2 + [POSITIVE] * len(alpha) + [NEGATIVE] * len(beta)
    labels = NAMES[:2] + [f"{weight:.2f}" for weight in (*alpha, *beta)]
    angles, order = (part.numpy() for part in torch.atan2(z[:, 1], z[:, 0]).sort())
    for _ in range(500):  # move views apart that would overlap
        lack = np.maximum(0, 0.35 - np.diff(angles, append=angles[0] + 2 * np.pi)) / 2
        angles += np.roll(lack, 1) - lack
    for i, angle in zip(order, angles, strict=True):
        direction = np.array([np.cos(angle), np.sin(angle)])
        outside = CENTRE + RING * direction
        x, y = outside + direction / abs(direction).max() * [0.43, 0.33]
        line(ax, points[i], outside, colours[i], 0.8)
        ax.plot(*points[i], "o", color=colours[i], markeredgecolor="white", markersize=9, zorder=8)
        show(ax, shown[i], outside[0], outside[1], 0.42, colours[i])
        write(ax, x, y, labels[i], colours[i], 14 if i < 2 else 9.5)
    for point, weight in zip(points[2:], alpha.tolist(), strict=False):
        line(ax, point, prototype, POSITIVE, 14 * weight, 0.5)
    for point, weight in zip(points[2 + len(alpha) :], beta.tolist(), strict=True):
        line(ax, points[0], point, NEGATIVE, 2 * weight, 0.5)
        away = (point - points[0]) / np.linalg.norm(point - points[0])
        end = point + (0.14 + 0.07 * weight) * away
        line(ax, point, end, NEGATIVE, 1 + 1.2 * weight, head=8 + 4 * weight)
    line(ax, points[0], prototype, ANCHOR, 3.5, head=18)
    ax.plot(*prototype, "*", color="black", markeredgecolor="white", markersize=17, zorder=6)
    write(ax, 8.08, 4.2, "$a_1$ is pulled to\nits prototype,", ANCHOR)
    write(ax, 8.08, 3.73, "its negatives\npushed away", NEGATIVE)


def save(path: Path) -> None:
    """Compute and draw the picture, and write it as PNG."""
    pictures = [Image.fromarray(getattr(data, name)()) for name in PHOTOS]
    pixels = np.stack([np.asarray(ImageOps.fit(picture, (256, 256))) for picture in pictures])
    photos = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    draw = views.draw(len(NAMES), len(PHOTOS), 256, 256, views.generator(VIEWS_SEED))
    torch.manual_seed(MODEL_SEED)
    z = projections(Model(feature_dim=2, arch="resnet10"), views.make(photos, draw))
    shown = displayed(views.make(photos, draw, size=96))
    with style.context("default"):  # whatever else in this process has set
        figure = Figure(figsize=(10, 5.5), dpi=150)
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(1.4, 6.9))
        ax.axis("off")
        draw_inputs(ax, photos, shown)
        draw_circle(ax, shown, z)
        figure.savefig(path)


if __name__ == "__main__":
    save(Path(__file__).parents[1] / "pic" / "framework.png")
