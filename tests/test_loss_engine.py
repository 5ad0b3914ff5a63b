"""The mean that the losses share: block by block, linear in memory, first order, without waits."""

import functools

import pytest
import torch
import torch.nn.functional as F
from helpers.device import ON_CPU, no_waits
from helpers.losses import (
    assert_same,
    each_combination,
    each_ingredient,
    embeddings,
    value_and_gradient,
    views_of,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import loss
from loss import contrastive

# ---- blocks and autograd ----


def set_block_rows(monkeypatch, rows):
    monkeypatch.setattr(loss, "block_rows", lambda device, columns: rows)


@each_combination
def test_blocks(chosen, monkeypatch):
    """Blocks of any number of rows give the same, whether or not it divides that of anchors."""
    z, queue = embeddings(views_of(chosen), 8, 6), embeddings(1, 9, 6, seed=1)[0].detach()
    for arguments in [{}] if chosen["positives"] == "pair" else [{}, {"queue": queue}]:
        set_block_rows(monkeypatch, 1000)
        expected = value_and_gradient(contrastive, z, **chosen, **arguments)
        for rows in (5, 8):
            set_block_rows(monkeypatch, rows)
            found = value_and_gradient(contrastive, z, **chosen, **arguments)
            assert_same(found, expected, 1e-13)


@each_ingredient
def test_gradient_scales_and_is_first_order_only(chosen):
    z = embeddings(views_of(chosen), 4, 3)
    _, gradient = value_and_gradient(contrastive, z, **chosen)
    (scaled,) = torch.autograd.grad(-3 * contrastive(z, **chosen), z)
    assert torch.allclose(scaled, -3 * gradient, rtol=1e-12)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(contrastive(z, **chosen), z, create_graph=True)


@each_ingredient
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of scatter_
def test_function_transforms(chosen, monkeypatch):
    """torch.func.grad, and vmap over it, give the gradient that autograd gives."""
    set_block_rows(monkeypatch, 5)
    batches = [embeddings(views_of(chosen), 4, 3, seed=seed) for seed in range(3)]
    expected = [value_and_gradient(contrastive, z, **chosen)[1] for z in batches]
    gradient = torch.func.grad(functools.partial(contrastive, **chosen))
    assert_same([gradient(batches[0].detach())], expected[:1], 1e-12)
    assert_same(torch.func.vmap(gradient)(torch.stack(batches).detach()), expected, 1e-12)


@each_ingredient
def test_whole_graph_compiles(chosen, monkeypatch):
    set_block_rows(monkeypatch, 5)

    def step(x):
        return 2 * contrastive(F.normalize(x, dim=-1), **chosen) + x.mean()

    x = embeddings(views_of(chosen), 4, 3)
    torch.compiler.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert_same(value_and_gradient(compiled, x), value_and_gradient(step, x), 1e-12)


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


@each_ingredient
def test_no_gradient_no_work(chosen):
    """A product for the cosines, one for the gradient of the rows, one for that of the columns."""
    z = embeddings(views_of(chosen), 8, 4)
    cases = [(z, {}, 3), (z.detach(), {}, 1)]
    if chosen["positives"] != "pair":
        cases.append((z, {"queue": z[0]}, 2))
    for given, arguments, products in cases:
        with Watch() as watch:
            contrastive(given, **chosen, **arguments)
        assert watch.products == products


@each_ingredient
def test_memory_is_linear(chosen):
    """A tensor is no larger than a block (of the CPU, as they are small) or all embeddings."""
    z = embeddings(views_of(chosen, 1), 1024, 4, dtype=torch.float32).detach().cpu()
    with Watch() as watch:
        contrastive(z.requires_grad_(), **chosen).backward()
    assert 2**18 < watch.largest <= 2**20 < 2048**2
    assert loss.block_rows("cpu", 2 * 16384) * 2 * 16384 <= 2**24
    assert loss.block_rows("cpu", 2**30) == 1


@each_ingredient
def test_never_waits_for_the_device(chosen):
    """No size and no branch depends on a tensor's values: it all runs on tensors without any."""
    with FakeTensorMode():
        for gather in (None, lambda anchors: (anchors, 0)):
            z = torch.empty(views_of(chosen), 8, 4, requires_grad=True)
            contrastive(z, **chosen, gather=gather).backward()


@pytest.mark.skipif(ON_CPU, reason="compares a device with the CPU")
@each_ingredient
def test_as_on_the_cpu_and_without_waits(chosen):
    z = embeddings(views_of(chosen), 300, 16)
    there = z.detach().cpu().requires_grad_()
    with no_waits():
        found = value_and_gradient(contrastive, z, **chosen)
    assert_same([t.cpu() for t in found], value_and_gradient(contrastive, there, **chosen))
