"""Files of features: finished rows survive what cuts a program off, and every format holds them."""

import csv
import io
import json
import os

import numpy as np
import pytest

from attentionce.errors import UserError
from attentionce.runs import feature_files
from attentionce.runs.feature_files import WRITERS, Partial, Table

WIDTH = 3
MARKS = np.array([7, 5, 2**64 - 1, 0], np.uint64)
NUMBERS = np.arange(12, dtype=np.float32).reshape(4, WIDTH) / 7
SETTINGS = {"weights": "abc", "columns": {"feature": WIDTH}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.npz.partial"


@pytest.fixture
def four(path):
    """A file with four rows, added in two blocks."""
    partial = Partial(path, WIDTH, SETTINGS)
    partial.add(MARKS[:3], NUMBERS[:3])
    partial.add(MARKS[3:], NUMBERS[3:])
    partial.file.close()
    return path


# ------------------------------------------------------------------------------ finished rows


def test_rows_are_found_again(four):
    partial = Partial(four, WIDTH, SETTINGS)
    assert partial.find(MARKS).tolist() == [0, 1, 2, 3]
    assert partial.find(np.array([5, 6, 0, 8], np.uint64)).tolist() == [1, -1, 3, -1]
    rows = partial.take(np.array([3, 0, 1]))
    assert rows["mark"].tolist() == [0, 7, 5]
    assert (rows["numbers"] == NUMBERS[[3, 0, 1]]).all()
    assert len(partial.take(np.array([], int))) == 0
    partial.add(MARKS[:1] + np.uint64(1), NUMBERS[:1])
    assert partial.find(np.array([8, 7], np.uint64)).tolist() == [4, 0]
    partial.remove()
    assert not four.exists()


def test_a_new_file_has_no_rows(path):
    assert Partial(path, WIDTH, SETTINGS).find(MARKS).tolist() == [-1] * 4


@pytest.mark.parametrize("held", [1, 50, 2**24])
@pytest.mark.parametrize("cut, rows", [(0, 4), (1, 3), (20, 3), (21, 2), (79, 0), (80, 0)])
def test_a_row_that_was_cut_off_is_dropped(four, monkeypatch, cut, rows, held):
    monkeypatch.setattr(feature_files, "AT_A_TIME", held)
    os.truncate(four, four.stat().st_size - cut)
    partial = Partial(four, WIDTH, SETTINGS)
    assert (partial.find(MARKS) >= 0).sum() == rows
    partial.add(MARKS[rows:], NUMBERS[rows:])
    assert partial.find(MARKS).tolist() == [0, 1, 2, 3]
    assert (partial.take(np.arange(4))["numbers"] == NUMBERS).all()


@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_first_line_that_was_cut_off_is_written_again(four, length):
    content = four.read_bytes()
    assert content.index(b"\n") > 40
    four.write_bytes(content[:length])
    partial = Partial(four, WIDTH, SETTINGS)
    partial.add(MARKS[:3], NUMBERS[:3])
    partial.add(MARKS[3:], NUMBERS[3:])
    assert four.read_bytes() == content


def refusal(path, width, settings):
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        Partial(path, width, settings)
    assert path.read_bytes() == before
    return str(caught.value)


def test_other_settings_are_named(four):
    other = refusal(four, WIDTH, {**SETTINGS, "weights": "abd"})
    assert "was made with other settings (weights): remove it, or name another --out" in other
    assert "(columns, numbers per row)" in refusal(four, 4, {**SETTINGS, "columns": {"a": 4}})


@pytest.mark.parametrize("content", [b"mine", b"mine\nmore", b"[1]\n", b"\n", b"\xff\n", b"3\n"])
def test_another_file_is_left_alone(path, content):
    path.write_bytes(content)
    assert "name another --out" in refusal(path, WIDTH, SETTINGS)


def test_a_full_disk(four, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    partial = Partial(four, WIDTH, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot write .* what is finished is kept.*No space"):
            partial.add(MARKS, NUMBERS)
    assert (Partial(four, WIDTH, SETTINGS).find(MARKS) >= 0).all()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot write .*--out"):
        Partial(tmp_path / "none" / "x.partial", WIDTH, SETTINGS)


# ------------------------------------------------------------------------------ formats

PATHS = ["a\nb, c.png", "b.png", "ü/1.png", "\udcff.png", "z" * 300]


def table(labels=(-1, 1, 0, 0, 1), classes=("cat", "dog, or ü")):
    """Five rows; the numbers are such as text often spoils."""
    random = np.random.default_rng(0)
    numbers = random.standard_normal((5, 7)).astype(np.float32)
    numbers[0, :3] = [1e-30, 16777217, 1 / 3]
    columns = {"feature": 4, "projection": 3}
    return Table(PATHS, list(labels), list(classes), columns, lambda i, j: numbers[i:j]), numbers


def written(ending, content):
    file = io.BytesIO()
    WRITERS[ending](file, content)
    assert not file.closed
    return file.getvalue()


@pytest.fixture(params=[1, 60, 2**24], ids=["row by row", "two rows", "at once"], autouse=True)
def held(request, monkeypatch):
    monkeypatch.setattr(feature_files, "AT_A_TIME", request.param)


@pytest.mark.parametrize("labelled", [True, False])
def test_npz(labelled):
    content, numbers = table() if labelled else table([-1] * 5, [])
    with np.load(io.BytesIO(written(".npz", content))) as found:
        found = dict(found)
    assert found["path"].tolist() == PATHS
    assert (found["feature"] == numbers[:, :4]).all() and found["feature"].dtype == np.float32
    assert (found["projection"] == numbers[:, 4:]).all()
    assert ("label" in found) == ("classes" in found) == labelled
    if labelled:
        assert found["label"].tolist() == content.labels
        assert found["classes"].tolist() == content.classes


def test_csv():
    content, numbers = table()
    text = written(".csv", content).decode("utf-8", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    columns = [f"feature_{i}" for i in range(4)] + [f"projection_{i}" for i in range(3)]
    assert header == ["path", "label", *columns]
    assert [row[0] for row in rows] == PATHS
    assert [row[1] for row in rows] == ["", "dog, or ü", "cat", "cat", "dog, or ü"]
    assert (np.array([row[2:] for row in rows], np.float32) == numbers).all()


@pytest.mark.parametrize("labelled", [True, False])
def test_safetensors(tmp_path, labelled):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    content, numbers = table() if labelled else table([-1] * 5, [])
    (tmp_path / "x").write_bytes(written(".safetensors", content))
    with safe_open(tmp_path / "x", "np") as file:
        classes = json.loads(file.metadata()["classes"])
    found = load_file(tmp_path / "x")
    paths = [bytes(row).rstrip(b"\0").decode("utf-8", "surrogateescape") for row in found["path"]]
    assert paths == PATHS and classes == content.classes
    assert (found["feature"] == numbers[:, :4]).all()
    assert (found["projection"] == numbers[:, 4:]).all()
    assert ("label" in found) == labelled
    if labelled:
        assert found["label"].tolist() == content.labels
