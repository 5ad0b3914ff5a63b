"""Files of features: finished rows survive what cuts a program off, and both formats hold them."""

import csv
import io
import os

import numpy as np
import pytest

from attentionce.errors import UserError
from attentionce.runs.feature_files import WRITERS, Table, fill_rows

ROWS = np.arange(30, dtype=np.float32).reshape(10, 3) / 7
PATHS = ["a\nb, c.png", "b.png", "ü/1.png", "\udcff.png", "z" * 300]


@pytest.mark.parametrize("length, first", [(0, 0), (11, 0), (48, 4), (95, 4), (96, 8), (120, 10)])
def test_rows_are_continued_at_a_whole_block(tmp_path, length, first, capsys):
    path, made = tmp_path / "rows", []
    path.write_bytes(ROWS.tobytes()[:length])

    def rows(first, last):
        made.append((first, last))
        return ROWS[first:last]

    assert (fill_rows(path, (10, 3), 4, rows) == ROWS).all()
    assert made == [block for block in ((0, 4), (4, 8), (8, 10)) if block[0] >= first]
    assert (f"{first} of them are finished" in capsys.readouterr().out) == (first > 0)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .* what is done is kept.*No space left"):
        fill_rows(tmp_path / "rows", (10, 3), 4, lambda first, last: ROWS[first:last])


def written(ending, labels, classes):
    """What a file holds whose numbers are such as text often spoils; and the numbers."""
    numbers = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    numbers[0, :3] = [1e-30, 16777217, 1 / 3]
    columns = {"feature": numbers[:, :4], "projection": numbers[:, 4:]}
    file = io.BytesIO()
    WRITERS[ending](file, Table(PATHS, labels, classes, columns))
    assert not file.closed
    return file.getvalue(), numbers


@pytest.mark.parametrize("classes", [["cat", "dog"], []])
def test_npz(classes):
    labels = [-1, 1, 0, 0, 1] if classes else [-1] * 5
    content, numbers = written(".npz", labels, classes)
    with np.load(io.BytesIO(content)) as file:
        found = dict(file)
    assert found["path"].tolist() == PATHS and found["feature"].dtype == np.float32
    assert (found["feature"] == numbers[:, :4]).all()
    assert (found["projection"] == numbers[:, 4:]).all()
    assert ("label" in found) == ("classes" in found) == bool(classes)
    if classes:
        assert found["label"].tolist() == labels and found["classes"].tolist() == classes


def test_csv():
    content, numbers = written(".csv", [-1, 1, 0, 0, 1], ["cat", "dog, or ü"])
    text = content.decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    columns = [f"feature_{i}" for i in range(4)] + [f"projection_{i}" for i in range(3)]
    assert header == ["path", "label", *columns]
    assert [row[0] for row in rows] == PATHS
    assert [row[1] for row in rows] == ["", "dog, or ü", "cat", "cat", "dog, or ü"]
    assert (np.array([row[2:] for row in rows], np.float32) == numbers).all()
