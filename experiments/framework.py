"""The framework picture of the README, written beside this file as framework.png.

    python -m experiments.framework

Nothing in it is made up: five of scikit-image's photographs are a batch; views.py makes their views, of 32 pixels for the
encoder and the same of 96 for the eye; an untrained resnet10 embeds them, whose head has two outputs, so that the sphere
is a circle; attention.py gives the weights. The seeds were chosen for a readable picture.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from PIL import Image, ImageOps
from skimage import data

from attentionce import attention
from attentionce.data import views
from model import Model

PHOTOS = [
    "chelsea",
    "astronaut",
    "coffee",
    "rocket",
    "retina",
]  # the first is the one that is followed
VIEWS_SEED, MODEL_SEED, D_POS, D_NEG = 1, 41, 1.0, 1.0
ANCHOR, POSITIVE, NEGATIVE, GREY, PALE = (
    "#0072B2",
    "#009E73",
    "#D55E00",
    "#555555",
    "#F5F5F5",
)  # Okabe and Ito's, and greys
WIDTH, HEIGHT = 10, 6.9  # inches, the unit of all positions and sizes below, except fonts and lines
CENTRE, RADIUS, RING, SMALL = (
    np.array([7.45, 4.08]),
    1.27,
    1.8,
    0.42,
)  # the circle; the views around it and their size
figure = Figure(figsize=(WIDTH, HEIGHT), dpi=180)
axes = figure.add_axes((0, 0, 1, 1))


def show(pixels: torch.Tensor, x: float, y: float, size: float, colour: str) -> None:
    """An image, 3×H×W in [0, 1], with its middle at (x, y), in a frame."""
    box = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
    axes.imshow(
        pixels.permute(1, 2, 0).clamp(0, 1).numpy(), extent=box, interpolation="lanczos", zorder=5
    )
    axes.add_patch(
        Rectangle((box[0], box[2]), size, size, fill=False, edgecolor=colour, linewidth=2, zorder=6)
    )


def write(
    x: float,
    y: float,
    text: str,
    colour: str = "black",
    size: float = 9.5,
    ha: str = "center",
    turn: float = 0,
) -> None:
    math = "cm" if size >= 12 else "dejavusans"  # as tall as the words beside it
    style = {
        "color": colour,
        "fontsize": size,
        "ha": ha,
        "va": "center",
        "rotation": turn,
        "math_fontfamily": math,
    }
    axes.text(x, y, text, **style, zorder=7)


def arrow(
    start: tuple, end: tuple, colour: str = GREY, width: float = 1.5, head: float = 12
) -> None:
    style = {
        "arrowstyle": "-|>",
        "color": colour,
        "linewidth": width,
        "mutation_scale": head,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", end, start, arrowprops=style, zorder=7)


def line(start: tuple, end: tuple, colour: str, width: float, alpha: float = 1) -> None:
    axes.plot(*zip(start, end, strict=True), color=colour, linewidth=width, alpha=alpha, zorder=2)


def on_circle(angle: float, radius: float = RADIUS) -> np.ndarray:
    return CENTRE + radius * np.array([np.cos(angle), np.sin(angle)])


def spread(angles: np.ndarray, gap: float = 0.35) -> np.ndarray:
    """The angles, moved apart until neighbours on the circle differ by `gap`."""
    order, angles = np.argsort(angles), angles.copy()
    for _ in range(500):
        for i, j in zip(order, np.roll(order, -1), strict=True):
            lack = max(0, gap - (angles[j] - angles[i]) % (2 * np.pi))
            angles[i], angles[j] = angles[i] - lack / 2, angles[j] + lack / 2
    return angles


# The numbers: embeddings z (V×B×2); the first image's first anchor, its α (M), its β (N) and its prototype.
photos = [Image.fromarray(getattr(data, name)()) for name in PHOTOS]
images = np.stack(
    [np.asarray(ImageOps.fit(photo, (256, 256), Image.Resampling.BILINEAR)) for photo in photos]
)
images = torch.from_numpy(images).permute(0, 3, 1, 2)
draw = views.draw(6, len(PHOTOS), 256, 256, views.generator(VIEWS_SEED))
std, mean = torch.tensor([views.STD, views.MEAN])[:, :, None, None]
shown = views.make(images, draw, size=96) * std + mean
torch.manual_seed(MODEL_SEED)
model = Model(feature_dim=2, arch="resnet10")
with torch.no_grad():
    z = torch.stack([model(view)[1] for view in views.make(images, draw)])
negatives = [(view, image) for image in range(1, len(PHOTOS)) for view in (0, 1)]
alpha = attention.positive_weights(z, D_POS)[0, 0]
softmax = attention.negative_weights(z, D_NEG)[0].view(2, len(PHOTOS))
beta = torch.stack([len(negatives) * (softmax[place] + 1e-6) for place in negatives])
prototype = CENTRE + RADIUS * (alpha @ z[2:, 0]).numpy()

# Left: a batch, the views of one of its images, the network, the legend.
for x, text in (
    (0.9, "a batch"),
    (2.45, "2 + M views each"),
    (4.03, "one network"),
    (7.45, "embeddings on the unit sphere"),
):
    write(x, 6.63, text, size=12)
show(images[0] / 255, 0.9, 5.6, 1.3, "black")
for image, (x, y) in enumerate(((0.57, 4.15), (1.23, 4.15), (0.57, 3.49), (1.23, 3.49)), 1):
    show(images[image] / 255, x, y, 0.6, GREY)
write(0.9, 4.69, "the other images", GREY)
colours = [ANCHOR] * 2 + [POSITIVE] * 4 + [NEGATIVE] * len(negatives)
names = ["$a_1$", "$a_2$", "$p_1$", "$p_2$", "$p_3$", "$p_4$"]
for view, y in enumerate((5.95, 5.27, 4.37, 3.69, 3.01, 2.33)):
    show(shown[view, 0], 2.53, y, 0.6, colours[view])
    write(2.05, y, names[view], colours[view], 14)
write(2.98, 5.61, "2 anchors", ANCHOR, turn=90)
write(2.98, 3.35, "$M=4$ positives", POSITIVE, turn=90)
for x, name, what, half, left, right in (
    (3.68, "$f$", "encoder", 0.3, 0.7, 0.4),
    (4.43, "$g$", "head", 0.2, 0.4, 0.25),
):
    corners = [
        (x - half, 4.2 - left),
        (x - half, 4.2 + left),
        (x + half, 4.2 + right),
        (x + half, 4.2 - right),
    ]
    axes.add_patch(Polygon(corners, facecolor=PALE, edgecolor=GREY))
    write(x, 4.2, name, size=16)
    write(x, 4.35 + left, what)
for x, y in (1.65, 5.6), (3.12, 4.2), (3.99, 4.2), (4.64, 4.2):
    arrow((x, y), (x + 0.24, y))
legend = [(3.05, "o", ANCHOR, "anchor"), (2.77, "*", "black", "prototype of $a_1$")]
legend += [(2.49, "o", POSITIVE, "positive, its $\\alpha$")]
legend += [(2.13, "o", NEGATIVE, "negative (an anchor of\nanother image), its $\\beta$")]
for y, marker, colour, text in legend:
    axes.plot(3.42, y, marker, color=colour, markersize=12 if marker == "*" else 8)
    write(3.57, y, text, ha="left")

# Right: the circle with the embeddings; around it the views, each with its weight.
axes.add_patch(Circle(CENTRE, RADIUS, facecolor=PALE, edgecolor=GREY, zorder=1))
places = [(view, 0) for view in range(6)] + negatives
angles = np.array([np.arctan2(*z[place].tolist()[::-1]) for place in places])
anchor = on_circle(angles[0])
values = [None, None, *alpha.tolist(), *beta.tolist()]
for i, (place, colour, value, around) in enumerate(
    zip(places, colours, values, spread(angles), strict=True)
):
    point, outside = on_circle(angles[i]), on_circle(around, RING)
    if colour == POSITIVE:
        line(point, prototype, colour, 14 * value, 0.5)
    if colour == NEGATIVE:
        line(anchor, point, colour, 2 * value, 0.5)
        away = (point - anchor) / np.linalg.norm(point - anchor)
        arrow(point, point + (0.14 + 0.07 * value) * away, colour, 1 + 1.2 * value, 8 + 4 * value)
    line(point, outside, colour, 0.8)
    axes.plot(*point, "o", color=colour, markeredgecolor="white", markersize=9, zorder=8)
    show(shown[place], *outside, SMALL, colour)
    beyond = (outside - CENTRE) / abs(outside - CENTRE).max() * (SMALL / 2 + 0.22, SMALL / 2 + 0.12)
    write(*(outside + beyond), f"{value:.2f}" if value else names[i], colour, 9.5 if value else 14)
arrow(anchor, prototype, ANCHOR, 3.5, 18)
axes.plot(*prototype, "*", color="black", markeredgecolor="white", markersize=17, zorder=6)
write(8.08, 4.2, "$a_1$ is pulled to\nits prototype,", ANCHOR)
write(8.08, 3.73, "its negatives\npushed away", NEGATIVE)

# Below: the loss.
axes.add_patch(Rectangle((0, 0.72), WIDTH, 0.94, facecolor=PALE))
loss = r"\mathcal{L}=-\dfrac{1}{2B}\sum_j\,\log\,\dfrac{e^{\mathrm{pos}_j}}{e^{\mathrm{pos}_j}+\sum_k e^{\mathrm{neg}_{jk}}}"
for x, y, formula, colour, size in (
    (0.3, 1.19, loss, "black", 15),
    (4.1, 1.41, r"\mathrm{pos}_j=a_j\cdot\sum_m\alpha_{jm}\,p_m\,/\,T", POSITIVE, 12.5),
    (6.4, 1.41, r"\alpha_{jm}=\mathrm{softmax}_m(a_j\cdot p_m\,/\,d_\mathrm{pos})", POSITIVE, 12.5),
    (4.1, 0.94, r"\mathrm{neg}_{jk}=\beta_{jk}\,a_j\cdot a_k\,/\,T", NEGATIVE, 12.5),
    (
        6.4,
        0.94,
        r"\beta_{jk}=N\,(\mathrm{softmax}_k(a_j\cdot a_k\,/\,d_\mathrm{neg})+10^{-6})",
        NEGATIVE,
        12.5,
    ),
):
    write(x, y, f"${formula}$", colour, size, ha="left")
setting = rf"$B={len(PHOTOS)}$ photographs, so $N={len(negatives)}$, $d_\mathrm{{pos}}={D_POS:g}$, $d_\mathrm{{neg}}={D_NEG:g}$"
own = r"$a_2$ has a prototype, $\alpha$ and $\beta$ of its own. No gradient flows through $\alpha$ and $\beta$"
write(
    WIDTH / 2,
    0.36,
    f"Computed by an untrained encoder with two outputs: {setting}.\nDrawn for $a_1$; {own}.",
    GREY,
)

axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
axes.axis("off")
path = Path(__file__).parents[1] / "pic" / "framework.png"
figure.savefig(path)
pixels = np.asarray(Image.open(path).convert("RGB"))
Image.fromarray((np.round(pixels / 5) * 5).astype(np.uint8)).save(
    path, optimize=True
)  # 52 levels a channel: smaller
