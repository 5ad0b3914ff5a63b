"""Weights on disk: named as in the reference, never half a file, never code."""

import csv
import io
import json
import os
import pickletools
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from model import Model, arch_of
from utils import UserError

# What each loss is computed with besides the temperature: the last part of a file's name.
PARAMETERS = {
    "attention_nce": ("d_pos", "d_neg"),
    "simclr": (),
    "dcl": ("tau_plus",),
    "hcl": ("tau_plus", "beta"),
    "bcl": ("tau_plus", "alpha", "beta"),
}
LARGEST_FILE = 8 * 2**30  # bytes; a state of resnet50 is 0.3 GB
LARGEST_PICKLE = 64 * 2**20  # bytes of structure, without the tensors' own; resnet50 has 0.03 MB
# The only names that a state_dict's pickle needs. weights_only allows a few more, bytearray(10**12) among them.
KNOWN_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}


def stem(args: Namespace, epoch: int | str) -> str:
    """A file's name without ending: `stl10_SimCLR_4model_256_400_2.0_0.5`, or `cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9`."""
    method = f"{args.num_pos}model" if args.loss == "attention_nce" else args.loss
    numbers = [str(float(getattr(args, name))) for name in PARAMETERS[args.loss]]
    return "_".join([args.dataset_name, args.estimator, method, str(args.batch_size), str(epoch), *numbers])


# ---------------------------------------------------------------------------------------------- writing


def writable_folder(path: Path) -> Path:
    """The folder, made where it is missing, after a trial file has shown that it takes files."""
    trial = path / f".trial-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"x")
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the results folder {path}: {error.strerror}; name another with --results") from None
    return path


def replace(path: Path, write: Callable[[BinaryIO], Any], previous: Path | None = None) -> None:
    """Replace a file in one step: `write(file)` to a temporary name beside it, flushed to disk, then renamed.

    Whatever interrupts this, `path` (or `previous`, the file that it held before) is whole.

    Raises:
        UserError: the disk is full, read-only or gone; the temporary file is removed, `path` is as before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.suffix in (".pth", ".state"):
            check(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError, UserError) as error:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; what was there before is unharmed") from error


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """`torch.save` by way of `replace`; what is written can be read with weights_only."""
    replace(path, lambda file: torch.save(content, file), previous)


def save_text(path: Path, text: str) -> None:
    """Write a text file by way of `replace`."""
    replace(path, lambda file: file.write(text.encode()))


def save_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the same keys as a table with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary, one key a line."""
    save_text(path, json.dumps(content, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------- reading


def check(path: Path) -> None:
    """Refuse what is not a whole file written by torch.save, before anything of it is unpickled or takes memory.

    Every record must be stored as it is (a compressed one could unpack to any size), lie within the file and match its
    checksum; the pickle must name nothing but tensors and dictionaries.

    Raises:
        UserError: what is wrong, in one line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            sizes = sum(record.file_size for record in records)
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise UserError(f"{path} has compressed records, which torch.save never writes: not opened")
            if sizes > min(path.stat().st_size, LARGEST_FILE):
                raise UserError(f"{path} claims to hold {sizes:,} bytes: more than it can; not opened")
            pickles = [record for record in records if record.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                raise UserError(f"{path} was not written by torch.save")
            damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path} is damaged: the checksum of {damaged!r} does not match")
            _check_names(path, archive.read(pickles[0]))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is truncated, damaged or no weights file of PyTorch 1.6 or later ({error})") from None


def _check_names(path: Path, pickled: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise UserError(f"{path} holds more than tensors ({opcode.name}): not opened")
        storage = opcode.name == "GLOBAL" and argument.startswith("torch ") and argument.endswith("Storage")
        if opcode.name == "GLOBAL" and not storage and argument not in KNOWN_GLOBALS:
            raise UserError(f"{path} holds more than tensors ({argument!r}): not opened")


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Nothing in the file can run code: `check` first, then weights_only.

    Raises:
        UserError: missing, truncated, damaged, too large, or holding anything but tensors and plain values.
    """
    check(Path(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile pickle provokes in the unpickler
        raise UserError(f"{path} cannot be opened as weights: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict")
    return content


def load_model(path: str | Path, arch: str | None = None) -> tuple[Model, str]:
    """The model that a weights file holds, and its arch; every key and shape must match.

    Opens files with or without the `module.` and `_orig_mod.` prefixes. The projection's size is read off the weights,
    and so is the arch when it is not given.

    Raises:
        UserError: names the keys or shapes that are missing, too many or different.
    """
    state = {}
    for key, value in read(path).items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.is_sparse:
            raise UserError(f"{path} is not a state_dict: {str(key)[:80]!r} holds a {type(value).__name__}, not a tensor")
        state[key.replace("module.", "").replace("_orig_mod.", "")] = value
    try:
        arch = arch or arch_of(state)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    with torch.device("meta"):  # shapes alone, no memory
        wanted = Model(state["g.3.bias"].numel() if "g.3.bias" in state else 128, arch).state_dict()
    problems = [f"{key} is missing" for key in wanted if key not in state]
    problems += [f"{key} is not part of the model" for key in state if key not in wanted]
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
