"""AttentioNCE on MoCo: the queue, the momentum encoder, and a step's loss against the formula.

Several processes are in test_processes.py.
"""

import copy

import pytest
import torch
from helpers.device import DEVICE
from helpers.outputs import check_end, last, same_bits
from torch import nn
from torch.nn.functional import normalize

import main
from attentionce import attention
from attentionce.data import views
from attentionce.runs import files
from attentionce.training import one_step, pretraining
from attentionce.training.moco import MoCo
from loss import LOSSES

YES, NO = torch.tensor(True, device=DEVICE), torch.tensor(False, device=DEVICE)


class Encoder(nn.Module):
    """Something with BatchNorm that ends in an embedding of length 1."""

    def __init__(self):
        super().__init__()
        convolution, norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.layers = nn.Sequential(convolution, norm, nn.Flatten(), nn.Linear(36, 5))

    def forward(self, x, recompute=None):
        return x, normalize(self.layers(x), dim=-1)


def new_run(**flags):
    """A fresh run of `Encoder` with 3 positives and a queue of 11, and its first batch."""
    words = "--estimator MoCo --num_pos 3 --queue 11 --batch_size 6 --image_size 8"
    words = [*words.split(), "--d_pos", "0.3", "--d_neg", "0.2"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    args = main.parse_args(words)
    torch.manual_seed(0)
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8).to(DEVICE)
    model = Encoder().to(DEVICE)
    run = pretraining.Run(
        args=args,
        device=DEVICE,
        dtype=torch.float32,
        pixels=pixels,
        model=model,
        encoder=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.1, fused=True),
        scaler=torch.amp.GradScaler(DEVICE.type, enabled=False),
        loss=LOSSES[args.loss],
        progress=pretraining.new_progress(1, DEVICE),
        moco=MoCo(model, args.queue, args.momentum, 5).to(DEVICE),
    )
    return run, pixels


def test_queue_begins_with_directions_and_forgets_the_oldest():
    moco = MoCo(Encoder(), 7, 0.9, 5).to(DEVICE)
    torch.testing.assert_close(moco.queue.norm(dim=1), torch.ones(7, device=DEVICE))
    newest_first = list(moco.queue.flip(0))
    for number in range(1, 6):
        keys = (torch.full((3, 5), float(number)) + torch.arange(3.0)[:, None] / 10).to(DEVICE)
        moco.push(keys, YES)
        newest_first = [*keys.flip(0), *newest_first][:7]
        held = sorted(moco.queue.tolist())
        assert held == sorted(torch.stack(newest_first).tolist())
    assert moco.position == 15
    # The queue has gone round twice: the 15th key is in place 14 % 7.
    assert torch.equal(moco.queue[0], newest_first[0])


def test_momentum_encoder_follows():
    model = Encoder().to(DEVICE)
    moco = MoCo(model, 7, 0.75, 5).to(DEVICE)
    before = copy.deepcopy(moco.model)
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    moco.follow(model, YES)
    pairs = zip(moco.model.parameters(), before.parameters(), model.parameters(), strict=True)
    for own, old, trained in pairs:
        torch.testing.assert_close(own, 0.75 * old + 0.25 * trained)
    moved = copy.deepcopy(moco.model.state_dict())
    moco.follow(model, NO)
    moco.push(torch.ones(2, 5, device=DEVICE), NO)
    assert all(torch.equal(value, moved[key]) for key, value in moco.model.state_dict().items())
    assert moco.position == 0 and not (moco.queue == 1).all(dim=1).any()


def oracle(queries, keys, queue, temperature, d_pos, d_neg):
    """The formula in float64, one query after another, with exponentials."""
    queries, keys, queue = queries.double(), keys.double(), queue.double()
    values = []
    for a in queries.flatten(0, 1).split(1):
        image = len(values) % queries.shape[1]
        s = [(a @ p[image]).item() for p in keys]
        alpha = torch.softmax(torch.tensor(s, dtype=torch.float64, device=DEVICE) / d_pos, dim=0)
        pos = sum(alpha[m] * s[m] for m in range(len(s))) / temperature
        s = torch.stack([(a @ k).squeeze() for k in queue])
        beta = len(s) * ((s / d_neg).exp() / (s / d_neg).exp().sum() + 1e-6)
        values.append(-torch.log(pos.exp() / (pos.exp() + (beta * s / temperature).exp().sum())))
    return torch.stack(values).mean()


