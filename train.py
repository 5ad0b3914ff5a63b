"""Pretraining, step after step: a batch of images → views → embeddings → loss → gradients → weights."""

import argparse
import functools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import attention
import distributed
import runtime
import views
from moco import MoCo
from model import constant_statistics
from utils import UserError

REFRESH = 0.3  # seconds between looks at the loss; on a GPU a look waits for it
SMALLEST_SCALE = 1e-4  # fp16: a gradient scale that fell below this has found no finite gradient 30 times in a row

Loss = Callable[[Tensor], Tensor]  # embeddings, views × batch × dim → mean loss
Encode = Callable[[int], Tensor]  # v → embeddings of the batch's view v, batch × dim


class NonFinite(UserError):
    """The loss or its gradient is no longer finite."""


@dataclass
class Run:
    """A pretraining run: what it works with, and `progress`, which with weights and optimiser is all that changes."""

    args: argparse.Namespace
    device: torch.device
    dtype: torch.dtype  # that the encoder computes in
    pixels: Tensor  # uint8 N×3×H×W, on the device where they fit
    model: nn.Module
    encoder: nn.Module  # the model, compiled perhaps
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    views: int
    make_view: Callable[..., Tensor]
    progress: dict[str, Any]
    moco: MoCo | None = None
    key_encoder: nn.Module | None = None  # MoCo's, compiled perhaps
    good_buffers: list[Tensor] | None = None  # BatchNorm's statistics at the last look
    saved_at: tuple[int, int] | None = None  # epoch and step of the newest state

    @property
    def position(self) -> tuple[int, int]:
        """Epoch, from 1, and the number of its steps that are done."""
        return self.progress["epoch"], self.progress["step"]

    @property
    def steps(self) -> int:
        """Steps an epoch: the last partial batch is dropped."""
        return len(self.pixels) // self.args.batch_size


def new_progress(steps: int, device: torch.device) -> dict[str, Any]:
    """Where a fresh run stands: before step 0 of epoch 1."""
    return {
        "epoch": 1,
        "step": 0,
        "losses": torch.zeros(steps, device=device),  # of this epoch's steps
        "skipped": torch.zeros((), device=device),  # steps that fp16's gradient scaler skipped
        "seconds": 0.0,
        "effective": [],  # numbers of positives and of negatives, at the epoch's last step
        "best_knn": 0.0,
        "rows": [],  # of the table of metrics, one an epoch
    }


def train_epoch(run: Run, received: list[int], save_state: Callable[[], None]) -> int:
    """The rest of the current epoch.

    Args:
        received: the signals that came so far.
        save_state: writes the state; called every `--state_minutes` and before leaving early.

    Returns:
        the signal that ended the epoch early, or 0.
    """
    args, progress = run.args, run.progress
    order = torch.randperm(len(run.pixels), generator=views.generator(args.seed, progress["epoch"]))
    order = order[: run.steps * args.batch_size].view(run.steps, distributed.world(), -1)[
        :, distributed.rank()
    ]
    run.good_buffers = [buffer.clone() for buffer in statistics(run)]
    saved = looked = marked = time.monotonic()
    bar = tqdm(
        total=run.steps * args.batch_size,
        initial=progress["step"] * args.batch_size,
        unit=" images",
        desc=f"epoch {progress['epoch']}/{args.epochs}",
        disable=distributed.rank() > 0,
    )
    with bar:
        for batch in batches(run.pixels, order[progress["step"] :], run.device):
            take_step(run, batch)
            progress["step"] += 1
            now = time.monotonic()
            want_look = (
                run.device.type == "cpu" or now - looked > REFRESH or progress["step"] == run.steps
            )
            want_save = now - saved > 60 * args.state_minutes
            signalled = max(received, default=int(signal.SIGTERM) if distributed.orphaned() else 0)
            stop, save, look = distributed.largest([signalled, int(want_save), int(want_look)])
            if look or save or stop:
                look_at_losses(run, bar)
                looked = time.monotonic()
            progress["seconds"] += (
                time.monotonic() - marked
            )  # with the wait for the GPU that a look is, without the saving
            if save or stop:
                save_state()
                saved = time.monotonic()
            if stop:
                return stop
            marked = time.monotonic()
    return 0


