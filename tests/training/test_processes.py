"""Several processes compute what one computes, read and write as one. On gloo, with 1 to 4 processes."""

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

LOSSES = {
    "attentionce": {"d_pos": 0.5, "d_neg": 0.3},
    "simclr": {},
    "dcl": {"tau_plus": 0.1},
    "hcl": {"tau_plus": 0.1, "beta": 1.0},
    "bcl": {"tau_plus": 0.1, "alpha": 0.8, "beta": 0.9},
}


CLOSE = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------- the same numbers
def gradients():
    """Mean loss and its gradient by an encoder's weights, of every loss, from this process's part of 12 images."""
    loss.block_rows = lambda device, columns: 5
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, 7, dtype=torch.float64, generator=random)
    weight = torch.randn(7, 6, dtype=torch.float64, generator=random)
    own = x.chunk(processes.world(), dim=1)[processes.rank()]
    found = {}
    for name, parameters in LOSSES.items():
        w = weight.clone().requires_grad_()
        z = normalize(own @ w, dim=-1)
        value = getattr(loss, name)(
            z[: loss.LOSSES[name].views(3)], 0.2, gather=processes.gather, **parameters
        )
        value.backward()
        found[name] = processes.average(value.detach()), processes.average(w.grad)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_loss_and_gradient_are_those_of_one_process(count, group):
    expected = {}
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, 7, dtype=torch.float64, generator=random)
    weight = torch.randn(7, 6, dtype=torch.float64, generator=random)
    for name, parameters in LOSSES.items():
        w = weight.clone().requires_grad_()
        z = normalize(x @ w, dim=-1)
        value = getattr(loss, name)(z[: loss.LOSSES[name].views(3)], 0.2, **parameters)
        value.backward()
        expected[name] = value.detach(), w.grad
    for found in group(count, gradients).results():
        for name in LOSSES:
            CLOSE(found[name], expected[name])


def exact_view(images, draw, v):
    """A view whose bits cannot depend on how many images there are."""
    return images / 255 * draw.brightness[v][:, None, None, None] + draw.hue[v][:, None, None, None]


def steps(estimator, grad_cache, make_view):
    """Three steps of training: all that they leave, and the images and views that this process saw."""
    flags = [
        "--estimator",
        estimator,
        "--batch_size",
        "12",
        "--num_pos",
        "2",
        "--queue",
        "30",
        "--d_neg",
        "0.5",
    ]
    args = main.parse_args([*flags, "--grad_cache"] if grad_cache else flags)
    torch.manual_seed(0)
    pixels = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    model, cpu, seen = Tiny(5), torch.device("cpu"), []
    run = pretraining.Run(
        args=args,
        device=cpu,
        dtype=torch.float32,
        pixels=pixels,
        model=model,
        encoder=processes.replicated(model),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2, fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loss=loss.LOSSES[args.loss],
        progress=pretraining.new_progress(3, cpu),
        moco=MoCo(model, 30, 0.9, 5).double() if estimator == "MoCo" else None,
    )

    def watched(images, draw, v, size, ops):
        seen.append((images, make_view(images, draw, v)))
        return seen[-1][1]

    with mock.patch.object(one_step.views, "make_view", watched):
        assert one_epoch.train_epoch(run, [], lambda: None) == 0
    images, made = ([batch[i] for batch in seen] for i in (0, 1))
    left = [*model.state_dict().values(), *(run.moco.state_dict().values() if run.moco else [])]
    return {
        "left": left,
        "losses": run.progress["losses"],
        "images": torch.stack(images),
        "views": torch.stack(made),
    }


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "estimator, grad_cache", [("SimCLR", False), ("SimCLR", True), ("MoCo", False)]
)
def test_training_steps_are_those_of_one_process(estimator, grad_cache, count, group):
    one = steps(estimator, grad_cache, exact_view)
    several = group(count, steps, estimator, grad_cache, exact_view).results()
    for found in several:
        CLOSE(found["left"], one["left"], atol=1e-9)  # MoCo's queue and momentum encoder among it
        torch.testing.assert_close(found["losses"], one["losses"])
    assert torch.equal(torch.cat([found["images"] for found in several], dim=1), one["images"])
    assert torch.equal(torch.cat([found["views"] for found in several], dim=1), one["views"])


def test_real_views_are_those_of_one_process(group):
    make_view = functools.partial(one_step.views.make_view, size=6)
    one = steps("SimCLR", False, make_view)
    several = group(3, steps, "SimCLR", False, make_view).results()
    views = torch.cat([found["views"] for found in several], dim=1)
    torch.testing.assert_close(
        views, one["views"], rtol=0, atol=1e-5
    )  # sums may run in another order


def evaluation(folder):
    """kNN and linear evaluation of an untrained encoder, its features, and the classifier's inputs."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    pixels, labels = torch.randint(256, (37, 3, 8, 8), dtype=torch.uint8), torch.arange(37) % 7
    pixels[:, 0] = (labels * 30)[:, None, None]
    bank, test = (
        Images(pixels[:23], labels[:23], list("abcdefg")),
        Images(pixels[23:], labels[23:], list("abcdefg")),
    )
    args = linear.parse_args(
        [
            "--model_path",
            "random",
            "--batch_size",
            "10",
            "--epochs",
            "2",
            "--image_size",
            "8",
            "--k",
            "5",
        ]
    )
    cpu, before = torch.device("cpu"), copy.deepcopy(f.state_dict())
    result = linear.evaluate(
        f, bank, test, args, cpu, torch.float32, folder / f"of{processes.rank()}"
    )
    assert all(torch.equal(value, before[key]) for key, value in f.state_dict().items())
    return result, knn.features(f, bank.pixels, cpu, torch.float32, 5)


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_is_that_of_one_process(count, group, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "several").mkdir()
    one, expected = evaluation(tmp_path / "one")
    for result, features in group(count, evaluation, tmp_path / "several").results():
        torch.testing.assert_close(features, expected)
        for key in ("knn_top1", "knn_top5", "last_epoch", "best_epoch"):
            torch.testing.assert_close(result[key], one[key], rtol=1e-5, atol=1e-9)
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == [
        "of0_linear.csv",
        "of0_linear.json",
    ]


def exchanges(folder):
    """The smaller exchanges, checked in every process."""
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


def test_rank_0_loads_first_and_only_it_prints(group, tmp_path):
    made = group(3, exchanges, tmp_path)
    for first, *others in zip(*made.results(), strict=True):
        assert all(began >= first[1] for began, _ in others)
    assert made.output().count("only one prints") == 1
    assert made.output().count("a progress bar") == 2
    assert "only one prints" in made.output(0)


def test_flags_of_other_launchers_are_not_mistaken(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # Slurm's and MPI's tools leave such traces
    processes.start()
    assert not dist.is_initialized() and processes.world() == 1 and processes.rank() == 0
