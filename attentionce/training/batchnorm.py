"""BatchNorm's running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def constant_statistics(module: nn.Module) -> Iterator[None]:
    """For a second pass of a batch: BatchNorm normalises as ever, but its running statistics stay as they are.

    It moves them by nothing rather than not at all: what it saves for the backward pass must be what the first pass saved.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
