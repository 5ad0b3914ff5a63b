"""Draw pic/framework.png, the picture of the method in the README.

    python -m experiments.framework

All of it is computed. A batch is five of scikit-image's photographs. attentionce/data/views.py
makes their views, with 32 pixels for the encoder and, the same crops, with 96 for the reader. An
untrained resnet10 embeds them; its head has two outputs, so the unit sphere is a circle.
attentionce/attention.py computes the weights. The seeds were chosen for a readable picture.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor

from attentionce import attention
from attentionce.data import views
from model import Model

PATH = Path(__file__).parents[1] / "pic" / "framework.png"

# What is computed. The picture follows the first photograph's first anchor.
PHOTOS = ["chelsea", "astronaut", "coffee", "rocket", "retina"]
VIEWS_SEED, MODEL_SEED, D_POS, D_NEG = 1, 41, 1.0, 1.0
NEGATIVES = [(view, photo) for photo in range(1, len(PHOTOS)) for view in (0, 1)]

# Colours are Okabe and Ito's, and grays. Positions and sizes are in inches, fonts and lines in
# points. The views stand on a ring around the circle.
ANCHOR, POSITIVE, NEGATIVE, GRAY, PALE = "#0072B2", "#009E73", "#D55E00", "#555555", "#F5F5F5"
WIDTH, HEIGHT = 10, 6.9
CENTRE, RADIUS, RING, VIEW_SIZE = np.array([7.45, 4.08]), 1.27, 1.8, 0.42

# Of the six views of the photograph that is followed.
NAMES = ["$a_1$", "$a_2$", "$p_1$", "$p_2$", "$p_3$", "$p_4$"]
COLOURS = [ANCHOR] * 2 + [POSITIVE] * 4

Position = tuple[float, float] | np.ndarray


# ---- the numbers ----


class Scene(NamedTuple):
    """What the picture shows: a batch of B photographs, its V views, and the attention."""

    photos: Tensor  # B×3×256×256, uint8
    shown: Tensor  # V×B×3×96×96, the views in [0, 1]
    z: Tensor  # V×B×2, the embeddings of the same views
    alpha: Tensor  # M, the first anchor's weights of its positives
    beta: Tensor  # N, and of its negatives, in the order of NEGATIVES


def compute_scene() -> Scene:
    """Make the views, embed them and compute the attention."""
    pictures = [Image.fromarray(getattr(data, name)()) for name in PHOTOS]
    size, filtering = (256, 256), Image.Resampling.BILINEAR
    pixels = np.stack([np.asarray(ImageOps.fit(picture, size, filtering)) for picture in pictures])
    photos = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    draw = views.draw(6, len(PHOTOS), 256, 256, views.generator(VIEWS_SEED))
    std, mean = torch.tensor([views.STD, views.MEAN])[:, :, None, None]
    shown = views.make(photos, draw, size=96) * std + mean
    torch.manual_seed(MODEL_SEED)
    model = Model(feature_dim=2, arch="resnet10")
    with torch.no_grad():
        z = torch.stack([model(view)[1] for view in views.make(photos, draw)])
    alpha = attention.positive_weights(z, D_POS)[0, 0]
    softmax = attention.negative_weights(z, D_NEG)[0].view(2, len(PHOTOS))
    beta = torch.stack([len(NEGATIVES) * (softmax[place] + 1e-6) for place in NEGATIVES])
    return Scene(photos, shown, z, alpha, beta)


# ---- the page ----


class Page:
    """A page, and ways to draw on it."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH, HEIGHT), dpi=180)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))

    def image(self, pixels: Tensor, x: float, y: float, size: float, colour: str) -> None:
        """An image, 3×H×W in [0, 1], with its centre at (x, y), in a frame."""
        left, bottom = x - size / 2, y - size / 2
        self.axes.imshow(
            pixels.permute(1, 2, 0).clamp(0, 1).numpy(),
            extent=(left, x + size / 2, bottom, y + size / 2),
            interpolation="lanczos",
            zorder=5,
        )
        frame = Rectangle((left, bottom), size, size, fill=False, edgecolor=colour, linewidth=2)
        frame.set_zorder(6)
        self.axes.add_patch(frame)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "black",
        size: float = 9.5,
        ha: str = "center",
        turn: float = 0,
    ) -> None:
        """Text or a formula, centred vertically at (x, y)."""
        # Small formulas are as tall as the words beside them.
        mathematics = "cm" if size >= 12 else "dejavusans"
        look: dict[str, Any] = {"color": colour, "fontsize": size, "math_fontfamily": mathematics}
        self.axes.text(x, y, text, ha=ha, va="center", rotation=turn, zorder=7, **look)

    def arrow(
        self,
        start: Position,
        end: Position,
        colour: str = GRAY,
        width: float = 1.5,
        head: float = 12,
    ) -> None:
        """An arrow from start to end."""
        look = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "mutation_scale": head}
        look |= {"shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", tuple(end), tuple(start), arrowprops=look, zorder=7)

    def line(
        self, start: Position, end: Position, colour: str, width: float, alpha: float = 1
    ) -> None:
        """A straight line, behind everything but the circle."""
        x, y = zip(start, end, strict=True)
        self.axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, zorder=2)


