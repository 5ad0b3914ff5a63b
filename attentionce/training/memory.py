"""How much memory a step is expected to take."""

import argparse
import copy

import torch
from torch import Tensor, nn

from attentionce.training import processes
from attentionce.training.batchnorm import recomputed

PER_PARAMETER = 16  # bytes: weight, gradient and Adam's two moments in float32


def expected_bytes(
    model: nn.Module, args: argparse.Namespace, dtype: torch.dtype, compiled: bool
) -> int:
    """Bytes that a process's weights, optimiser and activations take, calculated, not measured.

    A compiler may keep less than is counted here; cuDNN's workspaces come on top.
    """
    moco = args.estimator == "MoCo"  # keys need no gradient, but weights of their own
    weights = sum(p.numel() for p in model.parameters()) * (PER_PARAMETER + 4 * moco)
    per_image = activation_bytes(model, args.image_size, not compiled and not args.grad_cache)
    if dtype != torch.float32:
        per_image //= 2
    views = 1 if args.grad_cache else 2 if moco else 2 + (args.num_pos or 0)
    return weights + per_image * views * args.batch_size // processes.world()


def activation_bytes(model: nn.Module, image_size: int, recompute: bool) -> int:
    """Bytes per image that a forward pass in float32 keeps for the backward pass.

    Counted on the meta device, where two images take neither memory nor time.
    """
    model = copy.deepcopy(model).to("meta")
    kept: dict[int, Tensor] = {}  # by storage, because meta tensors have no address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    images = torch.empty(2, 3, image_size, image_size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images, recomputed if recompute else None)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return sum(tensor.nbytes for tensor in kept.values()) // 2
