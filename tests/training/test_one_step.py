"""One step: every view is encoded by itself, and the ways to save memory change no number."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers.device import DEVICE, ON_CPU
from helpers.runs import new_run
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import loss as losses
from attentionce.data import views
from attentionce.training import one_step
from attentionce.training.batchnorm import recomputed
from model import Model


def test_every_view_is_encoded_by_itself():
    """Embeddings and BatchNorm's statistics are those of one view after another."""
    run = new_run("--num_pos", 2, "--feature_dim", 8, "--seed", 3)
    batch, expected, embeddings = run.pixels[:4], copy.deepcopy(run.model), []
    run.progress.update(epoch=2, step=1)  # the last of two
    run.effective_numbers = lambda z, queue: embeddings.append(z)
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
    "flag, views_made, stage_passes",
    [("--compile off", 6, 12), ("--grad_cache", 12, 12), ("--compile on", 6, 6)],
)
def test_who_recomputes(flag, views_made, stage_passes, monkeypatch):
    """The first stage, of 6 views: not where a compiler decides, nor in `--grad_cache`."""

    def uncompiled(module, **_):
        return module.forward if isinstance(module, nn.Module) else module

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(*args):
            seen.append(args[0])
            return function(*args)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(torch, "compile", uncompiled)
    run, seen = new_run(*flag.split(), count=4), []
    stage = run.model.f[3]
    watch(type(stage), "forward")
    watch(one_step, "project")
    one_step.take_step(run, run.pixels)
    assert (seen.count(run), seen.count(stage)) == (views_made, stage_passes)


# ---- the two ways through the encoder, without views ----


def minimal_run(model, dtype=torch.float32, scale=1.0, recompute=False):
    """As much of a run as a step needs."""
    return SimpleNamespace(
        model=model,
        encoder=model,
        device=DEVICE,
        dtype=dtype,
        scaler=SimpleNamespace(scale=lambda x: x * scale),
        recompute=recompute,
    )


@pytest.fixture
def made_views(monkeypatch):
    """The images of a step are V views, made beforehand: V×B×3×S×S."""

    def project(run, encoder, images, draw, v):
        return encoder(images[v], recomputed if run.recompute else None)[1]

    monkeypatch.setattr(one_step, "project", project)


@pytest.mark.parametrize(
    "arch, dtype",
    [
        ("resnet10", torch.bfloat16),
        ("resnet10", torch.float64),
        ("resnet50", torch.float32),
    ],
)
def test_recomputing_changes_no_bit(arch, dtype, made_views):
    """Less is kept for the backward pass; gradients and BatchNorm's buffers have the same bits.

    On a GPU, whose convolutions' gradients may differ from run to run, they are close.
    """
    model_dtype, random = torch.promote_types(dtype, torch.float32), torch.manual_seed(0)
    images = torch.randn(4, 4, 3, 16, 16, generator=random, dtype=model_dtype).to(DEVICE)
    start = Model(16, arch).to(DEVICE, model_dtype)
    start.f[3][0].bn1.momentum = None  # its statistics depend on the counter
    # What autocast computes in; float64 is the model's own.
    computed_in = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    ends, kept = [], []
    for recompute in (False, True):
        model, sizes = copy.deepcopy(start), []

        def pack(t, sizes=sizes):
            sizes.append(t.nbytes if t.shape[:1] == (4,) else 0)  # activations, not weights
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            run = minimal_run(model, computed_in, recompute=recompute)
            loss, z = one_step.plain_step(run, images, None, 4, losses.attentionce)
        ends.append([loss, z, *(p.grad for p in model.parameters()), *model.buffers()])
        kept.append(sum(sizes))
    if ON_CPU:
        assert all(map(torch.equal, *ends))
    for plain, again in zip(*ends, strict=True):
        assert (again - plain).abs().sum() <= 0.1 * plain.abs().sum()
    assert model.f[3][0].bn1.num_batches_tracked == 4 and model.f[3][0].bn1.momentum is None
    assert kept[1] < 0.75 * kept[0]


def test_cached_step_is_plain_step(made_views):
    """Gradients, a step of Adam and BatchNorm's buffers, of a whole model in float64."""
    images = torch.randn(4, 6, 3, 8, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    images, start = images.to(DEVICE), Model(16, "resnet10").double().to(DEVICE)
    start.f[1].momentum = None  # its statistics depend on the counter
    ends = []
    for step in (one_step.plain_step, one_step.cached_step):
        model = copy.deepcopy(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(2):
            run = minimal_run(model, scale=1024.0)
            loss, z = step(run, images, None, 4, losses.attentionce)
            gradients = [p.grad.clone() for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
        assert not loss.requires_grad and not z.requires_grad
        ends.append((loss, z, gradients, model.state_dict()))
        assert model.f[1].momentum is None and model.f[3][0].bn1.momentum == 0.1
    assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
    assert ends[1][3]["f.1.num_batches_tracked"] == 8
    moved = ends[0][3]["f.0.weight"] - start.f[0].weight
    assert moved.abs().mean() > 1e-3


class Casts(TorchDispatchMode):
    """Counts the copies of weights in another type."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.count = {p.data_ptr() for p in model.parameters()}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        cast = function is torch.ops.aten._to_copy.default
        self.count += cast and args[0].data_ptr() in self.weights
        return function(*args, **kwargs or {})


def test_a_step_in_bf16_casts_every_weight_once(made_views):
    """The views share the cast weights; gradients are float32, close to those without casts."""
    images = torch.randn(4, 6, 3, 8, 8, generator=torch.manual_seed(0)).to(DEVICE)
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = Model(16, "resnet10").to(DEVICE)
        with Casts(model) as casts:
            one_step.plain_step(minimal_run(model, dtype), images, None, 4, losses.attentionce)
        gradients[dtype] = torch.cat([p.grad.flatten() for p in model.parameters()])
        multiplied = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        # One of them has a bias.
        assert casts.count == (0 if dtype == torch.float32 else len(multiplied) + 1)
        with torch.autocast(DEVICE.type, dtype, enabled=dtype == torch.bfloat16):
            for vector in model(images[0]):
                assert vector.dtype == torch.float32 and (vector.norm(dim=1) - 1).abs().max() < 1e-6
    assert gradients[torch.bfloat16].dtype == torch.float32
    # No closer, because BatchNorm's statistics are those of 6 images in 8 bits.
    assert torch.cosine_similarity(*gradients.values(), dim=0) > 0.9
