"""The encoder (`f`, a ResNet), SimCLR's projection head (`g`), and opening weights into them."""

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models.resnet import BasicBlock, Bottleneck

from attentionce.errors import UserError, as_user_error
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
STEMS = {
    "small": "3×3 stride-1 conv1, no max-pool",  # the paper's, for images of 32 px
    "imagenet": "7×7 stride-2 conv1, max-pool",  # torchvision's own, for views of 96 px and more
}
HIDDEN_DIM = 512  # of the projection head
Recompute = Callable[[nn.Module, Tensor], Tensor]

# ------------------------------------------------------------------------------------- the model


def backbone(arch: str = "resnet50", stem: str = "small") -> torchvision.models.ResNet:
    """torchvision's ResNet without fc.

    Args:
        arch: A key of `ARCHS`.
        stem: `small`: the first convolution is 3×3 with stride 1 and keeps PyTorch's default
            initialisation, as in the reference; there is no max-pool. `imagenet`: torchvision's
            own, 7×7 with stride 2, and max-pool.

    Raises:
        ValueError: `arch` or `stem` is unknown.
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

    Args:
        feature_dim: Size of the projection that the loss sees.
        arch: A key of `ARCHS`.
        stem: A key of `STEMS`.

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
    resnet = backbone(arch, stem_of(f.state_dict()["0.weight"]))
    for stage, module in zip(STAGES, f, strict=True):
        setattr(resnet, stage, module)
    if isinstance(resnet.relu, nn.Sequential):
        resnet.relu, resnet.maxpool = resnet.relu
    return resnet


def stem_of(conv1: Tensor) -> str:
    """The stem that a first convolution of this weight belongs to."""
    return "imagenet" if conv1.shape[2:] == (7, 7) else "small"


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


# ------------------------------------------------------------------------------------- weights

# Under these names programs keep weights among other things. The first with an encoder is taken.
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
# A layer of an encoder, in this project's names or in torchvision's, after the encoder's prefix.
LAYER = re.compile(r"(.{1,200}\.)?(f\.[3-6]|layer[1-4])\.\d{1,3}\.")
USUAL_PREFIXES = ("", "model.", "net.")  # of several encoders, the first of these is taken
COUNTS = ("total_ops", "total_params")  # buffers that thop leaves in a model
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-z]", re.IGNORECASE)


def load_encoder(
    path: str | Path, arch: str | None = None, stem: str | None = None
) -> tuple[nn.Sequential, str]:
    """The encoder `f` in a weights file, with or without a projection head, and its arch.

    The file is one of main.py or of the reference, a training state, `--export`'s safetensors, the
    state_dict of `torch.hub`'s encoder or of torchvision's ResNet, or any of these as another
    program wrapped it (`WRAPPERS`) or prefixed its keys. Arch and stem are read off the weights.
    One printed line says what was passed over, except for a projection head.

    Args:
        path: The file. Nothing in it is run.
        arch: A key of `ARCHS`; None reads it off the weights.
        stem: A key of `STEMS` that the weights must have; None: any.

    Raises:
        UserError: There is no encoder, it has another stem, or a tensor of `f` is missing, has
            another shape or is one too many; the message names it.
    """
    model, arch = _load(path, arch, stem, parts=("f",))
    return model.f, arch


def load_model(
    path: str | Path, arch: str | None = None, stem: str | None = None
) -> tuple[Model, str]:
    """The whole model in a weights file, and its arch: like `load_encoder`, but `g` must be there.

    The projection's size is read off the weights.

    Raises:
        UserError: As in `load_encoder`, for `f` and `g`.
    """
    return _load(path, arch, stem, parts=("f", "g"))


def _load(
    path: str | Path, arch: str | None, wanted_stem: str | None, parts: tuple[str, ...]
) -> tuple[Model, str]:
    found = _find(path, _read(Path(path).expanduser()))
    try:
        arch = arch or arch_of(found.state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    feature_dim, stem = 128, "small"
    if isinstance(found.state.get("g.3.bias"), Tensor):
        feature_dim = found.state["g.3.bias"].numel()
    if isinstance(found.state.get("f.0.weight"), Tensor):
        stem = stem_of(found.state["f.0.weight"])
    if wanted_stem not in (None, stem):
        raise UserError(f"{path} has stem {stem}, not {wanted_stem}")
    with torch.device("meta"):  # shapes alone, no memory
        shapes = Model(feature_dim, arch, stem).state_dict()
    state = {key: value for key, value in found.state.items() if key[0] in parts}
    problems = found.misfits(state, {key: shapes[key] for key in shapes if key[0] in parts})
    if problems:
        raise UserError(f"{path} does not fit {arch}: {_some(problems, 3, '; ')}")
    if found.passed_over:
        print(f"{path}: passed over {_some(found.passed_over, 8, ', ')}", flush=True)
    model = Model(feature_dim, arch, stem)
    model.load_state_dict(state, strict=False)  # its fit has been checked
    return model, arch


class _Found(NamedTuple):
    """The weights in a file, by the keys that they have in a Model."""

    state: dict[str, Any]
    prefix: str  # in the file, before each key
    torchvision: bool  # whether the file has torchvision's names
    passed_over: list[str]

    def name(self, key: str) -> str:
        """The name of a Model's key in the file."""
        part, _, rest = key.partition(".")
        if self.torchvision and part == "f":
            stage, _, rest = rest.partition(".")
            return f"{self.prefix}{STAGES[int(stage)]}.{rest}"
        return self.prefix + key

    def misfits(self, state: dict[str, Any], wanted: dict[str, Tensor]) -> list[str]:
        """What keeps `state`, a part of the file's, from being the one that is wanted."""
        problems = [f"{self.name(key)} is missing" for key in wanted if key not in state]
        for key, value in state.items():
            name = self.name(key)[:80]
            if key not in wanted:
                problems.append(f"{name!r} is not part of the model")
            elif not isinstance(value, Tensor):
                problems.append(f"{name} holds a {type(value).__name__}, not a tensor")
            elif value.shape != wanted[key].shape:
                there, here = tuple(value.shape), tuple(wanted[key].shape)
                problems.append(f"{name} has shape {there} instead of {here}")
        return problems


