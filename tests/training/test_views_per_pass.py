"""Several views in one pass through the encoder are as many passes of one view, statistics too."""

import copy

import pytest
import torch
from helpers.runs import new_run
from torch.testing import assert_close

from attentionce.training import one_step
from attentionce.training.batchnorm import set_views_per_pass
from model import Model


class Double(Model):
    """The model in float64, whatever its input."""

    def __init__(self, feature_dim, arch):
        super().__init__(feature_dim, arch)
        self.double()

    def forward(self, x, recompute=None):
        return super().forward(x.double(), recompute)


def stepped(monkeypatch, views_per_pass, *words, steps=2):
    """A run in float64 after these steps, with the gradients of the last."""
    run = new_run("--num_pos", 4, "--feature_dim", 8, *words, encoder=Double)
    if run.moco is not None:
        run.moco.double()
    run.views_per_pass = views_per_pass
    gradients = []

    def keep(run, loss):
        gradients[:] = [copy.deepcopy(p.grad) for p in run.model.parameters()]
        return update(run, loss)

    update = one_step.update_weights
    with monkeypatch.context() as patch:
        patch.setattr(one_step, "update_weights", keep)
        for _ in range(steps):
            one_step.take_step(run, run.pixels[:4])
            run.progress["step"] += 1
    return run, gradients


@pytest.mark.parametrize(
    "views_per_pass, words",
    [(6, ()), (3, ("--grad_cache",)), (2, ("--estimator", "MoCo", "--queue", 8))],
)
def test_several_views_per_pass_change_nothing(monkeypatch, views_per_pass, words):
    expected, gradients = stepped(monkeypatch, 1, *words)
    found, others = stepped(monkeypatch, views_per_pass, *words)
    assert_close(others, gradients, rtol=1e-9, atol=1e-12)
    for one, other in ((expected.model, found.model), (expected.moco, found.moco)):
        if one is not None:
            assert_close(other.state_dict(), one.state_dict(), rtol=1e-9, atol=1e-11)
    assert_close(found.progress["losses"], expected.progress["losses"])


def test_as_many_fewer_passes(monkeypatch):
    """Six views in one pass are one convolution per layer instead of six."""
    run = new_run("--num_pos", 4)
    calls = []
    monkeypatch.setattr(
        type(run.model.f[0]), "forward", counted(type(run.model.f[0]).forward, calls)
    )
    for views_per_pass, passes in ((1, 6), (4, 2), (6, 1)):
        run.views_per_pass = views_per_pass
        calls.clear()
        one_step.plain_step(run, a_batch(run), 6, lambda z: z.square().sum())
        assert calls.count(run.model.f[0]) == passes


def counted(forward, calls):
    def call(module, x):
        calls.append(module)
        return forward(module, x)

    return call


def a_batch(run):
    pixels = run.pixels[:4]
    return one_step.Batch(pixels.float(), one_step.draw_views(run, pixels), None)


def test_they_compile_to_one_graph():
    """With views per pass fixed, nothing is compiled again from step to step."""
    graphs = []

    def record(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model, expected = Model(8, "resnet10"), Model(8, "resnet10")
    expected.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend=record, fullgraph=True)
    images = torch.randn(6, 4, 3, 8, 8)
    set_views_per_pass(model, 3)
    for _ in range(2):
        z = torch.cat([compiled(half.flatten(0, 1))[1] for half in images.split(3)])
        with torch.no_grad():
            one_by_one = torch.cat([expected(view)[1] for view in images])
        assert_close(z, one_by_one, rtol=1e-4, atol=1e-5)
    calls = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    convolutions = [node for node in calls if "conv" in str(node.target)]
    assert len(graphs) == 1 and len(convolutions) == 12
    torch.compiler.reset()
