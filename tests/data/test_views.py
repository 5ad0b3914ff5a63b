"""Views: each operation and the whole pipeline against torchvision, and every drawn parameter's distribution."""

import math
import shutil
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as F

from attentionce.data import views

OPS = [views.brightness, views.contrast, views.saturation, views.hue]
TORCHVISION = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]


def random_images(batch, height, width, seed=0):
    """uint8 images: noise, and in their first places what is hard for colours: grays, primaries, near-grays."""
    images = torch.randint(
        0, 256, (batch, 3, height, width), generator=views.generator(seed), dtype=torch.uint8
    )
    images[0] = images[0, :1]  # gray noise
    images[1] = 255 * (images[1] > 127)  # black, white, primaries and their mixtures
    images[2] = 128 + images[2] % 2  # within one level of gray
    images[3] = 0
    images[4] = 255
    return images


def draw(views_=3, batch=8, height=32, width=32, seed=0):
    return views.draw(views_, batch, height, width, views.generator(seed, 1, 2))


def each(x, function, values):
    """`function` applied image by image, each with its own parameter."""
    return torch.stack(
        [function(image, value) for image, value in zip(x, values.tolist(), strict=True)]
    )


# ------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (32, 32, 32),
        (96, 96, 32),
        (64, 64, 32),
        (20, 45, 32),
        (90, 50, 24),
        (32, 32, 64),
        (7, 5, 16),
        (64, 33, 11),
    ],
)
def test_crop_is_torchvisions(height, width, size):
    images = random_images(60, height, width)
    g = torch.Generator().manual_seed(0)
    h, w = (
        torch.randint(1, height + 1, (60,), generator=g),
        torch.randint(1, width + 1, (60,), generator=g),
    )
    h[:4], w[:4] = torch.tensor([1, height, 1, height]), torch.tensor([1, width, width, 1])
    top = (torch.rand(60, generator=g) * (height - h + 1)).long()
    left = (torch.rand(60, generator=g) * (width - w + 1)).long()
    top[4:20], left[12:28] = 0, 0
    top[20:36], left[28:44] = (height - h)[20:36], (width - w)[28:44]
    flip = torch.rand(60, generator=g) < 0.5

    ours = views.crop(images, *(p.float() for p in (top, left, h, w, flip)), size)
    for n, image in enumerate(images / 255):
        expected = F.resized_crop(
            image, *(int(p[n]) for p in (top, left, h, w)), [size, size], antialias=True
        )
        expected = F.horizontal_flip(expected) if flip[n] else expected
        torch.testing.assert_close(ours[n], expected, atol=1e-6, rtol=0)


def test_crop_at_32_pixels_is_torchvisions_to_the_last_bits():
    images, d = random_images(256, 32, 32), draw(1, 256)
    ours = views.crop(images, *(p[0] for p in d[:4]), torch.zeros(256), 32)
    boxes = torch.stack(d[:4], -1)[0].int().tolist()
    expected = torch.stack(
        [F.resized_crop(i / 255, *box, [32, 32]) for i, box in zip(images, boxes, strict=True)]
    )
    assert (ours - expected).abs().max() <= 3e-7


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("factor", [None, 0.0, 0.25, 0.6, 1.0, 1.4, 5.0])
def test_brightness_contrast_saturation_are_torchvisions(index, factor):
    x = random_images(40, 13, 9) / 255
    factors = torch.linspace(0.6, 1.4, 40) if factor is None else torch.full((40,), factor)
    expected = each(x, TORCHVISION[index], factors)
    torch.testing.assert_close(OPS[index](x, factors), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bound", [0.1, 0.5])
def test_hue_is_torchvisions(bound):
    x = random_images(101, 13, 9) / 255
    for seed in range(3):
        turns = torch.linspace(-bound, bound, 101)[
            torch.randperm(101, generator=views.generator(seed))
        ]
        torch.testing.assert_close(
            views.hue(x, turns), each(x, F.adjust_hue, turns), atol=1e-5, rtol=0
        )


def test_hue_of_every_kind_of_pixel():
    levels = torch.linspace(0, 1, 13)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 13, -1)
    for turn in torch.linspace(-0.5, 0.5, 41):
        expected = F.adjust_hue(colours[0], turn.item())
        torch.testing.assert_close(views.hue(colours, turn[None])[0], expected, atol=1e-5, rtol=0)


def test_colour_operations_when_an_image_exceeds_one_by_rounding():
    x = torch.full((1, 3, 4, 4), 1 + 2**-23)
    for op, value in zip(OPS, (1.0, 1.0, 1.0, 0.05), strict=True):
        torch.testing.assert_close(
            op(x, torch.tensor([value])), torch.ones_like(x), atol=1e-6, rtol=0
        )


