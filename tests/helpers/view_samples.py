"""What the tests of the views share: images, parameters and torchvision's operations."""

import torch
from torchvision.transforms.v2 import functional as F

from attentionce.data import views
from helpers.device import DEVICE, rounding

OPS = [views.brightness, views.contrast, views.saturation, views.hue]
TORCHVISION = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]


def random_images(batch, height, width, seed=0):
    """uint8 images of noise on the device; the first five hold colours that are difficult cases."""
    generator, shape = views.generator(seed), (batch, 3, height, width)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    images[0] = images[0, :1]  # gray noise
    images[1] = 255 * (images[1] > 127)  # black, white, primaries and their mixtures
    images[2] = 128 + images[2] % 2  # within one level of gray
    images[3] = 0
    images[4] = 255
    return images.to(DEVICE)


def draw(count=3, batch=8, height=32, width=32, seed=0, device=DEVICE):
    """The parameters of `count` views of a batch, on the device that tests run on or another."""
    drawn = views.draw(count, batch, height, width, views.generator(seed, 1, 2))
    return views.to(drawn, device)


def check_close(ours, expected, atol=1e-6):
    """Assert that no two numbers differ by more than `atol`, or by a GPU's rounding."""
    atol = max(atol, 5 * rounding(ours.dtype))
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)
