"""What a run leaves: reading it, and comparing it with what another run leaves."""

import csv

import torch

from attentionce.runs import files

STEM = "folder_SimCLR_4model_8_3_1.0_1.0"  # of the files of a run with the fixture `flags`


def last(folder, ending):
    """The path of the only file below the folder with that ending."""
    (path,) = folder.rglob(f"*{ending}")
    return path


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rows(folder):
    """The only table of metrics below the folder."""
    return read_csv(last(folder, ".csv"))


def same_bits(one, other):
    """Whether two state_dicts, or whatever contains tensors, are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        tensors = isinstance(other, torch.Tensor)
        return tensors and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


def check_end(results, whole):
    """The run in `results` has ended as the one in `whole`, and left no other files."""
    one, other = (files.read(last(folder, ".pth")) for folder in (results, whole))
    assert same_bits(one, other)
    one, other = (files.read(last(folder, ".state")) for folder in (results, whole))
    for part in ("model", "optimizer", "moco"):
        assert same_bits(one[part], other[part])
    for row, expected in zip(rows(results), rows(whole), strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    table = last(results, ".csv")
    left = {path.name.removeprefix(table.stem) for path in table.parent.iterdir()}
    older = {".state.damaged", ".state.previous"}
    assert left - older == {".csv", ".json", ".pth", ".state"}


def check_meanwhile(results):
    """After a fault every weights file and state is whole; returns the number of temporary files.

    There is one at most.
    """
    for path in results.rglob("*"):
        if path.suffix in (".pth", ".state", ".previous"):
            assert files.read(path)
    temporary = len(list(results.rglob("*.tmp")))
    assert temporary <= 1
    return temporary