def on_circle(angle: float, radius: float = RADIUS) -> np.ndarray:
    """The position at this angle from the centre of the circle."""
    return CENTRE + radius * np.array([np.cos(angle), np.sin(angle)])


def spread(angles: np.ndarray, gap: float = 0.35) -> np.ndarray:
    """The angles, moved apart until neighbours on the circle differ by `gap`."""
    order, angles = np.argsort(angles), angles.copy()
    for _ in range(500):
        for i, j in zip(order, np.roll(order, -1), strict=True):
            lack = max(0, gap - (angles[j] - angles[i]) % (2 * np.pi))
            angles[i] -= lack / 2
            angles[j] += lack / 2
    return angles


# ---- the picture, from left to right ----


def draw_titles(page: Page) -> None:
    """What the columns are."""
    page.write(0.9, 6.63, "a batch", size=12)
    page.write(2.45, 6.63, "2 + M views each", size=12)
    page.write(4.03, 6.63, "one network", size=12)
    page.write(7.45, 6.63, "embeddings on the unit sphere", size=12)


def draw_batch(page: Page, scene: Scene) -> None:
    """The photograph that is followed, and the others."""
    page.image(scene.photos[0] / 255, 0.9, 5.6, 1.3, "black")
    corners = [(0.57, 4.15), (1.23, 4.15), (0.57, 3.49), (1.23, 3.49)]
    for photo, (x, y) in zip(scene.photos[1:], corners, strict=True):
        page.image(photo / 255, x, y, 0.6, GRAY)
    page.write(0.9, 4.69, "the other images", GRAY)


def draw_views(page: Page, scene: Scene) -> None:
    """The six views of the photograph that is followed."""
    for view, y in enumerate((5.95, 5.27, 4.37, 3.69, 3.01, 2.33)):
        page.image(scene.shown[view, 0], 2.53, y, 0.6, COLOURS[view])
        page.write(2.05, y, NAMES[view], COLOURS[view], 14)
    page.write(2.98, 5.61, "2 anchors", ANCHOR, turn=90)
    page.write(2.98, 3.35, "$M=4$ positives", POSITIVE, turn=90)


def draw_network(page: Page) -> None:
    """Encoder and projection head as trapezia, and the arrows that lead through them."""
    for x, name, what, half, left, right in (
        (3.68, "$f$", "encoder", 0.3, 0.7, 0.4),
        (4.43, "$g$", "head", 0.2, 0.4, 0.25),
    ):
        corners = [(x - half, 4.2 - left), (x - half, 4.2 + left)]
        corners += [(x + half, 4.2 + right), (x + half, 4.2 - right)]
        page.axes.add_patch(Polygon(corners, facecolor=PALE, edgecolor=GRAY))
        page.write(x, 4.2, name, size=16)
        page.write(x, 4.35 + left, what)
    for x, y in ((1.65, 5.6), (3.12, 4.2), (3.99, 4.2), (4.64, 4.2)):
        page.arrow((x, y), (x + 0.24, y))


def draw_legend(page: Page) -> None:
    """What the marks on the circle are."""
    negative = "negative (an anchor of\nanother image), its $\\beta$"
    for y, marker, size, colour, text in (
        (3.05, "o", 8, ANCHOR, "anchor"),
        (2.77, "*", 12, "black", "prototype of $a_1$"),
        (2.49, "o", 8, POSITIVE, "positive, its $\\alpha$"),
        (2.13, "o", 8, NEGATIVE, negative),
    ):
        page.axes.plot(3.42, y, marker, color=colour, markersize=size)
        page.write(3.57, y, text, ha="left")


def draw_circle(page: Page, scene: Scene) -> None:
    """The embeddings on the circle; around it their views, each with its weight."""
    page.axes.add_patch(Circle(tuple(CENTRE), RADIUS, facecolor=PALE, edgecolor=GRAY, zorder=1))
    prototype = CENTRE + RADIUS * (scene.alpha @ scene.z[2:, 0]).numpy()
    places = [(view, 0) for view in range(6)] + NEGATIVES
    angles = np.array([np.arctan2(*scene.z[place].tolist()[::-1]) for place in places])
    around = spread(angles)
    anchor = on_circle(angles[0])
    weights = [*scene.alpha.tolist(), *scene.beta.tolist()]
    for i, place in enumerate(places):
        point, outside = on_circle(angles[i]), on_circle(around[i], RING)
        if i < 2:
            draw_embedding(page, point, outside, scene.shown[place], ANCHOR)
            write_beyond(page, outside, NAMES[i], ANCHOR, 14)
            continue
        weight, colour = weights[i - 2], POSITIVE if i < 6 else NEGATIVE
        if colour == POSITIVE:
            page.line(point, prototype, colour, 14 * weight, 0.5)
        else:
            draw_push(page, anchor, point, weight)
        draw_embedding(page, point, outside, scene.shown[place], colour)
        write_beyond(page, outside, f"{weight:.2f}", colour, 9.5)
    page.arrow(anchor, prototype, ANCHOR, 3.5, 18)
    look: dict[str, Any] = {"color": "black", "markeredgecolor": "white", "markersize": 17}
    page.axes.plot(*prototype, "*", zorder=6, **look)
    page.write(8.08, 4.2, "$a_1$ is pulled to\nits prototype,", ANCHOR)
    page.write(8.08, 3.73, "its negatives\npushed away", NEGATIVE)


