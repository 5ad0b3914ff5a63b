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
    """The momentum encoder and the queue, all that MoCo adds to a run.

    Args:
        model: The encoder that is trained; it is copied.
        length: Keys in the queue, K. It starts with random directions.
        momentum: The share of itself that the momentum encoder keeps at every step.
        dim: Size of a key.
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
        """Move towards the trained encoder, except after a step that was not finite.

        A lerp whose weight is on the device, so that the host need not wait for it, in three
        launches for all parameters.

        Args:
            finite: A bool on the device.
        """
        moving: list[Tensor] = list(self.model.parameters())
        trained: list[Tensor] = list(model.parameters())
        difference = torch._foreach_sub(trained, moving)
        torch._foreach_mul_(difference, (1 - self.momentum) * finite.to(moving[0].dtype))
        torch._foreach_add_(moving, difference)

    @torch.no_grad()
    def push(self, keys: Tensor, finite: Tensor) -> None:
        """Replace the oldest keys in the queue with those of all processes, b × dim each.

        Args:
            finite: A bool on the device; if it is false, nothing is enqueued.
        """
        keys = processes.gather_rows(keys.to(self.queue.dtype))
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = torch.where(finite, keys, self.queue[places])
        self.position += len(keys) * finite
