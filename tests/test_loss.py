"""The losses against published numbers and against formulas written out anchor by anchor."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.device import DEVICE, rounding
from helpers.losses import (
    FUNCTIONS,
    assert_same,
    each_loss,
    each_setting,
    embeddings,
    oracle,
    oracle_of_batch,
    value_and_gradient,
    views_of,
)

import loss
from loss import LOSSES

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = json.loads(str(GOLDEN["meta"]))

# ---- values and gradients ----


@pytest.mark.parametrize("case", range(len(CASES)))
def test_golden(case, block):
    meta, z = CASES[case], torch.from_numpy(GOLDEN[f"z{case}"]).to(DEVICE).requires_grad_()
    value = torch.tensor(meta["loss"], dtype=torch.float64, device=DEVICE)
    gradient = torch.from_numpy(GOLDEN[f"grad{case}"]).to(DEVICE)
    function = FUNCTIONS[meta["kind"].replace("attention_nce", "attentionce")]
    of_case = functools.partial(function, temperature=meta["temperature"], **meta["params"])
    assert_same(value_and_gradient(of_case, z), (value, gradient))


@each_setting
@pytest.mark.parametrize(("batch", "dim", "m"), [(2, 3, 1), (3, 5, 2), (7, 4, 5)])
def test_formulas(kind, parameters, batch, dim, m):
    z = embeddings(LOSSES[kind].views(m), batch, dim, seed=batch)
    expected = value_and_gradient(lambda z: oracle(kind, z, **parameters), z)
    assert_same(value_and_gradient(lambda z: FUNCTIONS[kind](z, **parameters), z), expected)
    with torch.no_grad():
        assert_same([FUNCTIONS[kind](z, **parameters)], expected[:1])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("attentionce", (0.5, 1.0, 1.0)),
        ("simclr", (0.5,)),
        ("dcl", (0.5, 0.1)),
        ("hcl", (0.5, 0.1, 1.0)),
        ("bcl", (0.5, 0.1, 0.9, 0.9)),
    ],
)
def test_defaults(kind, arguments):
    z = embeddings(views_of(kind), 5, 4)
    assert_same([FUNCTIONS[kind](z)], [FUNCTIONS[kind](z, *arguments)], 0)


@pytest.mark.parametrize("kind", [kind for kind, entry in LOSSES.items() if not entry.attention])
def test_gradients_by_differences(kind):
    """Where no gradient is stopped (bcl's ranks only jump), it is that of the value itself."""
    z = embeddings(2, 4, 3, seed=3)
    assert torch.autograd.gradcheck(FUNCTIONS[kind], z, nondet_tol=rounding(z.dtype))


def test_attention_is_not_differentiated():
    """The gradient is that of the value with α and β held fixed, and not that of the value."""
    z, (temperature, d_pos, d_neg) = embeddings(5, 4, 3), (0.5, 0.3, 0.4)
    fixed = z.detach()

    def others(z, i):
        return torch.cat([z[:2, :i], z[:2, i + 1 :]], dim=1).flatten(0, 1)

    def held(z):
        total = 0.0
        for view, i in np.ndindex(2, 4):
            alpha = torch.softmax(fixed[2:, i] @ fixed[view, i] / d_pos, dim=0)
            beta = 6 * (torch.softmax(others(fixed, i) @ fixed[view, i] / d_neg, dim=0) + 1e-6)
            pos = (alpha * (z[2:, i] @ z[view, i])).sum() / temperature
            log_g = torch.logsumexp(beta * (others(z, i) @ z[view, i]) / temperature, dim=0)
            total += torch.logaddexp(pos, log_g) - pos
        return total / 8

    def differences(function):
        steps = 1e-6 * torch.eye(z.numel(), dtype=z.dtype, device=DEVICE).view(-1, *z.shape)
        with torch.no_grad():
            slopes = [(function(z + h) - function(z - h)) / 2e-6 for h in steps]
        return torch.stack(slopes).view(z.shape)

    def attentionce(z):
        return loss.attentionce(z, temperature, d_pos, d_neg)

    _, gradient = value_and_gradient(attentionce, z)
    assert_same([gradient], [differences(held)], 1e-7)
    assert (gradient - differences(attentionce)).abs().max() > 1e-3


def test_ties_in_bcl():
    """Equal cosines share the larger rank, as F counts them."""
    views = [[[1, 0], [0, 1], [0, 1]], [[1, 0], [0, 1], [0.6, 0.8]]]
    z = torch.tensor(views, dtype=torch.float64, device=DEVICE, requires_grad=True)
    expected = value_and_gradient(lambda z: oracle("bcl", z), z)
    assert_same(value_and_gradient(loss.bcl, z), expected)


def test_bcl_where_its_formula_cancels():
    """Where 1e-3 + (1 − 2α)(τ⁻ − τ⁺) vanishes, and where the weights ω are all 0."""
    z = embeddings(2, 5, 4)
    near, at = (loss.bcl(z, 0.5, 0.1, 0.500625 + shift, 0.9) for shift in (1e-7, 0))
    assert near.item() == pytest.approx(at.item(), rel=1e-6)
    assert loss.bcl(z, 0.5, 0.0, alpha=1.0, beta=1.0).item() == pytest.approx(0, abs=1e-30)


# ---- several processes ----


@each_loss
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 12])
def test_gather(kind, parts, block):
    """The mean over parts of a batch, each with all columns, is the batch's loss and gradient."""
    z = embeddings(views_of(kind), 12, 5)
    size, seen = 12 // parts, []

    def of_parts(z):
        total = 0.0
        for first in range(0, 12, size):
            part = z[:, first : first + size]

            def gather(anchors, first=first, part=part):
                seen.append(torch.equal(anchors, part[:2]))
                return z[:2], first

            total = total + FUNCTIONS[kind](part, gather=gather)
        return total / parts

    assert_same(value_and_gradient(of_parts, z), oracle_of_batch(kind, 12, 5))
    assert seen == [True] * parts


