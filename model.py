"""The encoder (`f`, a ResNet) and SimCLR's projection head (`g`)."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models.resnet import BasicBlock, Bottleneck

from attentionce import weights
from attentionce.errors import UserError
from attentionce.weights import STAGES

# Residual blocks per stage; resnet10, one basic block a stage, is for small machines.
ARCHS = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
STEMS = {
    "small": "3×3 stride-1 conv1, no max-pool",  # the paper's, for images of 32 px
    "imagenet": "7×7 stride-2 conv1, max-pool",  # torchvision's own, for views of 96 px and more
}
HIDDEN_DIM = 512  # of the projection head
Recompute = Callable[[nn.Module, Tensor], Tensor]


def backbone(arch: str = "resnet50", stem: str = "small") -> torchvision.models.ResNet:
    """torchvision's ResNet without fc.

    The first convolution of the small stem keeps PyTorch's default initialisation, as in the
    reference.

    Raises:
        ValueError: `arch` is not in `ARCHS`, or `stem` not in `STEMS`.
    """
    if arch not in ARCHS:
        raise ValueError(f"arch {arch!r} is not one of {', '.join(ARCHS)}")
    if stem not in STEMS:
        raise ValueError(f"stem {stem!r} is not one of {', '.join(STEMS)}")
    resnet = torchvision.models.ResNet(*ARCHS[arch])
    if stem == "small":
        resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    resnet.fc = nn.Identity()
    return resnet


def _stages(resnet: torchvision.models.ResNet) -> nn.Sequential:
    """f.0 … f.7. A max-pool has no weights: it joins the ReLU, so that f.3 is always layer1."""
    f = nn.Sequential(*(getattr(resnet, stage) for stage in STAGES))
    if isinstance(resnet.maxpool, nn.MaxPool2d):
        f[2] = nn.Sequential(resnet.relu, resnet.maxpool)
    return f


class Model(nn.Module):
    """Encoder `f` and projection head `g`, named as in the reference: `f.0` … `f.7`, `g.0` … `g.3`.

    `feature_dim` is the size of the projection that the loss sees.

    Example:
        >>> feature, projection = Model(128, "resnet50")(torch.randn(2, 3, 32, 32))
        >>> feature.shape, projection.shape
        (torch.Size([2, 2048]), torch.Size([2, 128]))
    """

    def __init__(self, feature_dim: int = 128, arch: str = "resnet50", stem: str = "small"):
        super().__init__()
        self.f = _stages(backbone(arch, stem))
        self.feature_size = 512 * ARCHS[arch][0].expansion
        self.g = nn.Sequential(
            nn.Linear(self.feature_size, HIDDEN_DIM, bias=False),
            nn.BatchNorm1d(HIDDEN_DIM),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN_DIM, feature_dim, bias=True),
        )

    def forward(self, x: Tensor, recompute: Recompute | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images, B×3×H×W → features and projections, B × their size, of length 1.

        Both are in float32 at least: in half precision the lengths would be wrong by 0.3 %.

        Args:
            recompute: Runs the first stage, `recompute(stage, x)`, so that its activations, a third
                of all, are made again in the backward pass (`training.batchnorm.recomputed`).
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
    resnet = backbone(arch, stem_of(f.state_dict()["0.weight"]))
    for stage, module in zip(STAGES, f, strict=True):
        setattr(resnet, stage, module)
    if isinstance(resnet.relu, nn.Sequential):
        resnet.relu, resnet.maxpool = resnet.relu
    return resnet


def stem_of(conv1: Tensor) -> str:
    """The stem that a first convolution of this weight belongs to."""
    return "imagenet" if conv1.shape[2:] == (7, 7) else "small"


def arch_of(found: weights.Weights) -> str:
    """The arch that has the residual blocks of these weights; a UserError if none has."""
    blocks = []
    for stage in (3, 4, 5, 6):
        keys = [key for key in found.state if key.startswith(f"f.{stage}.")]
        blocks.append(len({key.split(".")[2] for key in keys}))
    block = Bottleneck if "f.3.0.conv3.weight" in found.state else BasicBlock
    for arch, residual in ARCHS.items():
        if residual == (block, blocks):
            return arch
    raise UserError(f"{found.path}: the weights are not of a known arch: {', '.join(ARCHS)}")


def cost(model: nn.Module, image_size: int = 32) -> tuple[int, int | None]:
    """Parameters, and multiply-adds per image of `image_size` pixels, as thop counts them.

    thop leaves buffers in a model, so it is given a copy. Without it, multiply-adds are None.
    """
    try:
        from thop import profile  # slow to import, used once per run
    except ImportError:
        return sum(p.numel() for p in model.parameters()), None
    image = torch.zeros(1, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        macs, parameters = profile(copy.deepcopy(model).to("meta").eval(), (image,), verbose=False)
    return int(parameters), int(macs)


def untrained(arch: str | None, stem: str | None, seed: int) -> tuple[Model, str]:
    """The model that stands for `--model_path random`, by default a resnet50 with a small stem."""
    torch.manual_seed(seed)
    arch = arch or "resnet50"
    return Model(arch=arch, stem=stem or "small"), arch


def load_encoder(
    path: str | Path, arch: str | None = None, stem: str | None = None
) -> tuple[nn.Sequential, str]:
    """The encoder `f` in a weights file, with or without a projection head, and its arch.

    `attentionce.weights` says which files open. Nothing in them is run. One printed line says what
    was passed over, except for a projection head.

    Args:
        arch: A key of `ARCHS`; None reads it off the weights.
        stem: A key of `STEMS` that the weights must have; None: any.

    Raises:
        UserError: There is no encoder, it has another stem, or a tensor of `f` is missing, has
            another shape or is one too many; the message names it.
    """
    model, arch = _load(path, arch, stem, ("f",))
    return model.f, arch


def load_model(
    path: str | Path, arch: str | None = None, stem: str | None = None
) -> tuple[Model, str]:
    """Like `load_encoder`, with the projection head `g`, whose size is read off the weights."""
    return _load(path, arch, stem, ("f", "g"))


def start_from(model: Model, path: str | Path) -> None:
    """Give a model the encoder in a weights file, and its projection head if that fits.

    One printed line says what was taken. An encoder that does not fit is a UserError.
    """
    found, shapes = weights.read_weights(path), model.state_dict()
    head = {key: value for key, value in found.state.items() if key[0] == "g"}
    wanted = {key: value.shape for key, value in shapes.items() if key[0] == "g"}
    fits = {key: getattr(value, "shape", None) for key, value in head.items()} == wanted
    taken = {key: value for key, value in shapes.items() if fits or key[0] == "f"}
    model.load_state_dict(found.fitting(taken, "this --arch"), strict=False)
    what = "encoder and projection head" if fits else "encoder; the projection head is untrained"
    print(f"starting from {path}: {what}", flush=True)


def _load(
    path: str | Path, arch: str | None, wanted_stem: str | None, parts: tuple[str, ...]
) -> tuple[Model, str]:
    found = weights.read_weights(path)
    arch = arch or arch_of(found)
    feature_dim, stem = 128, "small"
    if isinstance(found.state.get("g.3.bias"), Tensor):
        feature_dim = found.state["g.3.bias"].numel()
    if isinstance(found.state.get("f.0.weight"), Tensor):
        stem = stem_of(found.state["f.0.weight"])
    if wanted_stem not in (None, stem):
        raise UserError(f"{path} has stem {stem}, not {wanted_stem}")
    with torch.device("meta"):  # shapes alone, no memory
        shapes = Model(feature_dim, arch, stem).state_dict()
    state = found.fitting({key: value for key, value in shapes.items() if key[0] in parts}, arch)
    model = Model(feature_dim, arch, stem)
    model.load_state_dict(state, strict=False)  # its fit has been checked
    return model, arch
