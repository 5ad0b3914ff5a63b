"""The reference recipe computes what this code computes."""

import pytest
import torch
from tiny_benchmark import ARGS, CPU
from torch.nn.functional import normalize

import loss
from benchmark import reference_recipe, this_code
from benchmark.comparison import Comparison
from model import Model


def embeddings(dtype, batch=9):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, batch, 16, dtype=dtype, generator=generator)
    return normalize(z, dim=-1).requires_grad_()


@pytest.mark.parametrize(
    ("temperature", "d_pos", "d_neg"), [(0.5, 1, 1), (0.5, 0.1, 10), (0.2, 2, 0.5)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_recipes_loss_is_this_codes(dtype, tolerance, temperature, d_pos, d_neg):
    z = embeddings(dtype)
    expected = reference_recipe.attentionce(z, temperature, d_pos, d_neg)
    result = loss.attentionce(z, temperature, d_pos, d_neg)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=0)
    (expected_gradient,) = torch.autograd.grad(expected, z)
    (gradient,) = torch.autograd.grad(result, z)
    largest = gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=tolerance * largest)


def test_the_recipes_mask_leaves_out_both_anchors_of_the_image():
    image = torch.arange(5).repeat(2)
    assert reference_recipe.mask_of_negatives(5).equal(image[:, None] != image)


@pytest.mark.parametrize("grad_cache", [False, True])
def test_both_steps_are_the_same_work(grad_cache, monkeypatch):
    views = torch.randn(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = reference_recipe.Recipe("resnet10", CPU)
    run = this_code.assemble(ARGS, "fp32", torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    run.model.load_state_dict(recipe.model.state_dict())
    shapes = []
    forward = Model.forward

    def recorded(self, x, *more):
        shapes.append(tuple(x.shape))
        return forward(self, x, *more)

    monkeypatch.setattr(Model, "forward", recorded)
    expected = recipe.step(views)
    assert shapes == [(4, 3, 8, 8)] * 6
    shapes.clear()
    this_code.fixed_step(run, views, grad_cache)()
    assert shapes == [(4, 3, 8, 8)] * (12 if grad_cache else 6)
    assert run.progress["losses"][0].item() == pytest.approx(expected, rel=1e-5)
    for (name, a), b in zip(recipe.model.named_parameters(), run.model.parameters(), strict=True):
        # Adam's first step is lr · sign(gradient), except where the gradient is rounding error.
        assert ((a - b).abs() < 1e-4).float().mean() > 0.95, name


def test_both_sides_make_the_same_number_of_views():
    comparison = Comparison(ARGS)
    images = comparison.images(12)
    batches = [views for views, _ in comparison.loader(images, 6, 4)]
    assert [[tuple(view.shape) for view in views] for views in batches] == [[(4, 3, 8, 8)] * 6] * 3
    assert not batches[0][0].equal(batches[0][1])
    asked = []

    def make_view(images, draw, view):
        asked.append((tuple(images.shape), view))

    this_code.make_views(images.pixels, 4, make_view)
    assert asked == [((4, 3, 32, 32), view) for view in range(6)] * 3