def test_gray_is_torchvisions():
    x = random_images(6, 8, 8) / 255
    expected = F.rgb_to_grayscale(x, num_output_channels=3)
    torch.testing.assert_close(views.saturation(x, torch.zeros(6)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (13, 40), (2, 3)])
def test_blur_is_torchvisions(shape):
    x = random_images(20, *shape) / 255
    sigma = torch.linspace(0.1, 2, 20)
    expected = each(x, lambda image, s: F.gaussian_blur(image, [3, 3], [s, s]), sigma)
    torch.testing.assert_close(views.blur(x, views.blur_share(sigma)), expected, atol=1e-6, rtol=0)


def test_normalize_is_torchvisions():
    images = random_images(6, 20, 9)
    for given in (images, images.float()):
        before = given.clone()
        expected = F.normalize(images / 255, list(views.MEAN), list(views.STD))
        torch.testing.assert_close(views.normalize(given), expected, atol=1e-6, rtol=0)
        assert torch.equal(given, before)


def test_parameters_that_stand_for_nothing_change_nothing():
    images = random_images(6, 32, 32)
    x, one, zero = images / 255, torch.ones(6), torch.zeros(6)
    for op, neutral in (
        (views.brightness, one),
        (views.contrast, one),
        (views.saturation, one),
        (views.blur, zero),
    ):
        assert torch.equal(op(x, neutral), x)
    torch.testing.assert_close(views.hue(x, zero), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        views.crop(images, zero, zero, 32 * one, 32 * one, zero, 32), x, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        views.finish(x, one, zero), views.normalize(images), atol=1e-6, rtol=0
    )


def test_no_operation_writes_into_what_it_is_given():
    x = random_images(6, 32, 32) / 255
    before, half, box = x.clone(), torch.full((6,), 0.5), torch.full((6,), 10.0)
    for op in (*OPS, views.blur):
        op(x, half)
        assert torch.equal(x, before), op.__name__
    views.finish(x, half, half)
    views.crop(x, box, box, box, box, box, 32)
    assert torch.equal(x, before)


# ------------------------------------------------------------------------------------------------- whole views


def torchvision_view(image, d, v, n, size):
    """One image through torchvision's functions, with the parameters of view v and image n."""
    box = [int(p[v, n]) for p in d[:4]]
    x = F.resized_crop(image / 255, *box, [size, size], antialias=True)
    x = F.horizontal_flip(x) if d.flip[v, n] else x
    for i in d.order[v]:
        x = TORCHVISION[i](x, d[5 + i][v, n].item())
    x = F.rgb_to_grayscale(x, num_output_channels=3) if d.gray[v, n] == 0 else x
    if share := d.blur[v, n].item():
        sigma = math.sqrt(0.5 / math.log(2 / share - 2))
        x = F.gaussian_blur(x, [3, 3], [sigma, sigma])
    return F.normalize(x, list(views.MEAN), list(views.STD))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (96, 96, 32), (40, 64, 48), (64, 16, 32)]
)
def test_a_view_is_torchvisions_with_the_same_parameters(height, width, size):
    images, d = random_images(24, height, width), draw(4, 24, height, width)
    before = images.clone()
    ours = views.make(images, d, size)
    assert ours.shape == (4, 24, 3, size, size)
    assert ours.dtype == torch.float32
    expected = torch.stack(
        [
            torch.stack([torchvision_view(images[n], d, v, n, size) for n in range(24)])
            for v in range(4)
        ]
    )
    torch.testing.assert_close(ours * min(views.STD), expected * min(views.STD), atol=1e-5, rtol=0)
    assert torch.equal(images, before)


def test_make_view_makes_one_of_them_from_uint8_or_float():
    images, d = random_images(8, 24, 24), draw(3, 8, 24, 24)
    all_views = views.make(images, d, 16)
    for v in range(3):
        assert torch.equal(views.make_view(images, d, v, 16), all_views[v])
        assert torch.equal(views.make_view(images.float(), d, v, 16), all_views[v])


def test_same_inputs_give_the_same_bits():
    images = random_images(32, 32, 32)
    assert torch.equal(views.make(images, draw(6, 32)), views.make(images, draw(6, 32)))
    assert not torch.equal(views.make(images, draw(6, 32)), views.make(images, draw(6, 32, seed=1)))


def test_autocast_around_it_changes_nothing():
    images, d = random_images(8, 32, 32), draw()
    with torch.autocast("cpu", torch.bfloat16):
        inside = views.make(images, d)
    assert torch.equal(inside, views.make(images, d))


