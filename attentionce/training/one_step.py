"""One step of pretraining: images → views → embeddings → loss → gradients → weights."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from attentionce.data import views
from attentionce.training import devices, processes
from attentionce.training.batchnorm import constant_statistics, recomputed
from attentionce.training.pretraining import Run


def take_step(run: Run, batch: Tensor) -> None:
    """One step of the optimiser on this process's part of a batch.

    Nothing in it waits for the GPU.

    Args:
        batch: uint8 b×3×H×W, on the device.
    """
    progress, moco = run.progress, run.moco
    draw = draw_views(run, batch)
    images = batch.float()  # once for all views
    step = cached_step if run.grad_cache else plain_step
    before = copies(statistics(run)) if run.scaler.is_enabled() else None
    if moco is None:
        loss, z = step(run, images, draw, run.views, lambda z: batch_loss(run, z))
    else:
        keys = encode_keys(run, images, draw)
        loss, queries = step(run, images, draw, 2, lambda z: batch_loss(run, torch.cat([z, keys])))
        z = torch.cat([queries, keys])
    loss = update_weights(run, loss)
    progress["losses"][progress["step"]] = loss
    if before is not None:  # fp16 goes on after a step that is not finite
        keep_where(loss.isfinite(), statistics(run), before)
    if progress["step"] + 1 == run.steps:  # before the queue takes these keys
        (everyone, _), queue = processes.gather(z), moco.queue if moco else None
        progress["effective"] = run.effective_numbers(everyone, queue=queue)
    if moco is not None:
        moco.follow(run.model, loss.isfinite())
        moco.push(keys[0], loss.isfinite())  # one key per image, as in MoCo


def draw_views(run: Run, batch: Tensor) -> views.Draw:
    """The random parameters of this process's views: a function of (seed, epoch, step) alone."""
    generator = views.generator(run.args.seed, *run.position)
    height, width = batch.shape[2:]
    whole = views.draw(run.views, run.args.batch_size, height, width, generator)
    first = processes.rank() * len(batch)
    return views.to(views.part(whole, first, first + len(batch)), run.device)


def project(
    run: Run, encoder: Callable[..., Any], images: Tensor, draw: views.Draw, v: int
) -> Tensor:
    """View number `v` of every image through the encoder and its projection head: b × dim."""
    view = views.make_view(images, draw, v, run.args.image_size, run.view_ops)
    view = view.contiguous(memory_format=torch.channels_last)
    return encoder(view, recomputed if run.recompute else None)[1]


def batch_loss(run: Run, z: Tensor) -> Tensor:
    """The mean loss of embeddings views × b × dim, with the anchors of all processes or MoCo's
    queue as negatives.
    """
    if run.moco is not None:
        return run.loss(z, queue=run.moco.queue)
    return run.loss(z, gather=processes.gather if processes.world() > 1 else None)


def encode_keys(run: Run, images: Tensor, draw: views.Draw) -> Tensor:
    """MoCo's keys: the positives through the momentum encoder, M × b × dim."""
    assert run.moco is not None
    encoder = run.moco.model if run.key_encoder is None else run.key_encoder
    with torch.no_grad(), devices.autocast(run.device, run.dtype):
        keys = [project(run, encoder, images, draw, v) for v in range(2, run.views)]
        return torch.stack(keys)


def plain_step(
    run: Run, images: Tensor, draw: views.Draw, count: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Encode the first `count` views and backpropagate through all of them.

    Each view is a forward pass of its own, so BatchNorm's statistics are per view.

    Returns:
        The loss and the embeddings, count × b × dim, both detached. Gradients are added to those
        of the parameters.
    """
    # One autocast around all views: they then share one copy of the weights in half precision.
    with devices.autocast(run.device, run.dtype):
        z = torch.stack([project(run, run.encoder, images, draw, v) for v in range(count)])
    loss = loss_of(z)
    run.scaler.scale(loss).backward()
    return loss.detach(), z.detach()


def cached_step(
    run: Run, images: Tensor, draw: views.Draw, count: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`plain_step` in the memory of one view instead of all, for one more forward pass.

    First all embeddings, without graphs. Then the loss's gradient with respect to them. Then each
    view forward again, and backward with its part of that gradient.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    2021.
    """
    with torch.no_grad(), devices.autocast(run.device, run.dtype):
        z = torch.stack([project(run, run.encoder, images, draw, v) for v in range(count)])
    z.requires_grad_()
    loss = loss_of(z)
    (gradient,) = torch.autograd.grad(run.scaler.scale(loss), z)
    with constant_statistics(run.model):
        for v in range(count):
            last = v == count - 1
            with nullcontext() if last else processes.without_exchange(run.encoder):
                with devices.autocast(run.device, run.dtype):
                    projection = project(run, run.encoder, images, draw, v)
                projection.backward(gradient[v])
    return loss.detach(), z.detach()


def update_weights(run: Run, loss: Tensor) -> Tensor:
    """Move the weights along the gradients, which the backward pass averaged over the processes.

    A step that is not finite moves nothing.

    Returns:
        The loss averaged over the processes; NaN if it or its gradient is not finite, or if an
        earlier step was not.
    """
    gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    loss = processes.average(loss)
    finite = torch.nn.utils.get_total_norm(gradients).isfinite() & loss.isfinite()
    if run.scaler.is_enabled():
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.progress["skipped"] += ~finite
    else:
        finite = _step_while_finite(run, finite)
    run.optimizer.zero_grad(set_to_none=True)
    return torch.where(finite, loss, torch.nan)


def _step_while_finite(run: Run, finite: Tensor) -> Tensor:
    """After the first non-finite step, updates are skipped until the next check stops the run.

    The fused optimiser reads `found_inf` on the device and then changes nothing, so the host need
    not wait to know.
    """
    run.finite = finite if run.finite is None else run.finite & finite
    optimizer: Any = run.optimizer
    optimizer.grad_scale, optimizer.found_inf = None, (~run.finite).float()
    if run.device.type != "mps" or run.finite:  # MPS's optimiser does not read it
        optimizer.step()
    return run.finite


def statistics(run: Run) -> list[Tensor]:
    """BatchNorm's running statistics, which change before the loss is known."""
    models = [run.model] if run.moco is None else [run.model, run.moco.model]
    return [buffer for model in models for buffer in model.buffers()]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """A copy of each tensor."""
    return [tensor.clone() for tensor in tensors]


def keep_where(finite: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    """Put the tensors back to what they were before, unless `finite` (a bool on the device)."""
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(finite, tensor, value))
