"""Features of images on disk: finished rows while a program works, then .npz, .csv or .safetensors.

Nothing here holds all rows at once: those of a million images may be larger than the memory.
"""

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from attentionce.errors import UserError, as_user_error

AT_A_TIME = 2**24  # bytes of rows to hold

# ------------------------------------------------------------------------------- while it works


class Partial:
    """A file of finished rows, in the order in which they were finished.

    It begins with the settings, as a line of JSON. A row is the mark of its image, 64 bits, and
    float32 numbers. A last row that was cut off, as by a power failure, is dropped.

    Args:
        path: The file. It is made if it is missing.
        width: How many numbers a row has.
        settings: What the rows depend on besides their images.

    Raises:
        UserError: The file was made with other settings, or cannot be written.
    """

    def __init__(self, path: Path, width: int, settings: dict[str, Any]):
        self.path = path
        self.row = np.dtype([("mark", "<u8"), ("numbers", "<f4", (width,))])
        header = (json.dumps({**settings, "numbers per row": width}) + "\n").encode()
        with self._writing():
            self.file = open(path, "a+b")  # open as long as the program works
            self.file.seek(0)
            found = self.file.readline(2**16)
            if found != header and header.startswith(found):  # new, or cut off
                self.file.truncate(0)
                self.file.write(header)
                self._flush()
        if not header.startswith(found):
            self._refuse(found, header)
        self.start = len(header)
        with self._writing():
            rows = (os.path.getsize(path) - self.start) // self.row.itemsize
            self.file.truncate(self.start + rows * self.row.itemsize)
        self.marks = [np.empty(0, "<u8")]
        for first, last in blocks(rows, self.row.itemsize):
            self.marks.append(self.take(np.arange(first, last))["mark"].copy())

    def _refuse(self, found: bytes, header: bytes) -> None:
        with as_user_error(f"{self.path} is not a file of finished rows: name another --out"):
            there, here = json.loads(found), json.loads(header)
            different = [name for name in here if there.get(name) != here[name]]
        raise UserError(
            f"{self.path} was made with other settings ({', '.join(different)}): "
            "remove it, or name another --out"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with as_user_error(
            f"cannot write {self.path}: fix this and rerun the command, what is "
            "finished is kept; or name another --out"
        ):
            yield

    def _flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def add(self, marks: np.ndarray, numbers: np.ndarray) -> None:
        """Append rows; when this returns, they are on the disk."""
        rows = np.empty(len(marks), self.row)
        rows["mark"], rows["numbers"] = marks, numbers
        with self._writing():
            self.file.write(rows.tobytes())
            self._flush()
        self.marks.append(marks)

    def find(self, marks: np.ndarray) -> np.ndarray:
        """The position of each mark's row; -1 where there is none."""
        here = np.concatenate(self.marks)
        order = np.argsort(here, kind="stable")
        found = np.append(order, -1)[np.searchsorted(here, marks, sorter=order)]
        same = np.append(here, 0)[found] == marks
        return np.where((found >= 0) & same, found, -1)

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions."""
        rows = np.empty(len(positions), self.row)
        ends = np.flatnonzero(np.diff(positions) != 1) + 1
        done = 0
        with as_user_error(f"cannot read {self.path}"):
            for run in np.split(positions, ends) if len(positions) else []:
                self.file.seek(self.start + int(run[0]) * self.row.itemsize)
                content = self.file.read(len(run) * self.row.itemsize)
                rows[done : done + len(run)] = np.frombuffer(content, self.row)
                done += len(run)
        return rows

    def remove(self) -> None:
        """Close and remove the file."""
        self.file.close()
        self.path.unlink()


def blocks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """The first and one past the last of as many rows as may be held, if a row has `size` bytes."""
    count = max(1, AT_A_TIME // size)
    for first in range(0, rows, count):
        yield first, min(rows, first + count)


# ------------------------------------------------------------------------------- when it is done


class Table(NamedTuple):
    """What a file of features holds, one row per image."""

    paths: list[str]
    labels: list[int]  # index into classes; -1: none
    classes: list[str]
    columns: dict[str, int]  # of numbers, by name: how many of them
    numbers: Callable[[int, int], np.ndarray]  # those of rows [first, last), N × all columns

    def blocks(self) -> Iterator[tuple[int, int]]:
        """As many rows as may be held at a time."""
        return blocks(len(self.paths), 4 * sum(self.columns.values()))

    def column(self, name: str) -> Iterator[np.ndarray]:
        """The numbers of one column, block after block."""
        names = list(self.columns)
        start = sum(self.columns[before] for before in names[: names.index(name)])
        for first, last in self.blocks():
            yield self.numbers(first, last)[:, start : start + self.columns[name]]


def write_npz(file: BinaryIO, table: Table) -> None:
    """For numpy.load: path, an array per column, and label and classes if there are any."""
    images, text = len(table.paths), f"<U{max(map(len, table.paths))}"
    with zipfile.ZipFile(file, "w") as archive:
        paths = (np.array(table.paths[first:last], text) for first, last in table.blocks())
        _write_array(archive, "path", text, (images,), paths)
        for name, size in table.columns.items():
            _write_array(archive, name, "<f4", (images, size), table.column(name))
        if table.classes:
            classes = np.array(table.classes)
            _write_array(archive, "label", "<i8", (images,), [np.array(table.labels, "<i8")])
            _write_array(archive, "classes", classes.dtype.str, classes.shape, [classes])


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    parts: Iterable[np.ndarray],
) -> None:
    record = zipfile.ZipInfo(f"{name}.npy")
    if dtype[1] == "U":  # four bytes per character, most of them zero
        record.compress_type = zipfile.ZIP_DEFLATED
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with archive.open(record, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())


def write_csv(file: BinaryIO, table: Table) -> None:
    """A table: path, label by its name (empty if there is none), then one column per number."""
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    named = [f"{name}_{i}" for name, size in table.columns.items() for i in range(size)]
    writer.writerow(["path", "label", *named])
    names = [*table.classes, ""]  # label -1 is the last
    for first, last in table.blocks():
        numbers = table.numbers(first, last).astype(str)
        for i, row in enumerate(numbers, first):
            writer.writerow([table.paths[i], names[table.labels[i]], *row])
    text.detach()


def write_safetensors(file: BinaryIO, table: Table) -> None:
    """For the safetensors package: a tensor per column, and path and label.

    A path is a row of UTF-8 bytes with zeros at its end. The names of the classes are in the
    metadata, as JSON.
    """
    encoded = [path.encode("utf-8", "surrogateescape") for path in table.paths]
    images, longest = len(encoded), max(map(len, encoded))
    # The largest numbers come first, so that each is aligned.
    shapes: dict[str, tuple[str, tuple[int, ...], int]] = {}
    if table.classes:
        shapes["label"] = ("I64", (images,), 8)
    for name, size in table.columns.items():
        shapes[name] = ("F32", (images, size), 4)
    shapes["path"] = ("U8", (images, longest), 1)
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "classes": json.dumps(table.classes)}
    }
    end = 0
    for name, (kind, shape, size) in shapes.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    file.write(len(content).to_bytes(8, "little") + content)
    if table.classes:
        file.write(np.array(table.labels, "<i8").tobytes())
    for name in table.columns:
        for part in table.column(name):
            file.write(part.tobytes())
    for path in encoded:
        file.write(path.ljust(longest, b"\0"))


# By the ending of the file; each writes a table to a file that is open.
WRITERS: dict[str, Callable[[BinaryIO, Table], None]] = {
    ".npz": write_npz,
    ".csv": write_csv,
    ".safetensors": write_safetensors,
}
