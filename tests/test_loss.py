"""The losses against published numbers, against formulas written out anchor by anchor, and against themselves."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.losses import (
    assert_same,
    attentionce_oracle,
    embeddings,
    oracle,
    value_and_gradient,
)
from torch.utils._python_dispatch import TorchDispatchMode

import loss

LOSSES = {name: entry.function for name, entry in loss.LOSSES.items()}
GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = json.loads(str(GOLDEN["meta"]))


@pytest.fixture(params=["whole", 1, 5, 8, 1000])
def block(request, monkeypatch):
    """Rows a block: all of them, and sizes that do and do not divide the anchors."""
    if request.param != "whole":
        monkeypatch.setattr(loss, "block_rows", lambda device, columns: request.param)


PARAMETERS = [
    ("attentionce", {"temperature": 0.5, "d_pos": 1.0, "d_neg": 10.0}),
    ("attentionce", {"temperature": 0.2, "d_pos": 0.1, "d_neg": 0.5}),
    ("attentionce", {"temperature": 1.0, "d_pos": 4.0, "d_neg": 0.2}),
    ("simclr", {"temperature": 0.5}),
    ("simclr", {"temperature": 0.07}),
    ("dcl", {"temperature": 0.5, "tau_plus": 0.1}),
    ("dcl", {"temperature": 0.2, "tau_plus": 0.6}),  # many rows at the floor
    ("dcl", {"temperature": 0.5, "tau_plus": 0.0}),
    ("hcl", {"temperature": 0.5, "tau_plus": 0.1, "beta": 1.0}),
    ("hcl", {"temperature": 0.3, "tau_plus": 0.4, "beta": 2.5}),
    ("hcl", {"temperature": 0.5, "tau_plus": 0.0, "beta": 0.0}),
    ("bcl", {"temperature": 0.5, "tau_plus": 0.1, "alpha": 0.9, "beta": 0.9}),
    ("bcl", {"temperature": 0.2, "tau_plus": 0.05, "alpha": 0.7, "beta": 1.0}),
    ("bcl", {"temperature": 0.5, "tau_plus": 0.0, "alpha": 0.5, "beta": 0.3}),
]
DEFAULTS = {kind: next(p for k, p in PARAMETERS if k == kind) for kind in LOSSES}
each_loss = pytest.mark.parametrize("kind", LOSSES)


def views_of(kind):
    return loss.LOSSES[kind].views(num_pos=4)


@functools.cache
def expected_of(kind, batch, dim, parameters):
    z = embeddings(views_of(kind), batch, dim)
    return value_and_gradient(lambda z: oracle(kind, z, **dict(parameters)), z)


# Values and gradients


@pytest.mark.parametrize("case", range(len(CASES)))
def test_golden(case, block):
    meta, z = CASES[case], torch.from_numpy(GOLDEN[f"z{case}"]).requires_grad_()
    expected = (
        torch.tensor(meta["loss"], dtype=torch.float64),
        torch.from_numpy(GOLDEN[f"grad{case}"]),
    )
    function = LOSSES[meta["kind"].replace("attention_nce", "attentionce")]
    assert_same(
        value_and_gradient(lambda z: function(z, meta["temperature"], **meta["params"]), z),
        expected,
    )


@pytest.mark.parametrize(("kind", "parameters"), PARAMETERS)
@pytest.mark.parametrize(("batch", "dim", "m"), [(2, 3, 1), (3, 5, 2), (7, 4, 5)])
def test_formulas(kind, parameters, batch, dim, m):
    z = embeddings(loss.LOSSES[kind].views(m), batch, dim, seed=batch)
    expected = value_and_gradient(lambda z: oracle(kind, z, **parameters), z)
    assert_same(value_and_gradient(lambda z: LOSSES[kind](z, **parameters), z), expected)
    with torch.no_grad():
        assert_same([LOSSES[kind](z, **parameters)], expected[:1])


def test_defaults():
    z = embeddings(6, 5, 4)
    assert_same([loss.attentionce(z)], [loss.attentionce(z, 0.5, 1.0, 1.0)], 0)
    for kind, arguments in {
        "simclr": (),
        "dcl": (0.1,),
        "hcl": (0.1, 1.0),
        "bcl": (0.1, 0.9, 0.9),
    }.items():
        assert_same([LOSSES[kind](z[:2])], [LOSSES[kind](z[:2], 0.5, *arguments)], 0)


@pytest.mark.parametrize(("kind", "parameters"), PARAMETERS)
def test_blocks(kind, parameters, block):
    z, expected = (
        embeddings(views_of(kind), 8, 6),
        expected_of(kind, 8, 6, tuple(parameters.items())),
    )
    assert_same(value_and_gradient(lambda z: LOSSES[kind](z, **parameters), z), expected)
    with torch.no_grad():
        assert_same([LOSSES[kind](z, **parameters)], expected[:1])


@pytest.mark.parametrize("kind", ["simclr", "dcl", "hcl", "bcl"])
def test_gradients_by_differences(kind):
    """Where no gradient is stopped (bcl's ranks only jump), it is that of the value itself."""
    z = embeddings(2, 4, 3, seed=3)
    assert torch.autograd.gradcheck(lambda z: LOSSES[kind](z, **DEFAULTS[kind]), z)


def test_attention_is_not_differentiated():
    """The gradient is that of the value with α and β held where they are; it is not that of the value."""
    z, (temperature, d_pos, d_neg) = embeddings(5, 4, 3), (0.5, 0.3, 0.4)
    fixed = z.detach()

    def held(z):
        total = 0.0
        for view, i in np.ndindex(2, 4):
            own, others = z[2:, i], torch.cat([z[:2, :i], z[:2, i + 1 :]], dim=1).flatten(0, 1)
            own0, others0 = (
                fixed[2:, i],
                torch.cat([fixed[:2, :i], fixed[:2, i + 1 :]], dim=1).flatten(0, 1),
            )
            alpha = torch.softmax(own0 @ fixed[view, i] / d_pos, dim=0)
            beta = 6 * (torch.softmax(others0 @ fixed[view, i] / d_neg, dim=0) + 1e-6)
            pos = (alpha * (own @ z[view, i])).sum() / temperature
            total += (
                torch.logaddexp(
                    pos, torch.logsumexp(beta * (others @ z[view, i]) / temperature, dim=0)
                )
                - pos
            )
        return total / 8

    def differences(function):
        steps = 1e-6 * torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
        with torch.no_grad():
            return torch.stack([(function(z + h) - function(z - h)) / 2e-6 for h in steps]).view(
                z.shape
            )

    _, gradient = value_and_gradient(lambda z: loss.attentionce(z, temperature, d_pos, d_neg), z)
    assert_same([gradient], [differences(held)], 1e-7)
    assert (
        gradient - differences(lambda z: loss.attentionce(z, temperature, d_pos, d_neg))
    ).abs().max() > 1e-3


@each_loss
def test_blocks_equal_the_plain_mean(kind, monkeypatch):
    """The engine against the definition: all cosines at once, and autograd through everything."""

    def plain(rows, columns, own, pos, log_g):
        sim = (rows @ columns.T).scatter(1, own, -math.inf)
        return -F.logsigmoid(pos - log_g(sim, pos, len(columns) - own.shape[1])).mean()

    z = embeddings(views_of(kind), 9, 5)
    function = functools.partial(LOSSES[kind], **DEFAULTS[kind])
    monkeypatch.setattr(loss, "block_rows", lambda device, columns: 4)
    by_blocks = value_and_gradient(function, z)
    monkeypatch.setattr(loss, "mean_over_rows", plain)
    assert_same(by_blocks, value_and_gradient(function, z), 1e-13)


def test_ties_in_bcl():
    """Equal cosines share the larger rank, as F counts them."""
    z = torch.tensor(
        [[[1, 0], [0, 1], [0, 1]], [[1, 0], [0, 1], [0.6, 0.8]]],
        dtype=torch.float64,
        requires_grad=True,
    )
    expected = value_and_gradient(lambda z: oracle("bcl", z, **DEFAULTS["bcl"]), z)
    assert_same(value_and_gradient(lambda z: loss.bcl(z, **DEFAULTS["bcl"]), z), expected)


def test_bcl_at_its_ends():
    """A vanishing 1e-3 + (1 − 2α)(τ⁻ − τ⁺), weights ω that are all 0, and the corners of the range."""
    z = embeddings(2, 5, 4)
    near, at = (loss.bcl(z, 0.5, 0.1, 0.500625 + shift, 0.9) for shift in (1e-7, 0))
    assert near.item() == pytest.approx(at.item(), rel=1e-6)
    assert loss.bcl(z, 0.5, 0.0, alpha=1.0, beta=1.0).item() == pytest.approx(0, abs=1e-30)
    for alpha in (0, 0.5, 1):
        for beta in (0, 0.5, 1):
            assert_finite(lambda z, a=alpha, b=beta: loss.bcl(z, 0.5, 0.0, a, b), z)


# Several processes


@each_loss
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 12])
def test_gather(kind, parts, block):
    """Each part's own rows against all columns: their mean is the whole batch's loss, gradient included."""
    z = embeddings(views_of(kind), 12, 5)
    size, seen = 12 // parts, []

    def of_parts(z):
        total = 0.0
        for first in range(0, 12, size):
            part = z[:, first : first + size]

            def gather(anchors, first=first, part=part):
                seen.append(torch.equal(anchors, part[:2]))
                return z[:2], first

            total = total + LOSSES[kind](part, **DEFAULTS[kind], gather=gather)
        return total / parts

    assert_same(
        value_and_gradient(of_parts, z), expected_of(kind, 12, 5, tuple(DEFAULTS[kind].items()))
    )
    assert seen == [True] * parts