def draw_push(page: Page, anchor: np.ndarray, negative: np.ndarray, weight: float) -> None:
    """What the anchor does to a negative, the stronger the larger its weight."""
    page.line(anchor, negative, NEGATIVE, 2 * weight, 0.5)
    away = (negative - anchor) / np.linalg.norm(negative - anchor)
    end = negative + (0.14 + 0.07 * weight) * away
    page.arrow(negative, end, NEGATIVE, 1 + 1.2 * weight, 8 + 4 * weight)


def draw_embedding(
    page: Page, point: np.ndarray, outside: np.ndarray, view: Tensor, colour: str
) -> None:
    """A point on the circle, and its view on the ring."""
    page.line(point, outside, colour, 0.8)
    look: dict[str, Any] = {"color": colour, "markeredgecolor": "white", "markersize": 9}
    page.axes.plot(*point, "o", zorder=8, **look)
    page.image(view, outside[0], outside[1], VIEW_SIZE, colour)


def write_beyond(page: Page, outside: np.ndarray, text: str, colour: str, size: float) -> None:
    """Text on the far side of a view on the ring."""
    direction = (outside - CENTRE) / abs(outside - CENTRE).max()
    x, y = outside + direction * (VIEW_SIZE / 2 + np.array([0.22, 0.12]))
    page.write(x, y, text, colour, size)


def draw_formulas(page: Page) -> None:
    """The loss, and how the picture was computed."""
    page.axes.add_patch(Rectangle((0, 0.72), WIDTH, 0.94, facecolor=PALE))
    loss = (
        r"$\mathcal{L}=-\dfrac{1}{2B}\sum_j\,\log\,"
        r"\dfrac{e^{\mathrm{pos}_j}}{e^{\mathrm{pos}_j}+\sum_k e^{\mathrm{neg}_{jk}}}$"
    )
    pos = r"$\mathrm{pos}_j=a_j\cdot\sum_m\alpha_{jm}\,p_m\,/\,T$"
    alpha = r"$\alpha_{jm}=\mathrm{softmax}_m(a_j\cdot p_m\,/\,d_\mathrm{pos})$"
    neg = r"$\mathrm{neg}_{jk}=\beta_{jk}\,a_j\cdot a_k\,/\,T$"
    beta = r"$\beta_{jk}=N\,(\mathrm{softmax}_k(a_j\cdot a_k\,/\,d_\mathrm{neg})+10^{-6})$"
    page.write(0.3, 1.19, loss, size=15, ha="left")
    page.write(4.1, 1.41, pos, POSITIVE, 12.5, ha="left")
    page.write(6.4, 1.41, alpha, POSITIVE, 12.5, ha="left")
    page.write(4.1, 0.94, neg, NEGATIVE, 12.5, ha="left")
    page.write(6.4, 0.94, beta, NEGATIVE, 12.5, ha="left")
    setting = (
        rf"$B={len(PHOTOS)}$ photographs, so $N={len(NEGATIVES)}$, "
        rf"$d_\mathrm{{pos}}={D_POS:g}$, $d_\mathrm{{neg}}={D_NEG:g}$"
    )
    own = (
        r"$a_2$ has a prototype, $\alpha$ and $\beta$ of its own. "
        r"No gradient flows through $\alpha$ and $\beta$"
    )
    text = f"Computed by an untrained encoder with two outputs: {setting}.\nDrawn for $a_1$; {own}."
    page.write(WIDTH / 2, 0.36, text, GRAY)


def draw(scene: Scene) -> Figure:
    """The whole picture."""
    page = Page()
    draw_titles(page)
    draw_batch(page, scene)
    draw_views(page, scene)
    draw_network(page)
    draw_legend(page)
    draw_circle(page, scene)
    draw_formulas(page)
    page.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    page.axes.axis("off")
    return page.figure


def save(path: Path) -> None:
    """Compute and draw the picture, and write it as PNG."""
    scene = compute_scene()
    with style.context("default"):  # whatever else in this process has set
        draw(scene).savefig(path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rounded = (np.round(pixels / 5) * 5).astype(np.uint8)  # 52 levels per channel: a smaller file
    Image.fromarray(rounded).save(path, optimize=True)


def main() -> None:
    """Draw the picture into pic/."""
    save(PATH)


if __name__ == "__main__":
    main()
