"""How much memory a step is expected to take."""

import argparse

import torch
from torch import Tensor, nn

from attentionce.training.batchnorm import constant_statistics, recomputed

PER_PARAMETER = 16  # bytes: weight, gradient and Adam's two moments in float32


def expected_bytes(
    model: nn.Module, args: argparse.Namespace, views: int, dtype: torch.dtype, compiled: bool
) -> int:
    """Bytes that a step's weights, optimiser and activations take, calculated, not measured.

    Activations are counted on two images and scaled up; in half precision they take half. A
    compiler may keep less than is counted here; cuDNN's workspaces come on top.

    Args:
        views: Per image.
    """
    weights = sum(p.numel() for p in model.parameters()) * PER_PARAMETER
    recompute = not compiled and not args.grad_cache
    per_image = activation_bytes(model, args.image_size, recompute)
    if dtype != torch.float32:
        per_image //= 2
    return weights + per_image * args.batch_size * (1 if args.grad_cache else views)


def activation_bytes(model: nn.Module, image_size: int, recompute: bool) -> int:
    """Bytes per image that a forward pass in float32 keeps for the backward pass."""
    kept: dict[int, Tensor] = {}  # by address; the tensors are held, so that none is used twice
    weights = {p.data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    device = next(model.parameters()).device
    images = torch.zeros(2, 3, image_size, image_size, device=device)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, constant_statistics(model):
        output = model(images, recomputed if recompute else None)
        del output
    return sum(tensor.nbytes for tensor in kept.values()) // len(images)
