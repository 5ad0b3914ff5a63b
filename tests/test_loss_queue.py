"""AttentioNCE on MoCo: the negatives are a queue of earlier keys."""

import math

import numpy as np
import pytest
import torch
from helpers.device import DEVICE
from helpers.losses import assert_same, attentionce_oracle, embeddings, value_and_gradient

import loss


def queue_oracle(queries, keys, queue, temperature, d_pos, d_neg):
    parameters, total = (temperature, d_pos, d_neg), 0.0
    for view, i in np.ndindex(2, queries.shape[1]):
        pos, g = attentionce_oracle(queries[view, i], keys[:, i], list(queue), *parameters)
        total = total - torch.log(pos / (pos + g))
    return total / (2 * queries.shape[1])


@pytest.mark.parametrize(("batch", "m", "n"), [(1, 1, 1), (4, 3, 7), (5, 2, 16)])
def test_queue(batch, m, n, block):
    queries, keys = embeddings(2, batch, 4, seed=1), embeddings(m, batch, 4, seed=2)
    queue = embeddings(1, n, 4, seed=3)[0].detach().requires_grad_()
    arguments = keys, queue, 0.3, 0.5, 0.7
    expected = value_and_gradient(queue_oracle, queries, *arguments)
    assert_same(value_and_gradient(loss.attentionce_queue, queries, *arguments), expected)
    loss.attentionce_queue(queries, *arguments).backward()
    assert keys.grad is None
    assert queue.grad is None
    with torch.no_grad():
        assert_same([loss.attentionce_queue(queries, *arguments)], expected[:1])


def test_queue_in_half_precision_is_computed_in_float32(block):
    views = embeddings(2, 4, 4, seed=1), embeddings(3, 4, 4, seed=2), embeddings(1, 7, 4, seed=3)[0]
    half = [t.detach().bfloat16() for t in views]
    expected = loss.attentionce_queue(*(t.float() for t in half))
    assert_same([loss.attentionce_queue(*half)], [expected], 0)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("queries", [(3, 4, 5), (2, 4, 5), (7, 5)]),
        ("queries", [(2, 5), (2, 4, 5), (7, 5)]),
        ("queries", [(2, 0, 5), (2, 0, 5), (7, 5)]),
        ("keys", [(2, 4, 5), (2, 3, 5), (7, 5)]),
        ("keys", [(2, 4, 5), (0, 4, 5), (7, 5)]),
        ("keys", [(2, 4, 5), (4, 5), (7, 5)]),
        ("queue", [(2, 4, 5), (2, 4, 5), (7, 4)]),
        ("queue", [(2, 4, 5), (2, 4, 5), (0, 5)]),
        ("queue", [(2, 4, 5), (2, 4, 5), (1, 7, 5)]),
    ],
)
def test_queue_shapes(name, shapes):
    with pytest.raises(ValueError, match=f"^{name} must"):
        loss.attentionce_queue(*(torch.zeros(shape, device=DEVICE) for shape in shapes))


@pytest.mark.parametrize("name", ["temperature", "d_pos", "d_neg"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_queue_parameters(name, value):
    shapes = [(2, 4, 5), (1, 4, 5), (7, 5)]
    queries, keys, queue = (torch.zeros(shape, device=DEVICE) for shape in shapes)
    with pytest.raises(ValueError, match=f"^{name} must"):
        loss.attentionce_queue(queries, keys, queue, **{name: value})
