"""The mean loss over the rows of a matrix of cosines that is never whole in memory.

A contrastive loss needs every anchor's cosines with all columns: one row of a matrix of rows × columns. Each row stands
alone, so a few at a time are enough, for the loss and for its gradient. Both are computed in the forward pass, while
the block is in cache; what waits for the backward pass is the gradient itself, no larger than the embeddings.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# Takes this process's anchors (2 × b × dim); returns those of all processes (2 × B × dim, with gradient) and the index
# of this process's first image among the B.
Gather = Callable[[Tensor], tuple[Tensor, int]]
# z → pos, one an anchor, and the way back: a function that takes the gradient by pos and the gradient by z as far as it has
# come; it adds to that of the anchors and writes that of the positives.
Positives = Callable[[Tensor], tuple[Tensor, Callable[[Tensor, Tensor], object]]]
LogG = Callable[[Tensor, Tensor, int], Tensor]  # (pos, sim, n) → log g, one a row
# (pos, sim, spare, n) → log g, its gradients by pos and by sim. It may write into sim and into spare, which is as large; what
# it returns must not lie in spare.
Step = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor | None, ...]]


def mean_loss(
    z: Tensor,
    sharpness: float,
    positives: Positives,
    log_g: LogG,
    step: Step | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """`mean_over_rows` of this process's anchors, whose negatives are those of all processes.

    Raises:
        ValueError: one image, which has no negatives.
    """
    everyone, offset = (z, 0) if gather is None else gather(z[:2])
    batch = everyone.shape[1]
    if batch < 2:
        raise ValueError(
            f"z must hold a batch of at least 2 images, got {batch}: one image has no negatives"
        )
    images = torch.arange(offset, offset + z.shape[1], device=z.device).repeat(2)
    columns = None if gather is None else everyone.flatten(0, 1)
    return mean_over_rows(z, columns, images, sharpness, positives, log_g, step)


def mean_over_rows(
    z: Tensor,
    columns: Tensor | None,
    images: Tensor | None,
    sharpness: float,
    positives: Positives,
    log_g: LogG,
    step: Step | None = None,
) -> Tensor:
    """mean_j −log( e^pos_j / (e^pos_j + g_j) ), g_j from anchor j's cosines with the columns.

    Args:
        z: views × B × dim; the first two are the anchors, R = 2B rows.
        columns: C × dim, or None where the rows are the columns too.
        images: R numbers: the columns are two anchors of C / 2 images, and a row's two are no negatives of it. Or None.
        sharpness: what the losses' cosines are multiplied by: a factor of the rows costs nothing, one of their products does.
        positives: pos from z, and the way back.
        log_g: log g from pos (r), sim (r × C, sharpness × cosine, −inf where a column is no negative) and the number n
            of negatives, for any r rows.
        step: log g of r rows with its gradients by pos (None is 0) and sim; by default autograd's.

    Returns:
        A scalar, differentiable once with respect to z and columns.
    """
    # autocast would compute the cosines in half precision
    with torch.autocast(z.device.type, enabled=False):
        if torch.is_grad_enabled() and (
            z.requires_grad or (columns is not None and columns.requires_grad)
        ):
            return _MeanLoss.apply(
                z, columns, images, sharpness, positives, step or partial(autograd_step, log_g)
            )
        (pos, _), rows = positives(z), z[:2].flatten(0, 1)
        blocks = _blocks(sharpness * rows, rows if columns is None else columns, images)
        return torch.cat(
            [losses(pos[part], log_g(pos[part], sim, n)) for part, sim, n in blocks]
        ).mean()


def losses(pos: Tensor, log_g: Tensor) -> Tensor:
    """−log( e^pos / (e^pos + g) ), exact for small losses too."""
    return -F.logsigmoid(pos - log_g)


def autograd_step(
    log_g: LogG, pos: Tensor, sim: Tensor, spare: Tensor, n: int
) -> tuple[Tensor | None, ...]:
    """log g of a block of rows, and its gradients by pos and by sim."""
    with torch.enable_grad():
        pos, sim = pos.detach().requires_grad_(), sim.detach().requires_grad_()
        value = log_g(pos, sim, n)
        return value.detach(), *torch.autograd.grad(value.sum(), (pos, sim), allow_unused=True)


def block_rows(device: str, columns: int) -> int:
    """Rows a block: 64 MB of cosines fill a device; on a CPU 4 MB stay in cache, but never few rows."""
    most = max(1, 2**24 // columns)
    return min(max(256, 2**20 // columns), most) if device == "cpu" else most


def _blocks(
    rows: Tensor, columns: Tensor, images: Tensor | None
) -> Iterator[tuple[slice, Tensor, int]]:
    """(which rows, their products with all columns, number of negatives); the next block's products take their place."""
    n = len(columns) - (0 if images is None else 2)
    size = min(len(rows), block_rows(rows.device.type, len(columns)))
    space = rows.new_empty(
        size, len(columns)
    )  # on a CPU fresh memory takes as long as half a product
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        sim = space[: len(rows[part])]
        torch.mm(rows[part], columns.T, out=sim)
        if images is not None:
            own = images[part, None, None].expand(-1, 2, 1)
            sim.view(len(sim), 2, -1).scatter_(2, own, -math.inf)
        yield part, sim, n


