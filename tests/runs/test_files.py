"""Files are written whole or not at all."""

import errno
import io
import json
import os
import resource

import pytest
import torch
from helpers.weights import SMALL, refusal

from attentionce.errors import UserError
from attentionce.runs import files


def check_unharmed(path, before):
    """The file holds what it held, and no other lies beside it."""
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("limit", [0, 100, 5_000, 50_000])
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
    check_unharmed(weights_path, before)


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left"), RuntimeError("disk\ngone")]
)
def test_a_fault_in_mid_write_leaves_the_old_file_and_no_other(weights_path, monkeypatch, fault):
    def half(content, file):
        file.write(b"half")
        raise fault

    before = weights_path.read_bytes()
    monkeypatch.setattr(torch, "save", half)
    message = refusal(files.save, weights_path, {})
    assert ("No space left" if isinstance(fault, OSError) else "disk") in message
    check_unharmed(weights_path, before)


def test_an_interrupt_in_mid_write_leaves_the_old_file(weights_path, monkeypatch):
    def half(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    before = weights_path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            files.save(weights_path, {})
    assert weights_path.read_bytes() == before
    files.save(weights_path, {"a": torch.ones(1)})  # which uses the same temporary name
    assert os.listdir(weights_path.parent) == [weights_path.name]


def test_what_does_not_read_back_replaces_nothing(weights_path, monkeypatch):
    def damaged(content, file):
        buffer = io.BytesIO()
        torch.serialization.save(content, buffer)
        file.write(buffer.getvalue()[:-40])

    before = weights_path.read_bytes()
    monkeypatch.setattr(torch, "save", damaged)
    refusal(files.save, weights_path, SMALL)
    check_unharmed(weights_path, before)


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
    assert done == [str(tmp_path / "a.csv.tmp"), str(tmp_path / "a.csv"), str(tmp_path)]
    assert (tmp_path / "a.csv").read_text() == "text"


def test_the_previous_file_is_kept_where_that_is_asked_for(weights_path):
    before, previous = weights_path.read_bytes(), weights_path.with_name("previous")
    files.save(weights_path, {"a": torch.ones(1)}, previous)
    assert previous.read_bytes() == before and files.read(weights_path) == {"a": torch.ones(1)}


def test_tables_and_dictionaries(tmp_path):
    files.save_csv(tmp_path / "a.csv", [{"epoch": 1, "knn": ""}, {"epoch": 2, "knn": 33.5}])
    assert (tmp_path / "a.csv").read_text() == "epoch,knn\n1,\n2,33.5\n"
    files.save_json(tmp_path / "a.json", {"seed": 3, "device": "cpu"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"seed": 3, "device": "cpu"}


def test_writable_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    assert files.writable_folder(folder) == folder and os.listdir(folder) == []
    (tmp_path / "file").write_text("")
    assert "--results" in refusal(files.writable_folder, tmp_path / "file" / "b")
