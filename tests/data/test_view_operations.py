"""Every operation of the views against torchvision's, image by image."""

import pytest
import torch
from helpers.device import DEVICE
from helpers.view_samples import OPS, TORCHVISION, check_close, draw, random_images
from torchvision.transforms.v2 import functional as F

from attentionce.data import blur, views


def each(x, function, values):
    """Apply `function` image by image, each with its own parameter."""
    pairs = zip(x, values.tolist(), strict=True)
    return torch.stack([function(image, value) for image, value in pairs])


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (20, 45, 32), (7, 5, 16), (64, 33, 11)]
)
def test_crop_is_torchvisions(height, width, size):
    images = random_images(60, height, width)
    g = torch.Generator().manual_seed(0)
    h = torch.randint(1, height + 1, (60,), generator=g)
    w = torch.randint(1, width + 1, (60,), generator=g)
    h[:4] = torch.tensor([1, height, 1, height])
    w[:4] = torch.tensor([1, width, width, 1])
    top = (torch.rand(60, generator=g) * (height - h + 1)).long()
    left = (torch.rand(60, generator=g) * (width - w + 1)).long()
    top[4:20], left[12:28] = 0, 0
    top[20:36], left[28:44] = (height - h)[20:36], (width - w)[28:44]
    flip = torch.rand(60, generator=g) < 0.5
    box = torch.stack([top, left, h, w])
    ours = views.crop(images, *box.float().to(DEVICE), flip.float().to(DEVICE), size)
    for n, image in enumerate(images / 255):
        expected = F.resized_crop(image, *box[:, n].tolist(), [size, size], antialias=True)
        check_close(ours[n], F.horizontal_flip(expected) if flip[n] else expected)


@pytest.mark.parametrize("index", range(4))
def test_colours_are_torchvisions(index):
    """Also far outside the range of the published jitter."""
    x = random_images(101, 13, 9) / 255
    bounds = ((0.6, 1.4), (0, 5)) if index < 3 else ((-0.1, 0.1), (-0.5, 0.5))
    for low, high in bounds:
        order = torch.randperm(101, generator=views.generator(0))
        values = torch.linspace(low, high, 101)[order].to(DEVICE)
        expected = each(x, TORCHVISION[index], values)
        check_close(OPS[index](x, values), expected, atol=1e-6 if index < 3 else 1e-5)


def test_hue_of_every_kind_of_pixel():
    levels = torch.linspace(0, 1, 13, device=DEVICE)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 13, -1)
    for turn in torch.linspace(-0.5, 0.5, 21, device=DEVICE):
        expected = F.adjust_hue(colours[0], turn.item())
        check_close(views.hue(colours, turn[None])[0], expected, atol=1e-5)


def test_colour_operations_when_an_image_exceeds_one_by_rounding():
    x = torch.full((1, 3, 4, 4), 1 + 2**-23, device=DEVICE)
    for op, value in zip(OPS, (1.0, 1.0, 1.0, 0.05), strict=True):
        check_close(op(x, torch.tensor([value], device=DEVICE)), torch.ones_like(x))


@pytest.mark.parametrize(
    ("shape", "taps"), [((13, 40), 3), ((2, 3), 3), ((48, 70), 5), ((224, 224), 23)]
)
def test_blur_is_torchvisions(shape, taps):
    x = random_images(10, *shape) / 255
    sigma = torch.linspace(0.1, 2, 10, device=DEVICE)
    expected = each(x, lambda image, s: F.gaussian_blur(image, [taps] * 2, [s, s]), sigma)
    check_close(blur.blur(x, blur.neighbour_weight(sigma)), expected, atol=2e-6)


def test_blur_at_32_pixels_is_a_mean_of_the_two_neighbours():
    """To the bit: results at this size do not change with what larger kernels need."""
    x = random_images(64, 32, 32) / 255
    weight = draw(1, 64).blur[0]
    expected = x
    for dim in (2, 3):
        first, last = expected.narrow(dim, 1, 1), expected.narrow(dim, 30, 1)
        padded = torch.cat((first, expected, last), dim)
        mean = (padded.narrow(dim, 0, 32) + padded.narrow(dim, 2, 32)) * 0.5
        expected = torch.lerp(expected, mean, weight[:, None, None, None])
    check_close(blur.blur(x, weight), expected, atol=0)


def test_neutral_parameters_change_nothing():
    images = random_images(6, 32, 32)
    x, one, zero = images / 255, torch.ones(6, device=DEVICE), torch.zeros(6, device=DEVICE)
    for op in OPS[:3]:
        assert torch.equal(op(x, one), x)
    assert torch.equal(blur.blur(x, zero), x)
    check_close(views.hue(x, zero), x)
    check_close(views.crop(images, zero, zero, 32 * one, 32 * one, zero, 32), x)
    check_close(views.finish(x, one, zero), views.normalize(images))


def test_operations_leave_their_arguments_alone():
    x = random_images(6, 32, 32) / 255
    before = x.clone()
    half, box = (torch.full((6,), value, device=DEVICE) for value in (0.5, 10.0))
    for op in (*OPS, blur.blur):
        op(x, half)
    views.finish(x, half, half)
    views.crop(x, box, box, box, box, box, 32)
    views.normalize(x)
    assert torch.equal(x, before)
