"""Copies to a device run in the background only where that is safe."""

import pytest
import torch
from helpers.device import DEVICE

from attentionce.data import transfer


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


def test_batches_arrive_on_the_device():
    """Although the host goes on at once, and forgets what it copied."""
    pixels = torch.randint(256, (20_000, 3, 8, 8), dtype=torch.uint8)
    order = torch.randperm(20_000).view(20, 1000)
    there = list(transfer.batches(pixels, order, DEVICE))
    assert all(torch.equal(x.cpu(), pixels[i]) for x, i in zip(there, order, strict=True))
