"""Files on disk: written whole or not at all, and read without running anything in them."""

import csv
import io
import json
import math
import os
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from attentionce.errors import UserError, as_user_error

# Bytes of the whole file, of its structure without the numbers, and of its list of records. A state
# of resnet50 has 0.3 GB, 0.1 MB (after 400 epochs) and 0.04 MB.
LARGEST_FILE = 8 * 2**30
LARGEST_PICKLE = 4 * 2**20
LARGEST_DIRECTORY = 4 * 2**20
# The only names that the pickle of a state_dict needs. weights_only allows a few more, such as
# bytearray, and bytearray(10**12) would take 1 TB.
KNOWN_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}


# ------------------------------------------------------------------------------------- writing


def writable_folder(path: Path) -> Path:
    """The folder, which is made if it is missing.

    Raises:
        UserError: It does not take a file as `replace` writes it, which a trial file shows.
    """
    trial = path / f".trial.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace(trial, lambda file: file.write(b"x"))
        trial.unlink()
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or getattr(error.__cause__, "strerror", error)
        raise UserError(
            f"cannot write to the results folder {path}: {reason}; name another with --results"
        ) from None
    return path


def replace(
    path: Path,
    write: Callable[[BinaryIO], Any],
    previous: Path | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Replace a file in one step.

    The new content is written under a temporary name beside the file, flushed to disk, and renamed.
    Whatever interrupts this, `path` is whole, or `previous` is.

    Args:
        path: The file.
        write: write(file) writes the content.
        previous: Where the file that is replaced is kept.
        verify: verify(path) checks the temporary file before it is renamed.

    Raises:
        UserError: The disk is full, read-only or gone. The temporary file is removed, and the file
            is as before, at `path` or `previous`.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process may write too
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
    except (OSError, RuntimeError, UserError) as error:
        with suppress(OSError):  # a folder that is gone or read-only
            temporary.unlink()
        # torch.save turns the error of a full disk, its context, into a RuntimeError.
        reasons = (getattr(e, "strerror", None) for e in (error, error.__context__))
        reason = next(filter(None, reasons), None) or str(error).splitlines()[0]
        advice = "what was there before is unharmed; fix this and rerun the command"
        raise UserError(f"cannot write {path}: {reason}; {advice}") from error


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems flush files but not folders
            os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """`torch.save` by way of `replace`; verified to be readable by `read`."""
    replace(path, lambda file: torch.save(content, file), previous, verify=check)


def save_text(path: Path, text: str) -> None:
    """Write a text file by way of `replace`."""
    replace(path, lambda file: file.write(text.encode()))


def save_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a table with a header; what a row lacks is left empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows that `save_csv` wrote, numbers as numbers.

    Raises:
        UserError: The file is damaged.
    """
    with as_user_error(f"{path} is damaged: remove it"), open(path, newline="") as file:
        return [
            {name: _number(text) for name, text in row.items()}
            for row in csv.DictReader(file, strict=True)
        ]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary, one line per key; NaN, which is not JSON, becomes null."""
    save_text(path, json.dumps(_strict(content), indent=2, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------- reading


def check(path: Path) -> None:
    """Refuse what is not a whole file of torch.save, before it is unpickled or takes memory.

    Every record must be there once, lie within the file and match its checksum. It must not be
    compressed, because it could then unpack to any size. The pickle may name nothing but tensors
    and dictionaries.

    Raises:
        UserError: What is wrong, in one line.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path} is not a file")
    with (
        as_user_error(
            f"{path} is truncated, damaged or not a weights file of PyTorch 1.6 or later"
        ),
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
            # In lower case, because torch.load does not tell A from a.
            names = [record.filename.lower() for record in records]
            by_name = zip(names, records, strict=True)
            pickles = [record for name, record in by_name if name.endswith("/data.pkl")]
            one = len(pickles) == 1 and pickles[0].file_size <= LARGEST_PICKLE
            if not one or len(set(names)) < len(names):
                raise UserError(f"{path} was not written by torch.save: not opened")
            # torch.load reads no numbers from a record that is marked as a folder.
            if any(record.is_dir() or record.external_attr & 0x10 for record in records):
                raise UserError(f"{path} has a folder among its records: not opened")
            damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path} is damaged: the checksum of {damaged!r} does not match")
            _check_names(path, archive.read(pickles[0]))


def _check_frame(path: Path, file: BinaryIO) -> None:
    """Refuse what does not begin and end as a zip file, or has a list of records that is too large.

    torch.load reads files that begin otherwise by other means.
    """
    begins, length = file.read(4), file.seek(0, os.SEEK_END)
    # A zip file ends with 22 bytes. Before them a large one has 56 and 20 more, which torch.save
    # may write for small ones too.
    file.seek(max(0, length - 98))
    end = file.read().rjust(98, b"\0")
    if begins != b"PK\3\4" or end[76:80] != b"PK\5\6" or end[96:] != b"\0\0":
        raise UserError(
            f"{path} is truncated, damaged or not a weights file of PyTorch 1.6 or later"
        )
    large = struct.unpack("<Q", end[40:48])[0] if end[56:60] == b"PK\6\7" else 0
    if max(large, struct.unpack("<L", end[88:92])[0]) > LARGEST_DIRECTORY:
        raise UserError(f"{path} claims to hold more records than any weights have: not opened")


def _check_names(path: Path, pickled: bytes) -> None:
    """Refuse a pickle that could call anything but what makes tensors."""
    for opcode, operand, _ in pickletools.genops(pickled):
        argument = str(operand)
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise UserError(f"{path} holds more than tensors ({opcode.name}): not opened")
        storage = argument.startswith("torch ") and argument.endswith("Storage")
        if opcode.name == "GLOBAL" and not storage and argument not in KNOWN_GLOBALS:
            raise UserError(f"{path} holds more than tensors ({argument!r}): not opened")


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Nothing in the file can run code: `check` refuses it, and so does torch.load with weights_only.

    Raises:
        UserError: The file is missing, truncated, damaged or too large, or holds anything but
            tensors and plain values.
    """
    with warnings.catch_warnings():  # about oddities that none of this project's files have
        warnings.simplefilter("ignore")
        check(Path(path))
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a hostile pickle provokes in the unpickler
            # What comes before the cause is advice to trust the file.
            reason = str(error).split("WeightsUnpickler error:")[-1].strip()
            cause = repr(reason)[1:-1]
            raise UserError(
                f"{path} cannot be opened as weights ({type(error).__name__}: {cause[:200]})"
            ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict")
    for name, tensor in tensors(content):
        if tensor._backward_hooks:  # functions, or whatever stands in their place
            raise UserError(f"{path} is not opened: {name} holds more than numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{path} is not opened: {name} claims to be {tuple(tensor.shape)}, more than the "
                "file holds"
            )
    return content


def tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in dictionaries, lists and tuples, with their names.

    In a hostile file, these may contain themselves.
    """
    seen, left = set(), [("", content)]
    while left:
        name, item = left.pop()
        if isinstance(item, Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            named = item.items() if isinstance(item, dict) else enumerate(item)
            left += [(f"{name}.{key}" if name else str(key), value) for key, value in named]
