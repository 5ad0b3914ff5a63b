"""BatchNorm in a second pass over the same batch: its running statistics must not move twice."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def constant_statistics(module: nn.Module) -> Iterator[None]:
    """Context manager in which BatchNorm normalises as always but keeps its running statistics.

    They move by nothing rather than not at all, because what BatchNorm saves for the backward pass
    must be what it saved in the first pass.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def recomputed(stage: nn.Module, x: Tensor) -> Tensor:
    """stage(x), to the bit, with activations made again in the backward pass instead of kept."""
    if not torch.is_grad_enabled():
        return stage(x)

    def contexts() -> tuple:
        return nullcontext(), constant_statistics(stage)

    return checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
