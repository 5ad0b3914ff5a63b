"""Several processes, started by torchrun, as one: what they exchange, and in which order they load.

Tensors on a GPU go through NCCL, those on the CPU through gloo. One process exchanges nothing.
"""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by which a launcher describes us

_patient: Any = None  # the group in which processes wait while one downloads and decodes


def start() -> None:
    """Join the group that the launcher describes in the environment, if there is one.

    Only rank 0 prints.
    """
    global _patient
    if not all(os.environ.get(name) for name in VARIABLES) or dist.is_initialized():
        return
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")
    print(f"waiting for {os.environ['WORLD_SIZE']} processes, as WORLD_SIZE says", flush=True)
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # After a failure torchrun's store still holds the addresses of the processes that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, number, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    timeout = timedelta(minutes=30)
    dist.init_process_group(backends, timeout=timeout, world_size=count, rank=number, store=store)
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK") or rank()) if world() > 1 else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ------------------------------------------------------------------------------------- gradients


def replicated(model: Any) -> Any:
    """The model of several processes: the backward pass averages their gradients as it goes.

    BatchNorm's statistics stay each process's own, as in the reference's DataParallel.
    """
    if world() > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        model.broadcast_buffers = False  # not as an argument, which newer versions warn of
        assert not model.will_sync_module_buffers()
    return model


def without_exchange(model: Any) -> AbstractContextManager:
    """Context manager in which backward passes add to this process's own gradients alone."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


# ------------------------------------------------------------------------------------- tensors


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat(gather_rows(x).chunk(world()), dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)  # every process has this one's anchors among its negatives
        return gradient.chunk(world(), dim=1)[rank()]


def gather(anchors: Tensor) -> tuple[Tensor, int]:
    """Every process's anchors, with gradients.

    Args:
        anchors: This process's, V × b × dim; b is the same in every process.

    Returns:
        The anchors, V × b·world × dim in the order of the ranks, and the index of this process's
        first image. The gradient that comes back is the sum over the processes' losses. Averaged
        over the processes, gradients are then those of the whole batch's mean loss.

    Raises:
        ValueError: The processes have different numbers of images.
    """
    if world() == 1:
        return anchors, 0
    images = anchors.shape[1]
    most, least = maxima([images, -images])
    if most != -least:
        raise ValueError(f"every process needs the same number of images; this one has {images}")
    return _Gather.apply(anchors), rank() * images


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, the same number each, one after another, without gradients."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def own_rows(rows: int) -> Tensor:
    """Which of that many rows are this process's.

    All processes have the same number, so at the end the last row may be repeated:
    `gather_rows(x[own_rows(len(x))])[: len(x)]` is x.
    """
    each = -(-rows // world())
    return torch.arange(rank() * each, (rank() + 1) * each).clamp(max=rows - 1)


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes."""
    if world() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def average(x: Tensor) -> Tensor:
    """The mean of x over the processes."""
    return total(x) / world()


def maxima(values: list[int]) -> list[int]:
    """The maximum of each value over the processes, all of which wait here and decide the same."""
    if world() == 1:
        return values
    x = torch.tensor(values)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x.tolist()


def same_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers (BatchNorm's running statistics), which are saved."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


# ------------------------------------------------------------------------------- everything else


def from_first(make: Callable[[], Any]) -> Any:
    """What make() returns in rank 0, the only one to call it; its tensors must be on the CPU."""
    box = [make() if rank() == 0 else None]
    if world() > 1:
        dist.broadcast_object_list(box, group=_patient)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every process's object, in the order of the ranks."""
    values = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value, group=_patient)
    return values


def in_turn(function: Callable, *args: Any) -> Any:
    """function(*args), first in rank 0, then in one process of every other machine, then elsewhere.

    What the first on a machine downloads, or decodes to a file, the others find there.
    """
    if world() == 1:
        return function(*args)
    own_turn = 0 if rank() == 0 else 1 if local_rank() == 0 else 2
    for turn in range(3):
        if turn == own_turn:
            result = function(*args)
        dist.barrier(_patient)
    return result
