"""The reference recipe computes what this code computes."""

import pytest
import torch
from tiny_benchmark import ARGS
from torch.nn.functional import normalize

import loss
from attentionce.data import views
from attentionce.training import one_step
from benchmark import reference_recipe, rows, this_code


def test_the_recipes_loss_is_this_codes():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 9, 16, dtype=torch.float64, generator=generator)
    z = normalize(z, dim=-1).requires_grad_()
    expected = reference_recipe.attentionce(z, 0.2, 2, 0.5)
    result = loss.attentionce(z, 0.2, 2, 0.5)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=0)
    (expected_gradient,) = torch.autograd.grad(expected, z)
    (gradient,) = torch.autograd.grad(result, z)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)


def test_the_recipes_mask_leaves_out_both_anchors_of_the_image():
    image = torch.arange(5).repeat(2)
    assert reference_recipe.mask_of_negatives(5).equal(image[:, None] != image)


@pytest.mark.parametrize("variant", ["fp32", "fp32 grad_cache"])
def test_both_steps_are_the_same_work(variant):
    made, shapes = torch.randn(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    recipe, step = reference_recipe.Recipe(ARGS), this_code.step(ARGS, variant)
    run = step.args[0]
    run.model.load_state_dict(recipe.model.state_dict())
    run.view_ops = this_code.ready(made)
    for model in (recipe.model, run.model):
        model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    expected = recipe.step(made)
    step()
    assert shapes == [(4, 3, 8, 8)] * (18 if "grad_cache" in variant else 12)
    assert run.progress["losses"][0].item() == pytest.approx(expected, rel=1e-5)
    assert run.progress["attention"] == {}
    for (name, a), b in zip(recipe.model.named_parameters(), run.model.parameters(), strict=True):
        # Adam's first step is lr · sign(gradient), except where the gradient is rounding error.
        assert ((a - b).abs() < 1e-4).float().mean() > 0.95, name


def test_both_sides_make_the_same_number_of_views(monkeypatch):
    images, made = rows.images_of(12), []
    batches = [views for views, _ in reference_recipe.loader(ARGS, images, 4, 6)]
    assert [[tuple(view.shape) for view in views] for views in batches] == [[(4, 3, 8, 8)] * 6] * 3
    assert not batches[0][0].equal(batches[0][1])
    make_view = views.make_view
    monkeypatch.setattr(views, "make_view", lambda *call: made.append(make_view(*call)))
    this_code.view_making(ARGS, images, "cpu", False)()
    assert [tuple(view.shape) for view in made] == [(12, 3, 8, 8)] * 6


def test_the_start_ends_after_one_step(monkeypatch):
    steps, take_step = [], one_step.take_step
    monkeypatch.setattr(one_step, "take_step", lambda *call: steps.append("") or take_step(*call))
    this_code.first_step(ARGS)
    assert len(steps) == 1
