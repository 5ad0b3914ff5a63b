"""Pretraining, step after step: a batch of images → views → embeddings → loss → gradients → weights."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attentionce import attention
from attentionce.data import views
from attentionce.training import devices, processes
from attentionce.training.batchnorm import constant_statistics
from attentionce.training.pretraining import Loss, Run

Encode = Callable[[int], Tensor]  # v → embeddings of the batch's view v, batch × dim


def take_step(run: Run, batch: Tensor) -> None:
    """One step of the optimiser on this process's part of the batch; nothing in it waits for the GPU."""
    args, progress = run.args, run.progress
    draw = views.draw(
        run.views,
        args.batch_size,
        *batch.shape[2:],
        views.generator(args.seed, progress["epoch"], progress["step"]),
    )
    first = processes.rank() * len(batch)
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
        with torch.no_grad(), devices.autocast(run.device, run.dtype):
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
    (z, _), queue = processes.gather(z), run.moco.queue if run.moco else None
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
    with devices.autocast(
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
    with torch.no_grad(), devices.autocast(run.device, run.dtype):
        z = torch.stack([encode(v) for v in range(views)])
    z.requires_grad_()
    loss = loss_of(z)
    (gradient,) = torch.autograd.grad(run.scaler.scale(loss), z)
    with constant_statistics(run.model):
        for v in range(views):
            with devices.autocast(run.device, run.dtype):
                projection = encode(v)
            projection.backward(gradient[v])
    return loss.detach(), z.detach()


def update(run: Run, loss: Tensor) -> Tensor:
    """Move the weights along the gradients, averaged over the processes; a step that is not finite moves nothing.

    Returns:
        the loss averaged over the processes; NaN where it or its gradient is not finite, and after such a step.
    """
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    loss = processes.average(gradients, loss)
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


def statistics(run: Run) -> list[Tensor]:
    """BatchNorm's running statistics, which change before the loss is known."""
    return [
        buffer
        for model in (run.model, run.moco and run.moco.model)
        if model is not None
        for buffer in model.buffers()
    ]
