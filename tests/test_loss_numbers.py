"""Losses and gradients stay finite, keep their digits, and do not depend on autocast."""

import math

import pytest
import torch
from helpers import losses
from helpers.device import DEVICE
from helpers.losses import assert_same, embeddings, value_and_gradient, views_of

import loss
from loss import contrastive


def difficult(name, batch):
    """Float32 embeddings of 4 views: all equal, opposite, perfect, or near-duplicates."""
    if name == "equal":
        return torch.full((4, batch, 4), 0.5, device=DEVICE)
    if name == "opposite":  # an image's two anchors point away from each other
        x = embeddings(1, batch, 4, dtype=torch.float32).detach().repeat(4, 1, 1)
        x[1] *= -1
        return x
    if name == "perfect":  # the views of an image are equal, all images orthogonal or opposite
        axes = torch.cat([torch.eye(4), -torch.eye(4)])[torch.arange(batch) * 5 % 8]
        return axes.repeat(4, 1, 1).to(DEVICE)
    spread = {"near": 1e-4, "random": None}[name]
    return embeddings(4, batch, 4, dtype=torch.float32, spread=spread).detach()


@pytest.mark.parametrize("name", ["equal", "opposite", "perfect", "near", "random"])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
def test_finite(name, temperature):
    of_bayes = {"positives": "each", "negatives": "bayes", "alpha": 1.0, "beta": 1.0}  # all ω 0
    for chosen in [*losses.SETTINGS, of_bayes]:
        for batch in (2, 3, 40):
            z = difficult(name, batch)[: views_of(chosen)].requires_grad_()
            value, gradient = value_and_gradient(contrastive, z, **chosen, temperature=temperature)
            assert value.dtype == gradient.dtype == torch.float32
            assert 0 <= value < math.inf and gradient.isfinite().all(), (chosen, batch)


def test_right_where_exponentials_overflow():
    """In float32, near-duplicates: e^neg is inf, the loss is that of float64."""
    z = embeddings(6, 64, 16, dtype=torch.float32, spread=0.2)
    sim = z.detach()[0] @ z.detach()[1].T
    assert (126 * torch.softmax(sim / 0.05, dim=1) * sim / 0.02).exp().sum(1).isinf().any()
    value, gradient = value_and_gradient(loss.attentionce, z, temperature=0.02, d_neg=0.05)
    z = z.detach().double().requires_grad_()
    expected = value_and_gradient(loss.attentionce, z, temperature=0.02, d_neg=0.05)
    assert_same([value.double(), gradient.double()], expected, 2e-3)


def test_small_losses_keep_their_digits():
    """A loss of 4e-22 is not rounded to 0, although pos + g rounds to pos."""
    z = torch.eye(2, device=DEVICE).repeat(3, 1, 1).requires_grad_()
    value, gradient = value_and_gradient(loss.attentionce, z, temperature=0.02)
    assert value.item() == pytest.approx(2 * math.exp(-50), rel=1e-4, abs=0)
    assert gradient.abs().max() > 0


@losses.each_ingredient
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computed_in_float32(chosen, dtype):
    """Also under autocast, and where z and the queue have 16 bits."""
    z = embeddings(views_of(chosen), 8, 16, dtype=dtype)
    queue = embeddings(1, 7, 16, seed=1)[0].detach().bfloat16()
    for arguments in [{}] if chosen["positives"] == "pair" else [{}, {"queue": queue}]:
        arguments = {**chosen, **arguments}
        in_float32 = z.detach().float().requires_grad_()
        value, gradient = value_and_gradient(contrastive, in_float32, **arguments)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            assert (in_float32[0] @ in_float32[1].T).dtype == torch.bfloat16  # it is on
            found = value_and_gradient(contrastive, z, **arguments)
            assert_same(found, [value, gradient.to(dtype)], 0)