def test_step_is_the_formula():
    run, batch = new_run()
    model, follower = copy.deepcopy(run.model), copy.deepcopy(run.moco.model)
    queue = run.moco.queue.clone()
    with torch.no_grad():  # so that it matters which of the two encodes what
        for p in (*run.moco.model.parameters(), *follower.parameters()):
            p.mul_(0.5).add_(0.01)
    drawn = views.to(views.draw(5, 6, 8, 8, views.generator(0, 1, 0)), DEVICE)
    made = [views.make_view(batch, drawn, v, 8) for v in range(5)]
    with torch.no_grad():
        queries = torch.stack([model(view)[1] for view in made[:2]])
        keys = torch.stack([follower(view)[1] for view in made[2:]])
    one_step.take_step(run, batch)
    expected = oracle(queries, keys, queue, run.args.temperature, run.args.d_pos, run.args.d_neg)
    torch.testing.assert_close(run.progress["losses"][0].double(), expected, rtol=1e-5, atol=0)
    # The queue does not hold this step's keys yet.
    weights = attention.negative_weights(torch.cat([queries, keys]), run.args.d_neg, queue)
    effective = attention.effective_number(weights).mean().item()
    assert run.progress["effective"][1] == pytest.approx(effective, rel=1e-5)
    torch.testing.assert_close(run.moco.queue, torch.cat([keys[0], queue[6:]]))
    assert all(p.grad is None and not p.requires_grad for p in run.moco.model.parameters())
    encoders = run.moco.model, follower, run.model
    parameters = [encoder.parameters() for encoder in encoders]
    for own, old, trained in zip(*parameters, strict=True):
        torch.testing.assert_close(own, 0.99 * old + 0.01 * trained)
    assert not torch.equal(run.model.layers[0].weight, model.layers[0].weight)


def test_only_queries_carry_gradients():
    run, batch = new_run(momentum=1)
    one_step.take_step(run, batch)
    seen = []

    def queue_loss(queries, keys, queue, temperature, **parameters):
        seen.append((queries, keys, queue))
        return queries.sum()

    run.loss = run.loss._replace(queue=queue_loss)
    one_step.take_step(run, batch)
    ((queries, keys, queue),) = seen
    assert queries.requires_grad and not keys.requires_grad and not queue.requires_grad


def test_step_that_is_not_finite_moves_nothing(monkeypatch):
    run, batch = new_run()
    one_step.take_step(run, batch)
    before = copy.deepcopy([run.model, run.moco.model, run.moco.queue, run.moco.position])
    nan = torch.full((6, 3, 8, 8), torch.nan, device=DEVICE)
    run.progress["losses"] = torch.zeros(3, device=DEVICE)
    run.progress["step"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(views, "make_view", lambda *_: nan)
        one_step.take_step(run, batch)
    run.progress["step"] = 2
    one_step.take_step(run, batch)  # nor does a later step, until the check that ends the run
    assert run.progress["losses"].isnan().tolist() == [False, True, True]
    for own, old in ((run.model, before[0]), (run.moco.model, before[1])):
        assert same_bits(list(own.parameters()), list(old.parameters()))
    assert torch.equal(run.moco.queue, before[2]) and torch.equal(run.moco.position, before[3])


@pytest.mark.parametrize("step", [2, 3])  # in an epoch, and at its end
def test_resumed_run_has_the_bits_of_one_without_a_break(step, call, tiny, results, stop_after):
    words = "--estimator MoCo --queue 20 --num_pos 2 --epochs 2 --device cpu"
    flags, whole, broken = [*tiny, *words.split()], results / "whole", results / "broken"
    call(main, *flags, "--results", whole)
    stop_after(step)
    assert call(main, *flags, "--results", broken) == 143
    stop_after(10**6)
    assert call(main, *flags, "--results", broken) == 0
    check_end(broken, whole)
    assert files.read(last(broken, ".state"))["moco"]["position"] == 48


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--loss", "simclr"], "--estimator MoCo supports only --loss attentionce, not simclr"),
        (["--queue", 7], "--queue must be at least 8, not 7"),
        (["--momentum", 1.5], "--momentum must be between 0 and 1, not 1.5"),
        (["--d_neg", 0], "--d_neg must be a positive number, not 0.0"),
    ],
)
def test_wrong_flags(flags, message, refused, tiny):
    assert refused(main, *tiny, "--estimator", "MoCo", *flags) == message
