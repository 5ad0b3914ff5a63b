"""What a step asks of a GPU, on any machine: its tensors have a device and a shape, but no numbers.

An operation on tensors of two devices fails with them as it would on a GPU. So does whatever looks
at a number, for which the program would have to wait. Only the backward pass needs a real GPU: it
is left out here.
"""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import main
from attentionce.data import views
from attentionce.training import one_epoch, one_step, pretraining
from attentionce.training.moco import MoCo
from loss import LOSSES
from model import Model

BATCH, SIZE = 4, 8


def gradients(outputs, inputs, **kwargs):
    """torch.autograd.grad, without the graph."""
    return tuple(map(torch.empty_like, [inputs] if isinstance(inputs, Tensor) else inputs))


@pytest.fixture
def no_numbers(monkeypatch):
    """Meta tensors, and stand-ins for what cannot be done with them.

    These are the backward pass, pinning memory, copying a model, and drawing random numbers.
    """
    drawn = views.draw(6, BATCH, SIZE, SIZE, views.generator(0))

    def draw(count, *_):
        numbers = [torch.empty(count, BATCH) for _ in drawn[:-1]]
        return views.Draw(*numbers, drawn.order[:count])

    monkeypatch.setattr(views, "generator", lambda *where: None)
    monkeypatch.setattr(views, "draw", draw)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Tensor, "backward", lambda self, *_: None)
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    monkeypatch.setattr(
        Model, "__deepcopy__", lambda self, memo: Model(arch="resnet10"), raising=False
    )
    with FakeTensorMode() as mode:
        yield mode


def assemble(*words) -> pretraining.Run:
    """A run on the GPU, like that of main.py."""
    flags = f"--arch resnet10 --image_size {SIZE} --batch_size {BATCH}"
    args = main.parse_args([*flags.split(), *words])
    device, moco = torch.device("cuda:0"), None
    with device:
        model = Model(args.feature_dim, args.arch)
        if args.estimator == "MoCo":
            moco = MoCo(model, args.queue, args.momentum, args.feature_dim)
        pixels = torch.empty(5 * BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
    return pretraining.Run(
        args=args,
        device=device,
        dtype=torch.float32,
        pixels=pixels,
        model=model,
        encoder=model,
        optimizer=torch.optim.Adam(model.parameters(), fused=True),
        scaler=torch.amp.GradScaler("cuda", enabled=False),
        loss=LOSSES[args.loss],
        moco=moco,
        progress=pretraining.new_progress(5, device),
    )


@pytest.mark.parametrize(
    "words",
    [*(f"--loss {kind}" for kind in LOSSES), "--grad_cache", "--estimator MoCo --queue 8"],
)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(no_numbers, words):
    run = assemble(*words.split())
    for step, batch in enumerate(
        one_epoch.batches(run.pixels, torch.empty(2, BATCH, dtype=torch.long), run.device)
    ):
        one_step.take_step(run, batch)
        run.progress["step"] = step + 1
    assert run.progress["losses"].device == run.optimizer.found_inf.device == run.device


def test_both_mistakes_are_found(no_numbers):
    there = torch.empty(3, device="cuda")
    with pytest.raises(RuntimeError, match="(?i)device"):
        there + torch.empty(3)
    with pytest.raises(RuntimeError):
        there.sum().item()
