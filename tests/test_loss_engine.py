"""The mean that the losses share: block by block, linear in memory, first order, without waits."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.device import ON_CPU, no_waits
from helpers.losses import (
    FUNCTIONS,
    assert_same,
    each_loss,
    each_setting,
    embeddings,
    oracle_of_batch,
    value_and_gradient,
    views_of,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import loss
from loss import LOSSES

# ---- blocks ----


@each_setting
def test_blocks(kind, parameters, block):
    z, expected = embeddings(views_of(kind), 8, 6), oracle_of_batch(kind, 8, 6, **parameters)
    assert_same(value_and_gradient(lambda z: FUNCTIONS[kind](z, **parameters), z), expected)
    with torch.no_grad():
        assert_same([FUNCTIONS[kind](z, **parameters)], expected[:1])


@each_loss
def test_blocks_equal_the_plain_mean(kind, monkeypatch):
    """The engine against the definition: all cosines at once, and autograd through everything."""

    def plain(rows, columns, own, pos, log_g):
        sim = (rows @ columns.T).scatter(1, own, -math.inf)
        return -F.logsigmoid(pos - log_g(sim, pos, len(columns) - own.shape[1])).mean()

    z = embeddings(views_of(kind), 9, 5)
    monkeypatch.setattr(loss, "block_rows", lambda device, columns: 4)
    by_blocks = value_and_gradient(FUNCTIONS[kind], z)
    monkeypatch.setattr(loss, "mean_over_rows", plain)
    assert_same(by_blocks, value_and_gradient(FUNCTIONS[kind], z), 1e-13)


# ---- autograd and compilers ----


@each_loss
def test_gradient_scales_and_is_first_order_only(kind):
    z = embeddings(views_of(kind), 4, 3)
    _, gradient = value_and_gradient(FUNCTIONS[kind], z)
    (scaled,) = torch.autograd.grad(-3 * FUNCTIONS[kind](z), z)
    assert torch.allclose(scaled, -3 * gradient, rtol=1e-12)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(FUNCTIONS[kind](z), z, create_graph=True)


@each_loss
def test_compiled_callers(kind, monkeypatch):
    monkeypatch.setattr(loss, "block_rows", lambda device, columns: 5)
    x = embeddings(views_of(kind), 4, 3)

    def caller(x):
        return 2 * FUNCTIONS[kind](F.normalize(x, dim=-1)) + x.mean()

    torch.compiler.reset()
    compiled = torch.compile(caller, backend="eager")
    assert_same(value_and_gradient(compiled, x), value_and_gradient(caller, x), 1e-12)


# ---- cost ----


class Watch(TorchDispatchMode):
    """Counts matrix products and notes the size of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        for t in made if isinstance(made, tuple | list) else [made]:
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes() // t.element_size())
        return made


@each_loss
def test_no_gradient_no_work(kind):
    z = embeddings(views_of(kind), 8, 4)
    for watched, products in ((z, 3), (z.detach(), 1)):
        with Watch() as watch:
            value = FUNCTIONS[kind](watched)
        assert watch.products == products
        assert value.requires_grad == watched.requires_grad
    with torch.no_grad(), Watch() as watch:
        value = FUNCTIONS[kind](z)
    assert watch.products == 1
    assert not value.requires_grad


def test_no_gradient_for_the_queue():
    queries, queue = embeddings(2, 4, 3), embeddings(1, 9, 3)[0]
    with Watch() as watch:
        loss.attentionce_queue(queries, queries, queue).backward()
    assert watch.products == 2  # the cosines, and the queries' gradient


@each_loss
@pytest.mark.parametrize("gathered", [False, True])
def test_memory_is_linear(kind, gathered):
    """However large the batch, a tensor is no larger than a block or than all embeddings.

    On the CPU, whose blocks are so small that a test can exceed them.
    """
    z = embeddings(LOSSES[kind].views(1), 1024, 4, dtype=torch.float32).cpu().detach()
    z.requires_grad_()
    with Watch() as watch:
        FUNCTIONS[kind](z, gather=(lambda anchors: (anchors, 0)) if gathered else None).backward()
    assert 2**18 < watch.largest <= 2**20 < 2048**2
    assert loss.block_rows("cpu", 2 * 16384) * 2 * 16384 <= 2**24
    assert loss.block_rows("cpu", 2**30) == 1


@each_loss
def test_never_waits_for_the_device(kind):
    """No size and no branch depends on a tensor's values: it all runs on tensors without any."""
    with FakeTensorMode():
        for gather in (None, lambda anchors: (anchors, 0)):
            z = torch.empty(views_of(kind), 8, 4, requires_grad=True)
            FUNCTIONS[kind](z, gather=gather).backward()


@pytest.mark.skipif(ON_CPU, reason="compares a device with the CPU")
@each_loss
def test_as_on_the_cpu_and_without_waits(kind):
    z = embeddings(views_of(kind), 300, 16)
    there = z.detach().cpu().requires_grad_()
    with no_waits():
        found = value_and_gradient(FUNCTIONS[kind], z)
    assert_same([t.cpu() for t in found], value_and_gradient(FUNCTIONS[kind], there))
