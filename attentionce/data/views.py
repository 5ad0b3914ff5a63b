"""Random views of a batch of images, made for the whole batch at once on the device that holds it.

    images (uint8) -> crop, resize, flip -> colour jitter -> grayscale -> blur -> normalise -> views (float32)

First every random number of a step is drawn, on the CPU (`draw`); then the views are computed from the images and
these numbers alone (`make`), so that they are the same on any device and for any number of processes.
An operation that was not drawn has the parameter that changes nothing: there are no branches, and no loop over images.
The distribution is SimCLR's (Chen et al. 2020, https://arxiv.org/abs/2002.05709) at the sizes of CIFAR, and each
operation equals torchvision's functional form on float images for the same parameter.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's channels, applied to every data set
STD = (0.2023, 0.1994, 0.2010)
LUMA = (
    0.2989,
    0.587,
    0.114,
)  # red, green and blue in gray (ITU-R BT.601, with torchvision's digits)

TRIES = 10  # crops to draw before the central one is taken
SCALE = (0.08, 1.0)  # a crop's share of the image's area
RATIO = (3 / 4, 4 / 3)  # its width / height
JITTER, JITTER_P = 0.4, 0.8  # brightness, contrast and saturation: factors in 1 ± JITTER
HUE = 0.1  # hue: turns in ± HUE
GRAY_P, BLUR_P = 0.2, 0.5
SIGMA = (0.1, 2.0)  # the blur's standard deviation in pixels


class Draw(NamedTuple):
    """The parameters of V views of B images: float32 tensors, V×B. In brackets: the value that changes nothing."""

    top: Tensor  # the crop, in whole pixels
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # 1: left and right swapped [0]
    brightness: Tensor  # factor [1]
    contrast: Tensor  # factor [1]
    saturation: Tensor  # factor [1]
    hue: Tensor  # turns of the colour circle [0]
    gray: Tensor  # a second saturation factor: 0 where the view is gray [1]
    blur: Tensor  # share of a pixel's value that comes from its neighbours, per direction, 0 to 2/3 [0]
    order: list[
        list[int]
    ]  # V×4: the order of brightness (0), contrast (1), saturation (2) and hue (3) in each view


def generator(seed: int, *where: int) -> torch.Generator:
    """A CPU generator that depends on `seed` and `where` (an epoch; an epoch and a step; …) and on nothing else."""
    # manual_seed keeps 32 bits, so few that two steps of a long run may well share their views. All of the Mersenne
    # Twister's 624 words are set instead: in torch's state they follow 24 bytes of counters, 8 bytes for each.
    words = np.random.SeedSequence(seed, spawn_key=where).generate_state(624)
    result = torch.Generator()
    state = result.get_state()
    state[24 : 24 + 8 * 624].view(torch.int64).copy_(torch.from_numpy(words.astype(np.int64)))
    return result.set_state(state)


def draw(views: int, batch: int, height: int, width: int, generator: torch.Generator) -> Draw:
    """Parameters for `views` views of `batch` images of `height`×`width` pixels."""
    # In float64, where the last bit, which may vary with the number of threads, does not reach a whole pixel.
    tries = torch.rand(2, TRIES, views, batch, dtype=torch.float64, generator=generator)
    u = torch.rand(11, views, batch, dtype=torch.float64, generator=generator)
    order = torch.rand(views, 4, generator=generator).argsort(1).tolist()
    jitter, blur = u[3] < JITTER_P, u[9] < BLUR_P
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * u[10]
    parameters = (
        *_crop_boxes(*tries, u[0], u[1], height, width),
        u[2] < 0.5,
        *(1 + jitter * JITTER * (2 * u[4:7] - 1)),
        jitter * HUE * (2 * u[7] - 1),
        u[8] >= GRAY_P,
        blur * blur_share(sigma),
    )
    return Draw(*torch.stack([p.float() for p in parameters]), order)


def _crop_boxes(
    area: Tensor, ratio: Tensor, top: Tensor, left: Tensor, height: int, width: int
) -> list[Tensor]:
    """Top, left, height and width of the first of TRIES crops that fits into the image, from uniform numbers in [0, 1).

    The sampler of torchvision's RandomResizedCrop: area uniform, ratio log-uniform, position uniform; where no crop
    fits, the largest central one whose ratio is in bounds. `area`, `ratio`: TRIES×V×B; `top`, `left`: V×B.
    """
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    ratio = (math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratio).exp()
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (0 < h) & (h <= height) & (0 < w) & (w <= width)
    fitting, first = fits.byte().max(0)  # the first of equals
    h, w = h.gather(0, first[None])[0], w.gather(0, first[None])[0]

    central_h, central_w = (
        min(height, round(width / RATIO[0])),
        min(width, round(height * RATIO[1])),
    )
    central = fitting == 0
    h, w = h.masked_fill(central, central_h), w.masked_fill(central, central_w)
    top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    top = top.masked_fill(central, (height - central_h) // 2)
    left = left.masked_fill(central, (width - central_w) // 2)
    return [top, left, h, w]


def blur_share(sigma: Tensor) -> Tensor:
    """The weight of the two outer taps of a Gaussian kernel of 3 taps with standard deviation `sigma` > 0 (pixels)."""
    return 2 / (2 + (0.5 / sigma**2).exp())


def part(draw: Draw, start: int, stop: int) -> Draw:
    """The parameters of images `start` to `stop` (exclusive) of the batch: one process's part of a global batch."""
    return Draw(*(p[:, start:stop] for p in draw[:-1]), draw.order)


