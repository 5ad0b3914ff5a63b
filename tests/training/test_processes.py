"""Several processes compute what one computes, and exchange it as one. On gloo, with 1 to 4."""

import copy
import functools
import sys
import time
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.groups import Tiny
from torch import nn
from torch.nn.functional import normalize

import linear
import loss
import main
from attentionce.data.images import Images
from attentionce.evaluation import knn
from attentionce.training import one_epoch, one_step, pretraining, processes
from attentionce.training.moco import MoCo

CPU = torch.device("cpu")
PARAMETERS = {"d_pos": 0.5, "d_neg": 0.3, "tau_plus": 0.1, "alpha": 0.8, "beta": 0.9}
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)

# ---- losses ----


def inputs():
    """What an encoder takes: 5 views × 12 images × 7."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(5, 12, 7, dtype=torch.float64, generator=random)


def losses_and_gradients(x, gather=None):
    """Every loss of the inputs x, and its gradient by the encoder's weights."""
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 6, dtype=torch.float64, generator=random)
    found = {}
    for kind, entry in loss.LOSSES.items():
        w = weight.clone().requires_grad_()
        z = normalize(x @ w, dim=-1)[: entry.views(num_pos=3)]
        parameters = {name: PARAMETERS[name] for name in entry.parameters if name in PARAMETERS}
        value = entry.function(z, 0.2, gather=gather, **parameters)
        value.backward()
        found[kind] = value.detach(), w.grad
    return found


def averages():
    """The same of this process's share of the images, averaged over the processes."""
    loss.block_rows = lambda device, columns: 5
    own = inputs().chunk(processes.world(), dim=1)[processes.rank()]
    found = losses_and_gradients(own, processes.gather)
    return {
        kind: (processes.average(value), processes.average(gradient))
        for kind, (value, gradient) in found.items()
    }


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_loss_and_gradient_are_those_of_one_process(count, group):
    expected = losses_and_gradients(inputs())
    for found in group(count, averages).results():
        assert_close(found, expected)


# ---- steps ----


def exact_view(images, draw, v):
    """A view whose bits cannot depend on how many images there are."""
    return images / 255 * draw.brightness[v][:, None, None, None] + draw.hue[v][:, None, None, None]


def three_steps(flags, make_view):
    """Train for three steps; what they leave, and the images and views that this process saw."""
    words = "--batch_size 12 --num_pos 2 --queue 30 --d_neg 0.5"
    args = main.parse_args([*words.split(), *flags.split()])
    torch.manual_seed(0)
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    model = Tiny(5)
    run = pretraining.Run(
        args=args,
        device=CPU,
        dtype=torch.float32,
        pixels=pixels,
        model=model,
        encoder=processes.replicated(model),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loss=loss.LOSSES[args.loss],
        progress=pretraining.new_progress(3, CPU),
        moco=MoCo(model, 30, 0.9, 5).double() if args.estimator == "MoCo" else None,
    )
    seen, made = [], []

    def watched(images, draw, v, size, ops):
        seen.append(images)
        made.append(make_view(images, draw, v))
        return made[-1]

    with mock.patch.object(one_step.views, "make_view", watched):
        assert one_epoch.train_epoch(run, [], lambda: None) == 0
    return {
        "model": model.state_dict(),
        "moco": run.moco.state_dict() if run.moco else {},  # queue and momentum encoder
        "losses": run.progress["losses"],
        "images": torch.stack(seen),
        "views": torch.stack(made),
    }


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("flags", ["", "--grad_cache", "--estimator MoCo"])
def test_training_steps_are_those_of_one_process(flags, count, group):
    one = three_steps(flags, exact_view)
    several = group(count, three_steps, flags, exact_view).results()
    for found in several:
        for part in ("model", "moco"):
            assert_close(found[part], one[part], atol=1e-9)
        torch.testing.assert_close(found["losses"], one["losses"])
    for part in ("images", "views"):
        assert torch.equal(torch.cat([found[part] for found in several], dim=1), one[part])


def test_real_views_are_those_of_one_process(group):
    make_view = functools.partial(one_step.views.make_view, size=6)
    one = three_steps("", make_view)
    several = group(3, three_steps, "", make_view).results()
    views = torch.cat([found["views"] for found in several], dim=1)
    # Not to the bit: sums may run in another order.
    torch.testing.assert_close(views, one["views"], rtol=0, atol=1e-5)


# ---- evaluation ----


def evaluation(folder):
    """kNN and linear evaluation of an untrained encoder, and its features of some images."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    pixels, labels = torch.randint(256, (37, 3, 8, 8), dtype=torch.uint8), torch.arange(37) % 7
    pixels[:, 0] = (labels * 30)[:, None, None]
    bank = Images(pixels[:23], labels[:23], list("abcdefg"))
    test = Images(pixels[23:], labels[23:], list("abcdefg"))
    words = "--model_path random --batch_size 10 --epochs 2 --image_size 8 --k 5"
    args, path = linear.parse_args(words.split()), folder / f"of{processes.rank()}_linear"
    before = copy.deepcopy(f.state_dict())
    result = linear.evaluate(f, bank, test, args, CPU, torch.float32, path)
    assert all(torch.equal(value, before[key]) for key, value in f.state_dict().items())
    return result, knn.features(f, bank.pixels, CPU, torch.float32, 5)


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_is_that_of_one_process(count, group, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "several").mkdir()
    one, expected = evaluation(tmp_path / "one")
    for result, features in group(count, evaluation, tmp_path / "several").results():
        torch.testing.assert_close(features, expected)
        for key in ("knn_top1", "knn_top5", "last_epoch", "best_epoch"):
            torch.testing.assert_close(result[key], one[key], rtol=1e-5, atol=1e-9)
    written = {path.name for path in (tmp_path / "several").iterdir()}
    assert written == {"of0_linear.csv", "of0_linear.json"}


# ---- smaller exchanges ----


def exchanges():
    """Check them in every process; returns when this one began and ended to load."""
    rank, world = processes.rank(), processes.world()
    for rows in (1, 5, 6, 7, 12):
        x = torch.arange(rows)
        share = processes.share(rows)
        assert len(share) == -(-rows // world)
        assert torch.equal(processes.gather_rows(x[share])[:rows], x)
    assert processes.largest([rank, -rank, 7]) == [world - 1, 0, 7]
    assert processes.total(torch.tensor(rank)).item() == sum(range(world))
    assert processes.alike(5) and not processes.alike(rank)
    assert processes.from_first(lambda: {"rank": rank, "x": torch.ones(2)})["rank"] == 0
    norm = nn.BatchNorm1d(2)
    norm.running_mean += rank
    processes.same_buffers(norm)
    assert norm.running_mean.sum() == 0
    print("only one prints")

    def load(name):
        print("a progress bar", file=sys.stderr)
        began = time.monotonic()
        time.sleep(0.3 if rank == 0 else 0)
        return began, time.monotonic()

    return processes.in_turn(load, "first"), processes.in_turn(load, "second")


def test_rank_0_loads_first_and_only_it_prints(group):
    made = group(3, exchanges)
    for (_, end_of_first), *others in zip(*made.results(), strict=True):
        assert all(began >= end_of_first for began, _ in others)
    assert made.output().count("only one prints") == 1
    assert made.output().count("a progress bar") == 2
    assert "only one prints" in made.output(0)


def test_variables_of_other_launchers_are_not_mistaken(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # as Slurm's and MPI's tools leave it
    processes.start()
    assert not dist.is_initialized() and processes.world() == 1 and processes.rank() == 0