def test_part_is_a_slice_of_the_batch():
    images, d = random_images(12, 32, 32), draw(3, 12)
    whole = views.make(images, d)
    for start, stop in ((0, 5), (5, 12), (11, 12)):
        some = views.part(d, start, stop)
        assert all(torch.equal(p, q[:, start:stop]) for p, q in zip(some[:-1], d[:-1], strict=True))
        torch.testing.assert_close(
            views.make(images[start:stop], some), whole[:, start:stop], atol=1e-5, rtol=0
        )


def test_to_moves_every_parameter():
    d = draw()
    moved = views.to(views.part(d, 2, 6), "cpu")
    assert all(torch.equal(p, q[:, 2:6]) for p, q in zip(moved[:-1], d[:-1], strict=True))
    assert moved.order == d.order
    meta = views.to(d, "meta")
    assert all(p.device.type == "meta" and p.shape == (3, 8) for p in meta[:-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_on_a_gpu_are_those_of_the_cpu():
    images, d = random_images(16, 32, 32), draw(3, 16)
    there = views.make(images.cuda(), views.to(d, "cuda"))
    torch.testing.assert_close(there.cpu(), views.make(images, d), atol=5e-5, rtol=0)


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_views_are_the_eager_ones_and_never_compile_anew():
    images, ops = random_images(8, 16, 16), views.compiled()
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]]
    d = draw(3, 8, 16, 16)
    views.make(images, d, 16, ops)
    d = draw(3, 8, 16, 16, seed=5)._replace(order=orders)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = views.make(images, d, 16, ops)
    torch.testing.assert_close(compiled, views.make(images, d, 16), atol=2e-5, rtol=0)


# ------------------------------------------------------------------------------------------------- random numbers


def test_generator_depends_on_its_arguments_alone():
    def numbers(*key):
        return tuple(torch.rand(4, dtype=torch.float64, generator=views.generator(*key)).tolist())

    first = numbers(3, 1, 2)
    torch.manual_seed(99)
    torch.rand(3)
    assert numbers(3, 1, 2) == first
    keys = [(s,) for s in range(12)] + [(s, e) for s in range(12) for e in range(12)]
    keys += [(s, e, step) for s in range(12) for e in range(12) for step in range(12)] + [
        (0, 0, 0, 0)
    ]
    keys += [(0, 0, 2**31), (2**32,), (2**33, 0)]
    assert len({numbers(*key) for key in keys}) == len(keys)


def test_generator_uses_more_than_32_bits():
    # Among 100,000 steps seeded with 32 bits one pair in a run would share its views. Here 624 words are the seed:
    # the numbers are those of NumPy's Mersenne Twister in the same state.
    words = np.random.SeedSequence(7, spawn_key=(1, 2)).generate_state(624)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    ours = torch.empty(2000, dtype=torch.int32).random_(generator=views.generator(7, 1, 2))
    assert ours.tolist() == (twister.random_raw(2000) % 2**31).tolist()


def test_draws_do_not_depend_on_the_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw(6, 4096)
        torch.set_num_threads(3)
        three = draw(6, 4096)
    finally:
        torch.set_num_threads(threads)
    assert one.order == three.order
    assert all(torch.equal(p, q) for p, q in zip(one[:-1], three[:-1], strict=True))


def test_shapes_and_types_of_a_draw():
    d = draw(5, 7)
    assert all(
        p.shape == (5, 7) and p.dtype == torch.float32 and p.device.type == "cpu" for p in d[:-1]
    )
    assert all(sorted(order) == [0, 1, 2, 3] for order in d.order)
    assert len(d.order) == 5


def test_constants_are_the_published_ones():
    assert views.MEAN == (0.4914, 0.4822, 0.4465)
    assert views.STD == (0.2023, 0.1994, 0.2010)
    assert (views.TRIES, views.SCALE, views.RATIO) == (10, (0.08, 1), (3 / 4, 4 / 3))


