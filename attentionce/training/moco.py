"""MoCo: positives encoded by a slowly moving copy of the encoder, negatives from a queue of earlier keys.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020. The anchors are the queries.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce.training import processes


class MoCo(nn.Module):
    """The momentum encoder and the queue, all that MoCo adds to a run.

    Args:
        model: the encoder that is trained; copied.
        length: keys in the queue, K. It starts with random directions.
        momentum: the share of itself that the momentum encoder keeps at every step.
    """

    def __init__(self, model: nn.Module, length: int, momentum: float, dim: int):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("queue", normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, model: nn.Module, finite: Tensor) -> None:
        """Move towards the trained encoder; not after a step that was not finite (`finite`, a bool on the device)."""
        for own, trained in zip(self.model.parameters(), model.parameters(), strict=True):
            own.lerp_(trained, (1 - self.momentum) * finite.to(own.dtype))

    @torch.no_grad()
    def push(self, keys: Tensor, finite: Tensor) -> None:
        """Put keys b × dim, those of all processes, in the place of the queue's oldest."""
        keys = processes.gather_rows(keys.to(self.queue.dtype))
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = torch.where(finite, keys, self.queue[places])
        self.position += len(keys) * finite
