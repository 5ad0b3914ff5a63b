"""The losses by their formulas, one anchor after another, and what tests of losses share.

Written apart from loss.py, exponentials and all, for sizes and temperatures where these fit in
float64.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from helpers.device import DEVICE, rounding
from loss import NEGATIVES, POSITIVES

# ---- what is tested: keyword arguments of `contrastive` ----

OF_POSITIVES = {"attention": [{}, {"d_pos": 0.01}, {"d_pos": 4.0}]}
OF_NEGATIVES = {
    "uniform": [{}],
    "debiased": [{}, {"tau_plus": 0.0}, {"tau_plus": 0.6}],  # 0.6: many rows at the floor
    "hard": [{}, {"tau_plus": 0.0, "beta": 0.0}, {"tau_plus": 0.6, "beta": 10.0}],
    "bayes": [{}] + [{"tau_plus": 0.0, "alpha": a, "beta": 1 - a} for a in (0.0, 0.3, 1.0)],
    "attention": [{}, {"d_neg": 0.01}, {"d_neg": 10.0}],
}
COMBINATIONS = [{"positives": p, "negatives": n} for p in POSITIVES for n in NEGATIVES]
SETTINGS = [  # all combinations, with their defaults and others
    {**names, **of_positives, **of_negatives}
    for names in COMBINATIONS
    for of_positives in OF_POSITIVES.get(names["positives"], [{}])
    for of_negatives in OF_NEGATIVES[names["negatives"]]
]


def each(cases):
    """A test for each of these keyword arguments."""
    ids = ["-".join(str(value) for value in case.values()) for case in cases]
    return pytest.mark.parametrize("chosen", cases, ids=ids)


each_setting, each_combination = each(SETTINGS), each(COMBINATIONS)
# Every ingredient in one loss or another.
each_ingredient = each(
    [
        {"positives": list(POSITIVES)[i % len(POSITIVES)], "negatives": negatives}
        for i, negatives in enumerate(NEGATIVES)
    ]
)


def views_of(chosen, m=4):
    """Views per image."""
    return 2 if chosen["positives"] == "pair" else 2 + m


# ---- the formulas ----


def pos_oracle(positives, s, temperature, d_pos=1.0):
    """Every pos_j of an anchor with the cosines s to its positives."""
    if positives in ("pair", "each"):
        return list(s / temperature)
    if positives == "mean":
        return [s.sum() / len(s) / temperature]
    e = (s.detach() / d_pos).exp()
    return [(e / e.sum() * s).sum() / temperature]


def bayes_weight(f, tau_plus, alpha, beta):
    tau_minus = 1 - tau_plus
    a = (1 - 2 * alpha) * (tau_minus - tau_plus) + 1e-3
    b = 2 * (alpha * tau_minus + (1 - alpha) * tau_plus)
    c = (-b + math.sqrt(b * b + 4 * a * f)) / (2 * a)
    phi1, phi2 = 2 * (1 - c), 2 * c
    tn, fn = alpha * phi1 + (1 - alpha) * phi2, (1 - alpha) * phi1 + alpha * phi2
    h = alpha * (1 - beta) * phi1 + (1 - alpha) * beta * phi2
    h /= alpha * (1 - beta) + (1 - alpha) * beta + 1e-3
    return h / (tn * tau_minus + fn * tau_plus)


def g_oracle(negatives, s, pos, temperature, tau_plus=0.1, alpha=0.9, beta=None, d_neg=1.0):
    """g_j of an anchor with the cosines s to its negatives, beside one of its pos_j."""
    n, e = len(s), (s / temperature).exp()
    if negatives == "uniform":
        return e.sum()
    if negatives == "attention":
        weights = (s.detach() / d_neg).exp() / (s.detach() / d_neg).exp().sum()
        return (n * (weights + 1e-6) * s / temperature).exp().sum()
    if negatives == "bayes":
        beta = 0.9 if beta is None else beta
        shares = [(e <= e_k).double().mean().item() for e_k in e]
        return sum(bayes_weight(shares[k], tau_plus, alpha, beta) * e[k] for k in range(n))
    w = e ** (1.0 if beta is None else beta) if negatives == "hard" else torch.ones_like(e)
    g = ((w * e).sum() / w.mean() - tau_plus * n * pos.exp()) / (1 - tau_plus)
    floor = n * math.exp(-1 / temperature)
    return g if g > floor else torch.full_like(g, floor)


def oracle(z, positives, negatives, temperature=0.5, queue=None, d_pos=1.0, **parameters):
    """`contrastive` of z in float64 by its formula, one anchor at a time."""
    z, losses = z.double(), []
    for view, i in itertools.product(range(2), range(z.shape[1])):
        other_images = [z[w, k] for w in range(2) for k in range(z.shape[1]) if k != i]
        others = torch.stack(other_images) if queue is None else queue.detach().double()
        views = z[1 - view, i][None] if positives == "pair" else z[2:, i]
        views = views if queue is None else views.detach()
        for pos in pos_oracle(positives, views @ z[view, i], temperature, d_pos):
            g = g_oracle(negatives, others @ z[view, i], pos, temperature, **parameters)
            losses.append(-torch.log(pos.exp() / (pos.exp() + g)))
    return torch.stack(losses).mean()


# ---- inputs and comparisons ----


def embeddings(views, batch, dim, seed=0, dtype=torch.float64, spread=None):
    """Normalised and random, on the device; with `spread`, near-duplicates that far apart."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(views, batch, dim, generator=random, dtype=torch.float64)
    if spread is not None:
        x = x[:1, :1] + spread * x
    return F.normalize(x, dim=-1).to(DEVICE, dtype).requires_grad_()


def value_and_gradient(function, z, **arguments):
    """The function's value, and its gradient with respect to z."""
    value = function(z, **arguments)
    return value.detach(), *torch.autograd.grad(value, z)


def assert_same(left, right, tolerance=1e-9):
    """Values and gradients equal to a relative `tolerance` (of the gradient's largest entry)."""
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert a.isfinite().all()
        assert (a - b).abs().max() <= max(tolerance, rounding(a.dtype)) * b.abs().max()
