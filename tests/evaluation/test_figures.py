"""The figures of an encoder that TensorBoard and experiments/plot.py share."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn.functional import normalize

import utils
from attentionce import attention
from attentionce.data import views
from attentionce.evaluation import figures
from model import Model

PIXELS = torch.randint(
    0, 256, (20, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Encoder(nn.Module):
    """A feature and a projection, as the project's own model returns them."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())

    def forward(self, x):
        feature = self.f(x)
        return feature, normalize(feature[:, :16], dim=1)


def test_figures_import_neither_the_model_nor_matplotlib():
    code = "import sys; from attentionce.evaluation import figures; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    modules = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"model", "matplotlib", "attentionce.training.one_step"} & set(modules.split())


def test_views_are_the_same_every_time():
    made = figures.some_views(PIXELS, 4, num_pos=2, size=8, seed=3)
    assert made.shape == (4, 4, 3, 8, 8)
    assert torch.equal(made, figures.some_views(PIXELS, 4, num_pos=2, size=8, seed=3))
    assert not torch.equal(made, figures.some_views(PIXELS, 4, num_pos=2, size=8, seed=4))


def test_displayed_undoes_the_normalisation():
    shown = figures.displayed(views.normalize(PIXELS)[0])
    torch.testing.assert_close(shown, PIXELS[0] / 255, atol=1e-6, rtol=0)


def test_embedding_for_pictures_leaves_the_model_alone():
    model = Model(arch="resnet10").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = figures.some_views(utils.load("photos", "", "test").pixels, 8, 1, 8, seed=0)
    z = figures.embed(model, made)
    assert z.shape == (3, 8, 128)
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(m.momentum == 0.1 for m in model.modules() if hasattr(m, "momentum"))


@pytest.mark.parametrize("training", [True, False])
def test_embedding_uses_each_views_own_statistics(training):
    model = Encoder().train(training)
    made = figures.some_views(PIXELS, 5, num_pos=1, size=8, seed=0)
    z = figures.embed(model, made)
    assert z.shape == (3, 5, 16)
    assert not z.requires_grad
    assert all(module.training == training for module in model.modules())
    model.train()
    for view, found in zip(made, z, strict=True):
        torch.testing.assert_close(found, model(view)[1].detach())


def test_weights_are_written_with_two_digits():
    weights = {0.5: "0.50", 0.005: "0.01", 0.0049: "< 0.01", 0.0: "< 0.01", 12.345: "12.35"}
    for weight, text in weights.items():
        assert figures.short(torch.tensor(weight, dtype=torch.float64)) == text


def test_attention_panel_shows_the_weights_of_its_images():
    from matplotlib.figure import Figure

    made = figures.some_views(PIXELS, 8, num_pos=2, size=8, seed=0)
    z = figures.embed(Encoder(), made)
    figure = Figure()
    figures.attention_panel(figure, z, made, 0.5, 0.2, images=3, title="a title")
    assert "a title" in figure.get_suptitle()
    assert len(figure.axes) == 3 * 11
    rows = made[0].std((1, 2, 3)).argsort(descending=True)[:3].tolist()
    alpha = attention.positive_weights(z, 0.5)[0]
    beta = attention.negative_weights(z, 0.2) * 14
    for row, image in enumerate(rows):
        labels = [axis.get_xlabel() for axis in figure.axes[11 * row : 11 * row + 11]]
        assert labels[0] == "anchor"
        assert labels[2:4] == [f"α {figures.short(weight)}" for weight in alpha[image]]
        others = [i for i in range(16) if i % 8 != image]
        weights = beta[image, others].sort(descending=True).values
        extremes = [*weights[:3], *weights[-3:]]
        assert labels[5:] == [f"β {figures.short(weight)}" for weight in extremes]