def test_module():
    z = embeddings(4, 6, 5)
    module = loss.AttentioNCE(0.2, d_pos=2.0, d_neg=0.5)
    expected = value_and_gradient(lambda z: loss.attentionce(z, 0.2, 2.0, 0.5), z)
    assert_same(value_and_gradient(module, z), expected, 0)
    assert repr(module) == "AttentioNCE(temperature=0.2, d_pos=2.0, d_neg=0.5)"
    assert list(module.parameters()) == []
    gathered = loss.AttentioNCE(0.2, 2.0, 0.5, gather=lambda anchors: (z[:2], 3))(z[:, 3:])
    rest = loss.AttentioNCE(0.2, 2.0, 0.5, gather=lambda anchors: (z[:2], 0))(z[:, :3])
    assert_same([(gathered.detach() + rest) / 2], expected[:1])
    with pytest.raises(ValueError, match="d_neg"):
        loss.AttentioNCE(d_neg=0)


# The queue


def queue_oracle(queries, keys, queue, temperature, d_pos, d_neg):
    total = 0.0
    for view, i in np.ndindex(2, queries.shape[1]):
        pos, g = attentionce_oracle(
            queries[view, i], keys[:, i], list(queue), temperature, d_pos, d_neg
        )
        total = total - torch.log(pos / (pos + g))
    return total / (2 * queries.shape[1])


