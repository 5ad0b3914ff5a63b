"""The encoder: a ResNet for small images (`f`) and SimCLR's projection head (`g`)."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models.resnet import BasicBlock, Bottleneck

from attentionce.errors import UserError
from attentionce.runs.files import read

# Residual blocks per stage; resnet10, one basic block a stage, is for small machines.
ARCHS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
# torchvision's names of f.0 … f.7
STAGES = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool")
HIDDEN_DIM = 512  # of the projection head
Recompute = Callable[[nn.Module, Tensor], Tensor]


def backbone(arch: str = "resnet50") -> torchvision.models.ResNet:
    """torchvision's ResNet for small images: 3×3 stride-1 first convolution, no max-pool, no fc.

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
    """Encoder `f` and projection head `g`, with the reference's names: `f.0` … `f.7`, `g.0` … `g.3`.

    Args:
        feature_dim: Size of the projection that the loss sees.
        arch: A key of `ARCHS`.

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

    def forward(self, x: Tensor, recompute: Recompute | None = None) -> tuple[Tensor, Tensor]:
        """Images → features and projections, both of length 1.

        Args:
            x: Normalised images, B×3×H×W.
            recompute: Runs the first stage, `recompute(stage, x)`, so that its activations, a third
                of all, are made again in the backward pass (`training.batchnorm.recomputed`).

        Returns:
            (B × feature_size, B × feature_dim) in float32, or float64 of a float64 model: in half
            precision the lengths would be wrong by 0.3 %.
        """
        if recompute is None:
            encoded = self.f(x)
        else:
            encoded = self.f[4:](recompute(self.f[3], self.f[:3](x)))
        feature = torch.flatten(encoded, start_dim=1)
        return _unit(feature), _unit(self.g(feature))


def _unit(vectors: Tensor) -> Tensor:
    return normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def as_resnet(f: nn.Sequential, arch: str) -> torchvision.models.ResNet:
    """A Model's `f` under torchvision's names, as `backbone` makes it; the weights are shared."""
    resnet = backbone(arch)
    for stage, module in zip(STAGES, f, strict=True):
        setattr(resnet, stage, module)
    return resnet


def arch_of(state: dict[str, Tensor]) -> str:
    """The arch whose residual blocks a state_dict has, by its keys (without prefix).

    Raises:
        ValueError: It is none of `ARCHS`.
    """
    blocks = []
    for stage in (3, 4, 5, 6):
        blocks.append(len({key.split(".")[2] for key in state if key.startswith(f"f.{stage}.")}))
    block = Bottleneck if "f.3.0.conv3.weight" in state else BasicBlock
    for arch, known in ARCHS.items():
        if known == (block, blocks):
            return arch
    raise ValueError("the weights are not of a known arch: " + ", ".join(ARCHS))


def cost(model: nn.Module, image_size: int = 32) -> tuple[int, int]:
    """Parameters, and multiply-adds per image of `image_size` pixels, as thop counts them.

    thop leaves buffers behind in the model that it counts, so it is given a copy.
    """
    from thop import profile  # slow to import, used once per run

    device = next(model.parameters()).device
    image = torch.zeros(1, 3, image_size, image_size, device=device)
    with torch.no_grad():
        macs, parameters = profile(copy.deepcopy(model).eval(), (image,), verbose=False)
    return int(parameters), int(macs)


def load_model(path: str | Path, arch: str | None = None) -> tuple[Model, str]:
    """The model in a weights file, whose keys and shapes must all match, and its arch.

    The keys may have the prefixes `module.` and `_orig_mod.`. The projection's size is read off the
    weights, and so is the arch if it is not given.

    Raises:
        UserError: Names the keys or shapes that are missing, too many or different.
    """
    state = _without_prefixes(path, read(path))
    try:
        arch = arch or arch_of(state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    feature_dim = state["g.3.bias"].numel() if "g.3.bias" in state else 128
    with torch.device("meta"):  # shapes alone, no memory
        wanted = Model(feature_dim, arch).state_dict()
    problems = [f"{key} is missing" for key in wanted if key not in state]
    problems += [f"{key[:80]!r} is not part of the model" for key in state if key not in wanted]
    for key in wanted:
        if key in state and state[key].shape != wanted[key].shape:
            there, here = tuple(state[key].shape), tuple(wanted[key].shape)
            problems.append(f"{key} has shape {there} instead of {here}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} does not fit {arch}: {'; '.join(problems[:3])}{more}")
    model = Model(feature_dim, arch)
    model.load_state_dict(state, strict=True)
    return model, arch


def _without_prefixes(path: str | Path, content: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(
                f"{path} is not a state_dict: {str(key)[:80]!r} holds a {kind}, not a tensor"
            )
        name = key.replace("module.", "").replace("_orig_mod.", "")
        if name in state:
            raise UserError(f"{path} has {name} twice, with different prefixes")
        state[name] = value
    return state
