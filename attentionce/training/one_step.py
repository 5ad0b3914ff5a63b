"""One step of pretraining: images → views → embeddings → loss → gradients → weights."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attentionce.data import views
from attentionce.data.transfer import to_device
from attentionce.training import devices, processes
from attentionce.training.batchnorm import constant_statistics, recomputed, set_views_per_pass
from attentionce.training.pretraining import Run


class Batch(NamedTuple):
    """This process's part of a step: its images, and the random parameters of their views."""

    images: Tensor  # float32 b×3×H×W, 0 to 255
    draw: views.Draw
    sources: Tensor | None  # M × b: the image that each positive shows; None: the anchor's


def take_step(run: Run, pixels: Tensor) -> None:
    """One step of the optimiser on this process's part of a batch, uint8 b×3×H×W on the device.

    Nothing in it waits for the GPU, except the attention's numbers in an epoch's last step.
    """
    progress, moco = run.progress, run.moco
    batch = Batch(pixels.float(), draw_views(run, pixels), draw_sources(run, len(pixels)))
    step = cached_step if run.grad_cache else plain_step
    before = copies(statistics(run)) if run.scaler.is_enabled() else None
    if moco is None:
        loss, z = step(run, batch, run.views, lambda z: batch_loss(run, z))
    else:
        keys = encode_keys(run, batch)
        loss, queries = step(run, batch, 2, lambda z: batch_loss(run, torch.cat([z, keys])))
        z = torch.cat([queries, keys])
    loss = update_weights(run, loss)
    progress["losses"][progress["step"]] = loss
    if before is not None:  # fp16 goes on after a step that is not finite
        keep_where(loss.isfinite(), statistics(run), before)
    if progress["step"] + 1 == run.steps:  # before the queue takes these keys
        progress["attention"] = attention_numbers(run, z, batch.sources)
    if moco is not None:
        moco.follow(run.model, loss.isfinite())
        moco.push(keys[0], loss.isfinite())  # one key per image, as in MoCo


def draw_views(run: Run, pixels: Tensor) -> views.Draw:
    """The random parameters of this process's views: a function of (seed, epoch, step) alone."""
    generator = views.generator(run.args.seed, *run.position)
    height, width = pixels.shape[2:]
    whole = views.draw(run.views, run.args.batch_size, height, width, generator)
    first = processes.rank() * len(pixels)
    return views.to(views.part(whole, first, first + len(pixels)), run.device)


def draw_sources(run: Run, images: int) -> Tensor | None:
    """Which image of this process each positive shows, with `--noisy_positives`: M × b indices.

    That share of the positives shows another image than its anchor's. The views' own parameters are
    as they are without noise.
    """
    if not run.args.noisy_positives:
        return None
    generator = views.generator(run.args.seed, *run.position, 1)
    whole = torch.rand(2, run.args.num_pos, run.args.batch_size, generator=generator)
    u, distance = whole[:, :, processes.rank() * images :][:, :, :images]
    anchor = torch.arange(images)
    other = (anchor + 1 + (distance * (images - 1)).long()) % images
    return to_device(torch.where(u < run.args.noisy_positives, other, anchor), run.device)


def project(run: Run, encoder: Callable[..., Any], batch: Batch, which: range) -> Tensor:
    """Views through the encoder and its projection head in one pass: V × b × dim."""
    made = []
    for v in which:
        images = batch.images
        if batch.sources is not None and v >= 2:
            images = images[batch.sources[v - 2]]
        made.append(views.make_view(images, batch.draw, v, run.args.image_size, run.view_ops))
    x = torch.cat(made) if len(made) > 1 else made[0]
    x = x.contiguous(memory_format=torch.channels_last)
    z = encoder(x, recomputed if run.recompute else None)[1]
    return z.unflatten(0, (len(made), -1))


def project_all(run: Run, encoder: Callable[..., Any], batch: Batch, parts: list[range]) -> Tensor:
    """`project` of several passes. In one autocast they share a copy of the weights."""
    with devices.autocast(run.device, run.dtype):
        return torch.cat([project(run, encoder, batch, part) for part in parts])


def passes(run: Run, model: nn.Module, first: int, last: int) -> list[range]:
    """Views `first` to `last` (exclusive) in equal passes of at most `views_per_pass`."""
    size = max(n for n in range(1, run.views_per_pass + 1) if (last - first) % n == 0)
    if run.views_per_pass > 1:
        set_views_per_pass(model, size)
    return [range(v, v + size) for v in range(first, last, size)]


def batch_loss(run: Run, z: Tensor) -> Tensor:
    """The loss of embeddings views × b × dim; negatives are all processes' anchors or the queue."""
    if run.moco is not None:
        return run.loss(z, queue=run.moco.queue)
    return run.loss(z, gather=processes.gather if processes.world() > 1 else None)


def encode_keys(run: Run, batch: Batch) -> Tensor:
    """MoCo's keys: the positives through the momentum encoder, M × b × dim."""
    assert run.moco is not None
    encoder = run.moco.model if run.key_encoder is None else run.key_encoder
    with torch.no_grad():
        return project_all(run, encoder, batch, passes(run, run.moco.model, 2, run.views))


def plain_step(
    run: Run, batch: Batch, count: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Encode the first `count` views and backpropagate through all of them.

    Returns:
        The loss and the embeddings, count × b × dim, both detached. Gradients are added to those
        of the parameters.
    """
    z = project_all(run, run.encoder, batch, passes(run, run.model, 0, count))
    loss = loss_of(z)
    run.scaler.scale(loss).backward()
    return loss.detach(), z.detach()


def cached_step(
    run: Run, batch: Batch, count: int, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`plain_step` in the memory of one pass instead of all, for one more forward pass.

    First all embeddings, without graphs. Then the loss's gradient with respect to them. Then each
    pass forward again, and backward with its part of that gradient.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    2021.
    """
    parts = passes(run, run.model, 0, count)
    with torch.no_grad():
        z = project_all(run, run.encoder, batch, parts)
    z.requires_grad_()
    loss = loss_of(z)
    (gradient,) = torch.autograd.grad(run.scaler.scale(loss), z)
    with constant_statistics(run.model):
        for part in parts:
            last = part is parts[-1]
            with nullcontext() if last else processes.without_exchange(run.encoder):
                with devices.autocast(run.device, run.dtype):
                    projection = project(run, run.encoder, batch, part)
                projection.backward(gradient[part.start : part.stop])
    return loss.detach(), z.detach()


def attention_numbers(run: Run, z: Tensor, sources: Tensor | None) -> dict[str, float]:
    """Columns of the metrics: what attention looks at in this step, over all anchors."""
    everyone, _ = processes.gather(z)
    queue, noisy = run.moco.queue if run.moco else None, None
    if sources is not None:
        noisy = (sources != torch.arange(sources.shape[1], device=sources.device)).float()
        noisy = processes.gather(noisy[..., None])[0][..., 0]
    return run.attention_numbers(everyone, queue=queue, noisy=noisy)


def update_weights(run: Run, loss: Tensor) -> Tensor:
    """Move the weights along the gradients, which the backward pass averaged over the processes.

    Returns:
        The loss averaged over the processes. NaN, and nothing has moved, if it or its gradient is
        not finite or, except in fp16, an earlier step's was not.
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
