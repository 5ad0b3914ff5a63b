"""Features of images on disk: rows while a program works, then a .npz or .csv file."""

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from attentionce.errors import as_user_error
from attentionce.progress import progress


def fill_rows(
    path: Path, shape: tuple[int, int], block: int, rows: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """Append rows to a file, `block` at a time, after those that are there already.

    Args:
        path: The file, which holds nothing but the numbers of finished rows.
        shape: Of all rows, float32, which are returned mapped into memory.
        rows: rows(first, last) makes the rows from `first` to `last` (exclusive).

    Raises:
        UserError: The file cannot be written.
    """
    with (
        as_user_error(
            f"cannot write {path}, what is done is kept: make room, then rerun the command"
        ),
        open(path, "ab") as file,
    ):
        done = file.tell() // (4 * shape[1] * block) * block  # with a block that was cut off
        if file.tell() == 4 * math.prod(shape):
            done = shape[0]
        if done:
            print(f"{done:,} of them are finished already", flush=True)
        file.truncate(4 * shape[1] * done)
        with progress(shape[0], "encoding", done) as bar:
            for first in range(done, shape[0], block):
                last = min(first + block, shape[0])
                file.write(rows(first, last).tobytes())
                file.flush()
                os.fsync(file.fileno())
                bar.update(last - first)
    return np.memmap(path, np.float32, "r", shape=shape)


class Table(NamedTuple):
    """What a file of features holds, one row per image."""

    paths: Sequence[str]
    labels: Sequence[int]  # index into classes; -1: none
    classes: Sequence[str]
    columns: dict[str, np.ndarray]  # by name, float32 N×D each; they may be mapped


def write_npz(file: BinaryIO, table: Table) -> None:
    """For numpy.load: path, an array per column, and label and classes if there are any."""
    arrays: dict[str, Any] = {"path": np.array(table.paths), **table.columns}
    if table.classes:
        arrays |= {"label": np.array(table.labels), "classes": np.array(table.classes)}
    np.savez(file, **arrays)


def write_csv(file: BinaryIO, table: Table) -> None:
    """A table: path, label by its name (empty if there is none), then one column per number."""
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    named = [
        f"{name}_{i}" for name, column in table.columns.items() for i in range(column.shape[1])
    ]
    writer.writerow(["path", "label", *named])
    names = [*table.classes, ""]  # label -1 is the last
    for path, label, *rows in zip(table.paths, table.labels, *table.columns.values(), strict=True):
        writer.writerow([path, names[label], *np.concatenate(rows).astype(str)])
    text.detach()


# By the ending of the file; each writes a table to a file that is open.
WRITERS: dict[str, Callable[[BinaryIO, Table], None]] = {".npz": write_npz, ".csv": write_csv}
