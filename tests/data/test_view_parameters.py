"""The random numbers of the views: their generator, and the distribution of every parameter."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.view_samples import draw
from torchvision import transforms

from attentionce.data import blur, views


def test_generator_depends_on_its_arguments_alone():
    def numbers(*key):
        return tuple(torch.rand(4, dtype=torch.float64, generator=views.generator(*key)).tolist())

    first = numbers(3, 1, 2)
    torch.manual_seed(99)
    torch.rand(3)
    assert numbers(3, 1, 2) == first
    keys = [key for length in (1, 2, 3) for key in itertools.product(range(12), repeat=length)]
    keys += [(0, 0, 0, 0), (0, 0, 2**31), (2**32,), (2**33, 0)]
    assert len({numbers(*key) for key in keys}) == len(keys)


def test_generator_uses_more_than_32_bits():
    # With seeds of 32 bits, one pair among the 100,000 steps of a run would share its views. Here
    # the seed has 624 words: the numbers are those of NumPy's Mersenne Twister in the same state.
    words = np.random.SeedSequence(7, spawn_key=(1, 2)).generate_state(624)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    ours = torch.empty(2000, dtype=torch.int32).random_(generator=views.generator(7, 1, 2))
    assert ours.tolist() == (twister.random_raw(2000) % 2**31).tolist()


def test_draws_are_float32_and_do_not_depend_on_the_threads():
    draws = []
    for threads in (3, 1):
        torch.set_num_threads(threads)
        draws.append(draw(6, 4096, device="cpu"))
    assert draws[0].order == draws[1].order and len(draws[0].order) == 6
    for p, q in zip(draws[0][:-1], draws[1][:-1], strict=True):
        assert torch.equal(p, q) and p.shape == (6, 4096) and p.dtype == torch.float32


def test_constants_are_the_published_ones():
    assert views.MEAN == (0.4914, 0.4822, 0.4465)
    assert views.STD == (0.2023, 0.1994, 0.2010)
    assert (views.TRIES, views.SCALE, views.RATIO) == (10, (0.08, 1), (3 / 4, 4 / 3))
    assert (views.FLIP_P, views.GRAY_P) == (0.5, 0.2)
    assert (views.JITTER_P, views.JITTER, views.HUE) == (0.8, 0.4, 0.1)
    assert (views.BLUR_P, blur.SIGMA) == (0.5, (0.1, 2))


def test_blur_has_the_kernel_of_simclr():
    """An image // 10 made odd, as in SimCLR's code; at small sizes the three taps of CIFAR."""
    taps = {side: 2 * blur.reach(side) + 1 for side in (4, 32, 48, 64, 96, 160, 224)}
    assert taps == {4: 3, 32: 3, 48: 5, 64: 7, 96: 9, 160: 17, 224: 23}


def same_distribution(ours, theirs):
    return scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 96), (64, 16)])
def test_crops_are_distributed_as_torchvisions(height, width):
    d = draw(8, 1000, height, width, device="cpu")
    ours = torch.stack(d[:4], -1).reshape(-1, 4).double().numpy()
    assert (ours == ours.round()).all() and (ours >= [0, 0, 1, 1]).all()
    assert (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    get = transforms.RandomResizedCrop.get_params
    theirs = np.array([get(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=float)
    for box in range(4):
        assert same_distribution(ours[:, box], theirs[:, box])
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(np.log(ours[:, 3] / ours[:, 2]), np.log(theirs[:, 3] / theirs[:, 2]))
    room, room_there = [height, width] - ours[:, 2:], [height, width] - theirs[:, 2:]
    for side in range(2):  # the position in units of the room that the box leaves
        mine = (ours[:, side] / room[:, side].clip(1))[room[:, side] > 4]
        other = (theirs[:, side] / room_there[:, side].clip(1))[room_there[:, side] > 4]
        assert same_distribution(mine, other)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(1000, 10, (493, 0, 13, 10)), (9, 400, (0, 194, 9, 12)), (1, 1, (0, 0, 1, 1))],
)
def test_an_image_that_no_crop_fits_gets_torchvisions_central_crop(height, width, box):
    if height * width > 1:
        get = transforms.RandomResizedCrop.get_params
        assert get(torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3]) == box
    d = draw(2, 500, height, width, device="cpu")
    assert torch.stack(d[:4], -1).flatten(0, 1).unique(dim=0).tolist() == [list(box)]


