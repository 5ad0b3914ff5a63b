"""One step: every view is encoded by itself, and the ways to save memory or time change nothing."""

import copy
from unittest.mock import patch

import pytest
import torch
from helpers.device import DEVICE, ON_CPU
from helpers.runs import Exact, left_by, new_run, take_steps
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attentionce.data import views
from attentionce.training import one_step
from attentionce.training.batchnorm import set_views_per_pass
from model import Model

MOCO = "--estimator MoCo --queue 8"


def test_every_view_is_encoded_by_itself():
    """Embeddings and BatchNorm's statistics are those of one view after another."""
    run = new_run("--num_pos", 2, "--feature_dim", 8, "--seed", 3)
    batch, expected, embeddings = run.pixels[:4], copy.deepcopy(run.model), []
    run.progress.update(epoch=2, step=1)  # the last of two
    run.attention_numbers = lambda z, queue, noisy: embeddings.append(z)
    one_step.take_step(run, batch)

    draw = views.draw(4, 4, 8, 8, views.generator(3, 2, 1))  # of seed, epoch and step
    draw = views.to(draw, DEVICE)
    with torch.no_grad():
        z = torch.stack([expected(views.make_view(batch, draw, v, 8))[1] for v in range(4)])
    assert_close(embeddings[0], z, rtol=1e-4, atol=1e-5)
    found = dict(run.model.named_buffers())
    assert found["f.1.num_batches_tracked"] == 4
    for name, buffer in expected.named_buffers():
        assert_close(found[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flag, views_per_pass, passes, stage_passes",
    [
        ("--compile off", 1, 6, 12),
        ("--compile off", 4, 2, 4),  # 6 views are two passes of 3
        ("--grad_cache", 1, 12, 12),
        ("--compile on", 1, 6, 6),
    ],
)
def test_passes(flag, views_per_pass, passes, stage_passes, monkeypatch):
    """Of 6 views. The first stage is recomputed, but not compiled, nor in `--grad_cache`."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: getattr(module, "forward", module))
    run = new_run(*flag.split(), count=4, views_per_pass=views_per_pass)
    stage = run.model.f[3]
    with (
        patch.object(one_step, "project", wraps=one_step.project) as project,
        patch.object(stage, "forward", wraps=stage.forward) as forward,
    ):
        take_steps(run)
    assert (project.call_count, forward.call_count) == (passes, stage_passes)


def after_two_steps(words, views_per_pass=1, scale=1.0):
    """What two steps of a small encoder in float64 leave."""
    options = {"encoder": Exact, "views_per_pass": views_per_pass}
    run = new_run("--num_pos", 4, "--feature_dim", 8, *words.split(), **options)
    run.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=scale, enabled=scale > 1)
    run.model.f[2].momentum = None  # its statistics depend on the counter
    take_steps(run, 2)
    assert (run.model.f[2].momentum, run.model.g[0].momentum) == (None, 0.1)
    return left_by(run)


@pytest.mark.parametrize(
    "words, more, views_per_pass, scale",
    [("", "--grad_cache", 1, 1024.0), ("", "", 6, 1.0), (MOCO, "--grad_cache", 2, 1.0)],
)
def test_what_saves_memory_or_time_is_the_same_step(words, more, views_per_pass, scale):
    """Losses, gradients, weights, BatchNorm's buffers and MoCo's keys."""
    expected = after_two_steps(words)
    found = after_two_steps(f"{words} {more}", views_per_pass, scale)
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert not expected[0].requires_grad and expected[1][0]["exp_avg"].abs().max() > 1e-6


def test_synchronised_batchnorm_is_per_view_too():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Exact())
    set_views_per_pass(model, 3)
    assert isinstance(model.f[2], nn.SyncBatchNorm) and model.f[2].views == model.g[0].views == 3


@pytest.fixture
def step_on(monkeypatch):
    """step_on(made, model, …): loss and embeddings of a step on views V×B×3×S×S."""

    def function(made, model, dtype=torch.float32, views_per_pass=1, recompute=False):
        monkeypatch.setattr(views, "make_view", lambda images, draw, v, *_: made[v])
        run = new_run(encoder=lambda *_: model, dtype=dtype, views_per_pass=views_per_pass)
        run.recompute, model.f[3][0].bn1.momentum = recompute, None  # it depends on the counter
        batch = one_step.Batch(made[0], None, None)
        return one_step.plain_step(run, batch, len(made), run.loss)

    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_changes_no_bit(dtype, step_on):
    """Less is kept for the backward pass; gradients and BatchNorm's buffers have the same bits.

    On a GPU, whose convolutions' gradients may differ from run to run, they are close.
    """
    images = torch.randn(4, 4, 3, 16, 16, generator=torch.manual_seed(0)).to(DEVICE)
    start = Model(16, "resnet10").to(DEVICE)
    ends, kept = [], []
    for recompute in (False, True):
        model, sizes = copy.deepcopy(start), []

        def pack(t, sizes=sizes):
            sizes.append(t.nbytes if t.shape[:1] == (4,) else 0)  # activations, not weights
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss, z = step_on(images, model, dtype, recompute=recompute)
        ends.append([loss, z, *(p.grad for p in model.parameters()), *model.buffers()])
        kept.append(sum(sizes))
    if ON_CPU:
        assert all(map(torch.equal, *ends))
    for plain, again in zip(*ends, strict=True):
        assert (again - plain).abs().sum() <= 0.1 * plain.abs().sum()
    assert model.f[3][0].bn1.num_batches_tracked == 4 and model.f[3][0].bn1.momentum is None
    assert kept[1] < 0.75 * kept[0]


class Casts(TorchDispatchMode):
    """Counts the copies of weights in another type."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.count = {p.data_ptr() for p in model.parameters()}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        cast = function is torch.ops.aten._to_copy.default
        self.count += cast and args[0].data_ptr() in self.weights
        return function(*args, **kwargs or {})


def test_a_step_in_bf16_casts_every_weight_once(step_on):
    """The views share the cast weights; gradients are float32, close to those without casts."""
    images = torch.randn(4, 6, 3, 8, 8, generator=torch.manual_seed(0)).to(DEVICE)
    gradients = []
    for dtype, casts_per_layer in ((torch.float32, 0), (torch.bfloat16, 1)):
        torch.manual_seed(0)
        model = Model(16, "resnet10").to(DEVICE, memory_format=torch.channels_last)
        with Casts(model) as casts:
            step_on(images, model, dtype)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert casts.count == casts_per_layer * (len(layers) + 1)  # one of them has a bias
    with torch.autocast(DEVICE.type, torch.bfloat16):
        for vector in model(images[0]):
            assert vector.dtype == torch.float32 and (vector.norm(dim=1) - 1).abs().max() < 1e-6
    in_float32, in_bf16 = gradients
    assert in_bf16.dtype == torch.float32
    # No closer, because BatchNorm's statistics are those of 6 images in 8 bits.
    assert torch.cosine_similarity(in_bf16, in_float32, dim=0) > 0.9
