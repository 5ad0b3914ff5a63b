"""The encoder: a ResNet for small images (`f`) and SimCLR's projection head (`g`)."""

import copy
from contextlib import nullcontext
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from attentionce.errors import UserError
from attentionce.runs.files import read
from attentionce.training.batchnorm import constant_statistics

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


def load_model(path: str | Path, arch: str | None = None) -> tuple[Model, str]:
    """The model that a weights file holds, and its arch; every key and shape must match.

    Opens files with or without the `module.` and `_orig_mod.` prefixes. The projection's size is read off the weights,
    and so is the arch when it is not given.

    Raises:
        UserError: names the keys or shapes that are missing, too many or different.
    """
    state = {}
    for key, value in read(path).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} is not a state_dict: {str(key)[:80]!r} holds a {type(value).__name__}, not a tensor"
            )
        name = key.replace("module.", "").replace("_orig_mod.", "")
        if name in state:
            raise UserError(f"{path} has {name} twice, with different prefixes")
        state[name] = value
    try:
        arch = arch or arch_of(state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    with torch.device("meta"):  # shapes alone, no memory
        wanted = Model(state["g.3.bias"].numel() if "g.3.bias" in state else 128, arch).state_dict()
    problems = [f"{key} is missing" for key in wanted if key not in state]
    problems += [f"{key[:80]!r} is not part of the model" for key in state if key not in wanted]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} does not fit {arch}: {'; '.join(problems[:3])}{more}")
    model = Model(wanted["g.3.bias"].numel(), arch)
    model.load_state_dict(state, strict=True)
    return model, arch