# ---- the module ----


def test_module():
    z = embeddings(4, 6, 5)
    module = loss.AttentioNCE(0.2, d_pos=2.0, d_neg=0.5)
    expected = value_and_gradient(
        lambda z: loss.attentionce(F.normalize(z, dim=-1), 0.2, 2.0, 0.5), z
    )
    assert_same(value_and_gradient(module, z), expected, 0)
    assert repr(module) == "AttentioNCE(temperature=0.2, d_pos=2.0, d_neg=0.5)"
    assert list(module.parameters()) == []
    gathered = loss.AttentioNCE(0.2, 2.0, 0.5, gather=lambda anchors: (z[:2], 3))(z[:, 3:])
    rest = loss.AttentioNCE(0.2, 2.0, 0.5, gather=lambda anchors: (z[:2], 0))(z[:, :3])
    assert_same([(gathered.detach() + rest) / 2], expected[:1])
    with pytest.raises(ValueError, match="d_neg"):
        loss.AttentioNCE(d_neg=0)


# ---- wrong arguments ----

NOT_POSITIVE = (0, -0.5, math.inf, math.nan)
WITH_TAU_PLUS = [kind for kind, entry in LOSSES.items() if "tau_plus" in entry.parameters]
WRONG = [(kind, "temperature", value) for kind in LOSSES for value in NOT_POSITIVE]
WRONG += [("attentionce", name, value) for name in ("d_pos", "d_neg") for value in NOT_POSITIVE]
WRONG += [(kind, "tau_plus", value) for kind in WITH_TAU_PLUS for value in (-0.1, 1, 1.5, math.nan)]
WRONG += [("hcl", "beta", value) for value in (-0.1, math.inf, math.nan)]
WRONG += [("bcl", name, value) for name in ("alpha", "beta") for value in (-0.1, 1.1, math.nan)]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_wrong_parameters(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} must.*got {value}"):
        FUNCTIONS[kind](embeddings(views_of(kind), 4, 3), **{name: value})


@each_loss
def test_wrong_shapes(kind):
    if LOSSES[kind].positives:
        wrong = [(4, 3), (1, 4, 3), (2, 4, 3), (6, 2, 4, 3)]
    else:
        wrong = [(4, 3), (0, 4, 3), (1, 4, 3), (3, 4, 3), (6, 4, 3), (2, 2, 4, 3)]
    for shape in wrong:
        with pytest.raises(ValueError, match="^z must be .*views"):
            FUNCTIONS[kind](torch.zeros(shape, device=DEVICE))
    for batch in (0, 1):
        with pytest.raises(ValueError, match="^z must hold a batch of at least 2"):
            FUNCTIONS[kind](torch.zeros(views_of(kind), batch, 3, device=DEVICE))
