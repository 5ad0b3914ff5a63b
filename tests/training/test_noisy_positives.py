"""`--noisy_positives`: some positives show another image, and all else is as without them."""

import pytest
import torch
from helpers.outputs import rows
from helpers.programs import Small
from helpers.runs import new_run, take_steps

import main
from attentionce.data import views
from attentionce.training import one_step

NOISE = ["--noisy_positives", 1]


def test_that_share_shows_another_image():
    size, options = ["--batch_size", 400], {"encoder": Small, "count": 400}
    run = new_run("--num_pos", 4, "--noisy_positives", 0.25, *size, **options)
    sources = one_step.draw_sources(run, 400)
    noisy = sources != torch.arange(400)
    assert sources.shape == (4, 400) and 0.2 < noisy.float().mean() < 0.3
    assert torch.equal(one_step.draw_sources(run, 400), sources)  # of (seed, epoch, step) alone
    run.progress["step"] += 1
    assert not torch.equal(one_step.draw_sources(run, 400), sources)
    # Every other image is as likely: none is its own, and all distances occur.
    everything = new_run(*NOISE, *size, **options)
    distance = (one_step.draw_sources(everything, 400) - torch.arange(400)) % 400
    assert 1 <= distance.min() and distance.max() <= 399 and 180 < distance.float().mean() < 220


@pytest.mark.parametrize("moco", [[], ["--estimator", "MoCo", "--queue", 4]])
def test_anchors_and_the_parameters_of_views_stay(moco, monkeypatch):
    """MoCo's keys are the positives."""
    made = {}

    def watch(images, draw, v, *arguments):
        made.setdefault(v, []).append(images)
        return make_view(images, draw, v, *arguments)

    make_view = views.make_view
    monkeypatch.setattr(views, "make_view", watch)
    run, plain = (new_run("--num_pos", 1, *noise, *moco, encoder=Small) for noise in (NOISE, []))
    sources = one_step.draw_sources(run, 4)
    for one in (run, plain):
        take_steps(one)
    for v in (0, 1):
        assert torch.equal(*made[v])
    noisy, own = made[2]
    assert not (noisy == own).flatten(1).all(1).any()
    assert torch.equal(noisy, own[sources[0]])


def test_the_metrics_say_what_attention_gave_them(call, tiny, results, small_encoder):
    words = "--noisy_positives 0.5 --num_pos 4 --d_pos 0.1"
    call(main, *tiny, *words.split())
    (row,) = rows(results)
    share, attention = float(row["noisy_positives"]), float(row["attention_on_noisy"])
    # An encoder that tells images apart at all gives them less than their share.
    assert 0.2 < share < 0.8 and 0 < attention < share


def test_more_than_all_are_refused(refused, tiny):
    assert "between 0 and 1" in refused(main, *tiny, "--noisy_positives", 1.5)
