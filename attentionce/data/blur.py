"""Gaussian blur of a batch: the size of the kernel, the strength, and the operation."""

import torch
from torch import Tensor

SIGMA = (0.1, 2.0)  # standard deviations in pixels, at every size of view, as in SimCLR


def reach(side: int) -> int:
    """How many pixels the kernel reaches to each side; it has 2 reach + 1 taps.

    As in SimCLR that is a tenth of the view's side, made odd: 9 taps at 96 px and 23 at 224 px. It
    is 3 taps at 32 px, as published for CIFAR, and never fewer.
    """
    return max(1, side // 20)


def neighbour_weight(sigma: Tensor) -> Tensor:
    """What the two outer taps weigh in a Gaussian kernel of three taps: 0 (no blur) to 2/3.

    At 32 px, where the kernel has three, it is all that `blur` needs to know of the standard
    deviation sigma > 0, in pixels.
    """
    return 2 / (2 + (0.5 / sigma**2).exp())


def blur(x: Tensor, weight: Tensor) -> Tensor:
    """Blur with a Gaussian kernel: rows first, then columns. The image is mirrored at its edge.

    In units of the middle tap, the tap at distance i is r^(i²) with r = exp(−1 / (2 sigma²)).

    Args:
        x: B×3×H×W; H sets the kernel's size (`reach`).
        weight: `neighbour_weight` of the standard deviations, B.
    """
    most = reach(x.size(2))
    ratio = weight / (2 * (1 - weight))  # r
    taps = [ratio ** (i * i - 1) for i in range(1, most + 1)]  # in units of the first outer tap
    total = torch.stack(taps).sum(0)
    halves = [_column(0.5 * tap / total) for tap in taps]
    outer = _column(weight * total / (1 - weight + weight * total))
    for dim in (2, 3):
        n = x.size(dim)
        before = x.narrow(dim, 1, most).flip(dim)
        after = x.narrow(dim, n - 1 - most, most).flip(dim)
        padded = torch.cat((before, x, after), dim)
        neighbours = _pair(padded, dim, n, most, 1).mul_(halves[0])
        for i in range(2, most + 1):
            neighbours.addcmul_(_pair(padded, dim, n, most, i), halves[i - 1])
        x = torch.lerp(x, neighbours, outer)
    return x


def _pair(padded: Tensor, dim: int, n: int, most: int, i: int) -> Tensor:
    """For each of n pixels, the sum of the two at distance i; `most` pixels pad each end."""
    return padded.narrow(dim, most - i, n) + padded.narrow(dim, most + i, n)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]
