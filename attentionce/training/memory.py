"""How much memory a step is expected to take."""

import argparse

import torch
from torch import Tensor, nn

from attentionce.training.batchnorm import recomputed

PER_PARAMETER = 16  # bytes: weight, gradient and Adam's two moments in float32


def expected_bytes(
    model: nn.Module, args: argparse.Namespace, dtype: torch.dtype, compiled: bool
) -> int:
    """Bytes that a step's weights, optimiser and activations take, calculated, not measured.

    Activations are counted on two images and scaled up; in half precision they take half. A
    compiler may keep less than is counted here; cuDNN's workspaces come on top.
    """
    weights = sum(p.numel() for p in model.parameters()) * PER_PARAMETER
    recompute = not compiled and not args.grad_cache
    per_image = activation_bytes(model, args.image_size, recompute)
    if dtype != torch.float32:
        per_image //= 2
    views = 2 if args.estimator == "MoCo" else 2 + (args.num_pos or 0)  # keys need no gradient
    views = 1 if args.grad_cache else views
    return weights + per_image * args.batch_size * views


def activation_bytes(model: nn.Module, image_size: int, recompute: bool) -> int:
    """Bytes per image that a forward pass in float32 keeps for the backward pass.

    Counted on meta tensors, which take neither memory nor time.
    """
    kept: dict[int, Tensor] = {}  # by storage; the tensors are held, so that none is used twice
    parameters = {name: empty(p).requires_grad_() for name, p in model.named_parameters()}
    buffers = {name: empty(buffer) for name, buffer in model.named_buffers()}
    weights = {storage(p) for p in parameters.values()}

    def note(tensor: Tensor) -> Tensor:
        if storage(tensor) not in weights:
            kept[storage(tensor)] = tensor
        return tensor

    images = torch.empty(2, 3, image_size, image_size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        inputs = images, recomputed if recompute else None
        output = torch.func.functional_call(model, {**parameters, **buffers}, inputs)
        del output
    return sum(tensor.nbytes for tensor in kept.values()) // len(images)


def empty(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape, type and layout."""
    return torch.empty_like(tensor, device="meta")


def storage(tensor: Tensor) -> int:
    """What tells the tensor's memory from that of others, although it has no address."""
    return tensor.untyped_storage()._cdata
