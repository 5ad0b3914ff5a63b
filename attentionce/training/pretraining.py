"""A pretraining run: what it works with and where it stands."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attentionce.training.moco import MoCo

Loss = Callable[[Tensor], Tensor]  # embeddings, views × batch × dim → mean loss


@dataclass
class Run:
    """A pretraining run: what it works with, and `progress`, which with weights and optimiser is all that changes."""

    args: argparse.Namespace
    device: torch.device
    dtype: torch.dtype  # that the encoder computes in
    pixels: Tensor  # uint8 N×3×H×W, on the device where they fit
    model: nn.Module
    encoder: nn.Module  # the model, compiled perhaps
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    views: int
    make_view: Callable[..., Tensor]
    progress: dict[str, Any]
    moco: MoCo | None = None
    key_encoder: nn.Module | None = None  # MoCo's, compiled perhaps
    good_buffers: list[Tensor] | None = None  # BatchNorm's statistics at the last look
    saved_at: tuple[int, int] | None = None  # epoch and step of the newest state

    @property
    def position(self) -> tuple[int, int]:
        """Epoch, from 1, and the number of its steps that are done."""
        return self.progress["epoch"], self.progress["step"]

    @property
    def steps(self) -> int:
        """Steps an epoch: the last partial batch is dropped."""
        return len(self.pixels) // self.args.batch_size


def new_progress(steps: int, device: torch.device) -> dict[str, Any]:
    """Where a fresh run stands: before step 0 of epoch 1."""
    return {
        "epoch": 1,
        "step": 0,
        "losses": torch.zeros(steps, device=device),  # of this epoch's steps
        "skipped": torch.zeros((), device=device),  # steps that fp16's gradient scaler skipped
        "seconds": 0.0,
        "effective": [],  # numbers of positives and of negatives, at the epoch's last step
        "best_knn": 0.0,
        "rows": [],  # of the table of metrics, one an epoch
    }
