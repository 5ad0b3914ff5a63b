"""Files are written whole or not at all."""

import errno
import json
import os
import resource

import pytest
import torch
from helpers.weights import SMALL, refusal

from attentionce.errors import UserError
from attentionce.runs import files


@pytest.mark.parametrize("limit", [0, 100, 50_000])
def test_a_full_disk_leaves_the_old_file_and_no_other(weights_path, limit):
    """A limit on the size of files acts like a full disk, wherever torch.save happens to be."""
    before = weights_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError) as caught:
            files.save(weights_path, {"f.weight": torch.ones(30_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(weights_path) in str(caught.value) and os.strerror(errno.EFBIG) in str(caught.value)
    assert weights_path.read_bytes() == before
    assert os.listdir(weights_path.parent) == [weights_path.name]


@pytest.mark.parametrize("fault", [OSError(5, "now"), KeyboardInterrupt("now"), None])
def test_a_fault_in_mid_write_leaves_the_old_file(weights_path, monkeypatch, fault):
    """The last one is a disk that keeps fewer bytes than it is given."""

    def cut(file):
        os.truncate(file, os.fstat(file).st_size - 40)
        if fault is not None:
            raise fault

    before = weights_path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut)
        with pytest.raises((UserError, KeyboardInterrupt), match="now" if fault else "damaged"):
            files.save(weights_path, SMALL)
    assert weights_path.read_bytes() == before
    files.save(weights_path, SMALL)  # under the temporary name that an interrupt has left
    assert os.listdir(weights_path.parent) == [weights_path.name]


def test_what_replace_does_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """File, then name, then folder: a crash between them leaves a whole file under the name."""
    done, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(file):
        done.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def watched_replace(source, target):
        done.append(str(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    files.save_text(tmp_path / "a.csv", "text")
    temporary = tmp_path / f"a.csv.{os.getpid()}.tmp"
    assert done == [str(temporary), str(tmp_path / "a.csv"), str(tmp_path)]
    assert (tmp_path / "a.csv").read_text() == "text"


def test_what_is_written(weights_path):
    before, previous = weights_path.read_bytes(), weights_path.with_name("previous")
    files.save(weights_path, {"a": torch.ones(1)}, previous)
    assert previous.read_bytes() == before and files.read(weights_path) == {"a": torch.ones(1)}
    table, settings = weights_path.with_suffix(".csv"), weights_path.with_suffix(".json")
    files.save_csv(table, [{"epoch": 1, "knn": ""}, {"epoch": 2, "knn": 33.5}])
    assert table.read_text() == "epoch,knn\n1,\n2,33.5\n"
    files.save_json(settings, {"seed": 3, "k": "NaN", "loss": [1e-7, float("nan"), float("inf")]})
    expected = {"seed": 3, "k": "NaN", "loss": [1e-7, None, None]}  # JSON has no other numbers
    assert json.loads(settings.read_text(), parse_constant=pytest.fail) == expected


def test_writable_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    assert files.writable_folder(folder) == folder and os.listdir(folder) == []
    (tmp_path / "file").write_text("")
    assert "--results" in refusal(files.writable_folder, tmp_path / "file" / "b")