@pytest.mark.parametrize(("batch", "m", "n"), [(1, 1, 1), (4, 3, 7), (5, 2, 16)])
def test_queue(batch, m, n, block):
    queries, keys, queue = (
        embeddings(2, batch, 4, 1),
        embeddings(m, batch, 4, 2),
        embeddings(1, n, 4, 3),
    )
    arguments = keys, queue[0].detach().requires_grad_(), 0.3, 0.5, 0.7
    expected = value_and_gradient(queue_oracle, queries, *arguments)
    assert_same(value_and_gradient(loss.attentionce_queue, queries, *arguments), expected)
    loss.attentionce_queue(queries, *arguments).backward()
    assert keys.grad is None
    assert arguments[1].grad is None
    with torch.no_grad():
        assert_same([loss.attentionce_queue(queries, *arguments)], expected[:1])
    half = [t.detach().bfloat16() for t in (queries, *arguments[:2])]
    assert_same(
        [loss.attentionce_queue(*half)], [loss.attentionce_queue(*(t.float() for t in half))], 0
    )


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
        loss.attentionce_queue(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("name", ["temperature", "d_pos", "d_neg"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_queue_parameters(name, value):
    with pytest.raises(ValueError, match=f"^{name} must"):
        loss.attentionce_queue(
            *(torch.zeros(2, 4, 5), torch.zeros(1, 4, 5), torch.zeros(7, 5)), **{name: value}
        )


# Numbers that stay numbers


def assert_finite(function, z):
    value, gradient = value_and_gradient(function, z)
    assert value.dtype == gradient.dtype == z.dtype
    assert value.isfinite()
    assert value >= 0
    assert gradient.isfinite().all()


def hard_batch(name, views, batch):
    if name == "equal":
        return torch.ones(views, batch, 4).mul(0.5).requires_grad_()
    if name == "opposite":  # an anchor's twin points away from it
        x = embeddings(1, batch, 4).detach().float().repeat(views, 1, 1)
        x[1] *= -1
        return x.requires_grad_()
    if name == "perfect":  # all views of an image alike, all images apart or opposite
        signs = torch.tensor([1.0, -1.0]).repeat(batch)[:batch, None]
        axes = torch.eye(4).repeat_interleave(2, 0).repeat(batch, 1)[:batch]
        return (axes * signs).repeat(views, 1, 1).requires_grad_()
    return embeddings(
        views,
        batch,
        4,
        dtype=torch.float32,
        spread={"near": 1e-2, "nearer": 1e-4, "random": None}[name],
    )


@pytest.mark.parametrize("batch", [2, 3, 64])
@pytest.mark.parametrize("name", ["equal", "opposite", "perfect", "near", "nearer", "random"])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
def test_finite(name, batch, temperature):
    z = hard_batch(name, 4, batch)
    for d_neg in (0.01, 0.2, 100.0):
        for d_pos in (0.01, 100.0):
            assert_finite(lambda z, p=d_pos, n=d_neg: loss.attentionce(z, temperature, p, n), z)
    z = z[:2].detach().requires_grad_()
    assert_finite(lambda z: loss.simclr(z, temperature), z)
    for tau_plus in (0.0, 0.1, 0.5, 0.99):
        assert_finite(lambda z, t=tau_plus: loss.dcl(z, temperature, t), z)
        for beta in (0.0, 1.0, 10.0):
            assert_finite(lambda z, t=tau_plus, b=beta: loss.hcl(z, temperature, t, b), z)
        assert_finite(lambda z, t=tau_plus: loss.bcl(z, temperature, t, 0.9, 1.0), z)


def test_finite_when_large():
    z = embeddings(3, 4096, 4, dtype=torch.float32, spread=1e-2)
    assert_finite(lambda z: loss.attentionce(z, temperature=0.01, d_neg=0.01), z)


@pytest.mark.parametrize("d_neg", [0.05, 0.2])
def test_right_where_exponentials_overflow(d_neg):
    """In float32, near-duplicates: e^neg is inf, the loss is that of float64."""
    z = embeddings(6, 64, 16, dtype=torch.float32, spread=0.2)
    sim = z.detach()[0] @ z.detach()[1].T
    assert (126 * torch.softmax(sim / d_neg, dim=1) * sim / 0.02).exp().sum(1).isinf().any()
    value, gradient = value_and_gradient(lambda z: loss.attentionce(z, 0.02, d_neg=d_neg), z)
    z = z.detach().double().requires_grad_()
    expected = value_and_gradient(lambda z: loss.attentionce(z, 0.02, d_neg=d_neg), z)
    assert_same([value.double(), gradient.double()], expected, 2e-3)


def test_small_losses_keep_their_digits():
    """A loss of 1e-20 is not rounded to 0, although pos + g rounds to pos."""
    z = torch.eye(2).repeat(3, 1, 1).requires_grad_()
    value, gradient = value_and_gradient(lambda z: loss.attentionce(z, 0.02), z)
    assert value.item() == pytest.approx(2 * math.exp(-50), rel=1e-4, abs=0)
    assert gradient.abs().max() > 0


# Precision


@each_loss
def test_autocast_leaves_float32_alone(kind):
    z = embeddings(views_of(kind), 8, 16, dtype=torch.float32)
    expected = value_and_gradient(LOSSES[kind], z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (z[0] @ z[1].T).dtype == torch.bfloat16  # it is on
        assert_same(value_and_gradient(LOSSES[kind], z), expected, 0)
        with torch.no_grad():
            assert_same([LOSSES[kind](z)], expected[:1], 1e-6)
        queries = z[:2].detach().requires_grad_()
        with_queue = loss.attentionce_queue(queries, queries, queries[0])
    assert_same([with_queue], [loss.attentionce_queue(queries, queries, queries[0])], 0)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    z = embeddings(views_of(kind), 8, 16, dtype=dtype)
    value, gradient = value_and_gradient(LOSSES[kind], z)
    expected = value_and_gradient(LOSSES[kind], z.detach().float().requires_grad_())
    assert value.dtype == torch.float32
    assert_same([value, gradient], [expected[0], expected[1].to(dtype)], 0)


# Errors


NOT_POSITIVE = [0, -0.5, math.inf, math.nan]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, "temperature", value) for kind in LOSSES for value in NOT_POSITIVE]
    + [("attentionce", name, value) for name in ("d_pos", "d_neg") for value in NOT_POSITIVE]
    + [
        (kind, "tau_plus", value)
        for kind in ("dcl", "hcl", "bcl")
        for value in (-0.1, 1, 1.5, math.nan)
    ]
    + [("hcl", "beta", value) for value in (-0.1, math.inf, math.nan)]
    + [("bcl", name, value) for name in ("alpha", "beta") for value in (-0.1, 1.1, math.nan)],
)
def test_wrong_parameters(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} must.*got {value}"):
        LOSSES[kind](embeddings(views_of(kind), 4, 3), **{name: value})


@each_loss
def test_wrong_shapes(kind):
    wrong = [(4, 3), (0, 4, 3), (1, 4, 3), (3, 4, 3), (6, 4, 3), (2, 2, 4, 3)]
    wrong = [(4, 3), (1, 4, 3), (2, 4, 3), (6, 2, 4, 3)] if loss.LOSSES[kind].positives else wrong
    for shape in wrong:
        with pytest.raises(ValueError, match="^z must be .*views"):
            LOSSES[kind](torch.zeros(shape))
    for batch in (0, 1):
        with pytest.raises(ValueError, match="^z must hold a batch of at least 2"):
            LOSSES[kind](torch.zeros(views_of(kind), batch, 3))


# Use


@each_loss
def test_gradient_scales_and_is_first_order_only(kind):
    z = embeddings(views_of(kind), 4, 3)
    value, gradient = value_and_gradient(LOSSES[kind], z)
    (scaled,) = torch.autograd.grad(-3 * LOSSES[kind](z), z)
    assert torch.allclose(scaled, -3 * gradient, rtol=1e-12)
    with pytest.raises(RuntimeError, match="only once"):
        torch.autograd.grad(LOSSES[kind](z), z, create_graph=True)


@each_loss
def test_compiled_callers(kind, monkeypatch):
    monkeypatch.setattr(loss, "block_rows", lambda device, columns: 5)
    x = torch.randn(views_of(kind), 4, 3, dtype=torch.float64, requires_grad=True)

    def caller(x):
        return 2 * LOSSES[kind](F.normalize(x, dim=-1)) + x.mean()

    torch.compiler.reset()
    assert_same(
        value_and_gradient(torch.compile(caller, backend="eager"), x),
        value_and_gradient(caller, x),
        1e-12,
    )


class Watch(TorchDispatchMode):
    """Counts matrix products and notes the largest tensor made."""

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
            value = LOSSES[kind](watched)
        assert watch.products == products
        assert value.requires_grad == watched.requires_grad
    with torch.no_grad(), Watch() as watch:
        value = LOSSES[kind](z)
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
    """No tensor is larger than a block or than the embeddings (times the positives), however large the batch."""
    z = embeddings(loss.LOSSES[kind].views(1), 1024, 4, dtype=torch.float32)
    with Watch() as watch:
        LOSSES[kind](z, gather=(lambda anchors: (anchors, 0)) if gathered else None).backward()
    assert 2**18 < watch.largest <= 2**20 < 2048**2
    assert loss.block_rows("cpu", 2 * 16384) * 2 * 16384 <= 2**24
    assert loss.block_rows("cpu", 2**30) == 1


@each_loss
def test_never_waits_for_the_device(kind):
    """Nothing's size or branch depends on a tensor's value: it all runs on tensors that have none."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for gather in (None, lambda anchors: (anchors, 0)):
            LOSSES[kind](
                torch.empty(views_of(kind), 8, 4, requires_grad=True), gather=gather
            ).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_loss
def test_cuda(kind):
    z = embeddings(views_of(kind), 300, 16)
    expected = value_and_gradient(LOSSES[kind], z)
    z = z.detach().cuda().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = value_and_gradient(LOSSES[kind], z)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same([t.cpu() for t in actual], expected)