def _read(path: Path) -> dict[str, Any]:
    """The content of a file, as `read` or as safetensors gives it."""
    start, state = b"", path.with_suffix(".state")
    if not path.exists() and state.exists():
        raise UserError(f"there is no file {path}, but {state} has the encoder too")
    if path.is_file():  # opening a pipe would wait for ever
        with as_user_error(f"cannot read {path}"), open(path, "rb") as file:
            start = file.read(512)
    if start[4:9] == b"\0\0\0\0{":  # eight bytes that give the header's length, then the header
        return _read_safetensors(path)
    if WEB_PAGE.match(start):
        raise UserError(f"{path} is a web page, not weights: download it again")
    return read(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} needs one more package: pip install safetensors") from None
    with as_user_error(f"{path} is truncated, damaged or not a safetensors file"):
        return load_file(path)


def _find(path: str | Path, content: dict[str, Any]) -> _Found:
    """Look for the encoder, and for the projection head beside it."""
    content, passed_over = _unwrapped(content)
    plain = {}
    for key, value in content.items():
        name = ".".join(p for p in str(key).split(".") if p not in ("module", "_orig_mod"))
        if name in plain:
            raise UserError(f"{path} has {name[:80]} twice, with different prefixes")
        plain[name] = value
    encoders = _encoders(plain) or {"": False}
    prefix = next(iter(encoders))
    if len(encoders) > 1:
        usual = [prefix for prefix in USUAL_PREFIXES if prefix in encoders]
        if not usual:
            several = _some([repr(prefix) for prefix in encoders], 3, ", ")
            raise UserError(f"{path} holds several encoders, {several}: save one of them by itself")
        prefix = usual[0]
    state, others = {}, []
    for name, value in plain.items():
        own = name.removeprefix(prefix)
        model_key = _model_key(own, encoders[prefix]) if name.startswith(prefix) else None
        if name.endswith(COUNTS):
            others.append(name.split(".")[-1])
        elif model_key is None:
            others.append(own.split(".")[0])
        else:
            state[model_key] = value
    passed_over += [ascii(name)[1:-1][:80] for name in dict.fromkeys(others)]
    return _Found(state, prefix, encoders[prefix], passed_over)


def _unwrapped(content: dict[str, Any], depth: int = 2) -> tuple[dict[str, Any], list[str]]:
    """The dictionary in a file that holds an encoder, and the names of what lies beside it."""
    if depth and not _encoders(content):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                inner, beside = _unwrapped(content[wrapper], depth - 1)
                if _encoders(inner):
                    others = [ascii(str(key))[1:-1][:80] for key in content if key != wrapper]
                    return inner, others + beside
    return content, []


def _encoders(state: Iterable[str]) -> dict[str, bool]:
    """The prefixes of the encoders among these keys; True where the names are torchvision's."""
    layers = [LAYER.match(str(key)) for key in state]
    return {layer[1] or "": layer[2][0] == "l" for layer in layers if layer}


def _model_key(name: str, torchvision: bool) -> str | None:
    """The key that a file's name has in a Model; None if it is not a part of `f` or `g`."""
    part, _, rest = name.partition(".")
    if torchvision and part in STAGES:
        return f"f.{STAGES.index(part)}.{rest}"
    return name if part == "g" or (part == "f" and not torchvision) else None


def _some(items: list[str], count: int, separator: str) -> str:
    """The first items, and how many there are besides."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more
