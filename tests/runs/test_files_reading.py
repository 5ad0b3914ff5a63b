"""Files are read whole or refused, and nothing in them runs."""

import os
import pickle
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


def test_missing_and_truncated_files(weights_path):
    assert "does not exist" in refusal(files.read, weights_path.with_name("missing.pth"))
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


class Command:
    """Its pickle runs a command, which makes the folder `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def with_pickle(path, pickled):
    """The otherwise good file with this pickle."""
    rewritten(path, lambda name, content: pickled if name.endswith("data.pkl") else content)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(5))
def test_no_pickle_of_any_protocol_runs(weights_path, monkeypatch, protocol):
    """Every protocol has its own opcodes for a call. torch.load by itself refuses them too."""
    marker = weights_path.with_name("marker")
    evil = pickle.dumps({"evil": [OrderedDict(a=Command(marker))]}, protocol)
    with_pickle(weights_path, evil)
    for function in (files.read, load_model):
        refusal(function, weights_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "check", lambda path: None)
        refusal(files.read, weights_path)
    weights_path.write_bytes(evil)
    refusal(files.read, weights_path)
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()  # the file is what the test takes it for


def test_no_name_but_those_of_tensors(weights_path):
    """torch.load makes a bytearray of any length."""
    with_pickle(weights_path, b"\x80\x02cbuiltins\nbytearray\n.")
    assert "more than tensors" in refusal(files.read, weights_path)


def test_a_record_that_is_marked_as_a_folder(weights_path):
    """One bit: torch.load does not read such a record and returns whatever was in memory."""
    content = weights_path.read_bytes()
    with zipfile.ZipFile(weights_path) as archive:
        # The attributes in its entry of the directory.
        place = content.index(b"data/0", archive.start_dir) - len("some/") - 8
    assert content[place] == 0
    weights_path.write_bytes(content[:place] + b"\x10" + content[place + 1 :])
    assert "folder" in refusal(files.read, weights_path)


def test_compressed_records(weights_path):
    """torch.save never compresses; 1 GB of zeros would be 1 MB of file."""
    rewritten(weights_path, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(files.read, weights_path)
    rewritten(weights_path)
    assert files.read(weights_path).keys() == SMALL.keys()  # nothing else was wrong with it


def test_a_record_that_claims_to_be_huge(weights_path):
    content = bytearray(weights_path.read_bytes())
    with zipfile.ZipFile(weights_path) as archive:
        entry = content.index(b"data/0", archive.start_dir) - len("some/") - 46
    struct.pack_into("<I", content, entry + 24, 2**32 - 2)  # its size
    weights_path.write_bytes(content)
    assert "claims" in refusal(files.read, weights_path)


def test_a_structure_larger_than_weights_have(weights_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_PICKLE", 100)
    assert "not those of torch.save" in refusal(files.read, weights_path)


@pytest.mark.parametrize("numbers", [2**31 - 1, 300])
def test_tensors_that_claim_more_than_the_file_holds(weights_path, numbers):
    """Of the storage's size; or one number that stands for as many as the shape has."""
    torch.save(
        {"a": torch.ones(1).expand(300) if numbers == 300 else torch.ones(300)}, weights_path
    )
    given, claim = b"M" + struct.pack("<H", 300), b"J" + struct.pack("<i", numbers)

    def change(name, content):
        return content.replace(given, claim) if name.endswith("data.pkl") else content

    rewritten(weights_path, change)
    assert "opened" in refusal(files.read, weights_path)


def test_what_is_not_a_dictionary(weights_path):
    torch.save([1, 2], weights_path)
    assert "not a state_dict" in refusal(files.read, weights_path)
