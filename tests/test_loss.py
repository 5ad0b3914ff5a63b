"""The losses against published numbers and against formulas written out anchor by anchor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import losses
from helpers.device import DEVICE
from helpers.losses import assert_same, embeddings, oracle, value_and_gradient, views_of

import loss
from attentionce.presets import PRESETS
from loss import contrastive

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = json.loads(str(GOLDEN["meta"]))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_golden(case):
    meta, z = CASES[case], torch.from_numpy(GOLDEN[f"z{case}"]).to(DEVICE).requires_grad_()
    value = torch.tensor(meta["loss"], dtype=torch.float64, device=DEVICE)
    gradient = torch.from_numpy(GOLDEN[f"grad{case}"]).to(DEVICE)
    function = getattr(loss, meta["kind"].replace("attention_nce", "attentionce"))
    parameters = {"temperature": meta["temperature"], **meta["params"]}
    assert_same(value_and_gradient(function, z, **parameters), (value, gradient))


@losses.each_setting
@pytest.mark.parametrize("with_queue", [False, True])
def test_formulas(chosen, with_queue):
    if with_queue and chosen["positives"] == "pair":
        with pytest.raises(ValueError, match="^queue needs positives other than 'pair'"):
            contrastive(embeddings(2, 4, 3), **chosen, queue=torch.ones(7, 3))
        return
    for batch, dim, m, temperature in [(2, 3, 1, 1.0), (3, 5, 2, 0.2), (5, 4, 3, 0.5)]:
        arguments = {**chosen, "temperature": temperature}
        if with_queue:  # of MoCo; no gradient flows to it
            arguments["queue"] = embeddings(1, 9 - batch, dim, seed=9).detach()[0].requires_grad_()
        z = embeddings(views_of(chosen, m), batch - with_queue, dim, seed=batch)
        expected = value_and_gradient(oracle, z, **arguments)
        assert_same(value_and_gradient(contrastive, z, **arguments), expected)
        with torch.no_grad():
            assert_same([contrastive(z, **arguments)], expected[:1])
    if with_queue:
        contrastive(z, **arguments).backward()
        assert arguments["queue"].grad is None


# By preset: parameters that are not the defaults, in the order of its arguments.
OTHERS = {
    "attentionce": {"d_pos": 0.7, "d_neg": 0.2},
    "simclr": {},
    "dcl": {"tau_plus": 0.3},
    "hcl": {"tau_plus": 0.3, "beta": 2.0},
    "bcl": {"tau_plus": 0.3, "alpha": 0.6, "beta": 0.5},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_combinations(name):
    function, pair, others = getattr(loss, name), PRESETS[name], OTHERS[name]
    z = embeddings(6 if name == "attentionce" else 2, 5, 4)
    expected = value_and_gradient(lambda z: contrastive(z, *pair), z)
    assert_same(value_and_gradient(function, z), expected, 0)
    expected = value_and_gradient(lambda z: contrastive(z, *pair, 0.3, **others), z)
    assert_same(value_and_gradient(lambda z: function(z, 0.3, *others.values()), z), expected, 0)
    of_part = function(z[:, :3], gather=lambda _: (z[:2], 0))
    assert_same([of_part], [contrastive(z[:, :3], *pair, gather=lambda _: (z[:2], 0))], 0)


def test_ties_in_bayes():
    """Equal cosines share the larger rank, as F counts them."""
    views = [[[1, 0], [0, 1], [0, 1]], [[1, 0], [0, 1], [0.6, 0.8]]]
    z = torch.tensor(views, dtype=torch.float64, device=DEVICE, requires_grad=True)
    expected = value_and_gradient(oracle, z, positives="pair", negatives="bayes")
    assert_same(value_and_gradient(loss.bcl, z), expected)


def test_bayes_where_its_formula_cancels():
    """Where 1e-3 + (1 − 2α)(τ⁻ − τ⁺) vanishes, and where the weights ω are all 0."""
    z = embeddings(2, 5, 4)
    near, at = (loss.bcl(z, 0.5, 0.1, 0.500625 + shift, 0.9) for shift in (1e-7, 0))
    assert near.item() == pytest.approx(at.item(), rel=1e-6)
    assert loss.bcl(z, 0.5, 0.0, alpha=1.0, beta=1.0).item() == pytest.approx(0, abs=1e-30)


@losses.each_combination
@pytest.mark.parametrize("parts", [1, 3, 12])
def test_gather(chosen, parts):
    """The mean over parts of a batch, each with all columns, is the batch's loss and gradient."""
    z, size = embeddings(views_of(chosen), 12, 5), 12 // parts

    def of_part(z, i):
        return contrastive(z[:, i : i + size], **chosen, gather=lambda _: (z[:2], i))

    def of_parts(z):
        return sum(of_part(z, i) for i in range(0, 12, size)) / parts

    assert_same(value_and_gradient(of_parts, z), value_and_gradient(contrastive, z, **chosen))
