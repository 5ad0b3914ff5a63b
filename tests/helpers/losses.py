"""The losses by their formulas, one anchor after another, and what tests of losses share.

Written apart from loss.py, exponentials and all, for sizes and temperatures where these fit in
float64. Each oracle takes an anchor, its positives (without further views the other anchor of its
image) and its negatives, and returns (e^pos, g).
"""

import functools
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from helpers.device import DEVICE, rounding
from loss import LOSSES

FUNCTIONS = {kind: entry.function for kind, entry in LOSSES.items()}
each_loss = pytest.mark.parametrize("kind", LOSSES)


def views_of(kind):
    """Views per image: the anchors, and four positives where the loss takes any."""
    return LOSSES[kind].views(num_pos=4)


def defaults_of(kind):
    """The defaults of a loss's parameters besides the temperature."""
    signature = inspect.signature(FUNCTIONS[kind]).parameters
    return {name: signature[name].default for name in LOSSES[kind].parameters}


# Every loss as it is, then with lower and higher temperatures and other parameters.
SETTINGS = [(kind, {"temperature": 0.5, **defaults_of(kind)}) for kind in LOSSES]
SETTINGS += [
    ("attentionce", {"temperature": 0.5, "d_pos": 1.0, "d_neg": 10.0}),
    ("attentionce", {"temperature": 0.2, "d_pos": 0.1, "d_neg": 0.5}),
    ("attentionce", {"temperature": 1.0, "d_pos": 4.0, "d_neg": 0.2}),
    ("simclr", {"temperature": 0.07}),
    ("dcl", {"temperature": 0.2, "tau_plus": 0.6}),  # many rows at the floor
    ("dcl", {"temperature": 0.5, "tau_plus": 0.0}),
    ("hcl", {"temperature": 0.3, "tau_plus": 0.4, "beta": 2.5}),
    ("hcl", {"temperature": 0.5, "tau_plus": 0.0, "beta": 0.0}),
    ("bcl", {"temperature": 0.2, "tau_plus": 0.05, "alpha": 0.7, "beta": 1.0}),
    ("bcl", {"temperature": 0.5, "tau_plus": 0.0, "alpha": 0.5, "beta": 0.3}),
]
each_setting = pytest.mark.parametrize(("kind", "parameters"), SETTINGS)

# ---- the formulas ----


def attentionce_oracle(a, positives, negatives, temperature, d_pos, d_neg):
    s = torch.stack([a @ p for p in positives])
    alpha = (s.detach() / d_pos).exp() / (s.detach() / d_pos).exp().sum()
    pos = sum(alpha[m] * s[m] for m in range(len(s))) / temperature
    s = torch.stack([a @ k for k in negatives])
    beta = len(s) * ((s.detach() / d_neg).exp() / (s.detach() / d_neg).exp().sum() + 1e-6)
    return pos.exp(), sum((beta[k] * s[k] / temperature).exp() for k in range(len(s)))


def exponentials(a, positives, negatives, temperature):
    """(e^pos, the e_k) of losses with one positive."""
    (positive,) = positives
    e = torch.stack([(a @ k / temperature).exp() for k in negatives])
    return (a @ positive / temperature).exp(), e


def debiased(r, pos, n, temperature, tau_plus):
    g = (r - tau_plus * n * pos) / (1 - tau_plus)
    floor = n * math.exp(-1 / temperature)
    return g if g > floor else torch.full_like(g, floor)


def simclr_oracle(a, positives, negatives, temperature):
    pos, e = exponentials(a, positives, negatives, temperature)
    return pos, e.sum()


def dcl_oracle(a, positives, negatives, temperature, tau_plus):
    pos, e = exponentials(a, positives, negatives, temperature)
    return pos, debiased(e.sum(), pos, len(e), temperature, tau_plus)


def hcl_oracle(a, positives, negatives, temperature, tau_plus, beta):
    pos, e = exponentials(a, positives, negatives, temperature)
    r = (e**beta * e).sum() / (e**beta).mean()
    return pos, debiased(r, pos, len(e), temperature, tau_plus)


def bcl_oracle(a, positives, negatives, temperature, tau_plus, alpha, beta):
    pos, e = exponentials(a, positives, negatives, temperature)
    tau_minus = 1 - tau_plus
    a = (1 - 2 * alpha) * (tau_minus - tau_plus) + 1e-3
    b = 2 * (alpha * tau_minus + (1 - alpha) * tau_plus)
    g = 0.0
    for e_k in e:
        share = (e.detach() <= e_k.detach()).double().mean().item()
        c = (-b + math.sqrt(b * b + 4 * a * share)) / (2 * a)
        phi1, phi2 = 2 * (1 - c), 2 * c
        tn, fn = alpha * phi1 + (1 - alpha) * phi2, (1 - alpha) * phi1 + alpha * phi2
        h = alpha * (1 - beta) * phi1 + (1 - alpha) * beta * phi2
        h /= alpha * (1 - beta) + (1 - alpha) * beta + 1e-3
        g = g + h / (tn * (1 - tau_plus) + fn * tau_plus) * e_k
    return pos, g


def oracle(kind, z, temperature=0.5, **parameters):
    """The loss `kind` of z in float64 by its formula, one anchor at a time."""
    parameters = {**defaults_of(kind), **parameters}
    z, total = z.double(), 0.0
    batch = z.shape[1]
    for view in range(2):
        for i in range(batch):
            positives = z[2:, i] if LOSSES[kind].positives else [z[1 - view, i]]
            negatives = [z[w, k] for w in range(2) for k in range(batch) if k != i]
            of_kind = globals()[f"{kind}_oracle"]
            pos, g = of_kind(z[view, i], positives, negatives, temperature, **parameters)
            total = total - torch.log(pos / (pos + g))
    return total / (2 * batch)


@functools.cache
def oracle_of_batch(kind, batch, dim, **parameters):
    """Value and gradient of the oracle for `embeddings(views_of(kind), batch, dim)`."""
    z = embeddings(views_of(kind), batch, dim)
    return value_and_gradient(lambda z: oracle(kind, z, **parameters), z)


# ---- inputs and comparisons ----


def embeddings(views, batch, dim, seed=0, dtype=torch.float64, spread=None):
    """Normalised and random, on the device; with `spread`, near-duplicates that far apart."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(views, batch, dim, generator=random, dtype=torch.float64)
    if spread is not None:
        x = x[:1, :1] + spread * x
    return F.normalize(x, dim=-1).to(DEVICE, dtype).requires_grad_()


def value_and_gradient(function, *inputs):
    """The function's value, and its gradient with respect to the first input."""
    value = function(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs[:1])


def assert_same(left, right, tolerance=1e-9):
    """Values and gradients equal to a relative `tolerance` (of the gradient's largest entry)."""
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert a.isfinite().all()
        assert (a - b).abs().max() <= max(tolerance, rounding(a.dtype)) * b.abs().max()
