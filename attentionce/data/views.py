"""Random views of images, made for a whole batch at once on the device that holds it.

The published pipeline works on one 8-bit PIL image at a time. It is the same for every data set,
and this file follows its order:

    published                                                     here
    1. RandomResizedCrop(32, scale 0.08 to 1, ratio 3/4 to 4/3)   `crop`
    2. RandomHorizontalFlip(0.5)                                  `crop`, by mirroring its columns
    3. RandomApply([ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)        `brightness`, `contrast`,
                                                                  `saturation`, `hue`
    4. RandomGrayscale(0.2)                                       `saturation` with factor 0
    5. Gaussian blur with probability 0.5                         `blur.blur`
    6. Normalize(MEAN, STD)                                       `normalize`

There are two differences. Pixels are floating-point numbers throughout, where PIL rounds to 8 bits
after every operation. And the order of the jitter's four parts is drawn once per view of a batch,
not once per image. All else has the published distribution, which is SimCLR's (Chen et al. 2020,
https://arxiv.org/abs/2002.05709) at the sizes of CIFAR. Larger views are blurred as SimCLR does it
(`blur.reach`). Given the same parameter, each operation equals torchvision's.

A step first draws all its random numbers on the CPU (`draw`). It then computes the views from the
images and these numbers alone (`make_view`), so they are the same on any device and for any number
of processes. An operation that was not drawn for an image gets the parameter that changes nothing:
there are no branches and no loops over images.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attentionce.data.blur import SIGMA, blur, neighbour_weight
from attentionce.data.transfer import to_device

# 1. Crop
SCALE = (0.08, 1.0)  # area of the crop as a share of the image's
RATIO = (3 / 4, 4 / 3)  # width / height of the crop
TRIES = 10  # crops to try before the central one is taken
# 2. Flip
FLIP_P = 0.5
# 3. Colour jitter
JITTER_P = 0.8
JITTER = 0.4  # factors of brightness, contrast and saturation lie in 1 ± JITTER
HUE = 0.1  # turns of the colour circle lie in ± HUE
# 4. Grayscale
GRAY_P = 0.2
LUMA = (0.2989, 0.587, 0.114)  # red, green and blue in gray: ITU-R BT.601 with torchvision's digits
# 5. Gaussian blur: its sizes and strengths are those of blur.py
BLUR_P = 0.5
# 6. Normalisation: CIFAR-10's channels, applied to every data set
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)

# ------------------------------------------------------------------------------ random numbers


class Draw(NamedTuple):
    """The parameters of V views of B images, float32 V×B. [0] or [1] is what changes nothing."""

    top: Tensor  # the crop, in whole pixels
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # 1: left and right are swapped [0]
    brightness: Tensor  # factor [1]
    contrast: Tensor  # factor [1]
    saturation: Tensor  # factor [1]
    hue: Tensor  # turns of the colour circle [0]
    gray: Tensor  # a second saturation factor: 0 where the view is gray [1]
    blur: Tensor  # `neighbour_weight` of the blur's standard deviation [0]
    order: list[list[int]]  # V×4: the order of each view's jitter, as indices into Ops.jitter


def generator(seed: int, *key: int) -> torch.Generator:
    """A CPU generator that depends only on `seed` and `key` (an epoch; an epoch and a step)."""
    # `manual_seed` keeps 32 bits, so few that two steps of a long run may share views.
    # Instead, set all 624 words of the Mersenne Twister. In torch's state they follow 24 bytes of
    # counters and take 8 bytes each.
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(624)
    result = torch.Generator()
    state = result.get_state()
    twister = state[24 : 24 + 8 * 624].view(torch.int64)
    twister.copy_(torch.from_numpy(words.astype(np.int64)))
    return result.set_state(state)


def draw(views: int, batch: int, height: int, width: int, generator: torch.Generator) -> Draw:
    """Draw the parameters of `views` views of `batch` images of `height`×`width` pixels."""
    # In float64 the last bit, which may vary with the number of threads, never decides a pixel.
    tries = torch.rand(2, TRIES, views, batch, dtype=torch.float64, generator=generator)
    u = torch.rand(11, views, batch, dtype=torch.float64, generator=generator)
    order = torch.rand(views, 4, generator=generator).argsort(1).tolist()

    top, left, crop_height, crop_width = _crop_boxes(tries[0], tries[1], u[0], u[1], height, width)
    jittered = u[3] < JITTER_P
    factors = 1 + jittered * JITTER * (2 * u[4:7] - 1)
    turns = jittered * HUE * (2 * u[7] - 1)
    blurred = u[9] < BLUR_P
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * u[10]
    return Draw(
        top=top.float(),
        left=left.float(),
        height=crop_height.float(),
        width=crop_width.float(),
        flip=(u[2] < FLIP_P).float(),
        brightness=factors[0].float(),
        contrast=factors[1].float(),
        saturation=factors[2].float(),
        hue=turns.float(),
        gray=(u[8] >= GRAY_P).float(),
        blur=(blurred * neighbour_weight(sigma)).float(),
        order=order,
    )


def _crop_boxes(
    area: Tensor, ratio: Tensor, top: Tensor, left: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose crops as torchvision's RandomResizedCrop does: the first of TRIES that fits the image.

    Area and position are uniform, the ratio is log-uniform. Where no crop fits, take the largest
    central one within RATIO. From numbers in [0, 1), TRIES×V×B (area, ratio) and V×B (top, left),
    come top, left, height and width in whole pixels, V×B each.
    """
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    ratio = (math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * ratio).exp()
    h = (area / ratio).sqrt().round()
    w = (area * ratio).sqrt().round()
    fits = (0 < h) & (h <= height) & (0 < w) & (w <= width)
    any_fits, first = fits.byte().max(0)  # of equal maxima, max gives the first
    h = h.gather(0, first[None])[0]
    w = w.gather(0, first[None])[0]

    central = any_fits == 0
    central_h = min(height, round(width / RATIO[0]))
    central_w = min(width, round(height * RATIO[1]))
    h = h.masked_fill(central, central_h)
    w = w.masked_fill(central, central_w)
    top = (top * (height - h + 1)).floor().masked_fill(central, (height - central_h) // 2)
    left = (left * (width - w + 1)).floor().masked_fill(central, (width - central_w) // 2)
    return top, left, h, w


def part(draw: Draw, start: int, stop: int) -> Draw:
    """The parameters of images `start` to `stop` (exclusive): one process's part of a batch."""
    return Draw._make([*(p[:, start:stop] for p in draw[:-1]), draw.order])


def to(draw: Draw, device: torch.device | str) -> Draw:
    """The same parameters on `device`, moved there in a single transfer."""
    packed = to_device(torch.stack(draw[:-1]), device)
    return Draw._make([*packed, draw.order])


# ------------------------------------------------- operations, in the order of the pipeline
# x is B×3×H×W in [0, 1]. All other tensors have one value per image (B). Results are new tensors.


def crop(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    flip: Tensor,
    size: int,
) -> Tensor:
    """Cut boxes out of images of 0 to 255, resize them with antialiasing and flip them.

    Bilinear resampling is linear in the rows and in the columns: rows · image · columnsᵀ.

    Args:
        top, left, height, width: The boxes, in whole pixels.
        flip: 1 where left and right are swapped, else 0.
        size: Height and width of the result in pixels.
    """
    rows = _resampling(top, height, torch.zeros_like(flip), images.size(2), size)
    columns = _resampling(left, width, flip, images.size(3), size).div_(255)
    x = images.float().flatten(1, 2) @ columns.mT
    return rows[:, None] @ x.unflatten(1, images.shape[1:3])


def _resampling(start: Tensor, length: Tensor, flip: Tensor, source: int, target: int) -> Tensor:
    """Matrices B×target×source that resize `length` source pixels from `start` to `target` pixels.

    Row i weighs source pixels by their distance to the point of the crop from which pixel i comes.
    The weight is a triangle that reaches to the next pixel: of the source, or of the target where
    that is coarser, which is the antialiasing that PIL does.
    """
    scale = (length / target)[:, None]
    i = torch.arange(target, device=start.device)
    i = torch.where(flip[:, None] > 0, target - 1 - i, i)
    centre = scale * (i + 0.5)
    j = torch.arange(source, device=start.device) - start[:, None]
    inside = (j >= 0) & (j < length[:, None])
    distance = ((j + 0.5)[:, None] - centre[:, :, None]).abs_()
    reach = scale.clamp_min(1)[:, :, None]
    weights = distance.neg_().add_(reach).clamp_min_(0).mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Mix the image (1) with black (0); factors above 1 extrapolate."""
    return (x * _column(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Mix the image (1) with its mean gray (0); factors above 1 extrapolate."""
    factor = _column(factor)
    mean = _gray(x).mean((2, 3), keepdim=True)
    return (x * factor).add_((1 - factor) * mean).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Mix the image (1) with the image in gray (0); factors above 1 extrapolate."""
    return torch.lerp(_gray(x), x, _column(factor)).clamp_(0, 1)


def _gray(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hues of HSV by `turns`, where 1 is once round the colour circle.

    Measure hue h in sextants from red, −3 to 3, so that green is at 2 and blue at −2. With value
    v = max(r, g, b) and chroma c = v − min(r, g, b), the channel at hue p is

        v − c clamp(d − 1, 0, 1),  with d the distance of h and p round the circle of 6,

    and c h = ±(c + g + b − r − min), with + where g ≥ b. Computing everything times c avoids the
    division by c, and so gray pixels are no special case.
    """
    red, green, blue = x.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    h = torch.copysign((chroma - low).add_(green).add_(blue).sub_(red), green - blue)
    # h + turn is the way from p to the new hue, −6 to 6, so 3 − d = | |h + turn| − 3 |.
    p = 2 * torch.arange(3, device=x.device)
    turn = (6 * turns[:, None] - p + 3).remainder(6) - 3
    way = torch.addcmul(h, chroma, turn[:, :, None, None])
    return way.abs_().sub_(3 * chroma).abs_().add_(low - chroma).clamp_(low, high)


def normalize(images: Tensor) -> Tensor:
    """Normalise images with MEAN and STD, 0 to 255 in any type to float32. Shapes stay the same."""
    return _standardize(images / 255)


def _standardize(x: Tensor) -> Tensor:
    # One channel at a time with plain numbers: a tensor of means would have to be sent to the GPU.
    for channel, mean, std in zip(x.unbind(1), MEAN, STD, strict=True):
        channel.sub_(mean).div_(std)
    return x


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


# ---------------------------------------------------------------------------------- whole views


def finish(x: Tensor, gray: Tensor, blur_weight: Tensor) -> Tensor:
    """The end of the pipeline: grayscale where `gray` is 0, blur, normalisation."""
    return _standardize(blur(saturation(x, gray), blur_weight))


class Ops(NamedTuple):
    """The three stages of a view. Each runs, or is compiled, on its own."""

    crop: Callable[..., Tensor] = crop
    jitter: Sequence[Callable[..., Tensor]] = (brightness, contrast, saturation, hue)
    finish: Callable[..., Tensor] = finish


def compiled() -> Ops:
    """Compile each operation on its own, so that a new order of the jitter needs no new graph."""
    # The compiler advises to round what `crop` multiplies to 10 bits.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    compile_op = functools.partial(torch.compile, dynamic=False)
    jitter = [compile_op(op) for op in Ops().jitter]
    return Ops(compile_op(crop), jitter, compile_op(finish))


def make_view(images: Tensor, draw: Draw, view: int, size: int = 32, ops: Ops = Ops()) -> Tensor:
    """Make one view of every image: normalised float32 B×3×size×size.

    Args:
        images: B×3×H×W, uint8 or the same numbers in float32.
        draw: The parameters, on the same device (`to`).
        view: Which of the V views of `draw` to make.
        ops: The operations, as they are or `compiled`.
    """
    box = [p[view] for p in (draw.top, draw.left, draw.height, draw.width, draw.flip)]
    jitter = [p[view] for p in (draw.brightness, draw.contrast, draw.saturation, draw.hue)]
    with torch.autocast(images.device.type, enabled=False):  # it would round to 8 bits of precision
        x = ops.crop(images, *box, size)
        for i in draw.order[view]:
            x = ops.jitter[i](x, jitter[i])
        return ops.finish(x, draw.gray[view], draw.blur[view])


def make(images: Tensor, draw: Draw, size: int = 32, ops: Ops = Ops()) -> Tensor:
    """Make all V views of every image: V×B×3×size×size. The arguments are those of `make_view`."""
    images = images.float()
    return torch.stack([make_view(images, draw, v, size, ops) for v in range(len(draw.order))])