def to(draw: Draw, device: torch.device | str) -> Draw:
    """The same parameters on `device`, in a single transfer that the host does not wait for."""
    packed = torch.stack(draw[:-1])
    if torch.device(device).type == "cuda":
        packed = packed.pin_memory()
    return Draw(*packed.to(device, non_blocking=True), draw.order)


# The operations: `x` is B×3×H×W in [0, 1], other tensors have one value an image (B), and what is returned is new.


def crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flip: Tensor,
    size: int,
) -> Tensor:
    """Boxes of images (B×3×H×W, 0 to 255), resized with antialiasing and flipped: B×3×`size`×`size` in [0, 1].

    Bilinear resampling is linear in the rows and in the columns: rows · image · columnsᵀ.
    """
    rows = _resampling(top, height, torch.zeros_like(flip), images.size(2), size)
    columns = _resampling(left, width, flip, images.size(3), size).div_(255)
    x = images.float().flatten(1, 2) @ columns.mT
    return rows[:, None] @ x.unflatten(1, images.shape[1:3])


def _resampling(start: Tensor, length: Tensor, flip: Tensor, source: int, target: int) -> Tensor:
    """Matrices B×target×source that resize `length` of `source` pixels from `start` on to `target` pixels.

    Row i weighs pixels by their distance to the point of the crop where pixel i comes from, with a triangle that
    reaches to the next pixel: of the source, or of the target where that is the coarser (antialiasing, as PIL does).
    """
    scale = (length / target)[:, None]
    i = torch.arange(target, device=start.device)
    i = torch.where(flip[:, None] > 0, target - 1 - i, i)
    j = torch.arange(source, device=start.device) - start[:, None]
    inside = (j >= 0) & (j < length[:, None])
    distance = ((j + 0.5)[:, None] - (scale * (i + 0.5))[:, :, None]).abs_()
    weights = (
        distance.neg_().add_(scale.clamp_min(1)[:, :, None]).clamp_min_(0).mul_(inside[:, None])
    )
    return weights.div_(weights.sum(2, keepdim=True))


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Between black (0) and the image (1), or beyond."""
    return (x * _column(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Between the image's mean gray (0) and the image (1), or beyond."""
    factor = _column(factor)
    return (x * factor).add_((1 - factor) * _gray(x).mean((2, 3), keepdim=True)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Between the image in gray (0) and the image (1), or beyond."""
    return torch.lerp(_gray(x), x, _column(factor)).clamp_(0, 1)


def _gray(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """The hues of HSV turned by `turns` (1: once round the colour circle).

    With value v = max(r, g, b), chroma c = v - min and hue h in sextants from red, -3 to 3, where green is at 2 and
    blue at -2, a channel at hue p is v - c clamp(d - 1, 0, 1), d the distance of h and p round the circle of 6.
    And c h = ±(c + g + b - r - min), + where g >= b. So all is computed times c: no division, no case of gray pixels.
    """
    red, green, blue = x.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    h = torch.copysign((chroma - low).add_(green).add_(blue).sub_(red), green - blue)
    # h + turn is the way from p to the new hue, -6 to 6; so 3 - d = | |h + turn| - 3 |.
    p = 2 * torch.arange(3, device=x.device)
    turn = (6 * turns[:, None] - p + 3).remainder(6) - 3
    way = torch.addcmul(h, chroma, turn[:, :, None, None])
    return way.abs_().sub_(3 * chroma).abs_().add_(low - chroma).clamp_(low, high)


def blur(x: Tensor, share: Tensor) -> Tensor:
    """A Gaussian of 3×3 pixels whose outer taps weigh `share` (`blur_share`), mirrored at the edge pixels."""
    for dim in (2, 3):
        n = x.size(dim)
        padded = torch.cat((x.narrow(dim, 1, 1), x, x.narrow(dim, n - 2, 1)), dim)
        neighbours = (padded.narrow(dim, 0, n) + padded.narrow(dim, 2, n)).mul_(0.5)
        x = torch.lerp(x, neighbours, _column(share))
    return x


def finish(x: Tensor, gray: Tensor, share: Tensor) -> Tensor:
    """Grayscale (where `gray` is 0), blur, and channels of mean 0 and deviation 1."""
    return _standardize(blur(saturation(x, gray), share))


def _standardize(x: Tensor) -> Tensor:
    for channel, mean, std in zip(
        x.unbind(1), MEAN, STD, strict=True
    ):  # plain numbers: no copy to a GPU to wait for
        channel.sub_(mean).div_(std)
    return x


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


class Ops(NamedTuple):
    """The steps from images to a view, each of which runs, or compiles, by itself."""

    crop: Callable = crop
    jitter: Sequence[Callable] = (brightness, contrast, saturation, hue)
    finish: Callable = finish


def compiled() -> Ops:
    """The steps through torch.compile: one by one, so that a new order of the jitter needs no new graph."""
    compile_op = functools.partial(torch.compile, dynamic=False)
    return Ops(compile_op(crop), [compile_op(op) for op in Ops().jitter], compile_op(finish))


def make_view(images: Tensor, draw: Draw, view: int, size: int = 32, ops: Ops = Ops()) -> Tensor:
    """View number `view` of images B×3×H×W (uint8, or the same numbers in float32), on their device.

    `draw` is on that device too (`to`). Returns float32 B×3×size×size, normalised with MEAN and STD.
    """
    top, left, height, width, flip, *jitter, gray, share = (p[view] for p in draw[:-1])
    with torch.autocast(
        images.device.type, enabled=False
    ):  # it would round the crop's products to 8 bits
        x = ops.crop(images, top, left, height, width, flip, size)
        for i in draw.order[view]:
            x = ops.jitter[i](x, jitter[i])
        return ops.finish(x, gray, share)


def make(images: Tensor, draw: Draw, size: int = 32, ops: Ops = Ops()) -> Tensor:
    """All V views that `draw` describes: V×B×3×size×size (`make_view`)."""
    images = images.float()
    return torch.stack(
        [make_view(images, draw, view, size, ops) for view in range(len(draw.order))]
    )


def normalize(images: Tensor) -> Tensor:
    """Images for evaluation: uint8 B×3×H×W to float32 of the same shape, normalised with MEAN and STD."""
    return _standardize(images / 255)
