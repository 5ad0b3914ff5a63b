"""Features of images on disk: rows while a program works, then a .npz or .csv file."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from attentionce.errors import as_user_error
from attentionce.progress import progress


def fill_rows(
    path: Path, shape: tuple[int, int], block: int, rows: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """Append rows to a file, `block` at a time, after those that it holds already.

    Args:
        shape: Of all rows, float32, which are returned mapped into memory.
        rows: rows(first, last) makes the rows from `first` to `last` (exclusive).
    """
    count, width = shape
    advice = f"cannot write {path}, what is done is kept: make room, then rerun the command"
    with as_user_error(advice), open(path, "ab") as file:
        done = file.tell() // (4 * width * block) * block  # a block that was cut off is made again
        if done:
            print(f"{done:,} of them are finished already", flush=True)
        file.truncate(4 * width * done)
        with progress(count, "encoding", done) as bar:
            for first in range(done, count, block):
                last = min(first + block, count)
                file.write(rows(first, last).tobytes())
                file.flush()
                os.fsync(file.fileno())
                bar.update(last - first)
    return np.memmap(path, np.float32, "r", shape=shape)


def write_csv(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """A table: path, label and prediction by name (empty: none), then one column per number."""
    columns = {"path": arrays["path"]}
    for name, classes in (("label", "classes"), ("prediction", "predicted")):
        if name in arrays:
            columns[name] = np.append(arrays[classes], "")[arrays[name]]  # -1 is the last
    numbers = {name: array for name, array in arrays.items() if array.ndim == 2}
    named = [f"{name}_{i}" for name, array in numbers.items() for i in range(array.shape[1])]
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *named])
    for i in range(len(arrays["path"])):
        rows = [array[i].astype(str) for array in numbers.values()]
        writer.writerow([column[i] for column in columns.values()] + np.concatenate(rows).tolist())
    text.detach()


# By the ending of the file; each writes arrays with these names to a file that is open: path N;
# feature and projection N×D, float32, which may be mapped; label N (-1: none) and classes;
# prediction N and predicted, the classifier's classes.
WRITERS: dict[str, Callable[[BinaryIO, dict[str, np.ndarray]], None]] = {
    ".npz": lambda file, arrays: np.savez(file, **arrays),  # type: ignore[arg-type]
    ".csv": write_csv,
}
