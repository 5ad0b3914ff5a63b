"""What a step asks of a GPU, on any machine: meta tensors have a device and a shape, no numbers.

An operation on tensors of two devices fails with them as it would on a GPU. So does whatever looks
at a number, for which the program would have to wait. Only the backward pass needs a real GPU: it
is left out here.
"""

import pytest
import torch
from helpers.losses import each_ingredient, views_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import main
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.training import one_epoch, one_step, pretraining
from loss import contrastive
from model import Model

BATCH, SIZE = 4, 8


def gradients(outputs, inputs):
    """torch.autograd.grad without the backward pass."""
    return (torch.empty_like(inputs),)


def backward(loss, *_):
    """Tensor.backward without the backward pass: what requires a gradient has one."""
    nodes = [loss.grad_fn]
    for node in nodes:  # it grows
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)
        nodes += {following for following, _ in node.next_functions if following} - {*nodes}


@pytest.fixture
def no_numbers(monkeypatch):
    """Meta tensors, and stand-ins for what cannot be done with them.

    These are the backward pass, pinning memory, copying and moving a model, and random numbers.
    """
    drawn = views.draw(6, BATCH, SIZE, SIZE, views.generator(0))

    def draw(count, *_):
        numbers = [torch.empty(count, BATCH) for _ in drawn[:-1]]
        return views.Draw(*numbers, drawn.order[:count])

    def copied(self, memo):
        return Model(arch="resnet10")

    monkeypatch.setattr(views, "generator", lambda *where: None)
    monkeypatch.setattr(views, "draw", draw)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    monkeypatch.setattr(Model, "__deepcopy__", copied, raising=False)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(pretraining, "expected_bytes", lambda *_: 0)
    monkeypatch.setattr(pretraining.devices, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(pretraining.devices, "keep", lambda pixels, device: pixels.to(device))
    with FakeTensorMode() as mode:
        yield mode


@pytest.mark.parametrize(
    "words, views_per_pass",
    [
        ("", 1),
        ("--grad_cache --noisy_positives 0.5", 1),
        ("--estimator MoCo --queue 8 --noisy_positives 0.5", 2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(no_numbers, words, views_per_pass):
    flags = f"--arch resnet10 --image_size {SIZE} --batch_size {BATCH} --compile off {words}"
    args, device = main.parse_args(flags.split()), torch.device("cuda:0")
    images = Images(torch.empty(5 * BATCH, 3, SIZE, SIZE, dtype=torch.uint8), torch.empty(0), [])
    with device:
        run = pretraining.new_run(
            args, Model(arch="resnet10"), *main.chosen_loss(args), images, device, torch.float32
        )
    run.views_per_pass = views_per_pass
    order = torch.empty(2, BATCH, dtype=torch.long)
    for step, batch in enumerate(one_epoch.batches(run.pixels, order, device)):
        one_step.take_step(run, batch)
        run.progress["step"] = step + 1
    assert run.progress["losses"].device == run.optimizer.found_inf.device == device
    sources = one_step.draw_sources(run, BATCH)  # an index may be on the CPU, and then it waits
    assert sources is None or sources.device == device


@each_ingredient
def test_so_does_a_loss(no_numbers, chosen):
    z = torch.empty(views_of(chosen), BATCH, 8, device="cuda", requires_grad=True)
    assert contrastive(z, **chosen).device == z.device


def test_both_mistakes_are_found(no_numbers):
    there = torch.empty(3, device="cuda")
    with pytest.raises(RuntimeError, match="(?i)device"):
        there + torch.empty(3)
    with pytest.raises(RuntimeError):
        there.sum().item()