def same_distribution(ours, theirs):
    return scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (96, 96), (40, 96), (30, 80), (80, 30), (16, 64)]
)
def test_crops_are_distributed_as_torchvisions(height, width):
    d = draw(8, 1000, height, width)
    ours = torch.stack(d[:4], -1).reshape(-1, 4).double().numpy()
    assert (ours == ours.round()).all()
    assert (ours >= [0, 0, 1, 1]).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()

    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    get = transforms.RandomResizedCrop.get_params
    theirs = np.array([get(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=float)
    for box in range(4):
        assert same_distribution(ours[:, box], theirs[:, box])
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(np.log(ours[:, 3] / ours[:, 2]), np.log(theirs[:, 3] / theirs[:, 2]))
    room, room_there = [height, width] - ours[:, 2:], [height, width] - theirs[:, 2:]
    for side in range(2):  # the position among those that the box leaves
        mine = (ours[:, side] / room[:, side].clip(1))[room[:, side] > 4]
        other = (theirs[:, side] / room_there[:, side].clip(1))[room_there[:, side] > 4]
        assert same_distribution(mine, other)


def test_crop_area_and_ratio_are_uniform_where_every_crop_fits():
    # Where the first try fits in any case: a small area of a large image.
    d = draw(8, 5000, 2000, 2000)
    area, ratio = d.height * d.width / 2000**2, d.width / d.height
    small = (area > 0.1) & (area < 0.7)
    area, log_ratio = area[small].numpy(), ratio[small].log().numpy() / math.log(4 / 3)
    assert scipy.stats.kstest(area, "uniform", (0.1, 0.6)).pvalue > 1e-3
    assert scipy.stats.kstest(log_ratio, "uniform", (-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (1000, 10, (493, 0, 13, 10)),
        (10, 1000, (0, 493, 10, 13)),
        (9, 400, (0, 194, 9, 12)),
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_an_image_that_no_crop_fits_gets_torchvisions_central_crop(height, width, box):
    if height * width > 1:
        get = transforms.RandomResizedCrop.get_params
        assert get(torch.empty(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3]) == box
    d = draw(2, 500, height, width)
    assert torch.stack(d[:4], -1).flatten(0, 1).unique(dim=0).tolist() == [list(box)]


def test_a_first_try_that_does_not_fit_is_followed_by_the_next():
    tries = torch.full(
        (2, views.TRIES, 1, 2), 0.999, dtype=torch.float64
    )  # nearly the whole area at 4 : 3
    tries[:, 3, 0, 1] = 0.5  # for the second image the fourth try fits, and so does the sixth
    tries[:, 5, 0, 1] = 0.1
    centre = torch.full((1, 2), 0.5, dtype=torch.float64)
    top, left, height, width = views._crop_boxes(*tries, centre, centre, 32, 32)
    assert height.tolist() == width.tolist() == [[32.0, round(32 * math.sqrt(0.54))]]
    assert top.tolist() == left.tolist() == [[0.0, 4.0]]


def test_flip_jitter_gray_and_blur_have_their_probabilities_and_ranges():
    d, n = draw(8, 5000), 40_000

    def share(event, p):
        return abs(event.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)

    assert set(d.flip.unique().tolist()) == {0, 1}
    assert share(d.flip, 0.5)
    assert set(d.gray.unique().tolist()) == {0, 1}
    assert share(d.gray == 0, 0.2)
    jitter = d.brightness != 1
    assert share(jitter, 0.8)
    for factor in (d.contrast, d.saturation, d.hue + 1):
        assert torch.equal(factor[~jitter], torch.ones_like(factor[~jitter]))
    for factor in (d.brightness, d.contrast, d.saturation):
        assert scipy.stats.kstest(factor[jitter].numpy(), "uniform", (0.6, 0.8)).pvalue > 1e-3
    assert scipy.stats.kstest(d.hue[jitter].numpy(), "uniform", (-0.1, 0.2)).pvalue > 1e-3
    blurred = d.blur > 0
    assert share(blurred, 0.5)
    sigma = (0.5 / (2 / d.blur[blurred].double() - 2).log()).sqrt()
    assert scipy.stats.kstest(sigma.numpy(), "uniform", (0.1, 1.9)).pvalue > 1e-3


def test_parameters_are_independent_of_each_other_and_between_views_and_images():
    d = draw(8, 5000)
    jitter = d.brightness != 1
    blurred = d.blur > 0
    columns = [p[jitter & blurred] for p in d[:-1]]
    r = torch.corrcoef(torch.stack(columns))
    r[:4, :4] = 0  # a crop's position and size do depend on each other
    r.fill_diagonal_(0)
    assert r.abs().max() < 5 / math.sqrt(len(columns[0]))
    loose = (d.height < 25) & (d.width < 25)
    places = torch.stack([(d.top / (32 - d.height))[loose], (d.left / (32 - d.width))[loose]])
    assert torch.corrcoef(places)[0, 1].abs() < 4 / math.sqrt(loose.sum())
    events = torch.corrcoef(
        torch.stack([jitter, blurred, d.flip > 0, d.gray > 0]).flatten(1).double()
    )
    assert events.fill_diagonal_(0).abs().max() < 4 / math.sqrt(40_000)
    for p in d[:-1]:
        between_views = torch.corrcoef(p).fill_diagonal_(0)
        between_images = torch.corrcoef(torch.stack([p[:, 1:].flatten(), p[:, :-1].flatten()]))[
            0, 1
        ]
        assert between_views.abs().max() < 5 / math.sqrt(5000)
        assert between_images.abs() < 5 / math.sqrt(40_000)


def test_every_order_of_the_jitter_is_as_likely():
    counts = Counter(tuple(order) for order in draw(24_000, 1).order)
    assert len(counts) == 24
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3
