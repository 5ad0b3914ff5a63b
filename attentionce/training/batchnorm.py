"""BatchNorm over the views of a pass one by one, and in a second pass over the same batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class _PerView:
    """BatchNorm over each of the `views` that a batch holds one after another, in their order."""

    views = 1

    def forward(self, x: Tensor) -> Tensor:
        normalise = super().forward  # type: ignore[misc]
        if not self.training or self.views == 1:  # type: ignore[attr-defined]
            return normalise(x)
        return torch.cat([normalise(part) for part in x.chunk(self.views)])


PER_VIEW: dict[type, type] = {
    kind: type(f"{kind.__name__}PerView", (_PerView, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
}


def set_views_per_pass(model: nn.Module, views: int) -> None:
    """From now on a batch holds that many views, and the model's BatchNorm treats each on its own.

    Statistics, running ones included, are those of as many passes of one view.
    """
    for norm in model.modules():
        if type(norm) in PER_VIEW:
            norm.__class__ = PER_VIEW[type(norm)]
        if isinstance(norm, _PerView):
            norm.views = views


@contextmanager
def constant_statistics(module: nn.Module) -> Iterator[None]:
    """Context manager in which BatchNorm normalises as always but keeps its running statistics.

    By momentum 0, not eval mode: what BatchNorm saves for the backward pass must be the same.
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
