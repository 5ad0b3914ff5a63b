"""The figures of an encoder that TensorBoard and experiments/plot.py share."""

import runpy
import sys

import pytest
import torch
from matplotlib.figure import Figure

import loss
from attentionce.data import views
from attentionce.evaluation import figures
from model import Model

PIXELS = torch.randint(
    0, 256, (20, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_matplotlib_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    runpy.run_path(figures.__file__)  # an import would fail


def test_views_are_those_of_the_seed():
    made, again, other = (figures.some_views(PIXELS, 4, 2, 8, seed) for seed in (3, 3, 4))
    assert made.shape == (4, 4, 3, 8, 8)
    assert torch.equal(made, again) and not torch.equal(made, other)


def test_displayed_undoes_the_normalisation():
    shown = figures.displayed(views.normalize(PIXELS))
    torch.testing.assert_close(shown, PIXELS / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_projections_are_those_of_training_and_leave_the_model_alone(training):
    model = Model(arch="resnet10").train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = figures.some_views(PIXELS, 5, num_pos=1, size=8, seed=0)
    z = figures.projections(model, made)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.train()
    for view, found in zip(made, z, strict=True):  # BatchNorm uses each view's own statistics
        torch.testing.assert_close(found, model(view)[1].detach())


def test_weights_are_written_with_two_digits():
    for weight, text in {0.5: "0.50", 0.005: "0.01", 0.0049: "< 0.01", 12.345: "12.35"}.items():
        assert figures.short(torch.tensor(weight, dtype=torch.float64)) == text


def test_attention_panel_shows_the_weights_of_its_images():
    made = figures.some_views(PIXELS, 8, num_pos=2, size=8, seed=0)
    z = figures.projections(Model(arch="resnet10"), made)
    figure = Figure()
    alpha, beta = loss.positive_weights(z, 0.5), loss.negative_weights(z, 0.2)
    figures.attention_panel(figure, made, alpha, beta, images=3, title="a title")
    assert "a title" in figure.get_suptitle()
    assert len(figure.axes) == 3 * 11
    rows = made[0].std((1, 2, 3)).argsort(descending=True)[:3].tolist()
    alpha, beta = alpha[0], 14 * beta
    for row, image in enumerate(rows):
        labels = [axis.get_xlabel() for axis in figure.axes[11 * row : 11 * row + 11]]
        assert labels[0] == "anchor"
        assert labels[2:4] == [f"α {figures.short(weight)}" for weight in alpha[image]]
        others = [i for i in range(16) if i % 8 != image]
        weights = beta[image, others].sort(descending=True).values
        extremes = [*weights[:3], *weights[-3:]]
        assert labels[5:] == [f"β {figures.short(weight)}" for weight in extremes]
