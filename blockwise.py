"""The mean loss over the rows of a matrix of cosines that is never whole in memory.

A contrastive loss needs every anchor's cosines with all columns: one row of a matrix of rows × columns. Each row stands
alone, so a few at a time are enough, for the loss and for its gradient. Both are computed in the forward pass, while
the block is in cache; what waits for the backward pass is the gradient itself, no larger than the embeddings.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Takes this process's anchors (2 × b × dim); returns those of all processes (2 × B × dim, with gradient) and the index
# of this process's first image among the B.
Gather = Callable[[Tensor], tuple[Tensor, int]]
LogG = Callable[[Tensor, Tensor, int], Tensor]  # (pos, sim, n) → log g, one a row
Step = Callable[[Tensor, Tensor, int], tuple[Tensor, ...]]  # the same → losses, their gradients by pos and by sim


def mean_loss(
    pos: Tensor, anchors: Tensor, log_g: LogG, step: Step | None = None, gather: Gather | None = None
) -> Tensor:
    """`mean_over_rows` of this process's anchors (2 × b × dim), whose negatives are those of all processes.

    Raises:
        ValueError: one image, which has no negatives.
    """
    everyone, offset = (anchors, 0) if gather is None else gather(anchors)
    batch = everyone.shape[1]
    if batch < 2:
        raise ValueError(f"z must hold a batch of at least 2 images, got {batch}: one image has no negatives")
    image = torch.arange(offset, offset + anchors.shape[1], device=anchors.device).repeat(2)
    own = torch.stack([image, image + batch], dim=1)  # the columns that are no negatives: an anchor and its twin
    columns = None if gather is None else everyone.flatten(0, 1)
    return mean_over_rows(pos, anchors.flatten(0, 1), columns, own, log_g, step)


def mean_over_rows(
    pos: Tensor, rows: Tensor, columns: Tensor | None, own: Tensor | None, log_g: LogG, step: Step | None = None
) -> Tensor:
    """mean_j −log( e^pos_j / (e^pos_j + g_j) ), g_j from row j's cosines with the columns.

    Args:
        pos: R, in logarithms.
        rows: R × dim; columns: C × dim, or None where the rows are the columns too.
        own: R × 2 columns that are no negatives of each row, or None. A row's n is C less these.
        log_g: log g from pos (r), cosines sim (r × C, −inf in the own columns) and n, for any r rows.
        step: the losses of r rows with their gradients by pos and sim, which it may overwrite; by default autograd's.

    Returns:
        A scalar, differentiable once with respect to pos, rows and columns.
    """
    step = step or (lambda *block: autograd_step(log_g, *block))
    inputs = [pos, rows, columns]
    # autocast would compute the cosines in half precision
    with torch.autocast(rows.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            return _MeanLoss.apply(*inputs, own, step)
        blocks = _blocks(rows, columns, own)
        return torch.cat([losses(pos[part], log_g(pos[part], sim, n)) for part, sim, n in blocks]).mean()


def losses(pos: Tensor, log_g: Tensor) -> Tensor:
    """−log( e^pos / (e^pos + g) ), exact for small losses too."""
    return -F.logsigmoid(pos - log_g)


def autograd_step(log_g: LogG, pos: Tensor, sim: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of a block of rows, and the gradients of their sum by pos and by sim."""
    with torch.enable_grad():
        pos, sim = pos.detach().requires_grad_(), sim.detach().requires_grad_()
        values = losses(pos, log_g(pos, sim, n))
        return values.detach(), *torch.autograd.grad(values.sum(), (pos, sim))


def block_rows(device: str, columns: int) -> int:
    """Rows a block: 64 MB of cosines fill a device; on a CPU 4 MB stay in cache, but never few rows."""
    most = max(1, 2**24 // columns)
    return min(max(256, 2**20 // columns), most) if device == "cpu" else most


def _blocks(rows: Tensor, columns: Tensor | None, own: Tensor | None) -> Iterator[tuple[slice, Tensor, int]]:
    """(which rows, their cosines with all columns, number of negatives); the cosines are gone with the next block."""
    columns = rows if columns is None else columns
    n = len(columns) - (0 if own is None else own.shape[1])
    size = block_rows(rows.device.type, len(columns))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        sim = product(rows[part], columns)
        if own is not None:
            sim.scatter_(1, own[part], -math.inf)
        yield part, sim, n


def product(a: Tensor, b: Tensor) -> Tensor:
    """a · bᵀ, R × C from R × K and C × K.

    In float32 on a CPU as a 1×1 convolution: oneDNN's kernels take half the time of the BLAS library's on AMD's processors.
    """
    if a.device.type != "cpu" or a.dtype != torch.float32:
        return a @ b.T
    if a.T.is_contiguous():
        image = a.T.view(1, a.shape[1], -1, 1)
    else:
        image = a.contiguous().view(1, -1, 1, a.shape[1]).permute(0, 3, 1, 2)  # channels last: K numbers a pixel
    return F.conv2d(image, b[:, :, None, None])[0, :, :, 0].T


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pos: Tensor, rows: Tensor, columns: Tensor | None, own: Tensor | None, step: Step) -> Tensor:
        values, grad_pos, grad_rows = torch.empty_like(pos), torch.empty_like(pos), torch.zeros_like(rows)
        grad_columns = torch.zeros_like(columns) if ctx.needs_input_grad[2] else None
        for part, sim, n in _blocks(rows, columns, own):
            values[part], grad_pos[part], grad_sim = step(pos[part], sim, n)
            if columns is not None:
                grad_rows[part] = product(grad_sim, columns.T)
                if grad_columns is not None:
                    grad_columns += product(grad_sim.T, rows[part].T)
            elif len(sim) < len(rows):
                grad_rows[part] += product(grad_sim, rows.T)
                grad_rows += product(grad_sim.T, rows[part].T)
            else:  # all rows at once: D · rows + Dᵀ · rows in one product
                grad_rows = product(grad_sim.T.contiguous().add_(grad_sim), rows.T)
        ctx.save_for_backward(grad_pos, grad_rows, grad_columns)
        return values.mean()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: the second derivatives would lack the part that is constant here
            raise RuntimeError("the loss can be differentiated only once: its gradient comes without a graph")
        grad_pos, grad_rows, grad_columns = ctx.saved_tensors
        grad = grad / len(grad_pos)  # the steps' gradients are of sums
        return grad * grad_pos, grad * grad_rows, None if grad_columns is None else grad * grad_columns, None, None


# What the losses ask of their arguments


def check_positive(**values: float) -> None:
    """Raise a ValueError that names the first of the values that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def full_precision(z: Tensor) -> Tensor:
    """z in float32, or in float64 where it is."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
