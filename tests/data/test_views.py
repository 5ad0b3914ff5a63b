"""Whole views against torchvision's pipeline with the same parameters."""

import functools
import math

import pytest
import torch
from helpers.device import DEVICE, ON_CPU, no_waits
from helpers.faults import SOAK
from helpers.view_samples import TORCHVISION, check_close, draw, random_images
from torchvision.transforms.v2 import functional as F

from attentionce.data import views


def torchvision_view(image, d, v, n, size):
    """One image through torchvision's functions, with the parameters of view v and image n."""
    box = [int(p[v, n]) for p in d[:4]]
    x = F.resized_crop(image / 255, *box, [size, size], antialias=True)
    if d.flip[v, n]:
        x = F.horizontal_flip(x)
    for i in d.order[v]:
        x = TORCHVISION[i](x, d[5 + i][v, n].item())
    if d.gray[v, n] == 0:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    weight = d.blur[v, n].item()
    if weight > 0:
        sigma = math.sqrt(0.5 / math.log(2 / weight - 2))
        taps = size // 10 // 2 * 2 + 1  # as in SimCLR's code
        x = F.gaussian_blur(x, [taps, taps], [sigma, sigma])
    return F.normalize(x, list(views.MEAN), list(views.STD))


@pytest.mark.parametrize(
    ("height", "width", "size", "batch"),
    [(32, 32, 32, 24), (64, 16, 32, 24), (96, 96, 96, 24), (240, 160, 224, 6)],
)
def test_a_view_is_torchvisions_with_the_same_parameters(height, width, size, batch):
    images, d = random_images(batch, height, width), draw(4, batch, height, width)
    before = images.clone()
    ours = views.make(images, d, size)
    assert ours.shape == (4, batch, 3, size, size)
    assert ours.dtype == torch.float32
    for v in range(4):
        for n in range(batch):
            expected = torchvision_view(images[n], d, v, n, size)
            # An H100 differed by 5.1e-5 at one pixel of the largest views.
            atol = 1e-5 if ON_CPU or size < 224 else 6e-5
            check_close(ours[v, n] * min(views.STD), expected * min(views.STD), atol=atol)
    assert torch.equal(images, before)


def test_the_same_bits_from_uint8_or_float_and_under_autocast():
    images, d = random_images(8, 24, 24), draw(3, 8, 24, 24)
    all_views = views.make(images, d, 16)
    assert not torch.equal(views.make(images, draw(3, 8, 24, 24, seed=1), 16), all_views)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        for v in range(3):
            assert torch.equal(views.make_view(images, d, v, 16), all_views[v])
            assert torch.equal(views.make_view(images.float(), d, v, 16), all_views[v])


def test_part_is_a_slice_of_the_batch_and_to_moves_it():
    images, d = random_images(12, 32, 32), draw(3, 12)
    whole = views.make(images, d)
    for start, stop in ((0, 5), (5, 12), (11, 12)):
        some = views.to(views.part(d, start, stop), "cpu")
        assert some.order == d.order
        for p, q in zip(some[:-1], d[:-1], strict=True):
            assert torch.equal(p, q[:, start:stop].cpu())
        ours = views.make(images[start:stop], views.to(some, DEVICE))
        check_close(ours, whole[:, start:stop], atol=1e-5)
    assert all(p.device.type == "meta" and p.shape == (3, 12) for p in views.to(d, "meta")[:-1])


@pytest.mark.skipif(ON_CPU, reason="compares a device with the CPU")
def test_views_on_the_device_are_those_of_the_cpu():
    """Made without a wait."""
    images, d = random_images(16, 32, 32), draw(3, 16)
    with no_waits():
        there = views.make(images, d)
    check_close(there.cpu(), views.make(images.cpu(), views.to(d, "cpu")), atol=0)


@pytest.mark.soak
def test_compiled_views_are_the_eager_ones_and_never_compile_anew(monkeypatch):
    """The short form traces them only; tests of training compile them."""
    if not SOAK:
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    images, ops = random_images(8, 16, 16), views.compiled()
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]]
    views.make(images, draw(3, 8, 16, 16), 16, ops)
    d = draw(3, 8, 16, 16, seed=5)._replace(order=orders)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = views.make(images, d, 16, ops)
    check_close(compiled, views.make(images, d, 16), atol=2e-5)
