"""Several processes, started by torchrun, as one: what they exchange, and how they load and leave.

Tensors on a GPU go through NCCL, those on the CPU through gloo. With one process nothing here does
anything.
"""

import contextlib
import datetime
import inspect
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attentionce.errors import UserError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by which a launcher describes us
# What gloo and NCCL, whose errors are RuntimeErrors, say when a connection breaks.
NETWORK = re.compile("gloo|nccl|connection|broken pipe|socket|timed? ?out", re.IGNORECASE)
PATIENCE = 10  # seconds to wait for the others before saying so

# Notes that outlive the process that left them: torchrun keeps the store.
_store: dist.Store | None = None
_turns = 0  # calls of `in_turn`
_parent = 0  # the process that started this one


class Lost(UserError):
    """Another process is gone; it, or torchrun, says why."""


def start() -> None:
    """Join the group that the launcher describes in the environment, if there is one.

    Only rank 0 prints. After torchrun has restarted its processes they meet under a name of their
    own, so that what the failed attempt left in the store does not confuse them.
    """
    global _store, _parent
    if dist.is_initialized() or not set(VARIABLES) <= os.environ.keys():
        return
    _parent = os.getppid()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with _patience():
        store, number, processes = next(dist.rendezvous("env://"))
        _store = dist.PrefixStore(f"attempt {attempt}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("group", _store),
            rank=number,
            world_size=processes,
            timeout=datetime.timedelta(minutes=30),
        )
    if number > 0:
        sys.stdout = open(os.devnull, "w")
    if attempt != "0":
        print(f"attempt {int(attempt) + 1} of torchrun's, after a process failed", flush=True)


@contextmanager
def _patience() -> Iterator[None]:
    """Say for whom this process waits, and why, if it takes longer than `PATIENCE`."""
    values = {name: os.environ[name] for name in VARIABLES}
    others = int(values["WORLD_SIZE"]) - 1
    noun = "process" if others == 1 else "processes"
    message = (
        f"waiting for {others} more {noun}, because the environment has "
        + ", ".join(f"{name}={value}" for name, value in values.items())
        + "; to train in one process, unset these variables"
    )
    timer = threading.Timer(PATIENCE, print, [message], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ------------------------------------------------------------------------------------- gradients


def replicated(model: Any) -> Any:
    """The model of several processes: the backward pass averages their gradients as it goes.

    BatchNorm's statistics stay each process's own, as in the reference's DataParallel.
    """
    if world() == 1:
        return model
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(model, **options)


def without_exchange(model: Any) -> AbstractContextManager:
    """Context manager in which backward passes add to this process's own gradients alone."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def exchanging() -> Iterator[None]:
    """Context manager that turns a network error into `Lost`: another process is gone.

    Raises:
        Lost: Instead of that error.
    """
    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, dist.DistError) or NETWORK.search(str(error))
        if world() == 1 or not of_network:
            raise
        reason = str(error).strip().splitlines()[0]
        raise Lost(
            f"process {rank()} lost another one, whose own message or torchrun's summary says why "
            f"({reason})"
        ) from error


# ------------------------------------------------------------------------------------- tensors


def _all_gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    with exchanging():
        dist.all_gather(parts, x.contiguous())
    return parts


def _all_reduce(x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    with exchanging():
        dist.all_reduce(x, op)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat(_all_gather(x), dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        _all_reduce(gradient)  # every process has this one's anchors among its negatives
        return gradient.chunk(world(), dim=1)[rank()]


def gather(anchors: Tensor) -> tuple[Tensor, int]:
    """Every process's anchors, with gradients.

    Args:
        anchors: This process's, 2 × b × dim; b is the same in every process.

    Returns:
        The anchors, 2 × b·world × dim in the order of the ranks, and the index of this process's
        first image. The gradient that comes back is the sum over the processes' losses. Averaged
        over the processes, gradients are then those of the whole batch's mean loss.
    """
    if world() == 1:
        return anchors, 0
    return _Gather.apply(anchors), rank() * anchors.shape[1]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, which have equally many, one after another, without gradients."""
    return rows if world() == 1 else torch.cat(_all_gather(rows))


def share(rows: int) -> Tensor:
    """Which of that many rows are this process's.

    All processes have equally many, so at the end the last row may be repeated:
    `gather_rows(x[share(len(x))])[: len(x)]` is x.
    """
    each = -(-rows // world())
    return torch.arange(rank() * each, (rank() + 1) * each).clamp(max=rows - 1)


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes."""
    return x if world() == 1 else _all_reduce(x.clone())


def average(x: Tensor) -> Tensor:
    """The mean of x over the processes."""
    return total(x) / world() if world() > 1 else x


def largest(values: list[int]) -> list[int]:
    """The largest of every value over the processes, so that all of them decide the same.

    It waits for all of them.
    """
    if world() == 1:
        return values
    return _all_reduce(torch.tensor(values), dist.ReduceOp.MAX).tolist()


def alike(value: int) -> bool:
    """Whether all processes have the same value."""
    high, low = largest([value, -value])
    return high == -low


def same_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers (BatchNorm's running statistics), which are saved."""
    if world() > 1:
        with exchanging():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


# ------------------------------------------------------------------------------- everything else


def from_first(make: Callable[[], Any]) -> Any:
    """What make() returns in rank 0, the only one to call it; its tensors must be on the CPU."""
    box = [make() if rank() == 0 else None]
    if world() > 1:
        with exchanging():
            dist.broadcast_object_list(box)
    return box[0]


def gather_objects(own: Any) -> list[Any]:
    """Every process's object, in the order of the ranks."""
    if world() == 1:
        return [own]
    everyone: list[Any] = [None] * world()
    with exchanging():
        dist.all_gather_object(everyone, own)
    return everyone


def in_turn(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), first in rank 0, then on the other machines, then in the rest.

    On every machine one process goes first: what it downloads, or decodes to a file, the others
    find there. They wait as long as it takes, and show no bars.
    """
    global _turns
    _turns += 1
    if world() == 1 or _store is None:
        return function(*args, **kwargs)
    note, machine = f"turn {_turns} of machine ", os.environ.get("GROUP_RANK", "0")
    first = "0" if local_rank() == 0 else machine  # the machine to wait for
    while rank() > 0 and not _store.check([note + first]):
        if _store.check(["errors"]):
            raise Lost(f"process {rank()} waited for one that failed")
        time.sleep(0.1)
    with contextlib.redirect_stderr(io.StringIO()) if rank() > 0 else nullcontext():
        result = function(*args, **kwargs)
    if local_rank() == 0:
        _store.set(note + machine, "done")
    return result


def orphaned() -> bool:
    """Whether the torchrun that started this process is gone."""
    return "TORCHELASTIC_RUN_ID" in os.environ and dist.is_initialized() and os.getppid() != _parent


def first_to_fail() -> bool:
    """Whether this process is the first with an error: it tells the user, the others are silent."""
    if _store is None:
        return True
    # torchrun sends SIGTERM to all when one has left, while this one still has to speak.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return _store.add("errors", 1) == 1
    except RuntimeError:  # torchrun itself is gone
        return True
