"""Weights files of this program and of others: the encoder in them, under this program's names.

A file is one of main.py or of the reference, a training state, linear.py's --export, the state_dict
of `torch.hub`'s encoder or of torchvision's ResNet, or any of these as another program wrapped it
(`WRAPPERS`) or prefixed its keys.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from attentionce.errors import UserError, as_user_error
from attentionce.runs.files import read

# torchvision's names of f.0 … f.7
STAGES = ("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "avgpool")
# Under these names programs keep weights among other things. The first with an encoder is taken.
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
# A layer of an encoder, in this project's names or in torchvision's, after the encoder's prefix.
LAYER = re.compile(r"(.{1,200}\.)?(f\.[3-6]|layer[1-4])\.\d{1,3}\.")
USUAL_PREFIXES = ("", "model.", "net.")  # of several encoders, the first of these is taken
COUNTS = ("total_ops", "total_params")  # buffers that thop leaves in a model
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<[!?a-z]", re.IGNORECASE)


class Weights(NamedTuple):
    """The weights in a file, by the keys that they have in a Model."""

    path: str | Path
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

    def fitting(self, shapes: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
        """The part of the weights that has these keys and shapes.

        Raises:
            UserError: A tensor is missing, of another shape, or one too many; the message names it.
        """
        parts = {key[0] for key in shapes}
        state = {key: value for key, value in self.state.items() if key[0] in parts}
        problems = [f"{self.name(key)} is missing" for key in shapes if key not in state]
        for key, value in state.items():
            name = self.name(key)[:80]
            if key not in shapes:
                problems.append(f"{name!r} is not part of the model")
            elif not isinstance(value, Tensor):
                problems.append(f"{name} holds a {type(value).__name__}, not a tensor")
            elif value.shape != shapes[key].shape:
                there, here = tuple(value.shape), tuple(shapes[key].shape)
                problems.append(f"{name} has shape {there} instead of {here}")
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
    encoders = _encoders(plain) or {"": False}
    prefix = next(iter(encoders))
    if len(encoders) > 1:
        usual = [prefix for prefix in USUAL_PREFIXES if prefix in encoders]
        if not usual:
            several = _first([repr(prefix) for prefix in encoders], 3, ", ")
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
    return Weights(path, state, prefix, encoders[prefix], passed_over)


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


def _first(items: list[str], count: int, separator: str) -> str:
    """The first items, and how many there are besides."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more
