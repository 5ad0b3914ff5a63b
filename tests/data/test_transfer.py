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


def test_only_copies_from_the_cpu_to_cuda_are_pinned_and_in_the_background(copies, monkeypatch):
    pinned = torch.ones(6)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned)
    assert transfer.to_device(torch.zeros(6), "cuda:1") is pinned
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pytest.fail("memory was pinned"))
    for device in ("mps", "xpu", "cpu"):
        transfer.to_device(torch.zeros(6), device)
    transfer.to_device(torch.empty(3, device="meta"), "cuda")
    expected = [("cuda", {"non_blocking": True}), ("mps", {}), ("xpu", {}), ("cpu", {})]
    assert copies == [*expected, ("cuda", {})]


def test_parameters_of_views_go_to_a_device_in_one_copy(copies):
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
