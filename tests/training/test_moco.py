"""MoCo: the queue, the momentum encoder, and a step's loss. Several processes: test_processes.py.

That every loss with positives trains on MoCo is in test_main.py.
"""

import copy

import pytest
import torch
from helpers.device import DEVICE
from helpers.outputs import same_bits
from helpers.programs import Small
from helpers.runs import new_run, take_steps

import loss
import main
from attentionce.data import views
from attentionce.training import one_step
from attentionce.training.moco import MoCo

YES = torch.tensor(True, device=DEVICE)
SETTINGS = {"temperature": 0.5, "d_pos": 0.3, "d_neg": 0.2}


def moco_run():
    """A run of a small encoder with 3 positives, a queue of 11 and three steps per epoch."""
    words = "--estimator MoCo --num_pos 3 --queue 11 --d_pos 0.3 --d_neg 0.2"
    return new_run(*words.split(), encoder=Small, count=12)


def test_queue_begins_with_directions_and_forgets_the_oldest():
    moco = MoCo(Small(5), 7, 0.9, 5).to(DEVICE)
    torch.testing.assert_close(moco.queue.norm(dim=1), torch.ones(7, device=DEVICE))
    newest_first = list(moco.queue.flip(0))
    for number in range(1, 6):
        keys = (torch.full((3, 5), float(number)) + torch.arange(3.0)[:, None] / 10).to(DEVICE)
        moco.push(keys, YES)
        newest_first = [*keys.flip(0), *newest_first][:7]
        assert sorted(moco.queue.tolist()) == sorted(torch.stack(newest_first).tolist())
    assert moco.position == 15  # it has gone round twice: the 15th key is in place 14 % 7
    assert torch.equal(moco.queue[0], newest_first[0])


def test_step_is_the_formula():
    run = moco_run()
    batch, follower = run.pixels[:4], run.moco.model
    with torch.no_grad():  # so that it matters which of the two encodes what
        for p in follower.parameters():
            p.mul_(0.5).add_(0.01)
    model, old_follower, queue = copy.deepcopy((run.model, follower, run.moco.queue))
    drawn = views.to(views.draw(5, 4, 8, 8, views.generator(0, 1, 2)), DEVICE)
    made = [views.make_view(batch, drawn, v, 8) for v in range(5)]
    with torch.no_grad():
        queries = torch.stack([model(view)[1] for view in made[:2]])
        keys = torch.stack([copy.deepcopy(old_follower)(view)[1] for view in made[2:]])
    run.progress["step"] = 2  # the epoch's last
    one_step.take_step(run, batch)
    z = torch.cat([queries, keys])
    expected = loss.contrastive(z, queue=queue, **SETTINGS)
    torch.testing.assert_close(run.progress["losses"][2], expected, rtol=1e-5, atol=0)
    # Neither it nor the effective number of negatives has this step's keys in the queue yet.
    numbers = loss.attention_numbers(z, 0.3, 0.2, queue)
    assert run.progress["attention"] == pytest.approx(numbers, rel=1e-5)
    torch.testing.assert_close(run.moco.queue, torch.cat([keys[0], queue[4:]]))
    assert all(p.grad is None and not p.requires_grad for p in follower.parameters())
    models = follower, old_follower, run.model
    for moved, old, trained in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(moved, 0.99 * old + 0.01 * trained)
    assert not torch.equal(run.model.g.weight, model.g.weight)


def test_step_that_is_not_finite_moves_nothing(monkeypatch):
    run = moco_run()
    take_steps(run)
    model, moco = copy.deepcopy((run.model, run.moco))
    with monkeypatch.context() as patch:
        nan = torch.full((4, 3, 8, 8), torch.nan, device=DEVICE)
        patch.setattr(views, "make_view", lambda *_: nan)
        take_steps(run)
    take_steps(run)  # nor does a later step, until the check that ends the run
    assert run.progress["losses"].isnan().tolist() == [False, True, True]
    for new, old in ((run.model, model), (run.moco, moco)):
        assert same_bits(list(new.parameters()), list(old.parameters()))
    assert torch.equal(run.moco.queue, moco.queue) and run.moco.position == moco.position == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--loss simclr", "not --positives pair"),
        ("--queue 7", "--queue must be at least 8, not 7"),
        ("--momentum 1.5", "--momentum must be between 0 and 1, not 1.5"),
    ],
)
def test_wrong_flags(flags, message, refused, tiny):
    assert message in refused(main, *tiny, "--estimator", "MoCo", *flags.split())
