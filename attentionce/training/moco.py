"""MoCo: a slowly moving copy of the encoder encodes the positives; negatives are a queue of keys.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020. The
anchors are the queries.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce.training import processes


class MoCo(nn.Module):
    """A copy of the encoder, which keeps the share `momentum` of itself at every step, and a queue
    of `length` keys of size `dim`, at first random directions.
    """

    queue: Tensor
    position: Tensor

    def __init__(self, model: nn.Module, length: int, momentum: float, dim: int):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("queue", normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, model: nn.Module, finite: Tensor) -> None:
        """Move towards the trained encoder, if the step was `finite` (a bool on the device).

        A lerp whose weight is on the device, so that the host need not wait for it, in three
        launches for all parameters.
        """
        moving: list[Tensor] = list(self.model.parameters())
        trained: list[Tensor] = list(model.parameters())
        difference = torch._foreach_sub(trained, moving)
        torch._foreach_mul_(difference, (1 - self.momentum) * finite.to(moving[0].dtype))
        torch._foreach_add_(moving, difference)

    @torch.no_grad()
    def push(self, keys: Tensor, finite: Tensor) -> None:
        """If `finite`, replace the queue's oldest keys by those of all processes, b × dim each."""
        keys = processes.gather_rows(keys.to(self.queue.dtype))
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = torch.where(finite, keys, self.queue[places])
        self.position += len(keys) * finite
