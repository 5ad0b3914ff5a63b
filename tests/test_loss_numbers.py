"""Losses and gradients stay finite, keep their digits, and do not depend on autocast."""

import functools
import itertools
import math

import pytest
import torch
from helpers.device import DEVICE
from helpers.losses import (
    FUNCTIONS,
    assert_same,
    each_loss,
    embeddings,
    value_and_gradient,
    views_of,
)

import loss
from loss import LOSSES

# ---- finite ----


def assert_finite(function, z):
    value, gradient = value_and_gradient(function, z)
    assert value.dtype == gradient.dtype == z.dtype
    assert value.isfinite()
    assert value >= 0
    assert gradient.isfinite().all()


def hard_batch(name, views, batch):
    """Embeddings that are difficult: all equal, opposite, perfect, or near-duplicates."""
    if name == "equal":
        return torch.full((views, batch, 4), 0.5, device=DEVICE).requires_grad_()
    if name == "opposite":  # an image's two anchors point away from each other
        x = embeddings(1, batch, 4).detach().float().repeat(views, 1, 1)
        x[1] *= -1
        return x.requires_grad_()
    if name == "perfect":  # the views of an image are equal, all images orthogonal or opposite
        signs = torch.tensor([1.0, -1.0]).repeat(batch)[:batch, None]
        axes = torch.eye(4).repeat_interleave(2, 0).repeat(batch, 1)[:batch]
        return (axes * signs).repeat(views, 1, 1).to(DEVICE).requires_grad_()
    spread = {"near": 1e-2, "nearer": 1e-4, "random": None}[name]
    return embeddings(views, batch, 4, dtype=torch.float32, spread=spread)


# Every loss as it is, then with parameters at the ends of their ranges.
ENDS = [(kind, {}) for kind in LOSSES]
for d_pos, d_neg in itertools.product((0.01, 100.0), (0.01, 0.2, 100.0)):
    ENDS.append(("attentionce", {"d_pos": d_pos, "d_neg": d_neg}))
for tau_plus in (0.0, 0.1, 0.5, 0.99):
    ENDS.append(("dcl", {"tau_plus": tau_plus}))
    ENDS.append(("bcl", {"tau_plus": tau_plus, "alpha": 0.9, "beta": 1.0}))
    ENDS += [("hcl", {"tau_plus": tau_plus, "beta": beta}) for beta in (0.0, 1.0, 10.0)]


@pytest.mark.parametrize("batch", [2, 3, 64])
@pytest.mark.parametrize("name", ["equal", "opposite", "perfect", "near", "nearer", "random"])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
def test_finite(name, batch, temperature):
    z = hard_batch(name, 4, batch).detach()
    for kind, parameters in ENDS:
        views = z[: LOSSES[kind].views(num_pos=2)].clone().requires_grad_()
        function = functools.partial(FUNCTIONS[kind], temperature=temperature, **parameters)
        assert_finite(function, views)


def test_finite_when_large():
    z = embeddings(3, 4096, 4, dtype=torch.float32, spread=1e-2)
    assert_finite(lambda z: loss.attentionce(z, temperature=0.01, d_neg=0.01), z)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_finite_in_the_corners_of_bcl(alpha, beta):
    assert_finite(lambda z: loss.bcl(z, 0.5, 0.0, alpha, beta), embeddings(2, 5, 4))


# ---- right ----


@pytest.mark.parametrize("d_neg", [0.05, 0.2])
def test_right_where_exponentials_overflow(d_neg):
    """In float32, near-duplicates: e^neg is inf, the loss is that of float64."""
    z = embeddings(6, 64, 16, dtype=torch.float32, spread=0.2)
    sim = z.detach()[0] @ z.detach()[1].T
    assert (126 * torch.softmax(sim / d_neg, dim=1) * sim / 0.02).exp().sum(1).isinf().any()
    value, gradient = value_and_gradient(lambda z: loss.attentionce(z, 0.02, d_neg=d_neg), z)
    z = z.detach().double().requires_grad_()
    expected = value_and_gradient(lambda z: loss.attentionce(z, 0.02, d_neg=d_neg), z)
    assert_same([value.double(), gradient.double()], expected, 2e-3)


def test_small_losses_keep_their_digits():
    """A loss of 4e-22 is not rounded to 0, although pos + g rounds to pos."""
    z = torch.eye(2, device=DEVICE).repeat(3, 1, 1).requires_grad_()
    value, gradient = value_and_gradient(lambda z: loss.attentionce(z, 0.02), z)
    assert value.item() == pytest.approx(2 * math.exp(-50), rel=1e-4, abs=0)
    assert gradient.abs().max() > 0


# ---- precision ----


@each_loss
def test_autocast_leaves_float32_alone(kind):
    z = embeddings(views_of(kind), 8, 16, dtype=torch.float32)
    expected = value_and_gradient(FUNCTIONS[kind], z)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert (z[0] @ z[1].T).dtype == torch.bfloat16  # it is on
        assert_same(value_and_gradient(FUNCTIONS[kind], z), expected, 0)
        with torch.no_grad():
            assert_same([FUNCTIONS[kind](z)], expected[:1], 1e-6)
        queries = z[:2].detach().requires_grad_()
        with_queue = loss.attentionce_queue(queries, queries, queries[0])
    assert_same([with_queue], [loss.attentionce_queue(queries, queries, queries[0])], 0)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    z = embeddings(views_of(kind), 8, 16, dtype=dtype)
    value, gradient = value_and_gradient(FUNCTIONS[kind], z)
    expected = value_and_gradient(FUNCTIONS[kind], z.detach().float().requires_grad_())
    assert value.dtype == torch.float32
    assert_same([value, gradient], [expected[0], expected[1].to(dtype)], 0)


@each_loss
def test_keyword_arguments_are_computed_in_float32_too(kind):
    """Half precision, under autocast, and the embeddings given by name."""
    z = embeddings(views_of(kind), 8, 16, dtype=torch.bfloat16).detach()
    expected = LOSSES[kind].function(z.float())
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        found = LOSSES[kind].function(z=z)
    assert_same([found], [expected], 0)
