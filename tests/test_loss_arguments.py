"""The losses' arguments, refused in one line when they are wrong; the losses as modules."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.losses import assert_same, embeddings, value_and_gradient
from torch import nn

import loss
from loss import AttentioNCE, ContrastiveLoss, contrastive

NOT_POSITIVE, NOT_IN_0_1 = (0, -0.5, math.inf, math.nan), (-0.1, 1.1, math.nan)
WRONG = [
    ("pair", "uniform", "temperature", NOT_POSITIVE),
    ("attention", "uniform", "d_pos", NOT_POSITIVE),
    ("mean", "attention", "d_neg", NOT_POSITIVE),
    ("pair", "debiased", "tau_plus", (*NOT_IN_0_1, 1)),
    ("pair", "hard", "beta", (-0.1, math.inf, math.nan)),
    ("pair", "bayes", "beta", NOT_IN_0_1),
    ("pair", "bayes", "alpha", NOT_IN_0_1),
]


@pytest.mark.parametrize("positives, negatives, name, values", WRONG)
def test_parameters_out_of_range(positives, negatives, name, values):
    z = embeddings(2 if positives == "pair" else 4, 4, 3)
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}$"):
            contrastive(z, positives, negatives, **{name: value})


@pytest.mark.parametrize("value", [nn.Parameter(torch.tensor(0.5)), "0.5"])
@pytest.mark.parametrize("name", ["temperature", "d_pos", "beta"])
def test_parameters_are_numbers(name, value):
    """A learnt temperature, as in CLIP, would get a wrong gradient."""
    with pytest.raises(ValueError, match=f"^{name} must be a number, got a {type(value).__name__}"):
        contrastive(embeddings(4, 4, 3), "attention", "hard", **{name: value})


def test_names_and_parameters_that_do_not_exist():
    with pytest.raises(ValueError, match="^d_neg has no effect with .*'pair', .*'uniform'$"):
        ContrastiveLoss("pair", "uniform", d_neg=1.0)
    with pytest.raises(ValueError, match="^positives must be one of pair, .*, got 'simclr'$"):
        ContrastiveLoss("simclr", "uniform")
    with pytest.raises(ValueError, match="^negatives must be one of .*, got 0.5$"):
        ContrastiveLoss("pair", 0.5)
    z = embeddings(2, 4, 3)
    assert_same([contrastive(z, "pair", "uniform", d_neg=None)], [loss.simclr(z)], 0)


@pytest.mark.parametrize("positives, wrong", [("pair", [0, 1, 3]), ("each", [0, 1, 2])])
def test_shapes(positives, wrong):
    for shape in [(4, 3), (6, 2, 4, 3), (2, 0, 3), *((views, 4, 3) for views in wrong)]:
        with pytest.raises(ValueError, match="^z must be views × batch × dim, 2 "):
            contrastive(torch.zeros(shape), positives)
    with pytest.raises(ValueError, match="^z must hold a batch of at least 2 images"):
        contrastive(torch.zeros(2 if positives == "pair" else 6, 1, 3), positives)
    z = embeddings(3, 4, 5)
    for shape in [(7, 4), (0, 5), (1, 7, 5), (5,)]:
        with pytest.raises(ValueError, match="^queue must be N × 5"):
            contrastive(z, queue=torch.zeros(shape))
    with pytest.raises(ValueError, match="^queue needs .*no gather"):
        contrastive(z, gather=lambda anchors: (anchors, 0), queue=z[0])


def test_modules():
    """They normalise, show their arguments, can be pickled, and pass `gather` on."""
    z, settings = 7 * embeddings(4, 6, 5).detach(), {"d_pos": 2.0, "d_neg": 0.5}
    unit = F.normalize(z, dim=-1)
    expected = value_and_gradient(
        lambda z: loss.attentionce(F.normalize(z, dim=-1), 0.2, **settings), z.requires_grad_()
    )
    module = AttentioNCE(0.2, **settings)
    for criterion in (module, pickle.loads(pickle.dumps(module))):
        assert_same(value_and_gradient(criterion, z), expected, 0)
    assert repr(module).startswith("AttentioNCE(positives=attention, negatives=attention, temp")
    first = AttentioNCE(0.2, gather=lambda _: (unit[:2], 0), **settings)(z[:, :3])
    rest = ContrastiveLoss(temperature=0.2, gather=lambda _: (unit[:2], 3), **settings)(z[:, 3:])
    assert_same([(first + rest).detach() / 2], expected[:1])
