"""Several processes, started by torchrun, as one: what they exchange, in which order they load, how they leave.

Tensors on a GPU go through NCCL, those on the CPU through gloo. With one process everything here does nothing.
"""

import contextlib
import datetime
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attentionce.errors import UserError

_store: dist.Store | None = (
    None  # notes that outlive the process that left them: torchrun keeps them
)
_turns = 0  # calls of `in_turn`
_parent = 0  # the process that started this one


class Lost(UserError):
    """Another process is gone; why is for it, or for torchrun, to say."""


def start() -> None:
    """Join the group that torchrun describes in the environment, if it started this process; only rank 0 prints."""
    global _store, _parent
    if (
        dist.is_initialized()
        or not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    ):
        return
    _parent = os.getppid()
    _store, number, processes = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", _store),
        rank=number,
        world_size=processes,
        timeout=datetime.timedelta(minutes=30),
    )
    if number > 0:
        sys.stdout = open(os.devnull, "w")


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", rank())) if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ---------------------------------------------------------------------------------------------- tensors


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise Lost(
            f"process {rank()} lost another one, whose own message or torchrun's summary says why ({reason})"
        ) from error


def _all_gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    with _exchange():
        dist.all_gather(parts, x.contiguous())
    return parts


def _all_reduce(x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    with _exchange():
        dist.all_reduce(x, op)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.cat(_all_gather(x), dim=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        _all_reduce(
            gradient
        )  # every process's rows have this process's anchors among their negatives
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
    return rows if world() == 1 else torch.cat(_all_gather(rows))


def share(rows: int) -> Tensor:
    """Which of that many rows are this process's: as many in each, so that at the end the last row may repeat.

    `gather_rows(x[share(len(x))])[: len(x)]` is x.
    """
    each = -(-rows // world())
    return torch.arange(rank() * each, (rank() + 1) * each).clamp(max=rows - 1)


def average(gradients: list[Tensor], loss: Tensor) -> Tensor:
    """Replace gradients by their mean over the processes, in one exchange; returns the loss's mean."""
    if world() == 1:
        return loss
    flat = torch.cat([g.flatten() for g in gradients] + [loss.reshape(1)])
    parts = _all_reduce(flat).div_(world()).split([g.numel() for g in gradients] + [1])
    for gradient, part in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(part.view_as(gradient))
    return parts[-1].reshape(())


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes."""
    return x if world() == 1 else _all_reduce(x.clone())


def largest(values: list[int]) -> list[int]:
    """The largest of every value over the processes, so that all of them decide alike; it waits for all of them."""
    return values if world() == 1 else _all_reduce(torch.tensor(values), dist.ReduceOp.MAX).tolist()


def alike(value: int) -> bool:
    """Whether all processes have the same value."""
    high, low = largest([value, -value])
    return high == -low


def same_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers (BatchNorm's running statistics), which are those that are saved."""
    if world() > 1:
        with _exchange():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


# ---------------------------------------------------------------------------------------------- everything else


def from_first(make: Callable[[], Any]) -> Any:
    """What make() returns in rank 0, the only one to call it, in every process; tensors are to be on the CPU."""
    box = [make() if rank() == 0 else None]
    if world() > 1:
        with _exchange():
            dist.broadcast_object_list(box)
    return box[0]


def gather_objects(own: Any) -> list[Any]:
    """Every process's object, in the order of the ranks."""
    if world() == 1:
        return [own]
    everyone: list[Any] = [None] * world()
    with _exchange():
        dist.all_gather_object(everyone, own)
    return everyone


def in_turn(function: Callable, *args: Any) -> Any:
    """function(*args), first in rank 0, then in the first process of every other machine, then in the rest.

    Thus what one downloads or decodes to a file the others find there. They wait as long as it takes, and show no bars.
    """
    global _turns
    _turns += 1
    if world() == 1 or _store is None:
        return function(*args)
    note, machine = f"turn {_turns} of machine ", os.environ.get("GROUP_RANK", "0")
    first = "0" if local_rank() == 0 else machine  # the machine to wait for
    while rank() > 0 and not _store.check([note + first]):
        if _store.check(["errors"]):
            raise Lost(f"process {rank()} waited for one that failed")
        time.sleep(0.1)
    with contextlib.redirect_stderr(io.StringIO()) if rank() > 0 else contextlib.nullcontext():
        result = function(*args)
    if local_rank() == 0:
        _store.set(note + machine, "done")
    return result


def orphaned() -> bool:
    """Whether the torchrun that started this process is gone."""
    return "TORCHELASTIC_RUN_ID" in os.environ and dist.is_initialized() and os.getppid() != _parent


def first_to_fail() -> bool:
    """Whether this process is the first with an error, the one to tell the user: those of the others follow from it."""
    if _store is None:
        return True
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # torchrun's to all when one has left, while this one is still to speak
    try:
        return _store.add("errors", 1) == 1
    except RuntimeError:  # torchrun itself is gone
        return True
