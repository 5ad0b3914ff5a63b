"""Weights on disk: named as in the reference, never half a file, never code."""

import csv
import io
import json
import os
import pickletools
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from attentionce.errors import UserError, mending

LARGEST_FILE = 8 * 2**30  # bytes; a state of resnet50 is 0.3 GB
LARGEST_PICKLE = (
    4 * 2**20
)  # bytes of structure, without the tensors' own; a state of resnet50 after 400 epochs has 0.1 MB
LARGEST_DIRECTORY = 4 * 2**20  # bytes of the list of records; a state of resnet50 has 0.04 MB
# The only names that a state_dict's pickle needs. weights_only allows a few more, bytearray(10**12) among them.
KNOWN_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}


# ---------------------------------------------------------------------------------------------- writing


def writable_folder(path: Path) -> Path:
    """The folder, made where it is missing, after a trial file has shown that it takes files."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(
            dir=path
        ) as trial:  # which has no name that a crash could leave behind
            trial.write(b"x")
    except OSError as error:
        raise UserError(
            f"cannot write to the results folder {path}: {error.strerror}; name another with --results"
        ) from None
    return path


def replace(
    path: Path,
    write: Callable[[BinaryIO], Any],
    previous: Path | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Replace a file in one step: `write(file)` to a temporary name beside it, flushed to disk, then renamed.

    Whatever interrupts this, `path` (or `previous`, the file that it held before) is whole. `verify`, if given, reads what
    was written before it takes the place.

    Raises:
        UserError: the disk is full, read-only or gone; the temporary file is removed, `path` or `previous` is as before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (
        OSError,
        RuntimeError,
        UserError,
    ) as error:  # torch.save turns a full disk into a RuntimeError
        with suppress(OSError):  # a folder that is gone or read-only
            temporary.unlink()
        reasons = (
            getattr(e, "strerror", None) for e in (error, error.__context__)
        )  # the second: what torch.save ran into
        reason = next(filter(None, reasons), None) or str(error).splitlines()[0]
        advice = "what was there before is unharmed; mend that and give the same command again"
        raise UserError(f"cannot write {path}: {reason}; {advice}") from error


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems flush files, but no folders
            os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """`torch.save` by way of `replace`; what is written can be read with weights_only."""
    replace(path, lambda file: torch.save(content, file), previous, verify=check)


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

    Every record must be there once, stored as it is (a compressed one could unpack to any size), lie within the file and
    match its checksum; the pickle must name nothing but tensors and dictionaries.

    Raises:
        UserError: what is wrong, in one line.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path} is no file")
    with (
        mending(f"{path} is truncated, damaged or no weights file of PyTorch 1.6 or later"),
        open(path, "rb") as file,
    ):
        _check_frame(path, file)
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            sizes = sum(record.file_size for record in records)
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise UserError(
                    f"{path} has compressed records, which torch.save never writes: not opened"
                )
            if sizes > min(path.stat().st_size, LARGEST_FILE):
                raise UserError(
                    f"{path} claims to hold {sizes:,} bytes: more than it can; not opened"
                )
            names = [
                record.filename.lower() for record in records
            ]  # torch.load does not tell A from a
            pickles = [
                record
                for record, name in zip(records, names, strict=True)
                if name.endswith("/data.pkl")
            ]
            if (
                len(pickles) != 1
                or pickles[0].file_size > LARGEST_PICKLE
                or len(set(names)) < len(names)
            ):
                raise UserError(f"{path} was not written by torch.save: not opened")
            if any(
                record.is_dir() or record.external_attr & 0x10 for record in records
            ):  # torch.load reads no numbers then
                raise UserError(f"{path} has a folder among its records: not opened")
            damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path} is damaged: the checksum of {damaged!r} does not match")
            _check_names(path, archive.read(pickles[0]))


def _check_frame(path: Path, file: BinaryIO) -> None:
    """Begins as torch.load's zip files do (it reads others by other means), ends with a list of records of sensible size."""
    begins, length = file.read(4), file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 98))
    end = file.read().rjust(
        98, b"\0"
    )  # 56 bytes and 20 for large files, which torch.save may write for small ones; 22
    if begins != b"PK\3\4" or end[76:80] != b"PK\5\6" or end[96:] != b"\0\0":
        raise UserError(f"{path} is truncated, damaged or no weights file of PyTorch 1.6 or later")
    large = struct.unpack("<Q", end[40:48])[0] if end[56:60] == b"PK\6\7" else 0
    if max(large, struct.unpack("<L", end[88:92])[0]) > LARGEST_DIRECTORY:
        raise UserError(f"{path} claims to hold more records than any weights have: not opened")


def _check_names(path: Path, pickled: bytes) -> None:
    for opcode, operand, _ in pickletools.genops(pickled):
        argument = str(operand)
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise UserError(f"{path} holds more than tensors ({opcode.name}): not opened")
        storage = (
            opcode.name == "GLOBAL"
            and argument.startswith("torch ")
            and argument.endswith("Storage")
        )
        if opcode.name == "GLOBAL" and not storage and argument not in KNOWN_GLOBALS:
            raise UserError(f"{path} holds more than tensors ({argument!r}): not opened")


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Nothing in the file can run code: `check` first, then weights_only.

    Raises:
        UserError: missing, truncated, damaged, too large, or holding anything but tensors and plain values.
    """
    with warnings.catch_warnings():  # about oddities that no file of ours has
        warnings.simplefilter("ignore")
        check(Path(path))
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a hostile pickle provokes in the unpickler
            cause = repr(str(error).split("WeightsUnpickler error:")[-1].strip())[
                1:-1
            ]  # before it, advice to trust the file
            raise UserError(
                f"{path} cannot be opened as weights ({type(error).__name__}: {cause[:200]})"
            ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict")
    for name, tensor in tensors(content):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{path} is not opened: {name} claims to be {tuple(tensor.shape)}, more than the file holds"
            )
    return content


def tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in dictionaries, lists and tuples, which may even contain themselves, with their names."""
    seen, left = set(), [("", content)]
    while left:
        name, item = left.pop()
        if isinstance(item, Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            named = item.items() if isinstance(item, dict) else enumerate(item)
            left += [(f"{name}.{key}" if name else str(key), value) for key, value in named]
