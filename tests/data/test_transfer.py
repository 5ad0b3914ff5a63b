"""Copies to a device run in the background only where that is safe."""

import pytest
import torch
from helpers.device import DEVICE, ON_CPU

from attentionce.data import transfer, views


@pytest.fixture
def copies(monkeypatch):
    """Record all copies to a device and pretend that they work; return [(device type, options)]."""
    made = []

    def copy(x, device, **options):
        made.append((torch.device(device).type, options))
        return x

    monkeypatch.setattr(torch.Tensor, "to", copy)
    return made


@pytest.mark.parametrize("device", ["mps", torch.device("mps"), "xpu", "cpu"])
def test_only_cuda_copies_in_the_background(copies, monkeypatch, device):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pytest.fail("memory was pinned"))
    x = torch.arange(6.0)
    assert transfer.to_device(x, device) is x
    assert copies == [(torch.device(device).type, {})]


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_copies_from_pinned_memory(copies, monkeypatch, device):
    pinned = torch.ones(6)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned)
    assert transfer.to_device(torch.zeros(6), device) is pinned
    assert copies == [("cuda", {"non_blocking": True})]


def test_what_is_not_on_the_cpu_is_not_pinned(copies, monkeypatch):
    """Only the CPU's memory can be pinned, and the tensor may be on the device already."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pytest.fail("memory was pinned"))
    x = torch.empty(3, device="meta")
    assert transfer.to_device(x, "cuda") is x
    assert copies == [("cuda", {})]


def test_parameters_of_views_go_to_mps_in_one_copy_that_is_waited_for(copies):
    draw = views.draw(3, 8, 32, 32, views.generator(0))
    copies.clear()
    moved = views.to(draw, "mps")
    assert copies == [("mps", {})]
    assert all(torch.equal(p, q) for p, q in zip(moved[:-1], draw[:-1], strict=True))


@pytest.mark.skipif(ON_CPU, reason="compares a device with the CPU")
def test_copies_to_the_device_arrive():
    """Although the host goes on at once, and forgets what it copied."""
    batches = [torch.full((1000, 1000), float(i)) for i in range(20)]
    there = [transfer.to_device(batch + 0, DEVICE) for batch in batches]
    assert all(torch.equal(x.cpu(), y) for x, y in zip(there, batches, strict=True))
