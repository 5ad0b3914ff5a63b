"""Several processes compute what one computes, and exchange it as one. On gloo, with 2 and 3."""

import copy
import functools
import os
import time
from unittest import mock

import pytest
import torch
from helpers.groups import Tiny
from helpers.runs import new_run
from torch import nn
from torch.nn.functional import normalize

import linear
import loss
from attentionce.data.images import Images
from attentionce.evaluation import knn, linear_classifier
from attentionce.presets import PRESETS
from attentionce.training import one_epoch, one_step, processes

CPU = torch.device("cpu")
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def losses_and_gradients():
    """Losses of this process's part of 12 images, and their gradients by an encoder's weights.

    Both are averaged over the processes.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, 7, dtype=torch.float64, generator=random)
    x = x.chunk(processes.world(), dim=1)[processes.rank()]
    weight = torch.randn(7, 6, dtype=torch.float64, generator=random)
    loss.block_rows = lambda device, columns: 5
    found = {}
    for positives, negatives in [*PRESETS.values(), ("mean", "hard"), ("each", "bayes")]:
        w = weight.clone().requires_grad_()
        z = normalize(x @ w, dim=-1)[: 2 if positives == "pair" else 5]
        value = loss.contrastive(z, positives, negatives, 0.2, gather=processes.gather)
        value.backward()
        means = processes.average(value.detach()), processes.average(w.grad)
        found[positives, negatives] = means
    return found


def test_losses_and_gradients_are_those_of_one_process(group, monkeypatch):
    monkeypatch.setattr(loss, "block_rows", loss.block_rows)
    one = losses_and_gradients()
    for found in group(3, losses_and_gradients).results():
        assert_close(found, one)


def exact_view(images, draw, v, size, ops):
    """A view whose bits cannot depend on how many images there are."""
    return images / 255 * draw.brightness[v][:, None, None, None] + draw.hue[v][:, None, None, None]


def three_steps(flags, views_per_pass=1):
    """Train for three steps; what they leave, and the images and views that this process saw."""
    words = "--batch_size 12 --num_pos 2 --d_neg 0.5 --feature_dim 5 --lr 0.01"
    options = {"encoder": Tiny, "count": 40, "views_per_pass": views_per_pass, "device": CPU}
    run = new_run(*words.split(), *flags.split(), **options)
    seen, made = [], []

    def watched(images, *arguments):
        seen.append(images)
        made.append(exact_view(images, *arguments))
        return made[-1]

    with mock.patch.object(one_step.views, "make_view", watched):
        assert one_epoch.train_epoch(run, [], lambda: None) == 0
    return {
        "model": run.model.state_dict(),
        "moco": run.moco.state_dict() if run.moco else {},  # queue and momentum encoder
        "attention": run.progress["attention"],
        "losses": run.progress["losses"],
        "images": torch.stack(seen),
        "views": torch.stack(made),
    }


@pytest.mark.parametrize(
    "flags, views_per_pass, count",
    [("", 4, 2), ("--grad_cache", 1, 3), ("--estimator MoCo --queue 30", 1, 2)],
)
def test_training_steps_are_those_of_one_process(flags, views_per_pass, count, group):
    one = three_steps(flags)
    several = group(count, three_steps, flags, views_per_pass).results()
    for found in several:
        for part in ("model", "moco", "attention"):
            assert_close(found[part], one[part], atol=1e-9)
        torch.testing.assert_close(found["losses"], one["losses"])
    for part in ("images", "views"):
        assert torch.equal(torch.cat([found[part] for found in several], dim=1), one[part])


def test_noisy_positives_are_as_many_as_in_one_process(group):
    one = three_steps("--noisy_positives 0.5")
    several = group(2, three_steps, "--noisy_positives 0.5").results()
    for found in several:
        assert found["attention"] == several[0]["attention"]
        assert found["attention"]["noisy_positives"] == one["attention"]["noisy_positives"]
        assert 0 < found["attention"]["attention_on_noisy"] < 1
        assert_close(found["model"], several[0]["model"])


def evaluation(folder, *epochs):
    """kNN and linear evaluation of an untrained encoder, and its features of some images.

    The classifier is trained for so many epochs, then on to so many, …
    """
    torch.manual_seed(0)
    f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    pixels, labels = torch.randint(256, (37, 3, 8, 8), dtype=torch.uint8), torch.arange(37) % 7
    pixels[:, 0] = (labels * 30)[:, None, None]
    bank = Images(pixels[:23], labels[:23], list("abcdefg"))
    test = Images(pixels[23:], labels[23:], list("abcdefg"))
    for number in epochs:
        words = f"--model_path random --batch_size 10 --epochs {number} --image_size 8 --k 5"
        args = linear.parse_args(words.split())
        encoder = linear_classifier.Encoder("", f, "", folder / f"of{processes.rank()}_linear")
        before = copy.deepcopy(f.state_dict())
        result = linear_classifier.evaluate(encoder, bank, test, args, CPU, torch.float32, [])
        assert all(torch.equal(value, before[key]) for key, value in f.state_dict().items())
    return result, knn.features(f, bank.pixels, CPU, torch.float32, 5)


def test_evaluation_is_that_of_one_process(group, tmp_path):
    """And it continues from what rank 0 wrote."""
    several = tmp_path / "several"
    several.mkdir()
    one, expected = evaluation(tmp_path, 2)
    made = group(2, evaluation, several, 1, 2)
    for result, features in made.results():
        torch.testing.assert_close(features, expected)
        for key in ("knn_top1", "knn_top5", "last_epoch", "best_epoch"):
            torch.testing.assert_close(result[key], one[key], rtol=1e-5, atol=1e-9)
    assert made.output().count("continuing after epoch 1") == 1
    endings = {path.name.removeprefix("of0_linear.") for path in several.iterdir()}
    assert endings == {"csv", "json", "classifier"}


def exchanges():
    """Check them in every process; returns when this one began and ended to load."""
    rank, world = processes.rank(), processes.world()
    for rows in (1, 5, 6, 7):
        own = processes.own_rows(rows)
        assert len(own) == -(-rows // world)
        assert torch.equal(processes.gather_rows(own)[:rows], torch.arange(rows))
    assert processes.maxima([rank, -rank, 7]) == [world - 1, 0, 7]
    assert processes.total(torch.tensor(rank)).item() == sum(range(world))
    assert processes.from_first(lambda: {"rank": rank, "x": torch.ones(2)})["rank"] == 0
    assert processes.gather_objects(f"{rank}") == [*"012"]
    with pytest.raises(ValueError, match="the same number of images"):
        processes.gather(torch.ones(2, 1 + rank, 3))
    norm = nn.BatchNorm1d(2)
    norm.running_mean += rank
    processes.same_buffers(norm)
    assert norm.running_mean.sum() == 0
    print("only one prints")

    def load():
        began = time.monotonic()
        time.sleep(0.2)
        return began, time.monotonic()

    os.environ["LOCAL_RANK"] = "0" if rank < 2 else "1"  # as on two machines
    return processes.in_turn(load)


def test_one_process_per_machine_loads_first_and_only_rank_0_prints(group):
    made = group(3, exchanges)
    (_, end_of_first), (second, end_of_second), (third, _) = made.results()
    assert end_of_first <= second and end_of_second <= third
    assert made.output().count("only one prints") == made.output(0).count("only one prints") == 1


def test_variables_of_other_launchers_are_not_mistaken(monkeypatch):
    """Slurm's and MPI's tools leave some of them, or empty ones."""
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("RANK", "")
    processes.start()
    assert processes.world() == 1 and processes.rank() == 0