def take_step(run: Run, batch: Tensor) -> None:
    """One step of the optimiser on this process's part of the batch; nothing in it waits for the GPU."""
    args, progress = run.args, run.progress
    draw = views.draw(
        run.views,
        args.batch_size,
        *batch.shape[2:],
        views.generator(args.seed, progress["epoch"], progress["step"]),
    )
    first = distributed.rank() * len(batch)
    draw = views.to(views.part(draw, first, first + len(batch)), run.device)
    batch = batch.float()  # once for all views

    # What to keep for the backward pass a compiler chooses by itself; --grad_cache keeps no more than one view's.
    recompute = run.encoder is run.model and not args.grad_cache

    def encode(v: int, encoder: nn.Module = run.encoder) -> Tensor:
        return encoder(
            run.make_view(batch, draw, v).contiguous(memory_format=torch.channels_last), recompute
        )[1]

    step = cached_step if args.grad_cache else plain_step
    if run.moco is None:
        loss, z = step(run, encode, run.views, run.loss)
    else:
        key_encoder = run.key_encoder or run.moco.model
        with torch.no_grad(), runtime.autocast(run.device, run.dtype):
            keys = torch.stack([encode(v, key_encoder) for v in range(2, run.views)])
        loss_of = functools.partial(run.loss, keys=keys, queue=run.moco.queue)
        loss, queries = step(run, encode, 2, loss_of)
        z = torch.cat([queries, keys])
    progress["losses"][progress["step"]] = loss = update(run, loss)
    if args.loss == "attentionce" and progress["step"] + 1 == run.steps:
        progress["effective"] = effective_numbers(run, z)  # before the queue takes this step's keys
    if run.moco is not None:
        run.moco.follow(run.model, loss.isfinite())
        run.moco.push(keys[0], loss.isfinite())


def effective_numbers(run: Run, z: Tensor) -> list[float]:
    """How many positives and how many negatives of an anchor really count, on the mean over the batch with embeddings z."""
    (z, _), queue = distributed.gather(z), run.moco.queue if run.moco else None
    positives = attention.effective_number(attention.positive_weights(z, run.args.d_pos))
    blocks = [
        slice(start, start + 256) for start in range(0, 2 * z.shape[1], 256)
    ]  # never all 2B × 2B weights
    negatives = [
        attention.effective_number(attention.negative_weights(z, run.args.d_neg, queue, rows))
        for rows in blocks
    ]
    return [positives.mean().item(), torch.cat(negatives).mean().item()]


def plain_step(run: Run, encode: Encode, views: int, loss_of: Loss) -> tuple[Tensor, Tensor]:
    """Encode every view, each in a pass of its own (so BatchNorm's statistics are per view), and go back through all.

    Returns:
        (loss, embeddings views × batch × dim), both detached. Gradients are added to the parameters'.
    """
    with runtime.autocast(
        run.device, run.dtype
    ):  # around all views: uncompiled, they share one copy of the weights in bf16
        z = torch.stack([encode(v) for v in range(views)])
    loss = loss_of(z)
    run.scaler.scale(loss).backward()
    return loss.detach(), z.detach()


def cached_step(run: Run, encode: Encode, views: int, loss_of: Loss) -> tuple[Tensor, Tensor]:
    """`plain_step` in the memory of one view instead of all, for one more forward pass.

    The embeddings come first, without graphs; then the loss's gradient with respect to them; then each view forward again
    and backward with its part of that gradient. After Gao et al., Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup, 2021.
    """
    with torch.no_grad(), runtime.autocast(run.device, run.dtype):
        z = torch.stack([encode(v) for v in range(views)])
    z.requires_grad_()
    loss = loss_of(z)
    (gradient,) = torch.autograd.grad(run.scaler.scale(loss), z)
    with constant_statistics(run.model):
        for v in range(views):
            with runtime.autocast(run.device, run.dtype):
                projection = encode(v)
            projection.backward(gradient[v])
    return loss.detach(), z.detach()


