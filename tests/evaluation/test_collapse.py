"""Alignment, uniformity and RankMe against their definitions, in float64 and pair by pair."""

import math

import pytest
import torch
from helpers.device import DEVICE

from attentionce.evaluation import collapse, figures, knn
from model import Model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def unit(row):
    return (row.double() / row.double().norm()).cpu()


def test_alignment():
    one, other = random(40, 7), random(40, 7, seed=1)
    distances = [float((unit(a) - unit(b)).norm()) ** 2 for a, b in zip(one, other, strict=True)]
    assert collapse.alignment(one, other) == pytest.approx(sum(distances) / 40, rel=1e-5)
    assert collapse.alignment(one, 3 * one) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [2, 50, 1100])  # 1100: more than a block
def test_uniformity(count):
    features = random(count, 7)
    z = torch.stack([unit(row) for row in features])
    potentials = torch.exp(-2 * torch.nn.functional.pdist(z) ** 2)
    assert collapse.uniformity(features) == pytest.approx(math.log(potentials.mean()), rel=1e-4)
    assert collapse.uniformity(torch.ones(count, 7)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(60, 9), (9, 60)])
def test_rankme(shape):
    features = random(*shape) @ torch.diag(torch.logspace(0, -3, shape[1])).to(DEVICE)
    singular = torch.linalg.svdvals(features.double().cpu())
    p = singular / singular.sum() + 1e-7
    entropy = -sum(x * x.log() for x in p)
    assert collapse.rankme(features) == pytest.approx(math.exp(entropy), rel=1e-3)
    assert collapse.rankme(torch.eye(8)) == pytest.approx(8, rel=1e-4)
    assert collapse.rankme(torch.ones(9, 8)) == pytest.approx(1, abs=1e-3)


def test_numbers_of_an_encoder():
    """Alignment is of two random views, always the same; the encoder's mode is restored."""
    f = Model(arch="resnet10").f.to(DEVICE).train()
    pixels = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    features = knn.features(f, pixels, DEVICE, torch.float32)
    made = figures.some_views(pixels, 30, 0, 8, seed=4)
    with torch.no_grad():
        one, other = (f.eval()(view.to(DEVICE)).flatten(1) for view in made)
    f.train()
    found = collapse.collapse_numbers(f, pixels, features, 8, 4, torch.float32)
    assert f.training
    assert found == {
        "alignment": pytest.approx(collapse.alignment(one, other), rel=1e-4),
        "uniformity": collapse.uniformity(features),
        "rankme": collapse.rankme(features),
    }
