"""Weights files of this program and of others: the encoder in them, under this program's names.

A file is one of main.py or of the reference, a training state, linear.py's --export, the state_dict
of `torch.hub`'s encoder, of torchvision's ResNet or of its children in a Sequential, or any of them
as another program wrapped it (`WRAPPERS`) or prefixed its keys. Of an online and a momentum encoder
the online one is taken.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attentionce.errors import UserError, as_user_error
from attentionce.runs.files import read

# torchvision's names of f.0 … f.7
STAGES = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool")
# Under these names programs keep weights among other things. The first with an encoder is taken.
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
# What f.0 … f.7 are called in a file: as in torchvision, or by their number in a Sequential, which
# this project prefixes with `f.`. There, a max-pool is number 3.
BY_NUMBER = tuple("01234567")
BY_NUMBER_WITH_POOL = tuple("01245678")
# A part of a residual block: the encoder's prefix, the stage, the block, the part.
LAYER = re.compile(r"(.{1,200}\.)?(layer[1-4]|[3-7])\.\d{1,3}\.(conv|bn|downsample)")
MOMENTUM = re.compile(r"momentum|target|key|(^|[._])(ema|m|k)([._]|$)", re.IGNORECASE)
USUAL_PREFIXES = ("f.", "", "model.f.", "model.", "net.")  # the first of several is taken
COUNTS = ("total_ops", "total_params")  # buffers that thop leaves in a model


class Weights(NamedTuple):
    """The weights in a file, by the keys that they have in a Model."""

    path: str | Path
    state: dict[str, Any]
    prefix: str  # in the file, before each key of the encoder
    stages: tuple[str, ...]  # in the file, the names of f.0 … f.7
    passed_over: list[str]

    def name(self, key: str) -> str:
        """The name of a Model's key in the file."""
        part, _, rest = key.partition(".")
        if part == "g":
            return self.prefix.removesuffix("f.") + key
        number, _, rest = rest.partition(".")
        stage = dict(zip(BY_NUMBER, self.stages, strict=True)).get(number, number)
        return f"{self.prefix}{stage}.{rest}"

    def fitting(self, shapes: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
        """The part of the weights with these keys and shapes; a UserError names what differs."""
        parts = {key[0] for key in shapes}
        state = {key: value for key, value in self.state.items() if key[0] in parts}
        problems = []
        for key in shapes:
            if key not in state and key.endswith("num_batches_tracked"):
                state[key] = torch.zeros_like(shapes[key], device="cpu")  # it is used nowhere
            elif key not in state:
                problems.append(f"{self.name(key)} is missing")
        for key, value in state.items():
            name = self.name(key)[:80]
            if key not in shapes:
                problems.append(f"{name!r} is not part of the model")
            elif not isinstance(value, Tensor):
                problems.append(f"{name} holds a {type(value).__name__}, not a tensor")
            elif value.shape != shapes[key].shape:
                there, here = tuple(value.shape), tuple(shapes[key].shape)
                problems.append(f"{name} has shape {there} instead of {here}")
            elif not value.isfinite().all():
                problems.append(f"{name} has values that are not finite")
        if problems:
            raise UserError(f"{self.path} does not fit {arch}: {_first(problems, 3, '; ')}")
        if self.passed_over:
            print(f"{self.path}: passed over {_first(self.passed_over, 8, ', ')}", flush=True)
        return state


def read_weights(path: str | Path) -> Weights:
    """The encoder in a file, and the projection head if there is one.

    Raises:
        UserError: The file cannot be opened safely, or holds several encoders.
    """
    content, passed_over = _unwrapped(_read(Path(path).expanduser()))
    plain = {}
    for key, value in content.items():
        name = ".".join(p for p in str(key).split(".") if p not in ("module", "_orig_mod"))
        if name in plain:
            raise UserError(f"{path} has {name[:80]} twice, with different prefixes")
        plain[name] = value
    encoders = _encoders(plain) or {"f.": BY_NUMBER}
    prefix = next(iter(encoders))
    if len(encoders) > 1:
        online = [prefix for prefix in encoders if not MOMENTUM.search(prefix)]
        usual = [prefix for prefix in USUAL_PREFIXES if prefix in encoders]
        if len(online) != 1 and not usual:
            several = _first([repr(prefix) for prefix in encoders], 3, ", ")
            raise UserError(f"{path} holds several encoders, {several}: save one of them by itself")
        prefix = online[0] if len(online) == 1 else usual[0]
    stages, head = encoders[prefix], prefix.removesuffix("f.")
    state, others = {}, []
    for name, value in plain.items():
        part, _, rest = name.removeprefix(prefix).partition(".")
        if name.endswith(COUNTS):
            others.append(name.split(".")[-1])
        elif name.startswith(prefix) and part in stages:
            state[f"f.{stages.index(part)}.{rest}"] = value
        elif name.startswith(f"{head}g."):
            state[name.removeprefix(head)] = value
        elif name.startswith("f.") and prefix == "f.":
            state[name] = value  # one too many
        else:
            others.append(name.removeprefix(head).split(".")[0])
    passed_over += [ascii(name)[1:-1][:80] for name in dict.fromkeys(others)]
    return Weights(path, state, prefix, stages, passed_over)


def _read(path: Path) -> dict[str, Any]:
    """The content of a file, as `read` or as safetensors gives it."""
    start, state = b"", path.with_suffix(".state")
    if not path.exists() and state.exists():
        raise UserError(f"{path} does not exist, but {state} has the encoder too")
    if path.is_file():  # opening a pipe would wait for ever
        with as_user_error(f"cannot read {path}"), open(path, "rb") as file:
            start = file.read(9)
    if start[4:] != b"\0\0\0\0{":  # of safetensors: eight bytes, its header's length, then that
        return read(path)
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} needs one more package: pip install safetensors") from None
    with as_user_error(f"{path} is truncated, damaged or not a safetensors file"):
        return load_file(path)


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


def _encoders(state: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The prefixes of the encoders among these keys, and what f.0 … f.7 are called there."""
    stages: dict[str, set[str]] = {}
    for layer in map(LAYER.match, map(str, state)):
        if layer:
            stages.setdefault(layer[1] or "", set()).add(layer[2])
    return {
        prefix: STAGES if "layer1" in found else BY_NUMBER_WITH_POOL if "7" in found else BY_NUMBER
        for prefix, found in stages.items()
    }


def digest(module: nn.Module) -> str:
    """A number that changes with the weights and buffers of a module on the CPU."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


def _first(items: list[str], count: int, separator: str) -> str:
    """The first items, and how many there are besides."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more