def test_a_first_try_that_does_not_fit_is_followed_by_the_next():
    # Nearly the whole area at 4:3 does not fit. For the second image, the fourth try does.
    tries = torch.full((2, views.TRIES, 1, 2), 0.999, dtype=torch.float64)
    tries[:, 3, 0, 1] = 0.5
    tries[:, 5, 0, 1] = 0.1
    centre = torch.full((1, 2), 0.5, dtype=torch.float64)
    top, left, height, width = views._crop_boxes(*tries, centre, centre, 32, 32)
    assert height.tolist() == width.tolist() == [[32.0, round(32 * math.sqrt(0.54))]]
    assert top.tolist() == left.tolist() == [[0.0, 4.0]]


def test_flip_jitter_gray_and_blur_have_their_probabilities_and_ranges():
    d, n = draw(8, 5000, device="cpu"), 40_000

    def as_likely(event, p):
        return abs(event.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)

    assert set(d.flip.unique().tolist()) == {0, 1}
    assert as_likely(d.flip, 0.5)
    assert set(d.gray.unique().tolist()) == {0, 1}
    assert as_likely(d.gray == 0, 0.2)
    jitter = d.brightness != 1
    assert as_likely(jitter, 0.8)
    for factor in (d.contrast, d.saturation, d.hue + 1):
        assert torch.equal(factor[~jitter], torch.ones_like(factor[~jitter]))
    for factor in (d.brightness, d.contrast, d.saturation):
        assert scipy.stats.kstest(factor[jitter].numpy(), "uniform", (0.6, 0.8)).pvalue > 1e-3
    assert scipy.stats.kstest(d.hue[jitter].numpy(), "uniform", (-0.1, 0.2)).pvalue > 1e-3
    blurred = d.blur > 0
    assert as_likely(blurred, 0.5)
    sigma = (0.5 / (2 / d.blur[blurred].double() - 2).log()).sqrt()
    assert scipy.stats.kstest(sigma.numpy(), "uniform", (0.1, 1.9)).pvalue > 1e-3


def test_parameters_are_independent_of_each_other_and_between_views_and_images():
    d = draw(8, 5000, device="cpu")
    drawn = (d.brightness != 1) & (d.blur > 0)
    columns = [p[drawn] for p in d[:-1]]
    r = torch.corrcoef(torch.stack(columns))
    r[:4, :4] = 0  # a crop's position and size do depend on each other
    assert r.fill_diagonal_(0).abs().max() < 5 / math.sqrt(len(columns[0]))
    loose = (d.height < 25) & (d.width < 25)
    corners = torch.stack([(d.top / (32 - d.height))[loose], (d.left / (32 - d.width))[loose]])
    assert torch.corrcoef(corners)[0, 1].abs() < 4 / math.sqrt(loose.sum())
    events = torch.stack([d.brightness != 1, d.blur > 0, d.flip > 0, d.gray > 0])
    r = torch.corrcoef(events.flatten(1).double())
    assert r.fill_diagonal_(0).abs().max() < 4 / math.sqrt(40_000)
    for p in d[:-1]:
        assert torch.corrcoef(p).fill_diagonal_(0).abs().max() < 5 / math.sqrt(5000)
        neighbours = torch.stack([p[:, 1:].flatten(), p[:, :-1].flatten()])
        assert torch.corrcoef(neighbours)[0, 1].abs() < 5 / math.sqrt(40_000)


def test_every_order_of_the_jitter_is_as_likely():
    counts = Counter(tuple(order) for order in draw(24_000, 1, device="cpu").order)
    assert len(counts) == 24
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3