class _MeanLoss(torch.autograd.Function):
    """`mean_over_rows` with its gradient, which is computed with it: the backward pass multiplies by a number."""

    @staticmethod
    def forward(
        ctx,
        z: Tensor,
        columns: Tensor | None,
        images: Tensor | None,
        sharpness: float,
        positives: Positives,
        step: Step,
    ) -> Tensor:
        (pos, back), anchors, grad = positives(z), z[:2].flatten(0, 1), z.new_empty(z.shape)
        rows, others = sharpness * anchors, anchors if columns is None else columns
        values, grad_pos, grad_rows = (
            torch.empty_like(pos),
            torch.empty_like(pos),
            grad[:2].view(rows.shape).zero_(),
        )
        grad_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        grad_others = grad_rows if columns is None else grad_columns
        for part, sim, n in _blocks(rows, others, images):
            if part.start == 0:
                spare = torch.empty_like(sim)  # no block is larger than the first
            log_g, by_pos, by_sim = step(pos[part], sim, spare[: len(sim)], n)
            push = torch.sigmoid(log_g - pos[part])  # dloss / dlog g = −dloss / dpos
            values[part], grad_pos[part] = (
                losses(pos[part], log_g),
                -push if by_pos is None else push * (by_pos - 1),
            )
            push = push[:, None]
            if columns is None and len(sim) == len(rows):  # D · rows + Dᵀ · rows in one product
                by_sim.mul_(push)
                torch.mm(spare.copy_(by_sim.T).add_(by_sim), rows, out=grad_rows)
                continue
            grad_rows[part].addcmul_(push, by_sim @ others, value=sharpness)
            if grad_others is not None:
                grad_others.addmm_(by_sim.T, push * rows[part])
        back(grad_pos, grad)
        ctx.save_for_backward(grad, grad_columns)
        return values.mean()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if (
            torch.is_grad_enabled()
        ):  # create_graph: the second derivatives would lack the part that is constant here
            raise RuntimeError(
                "the loss can be differentiated only once: its gradient comes without a graph"
            )
        grad_z, grad_columns = ctx.saved_tensors
        grad = grad / (2 * grad_z.shape[1])  # the steps' gradients are of sums
        return grad * grad_z, None if grad_columns is None else grad * grad_columns, *[None] * 4


# What the losses ask of their arguments


def check_positive(**values: float) -> None:
    """Raise a ValueError that names the first of the values that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def full_precision(z: Tensor) -> Tensor:
    """z in float32, or in float64 where it is."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
