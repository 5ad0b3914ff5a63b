"""Files on disk: written whole or not at all, and read without running anything in them."""

import csv
import io
import json
import os
import pickletools
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from attentionce.errors import UserError, as_user_error

LARGEST_PICKLE = 4 * 2**20  # bytes of a file's structure; a state of resnet50 has 0.1 MB
# The names that the pickle of a state_dict needs, besides those of storages.
GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
}


# ------------------------------------------------------------------------------------- writing


def writable_folder(path: Path) -> Path:
    """The folder, made if it is missing; a UserError if nothing can be written to it."""
    with as_user_error(f"cannot write to the results folder {path}: name another with --results"):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x")
            file.flush()
    return path


def replace(
    path: Path,
    write: Callable[[BinaryIO], Any],
    previous: Path | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Write a temporary file, flush it to disk, verify it, and give it the name `path`.

    Whatever interrupts this, `path` is whole, or `previous` is, where the replaced file is kept.

    Raises:
        UserError: The disk is full, read-only or gone; the file is as before.
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
    except (OSError, UserError) as error:
        with suppress(OSError):  # a folder that is gone or read-only
            temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write {path}: {reason}; what was there before is unharmed; fix this and rerun "
            "the command"
        ) from error


def _flush_folder(path: Path) -> None:
    with suppress(OSError):  # Windows opens no folders, and some network file systems flush none
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """`torch.save` by way of `replace`; verified to be readable by `read`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace(path, lambda file: file.write(buffer.getbuffer()), previous, verify=check)


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
    """The rows that `save_csv` wrote, numbers as numbers; a UserError if the file is damaged."""
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
    strict = json.loads(json.dumps(content), parse_constant=lambda name: None)
    save_text(path, json.dumps(strict, indent=2) + "\n")


# ------------------------------------------------------------------------------------- reading


def check(path: Path) -> None:
    """Raise a UserError for what torch.save did not write, or a disk has damaged.

    torch.load with weights_only runs no code, but it looks at no checksums, unpacks compressed
    records to any size, returns whatever is in memory for a record that is marked as a folder, and
    makes a bytearray of any length.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path} is not a file")
    advice = f"{path} is truncated, damaged or not a weights file of PyTorch 1.6 or later"
    with as_user_error(advice), open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # torch.load reads such files by other means
            raise ValueError("it is not a zip file")
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ValueError("its records are compressed")
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise ValueError("it claims to hold more than it can")
            if any(record.is_dir() or record.external_attr & 0x10 for record in records):
                raise ValueError("it has a folder among its records")
            # In lower case, because torch.load does not tell A from a.
            by_name = {record.filename.lower(): record for record in records}
            (pickled,) = (by_name[name] for name in by_name if name.endswith("/data.pkl"))
            if len(by_name) < len(records) or pickled.file_size > LARGEST_PICKLE:
                raise ValueError("its records are not those of torch.save")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged!r} does not match")
            _check_names(path, archive.read(pickled))


def _check_names(path: Path, pickled: bytes) -> None:
    """Refuse a pickle that could call anything but what makes tensors."""
    for opcode, operand, _ in pickletools.genops(pickled):
        name = str(operand)
        storage = name.startswith("torch ") and name.endswith("Storage")
        if opcode.name == "GLOBAL" and not storage and name not in GLOBALS:
            raise UserError(f"{path} holds more than tensors ({name!r}): not opened")


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU; nothing in the file can run code.

    Raises:
        UserError: It is missing or damaged, or holds anything but tensors and plain values.
    """
    check(Path(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile pickle provokes in the unpickler
        # What comes before the cause is advice to trust the file.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip()[:200]
        raise UserError(
            f"{path} cannot be opened as weights ({type(error).__name__}: {reason})"
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
    """All tensors in dictionaries, lists and tuples, with their names."""
    seen, left = set(), [("", content)]  # in a hostile file, these may contain themselves
    while left:
        name, item = left.pop()
        if isinstance(item, Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            named = item.items() if isinstance(item, dict) else enumerate(item)
            left += [(f"{name}.{key}" if name else str(key), value) for key, value in named]
