"""Files are read whole or refused, and nothing in them runs."""

import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from helpers.outputs import same_bits
from helpers.weights import SMALL, refusal, rewritten

from attentionce.errors import UserError
from attentionce.runs import files
from model import load_model

# ---- whole or refused ----


def test_what_was_saved_is_read(weights_path):
    progress = {"rows": [{"epoch": 1, "loss": 0.5}], "best": None}
    files.save(weights_path, {**SMALL, "progress": progress})
    found = files.read(weights_path)
    assert list(found) == [*SMALL, "progress"]
    assert same_bits(found, {**SMALL, "progress": progress})


def test_missing_and_truncated_files(weights_path):
    assert "no file" in refusal(files.read, weights_path.with_name("missing.pth"))
    refusal(files.read, weights_path.parent)
    content = weights_path.read_bytes()
    for length in (*range(0, len(content), 61), len(content) - 1):
        weights_path.write_bytes(content[:length])
        refusal(files.read, weights_path)


def test_flipped_bits(weights_path):
    """Each is refused or, in the gaps between the records, changes nothing."""
    content, every = bytearray(weights_path.read_bytes()), 11
    refused = 0
    for i in range(0, len(content), every):
        content[i] ^= 1 << i % 8
        weights_path.write_bytes(content)
        try:
            found = files.read(weights_path)
        except UserError:
            refused += 1
        else:
            assert same_bits(found, SMALL)
        content[i] ^= 1 << i % 8
    # At least those among the numbers.
    assert refused > SMALL["f.weight"].nbytes / every


def test_a_record_that_is_marked_as_a_folder(weights_path):
    """One bit: torch.load does not read such a record and returns whatever was in memory."""
    content = weights_path.read_bytes()
    with zipfile.ZipFile(weights_path) as archive:
        # The attributes in its entry of the directory.
        place = content.index(b"data/0", archive.start_dir) - len("some/") - 8
    assert content[place] == 0
    weights_path.write_bytes(content[:place] + b"\x10" + content[place + 1 :])
    assert "folder" in refusal(files.read, weights_path)


# ---- nothing runs ----


class Command:
    """Its pickle runs a command, which makes the folder `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_runs(tmp_path, monkeypatch, legacy):
    """Where the check lets a file through, torch.load still refuses to run anything."""
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {**SMALL, "evil": [OrderedDict(a=Command(marker))]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for function in (files.read, load_model):
        refusal(function, path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "check", lambda path: None)
        refusal(files.read, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is what the test takes it for


@pytest.mark.parametrize("protocol", range(5))
def test_no_pickle_of_any_protocol_runs(weights_path, protocol):
    """Inside an otherwise good file: every protocol has its own opcodes for a call."""
    marker = weights_path.with_name("marker")
    evil = pickle.dumps(Command(marker), protocol)
    rewritten(weights_path, lambda name, content: evil if name.endswith("data.pkl") else content)
    assert "more than tensors" in refusal(files.read, weights_path)
    assert not marker.exists()
    weights_path.write_bytes(evil)
    refusal(files.read, weights_path)
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins eval", "torch.hub load", "builtins bytearray"])
def test_no_name_but_the_known_ones(weights_path, name):
    pickled = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    rewritten(weights_path, lambda name, content: pickled if name.endswith("data.pkl") else content)
    assert "more than tensors" in refusal(files.read, weights_path)


# ---- files that torch.save does not write ----


def test_a_tensor_with_hooks(weights_path):
    """Saving such a tensor again, or a backward pass, would call them."""

    def change(name, content):
        # Without the call `)R` the class OrderedDict stands where an empty dictionary should.
        return re.sub(rb"(?s)(OrderedDict\n(?:q.)?)\)R", rb"\1", content)

    rewritten(weights_path, change)
    assert "f.weight holds more than numbers" in refusal(files.read, weights_path)


def test_the_format_before_pytorch_1_6(weights_path):
    torch.save(SMALL, weights_path, _use_new_zipfile_serialization=False)
    assert "1.6" in refusal(files.read, weights_path)


def test_compressed_records(weights_path):
    """torch.save never compresses; 1 GB of zeros would be 1 MB of file."""
    rewritten(weights_path, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(files.read, weights_path)
    rewritten(weights_path)
    assert files.read(weights_path).keys() == SMALL.keys()  # nothing else was wrong with it


def test_a_record_that_claims_to_be_huge(weights_path):
    content, claimed = bytearray(weights_path.read_bytes()), 0
    with zipfile.ZipFile(weights_path) as archive:
        # In the central directory, a record's size is 24 bytes after the start of its entry.
        place = archive.start_dir
        for info in archive.infolist():
            if info.filename.endswith("data/0"):
                struct.pack_into("<I", content, place + 24, 2**32 - 2)
                claimed += 1
            place += 46 + len(info.orig_filename) + len(info.extra) + len(info.comment)
    assert claimed == 1
    weights_path.write_bytes(content)
    assert "claims" in refusal(files.read, weights_path)


@pytest.mark.parametrize("limit", ["LARGEST_PICKLE", "LARGEST_FILE", "LARGEST_DIRECTORY"])
def test_what_is_larger_than_weights_can_be(weights_path, monkeypatch, limit):
    assert files.read(weights_path).keys() == SMALL.keys()
    monkeypatch.setattr(files, limit, 100)
    refusal(files.read, weights_path)


def test_a_storage_that_claims_more_than_its_record(weights_path):
    """300 numbers in the file, 2 billion in the pickle."""
    number, claim = b"M" + struct.pack("<H", 300), b"J" + struct.pack("<i", 2**31 - 1)

    def change(name, content):
        return content.replace(number, claim) if name.endswith("data.pkl") else content

    rewritten(weights_path, change)
    refusal(files.read, weights_path)


def test_what_is_not_a_dictionary(weights_path):
    torch.save([1, 2], weights_path)
    assert "not a state_dict" in refusal(files.read, weights_path)
