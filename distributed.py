"""Several processes, started by torchrun, as one: what they exchange. With one process everything here does nothing."""

import datetime
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start() -> None:
    """Join the group that torchrun describes in the environment, if it started this process."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))


def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # every process's rows have this process's anchors among their negatives
        return gradient.chunk(world(), dim=1)[rank()]


def gather(anchors: Tensor) -> tuple[Tensor, int]:
    """Every process's anchors, with gradients.

    Args:
        anchors: this process's, 2 × b × dim; b is the same in every process.

    Returns:
        (2 × b·world × dim in the order of the ranks, the index of this process's first image). The gradient that comes
        back is the sum over the processes' losses, so that `average` gives that of the whole batch's mean loss.
    """
    if world() == 1:
        return anchors, 0
    return _Gather.apply(anchors), rank() * anchors.shape[1]


def gather_rows(rows: Tensor) -> Tensor:
    """The processes' rows (as many each) one after another, without gradients."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def average(gradients: list[Tensor], loss: Tensor) -> Tensor:
    """Replace gradients by their mean over the processes, in one exchange; returns the loss's mean."""
    if world() == 1:
        return loss
    flat = torch.cat([g.flatten() for g in gradients] + [loss.reshape(1)])
    dist.all_reduce(flat)
    flat /= world()
    parts = flat.split([g.numel() for g in gradients] + [1])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view_as(gradient))
    return parts[-1].reshape(())


def largest(values: list[int]) -> list[int]:
    """The largest of every value over the processes, so that all of them decide alike."""
    if world() == 1:
        return values
    shared = torch.tensor(values)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared.tolist()


def same_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers (BatchNorm's running statistics), which are those that are saved."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def say(line: str) -> None:
    """Print in one process only."""
    if rank() == 0:
        print(line, flush=True)


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()
