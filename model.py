"""The encoder: a ResNet for small images (`f`) and SimCLR's projection head (`g`)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

# Residual blocks a stage; resnet10, one basic block a stage, is for small machines.
ARCHS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
STAGES = (
    "conv1",
    "bn1",
    "relu",
    "layer1",
    "layer2",
    "layer3",
    "layer4",
    "avgpool",
)  # torchvision's names of f.0 … f.7
HIDDEN_DIM = 512  # of the projection head


def backbone(arch: str = "resnet50") -> torchvision.models.ResNet:
    """torchvision's ResNet as small images need it: 3×3 stride-1 first convolution, no max-pool, no classifier.

    The first convolution keeps PyTorch's default initialisation, as in the reference.

    Raises:
        ValueError: `arch` is not one of `ARCHS`.
    """
    if arch not in ARCHS:
        raise ValueError(f"arch {arch!r} is not one of {', '.join(ARCHS)}")
    resnet = torchvision.models.ResNet(*ARCHS[arch])
    resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    resnet.maxpool = nn.Identity()
    resnet.fc = nn.Identity()
    return resnet


class Model(nn.Module):
    """Encoder `f` and projection head `g`, with the attribute and weight names of the reference (`f.0` … `f.7`, `g.0` … `g.3`).

    Args:
        feature_dim: size of the projection that the loss sees.
        arch: a key of `ARCHS`.

    Example:
        >>> feature, projection = Model(128, "resnet50")(torch.randn(2, 3, 32, 32))
        >>> feature.shape, projection.shape
        (torch.Size([2, 2048]), torch.Size([2, 128]))
    """

    def __init__(self, feature_dim: int = 128, arch: str = "resnet50"):
        super().__init__()
        resnet = backbone(arch)
        self.f = nn.Sequential(*(getattr(resnet, stage) for stage in STAGES))
        self.feature_size = 512 * ARCHS[arch][0].expansion
        self.g = nn.Sequential(
            nn.Linear(self.feature_size, HIDDEN_DIM, bias=False),
            nn.BatchNorm1d(HIDDEN_DIM),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN_DIM, feature_dim, bias=True),
        )

    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised images B×3×H×W → (feature B×feature_size, projection B×feature_dim), both of length 1.

        Float32, or float64 of a float64 model: in half precision lengths would be wrong by 0.3 %. `recompute`: the first
        stage's activations, a third of all, are made again in the backward pass instead of kept.
        """
        encoded = _recomputing(self.f, x) if recompute and torch.is_grad_enabled() else self.f(x)
        feature = torch.flatten(encoded, start_dim=1)
        vectors = (feature, self.g(feature))
        feature, projection = (
            normalize(v.to(torch.promote_types(v.dtype, torch.float32)), dim=-1) for v in vectors
        )
        return feature, projection


def _recomputing(f: nn.Sequential, x: Tensor) -> Tensor:
    """f(x), to the bit, which keeps of its first stage only what goes into it."""
    for name, stage in zip(STAGES, f, strict=True):
        if name == "layer1":
            contexts = nullcontext(), constant_statistics(stage)
            x = checkpoint(
                stage,
                x,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: contexts,  # noqa: B023
            )
        else:
            x = stage(x)
    return x


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


def as_resnet(f: nn.Sequential, arch: str) -> torchvision.models.ResNet:
    """A Model's `f` as the `backbone` that it was made from, under torchvision's names; the weights are shared."""
    resnet = backbone(arch)
    for stage, module in zip(STAGES, f, strict=True):
        setattr(resnet, stage, module)
    return resnet


def arch_of(keys: dict) -> str:
    """The arch whose encoder has the residual blocks that a state_dict's keys name (without prefix).

    Raises:
        ValueError: no arch has them.
    """
    blocks = [
        len({k.split(".")[2] for k in keys if k.startswith(f"f.{stage}.")})
        for stage in (3, 4, 5, 6)
    ]
    block = Bottleneck if "f.3.0.conv3.weight" in keys else BasicBlock
    for arch, known in ARCHS.items():
        if known == (block, blocks):
            return arch
    raise ValueError("the weights are of no known arch: " + ", ".join(ARCHS))


def cost(model: nn.Module, image_size: int = 32) -> tuple[int, int]:
    """(parameters, multiply-adds of one image of `image_size` pixels), counted by thop.

    thop leaves buffers behind in the model that it counts, so it is given a copy.
    """
    from thop import profile  # slow to import, used once a run

    device = next(model.parameters()).device
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        macs, parameters = profile(
            copied, (torch.zeros(1, 3, image_size, image_size, device=device),), verbose=False
        )
    return int(parameters), int(macs)