def update(run: Run, loss: Tensor) -> Tensor:
    """Move the weights along the gradients, averaged over the processes; a step that is not finite moves nothing.

    Returns:
        the loss averaged over the processes; NaN where it or its gradient is not finite, and after such a step.
    """
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    loss = distributed.average(gradients, loss)
    finite = torch.nn.utils.get_total_norm(gradients).isfinite() & loss.isfinite()
    if run.scaler.is_enabled():
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.progress["skipped"] += ~finite
    else:
        # From the first bad step on nothing moves any more, until the next look notices and stops the run.
        stuck = getattr(run.optimizer, "found_inf", torch.zeros((), device=run.device))
        run.optimizer.grad_scale, run.optimizer.found_inf = (
            None,
            torch.maximum(stuck, (~finite).float()),
        )
        if (
            run.device.type != "mps" or run.optimizer.found_inf == 0
        ):  # whose fused optimiser does not look at it
            run.optimizer.step()
        finite = run.optimizer.found_inf == 0
    run.optimizer.zero_grad(set_to_none=True)
    return torch.where(finite, loss, torch.nan)


def look_at_losses(run: Run, bar: tqdm) -> None:
    """Show the mean loss of the epoch so far; stop when it is no longer finite.

    Raises:
        NonFinite: names epoch, step and flags. Weights, optimiser and progress are those before that step, BatchNorm's
            running statistics those of the last look.
    """
    progress = run.progress
    losses = progress["losses"][: progress["step"]]
    shown = {"loss": f"{losses.nanmean().item():.4f}"}
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if run.scaler.is_enabled():
        shown["skipped"] = int(progress["skipped"])
        bad = bad[-1:] if run.scaler.get_scale() < SMALLEST_SCALE else []
    bar.set_postfix(shown, refresh=False)
    bar.update(progress["step"] * run.args.batch_size - bar.n)
    if bad:
        progress["step"] = bad[0]
        for buffer, good in zip(statistics(run), run.good_buffers, strict=True):
            buffer.copy_(good)
        flags = " ".join(f"--{name} {value}" for name, value in vars(run.args).items())
        raise NonFinite(
            f"the loss or its gradient is not finite at epoch {progress['epoch']}, step {bad[0] + 1}: {flags}"
        )
    run.good_buffers = [buffer.clone() for buffer in statistics(run)]


def statistics(run: Run) -> list[Tensor]:
    """BatchNorm's running statistics, which change before the loss is known."""
    return [
        buffer
        for model in (run.model, run.moco and run.moco.model)
        if model is not None
        for buffer in model.buffers()
    ]


def batches(pixels: Tensor, order: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Batch after batch, uint8 B×3×H×W on `device`.

    For a GPU that does not hold the pixels they are pinned and copied one batch ahead on a side stream.

    Args:
        pixels: uint8 N×3×H×W, on `device` or on the CPU (memory-mapped, perhaps).
        order: steps × B indices, on the CPU.
    """
    if device.type != "cuda" or pixels.is_cuda:
        for index in order:
            yield pixels[index.to(pixels.device, non_blocking=True)].to(device)
        return
    side = torch.cuda.Stream(device)

    def copy(index: Tensor) -> Tensor:
        with torch.cuda.stream(side):
            return pixels[index].pin_memory().to(device, non_blocking=True)

    ahead = copy(order[0]) if len(order) else None
    for following in range(1, len(order) + 1):
        torch.cuda.current_stream(device).wait_stream(side)
        batch = ahead
        batch.record_stream(torch.cuda.current_stream(device))
        ahead = copy(order[following]) if following < len(order) else None
        yield batch
