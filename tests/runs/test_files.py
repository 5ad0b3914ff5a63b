"""Files of weights: their names, whole or not at all, and nothing but tensors, whoever made them."""

import errno
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import main
from attentionce.errors import UserError
from attentionce.runs import file_names, files
from loss import LOSSES
from model import Model, load_model

SMALL = {"f.weight": torch.arange(300.0).view(3, 100), "count": torch.tensor(7)}


def refusal(function, *arguments):
    """The message of the UserError that function raises; one printable line with the file's name."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable() and 20 < len(message) < 1000, message
    assert str(arguments[0]) in message
    return message


def repacked(path, change=lambda name, content: content, **options):
    """The zip at path written again with change(name, content) as its records' contents."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.pth"
    torch.save(SMALL, path)
    return path


@pytest.fixture(scope="module")
def state():
    return Model(24, "resnet10").state_dict()


# ---- names ----


@pytest.mark.parametrize(
    ("flags", "epoch", "name"),
    [
        ("--dataset_name stl10 --d_pos 2 --d_neg 0.5", 400, "stl10_SimCLR_4model_256_400_2.0_0.5"),
        ("", 200, "cifar10_SimCLR_4model_256_200_1.0_1.0"),
        ("--num_pos 2 --batch_size 64", 1, "cifar10_SimCLR_2model_64_1_1.0_1.0"),
        ("--estimator MoCo --d_neg 10", 400, "cifar10_MoCo_4model_256_400_1.0_10.0"),
        ("--loss simclr", 400, "cifar10_SimCLR_simclr_256_400"),
        ("--loss dcl --tau_plus 0.05", 400, "cifar10_SimCLR_dcl_256_400_0.05"),
        ("--loss hcl --beta 1", 400, "cifar10_SimCLR_hcl_256_400_0.1_1.0"),
        ("--loss bcl", 400, "cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9"),
        (
            "--loss bcl --alpha 0.7 --beta 1 --dataset_name tinyImageNet",
            100,
            "tinyImageNet_SimCLR_bcl_256_100_0.1_0.7_1.0",
        ),
    ],
)
def test_names_are_those_of_the_reference(flags, epoch, name):
    assert main.stem(main.parse_args(flags.split()), epoch) == name


def test_every_loss_has_a_name_of_its_own():
    flags = vars(main.parse_args([]))
    names = {main.stem(Namespace(**{**flags, "loss": loss}), 1) for loss in LOSSES}
    assert len(names) == len(LOSSES)


# ---- writing ----


@pytest.mark.parametrize("limit", [0, 100, 5_000, 50_000])
def test_a_full_disk_leaves_the_old_file_and_no_other(path, limit):
    """The limit on a file's size fails as a full disk does, at a place that torch.save does not choose."""
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError) as caught:
            files.save(path, {"f.weight": torch.ones(30_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(caught.value) and os.strerror(errno.EFBIG) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left"), RuntimeError("disk\ngone")]
)
def test_a_fault_in_mid_write_leaves_the_old_file_and_no_other(path, monkeypatch, fault):
    def half(content, file):
        file.write(b"half")
        raise fault

    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", half)
    message = refusal(files.save, path, {})
    assert ("No space left" if isinstance(fault, OSError) else "disk") in message
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_an_interrupt_in_mid_write_leaves_the_old_file(path, monkeypatch):
    def half(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            files.save(path, {})
    assert path.read_bytes() == before
    files.save(path, {"a": torch.ones(1)})  # and what it left does not pile up
    assert os.listdir(path.parent) == [path.name]


def test_what_does_not_read_back_replaces_nothing(path, monkeypatch):
    def damaged(content, file):
        buffer = io.BytesIO()
        torch.serialization.save(content, buffer)
        file.write(buffer.getvalue()[:-40])

    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", damaged)
    refusal(files.save, path, SMALL)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_what_replace_does_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """File, then name, then folder: a crash of the machine between them finds a whole file under the name."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda f: (done.append(os.readlink(f"/proc/self/fd/{f}")), fsync(f))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"{b}"), replace(a, b)))
    files.save_text(tmp_path / "a.csv", "text")
    assert done == [str(tmp_path / "a.csv.tmp"), str(tmp_path / "a.csv"), str(tmp_path)]
    assert (tmp_path / "a.csv").read_text() == "text"


def test_the_previous_file_is_kept_where_that_is_asked_for(path):
    before, previous = path.read_bytes(), path.with_name("previous")
    files.save(path, {"a": torch.ones(1)}, previous)
    assert previous.read_bytes() == before and files.read(path) == {"a": torch.ones(1)}


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


# ---- reading ----


def test_what_was_saved_is_read(path):
    files.save(path, {**SMALL, "progress": {"rows": [{"epoch": 1, "loss": 0.5}], "best": None}})
    found = files.read(path)
    assert list(found) == [*SMALL, "progress"]
    assert all(torch.equal(found[key], value) for key, value in SMALL.items())
    assert found["progress"] == {"rows": [{"epoch": 1, "loss": 0.5}], "best": None}


def test_a_missing_file(tmp_path):
    assert "no file" in refusal(files.read, tmp_path / "missing.pth")
    refusal(files.read, tmp_path)


def test_truncated_files(path):
    content = path.read_bytes()
    lengths = [*range(0, len(content), 61), len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        refusal(files.read, path)


def test_flipped_bits(path):
    """Each is refused, or (between the records, where nothing is) changes nothing."""
    content, every = bytearray(path.read_bytes()), 5
    refused = 0
    for i in range(0, len(content), every):
        content[i] ^= 1 << i % 8
        path.write_bytes(content)
        try:
            found = files.read(path)
        except UserError:
            refused += 1
        else:
            assert found.keys() == SMALL.keys() and all(
                torch.equal(found[key], SMALL[key]) for key in SMALL
            )
        content[i] ^= 1 << i % 8
    assert (
        refused > len(SMALL["f.weight"].numpy().tobytes()) / every
    )  # at least those among the numbers


def test_a_record_that_is_marked_as_a_folder(path):
    """One bit: torch.load does not read such a record and returns whatever its memory held before."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        place = (
            content.index(b"data/0", archive.start_dir) - len("some/") - 8
        )  # the attributes in its entry of the directory
    assert content[place] == 0
    path.write_bytes(content[:place] + b"\x10" + content[place + 1 :])
    assert "folder" in refusal(files.read, path)


class Command:
    """Its pickle runs a command: it makes the file `marker`."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["instead", "among", "nested"])
def test_nothing_in_a_file_runs(tmp_path, where, legacy):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    evil = Command(marker)
    content = {
        "instead": evil,
        "among": {**SMALL, "evil": evil},
        "nested": {"a": [OrderedDict(a=evil)]},
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for function in (files.read, load_model):
        refusal(function, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is what the test takes it for


def test_weights_only_stands_behind_the_check(tmp_path, monkeypatch):
    """Two locks: with the first one open, the second still holds."""
    path = tmp_path / "evil.pth"
    torch.save({"evil": Command(tmp_path / "marker")}, path)
    monkeypatch.setattr(files, "check", lambda path: None)
    refusal(files.read, path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("protocol", range(5))
def test_no_pickle_of_any_protocol_runs(path, protocol):
    """Inside an otherwise good file: every protocol has its own opcodes for a call."""
    marker = path.with_name("marker")
    evil = pickle.dumps(Command(marker), protocol)
    repacked(path, lambda name, content: evil if name.endswith("data.pkl") else content)
    assert "more than tensors" in refusal(files.read, path)
    assert not marker.exists()
    path.write_bytes(evil)
    refusal(files.read, path)
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "torch load", "torch.hub load", "_codecs encode", "builtins bytearray"],
)
def test_no_name_but_the_known_ones(path, name):
    pickled = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    repacked(path, lambda name, content: pickled if name.endswith("data.pkl") else content)
    assert "more than tensors" in refusal(files.read, path)


def test_the_format_before_pytorch_1_6(path):
    torch.save(SMALL, path, _use_new_zipfile_serialization=False)
    assert "1.6" in refusal(files.read, path)


def test_compressed_records(path):
    """torch.save never compresses; 1 GB of zeros would be 1 MB of file."""
    repacked(path, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(files.read, path)
    repacked(path)
    assert files.read(path).keys() == SMALL.keys()  # nothing else was wrong with it


def test_a_record_that_claims_to_be_huge(path):
    content, claimed = bytearray(path.read_bytes()), 0
    with zipfile.ZipFile(path) as archive:
        place = (
            archive.start_dir
        )  # of the central directory: a record's size is 24 bytes after the start of its entry
        for info in archive.infolist():
            if info.filename.endswith("data/0"):
                struct.pack_into("<I", content, place + 24, 2**32 - 2)
                claimed += 1
            place += 46 + len(info.orig_filename) + len(info.extra) + len(info.comment)
    assert claimed == 1
    path.write_bytes(content)
    assert "claims" in refusal(files.read, path)


def test_a_pickle_that_is_huge(path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_PICKLE", 100)
    refusal(files.read, path)


def test_a_file_that_is_huge(path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 1000)
    assert "claims" in refusal(files.read, path)


def test_a_storage_that_claims_more_than_its_record(path):
    """300 numbers in the file, 2 billion in the pickle."""
    number, claim = b"M" + struct.pack("<H", 300), b"J" + struct.pack("<i", 2**31 - 1)
    repacked(
        path,
        lambda name, content: (
            content.replace(number, claim) if name.endswith("data.pkl") else content
        ),
    )
    refusal(files.read, path)


def test_a_tensor_that_claims_more_than_its_storage(path, state):
    """One number in the file, seen as 10¹² of them: a projection of that size would be made to hold it."""
    huge = {
        **state,
        "g.3.bias": torch.zeros(1).expand(10**12),
        "g.3.weight": torch.zeros(1, 1).expand(10**12, 512),
    }
    torch.save(huge, path)
    assert "g.3" in refusal(load_model, path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), None, 7])
def test_what_is_no_dictionary(path, content):
    torch.save(content, path)
    assert "not a state_dict" in refusal(files.read, path)


# ---- models ----


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes(path, state, prefix):
    files.save(path, {prefix + key: value for key, value in state.items()})
    model, arch = load_model(path)
    assert arch == "resnet10"
    found = model.state_dict()
    assert list(found) == list(state) and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("dim", [1, 24, 300])
def test_the_projection_is_as_large_as_the_weights_say(path, dim):
    files.save(path, Model(dim, "resnet10").state_dict())
    model, _ = load_model(path)
    assert model(torch.zeros(2, 3, 8, 8))[1].shape == (2, dim)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_the_arch_is_read_off_the_weights(path, arch):
    files.save(path, Model(8, arch).state_dict())
    assert load_model(path)[1] == arch


@pytest.mark.parametrize(
    "key",
    ["f.0.weight", "f.1.num_batches_tracked", "g.3.bias", "g.1.running_var", "f.6.0.conv2.weight"],
)
def test_a_missing_key_is_named(path, state, key):
    files.save(path, {k: value for k, value in state.items() if k != key})
    assert f"{key} is missing" in refusal(load_model, path)


@pytest.mark.parametrize("key", ["f.8.weight", "f.3.0.conv3.bias", "g.4.weight", "g.0.bias"])
def test_a_key_too_many_is_named(path, state, key):
    files.save(path, {**state, f"module.{key}": torch.zeros(1)})
    assert f"{key!r} is not part of the model" in refusal(load_model, path)


def test_a_key_that_is_there_twice_is_named(path, state):
    files.save(path, {**state, "module.f.0.weight": torch.zeros(64, 3, 3, 3)})
    assert "f.0.weight twice" in refusal(load_model, path)


@pytest.mark.parametrize(
    "key", ["f.0.weight", "f.1.running_mean", "g.0.weight", "g.3.weight", "f.1.num_batches_tracked"]
)
def test_another_shape_is_named(path, state, key):
    files.save(path, {**state, key: torch.zeros(5, 2)})
    message = refusal(load_model, path)
    assert f"{key} has shape (5, 2) instead of {tuple(state[key].shape)}" in message


def test_another_arch_is_named(path, state):
    files.save(path, state)
    message = refusal(load_model, path, "resnet18")
    assert (
        "resnet18" in message and "f.3.1.conv1.weight is missing" in message and "more" in message
    )
    refusal(load_model, path, "resnet50")
    assert load_model(path, "resnet10")[1] == "resnet10"


def test_weights_of_another_program(path):
    files.save(path, {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)})
    assert "not of a known arch" in refusal(load_model, path)
    files.save(path, {})
    assert "not of a known arch" in refusal(load_model, path)


@pytest.mark.parametrize("value", [3.5, None, {"weight": torch.zeros(1)}, [torch.zeros(1)], "text"])
def test_values_that_are_not_tensors_are_named(path, state, value):
    files.save(path, {**state, "f.1.bias": value})
    assert f"f.1.bias holds a {type(value).__name__}, not a tensor" in refusal(load_model, path)


def test_a_failed_load_makes_no_file(path, state):
    path.write_bytes(b"no zip")
    refusal(load_model, path)
    assert os.listdir(path.parent) == [path.name]
    assert Path(path).read_bytes() == b"no zip"


@pytest.mark.parametrize(
    "name, words",
    [
        ("stl10_SimCLR_4model_256_400_2.0_0.5.pth", "AttentioNCE (d_pos 2, d_neg 0.5), 400 epochs"),
        (
            "results/photos/photos_SimCLR_8model_64_10_1.0_10.0.csv",
            "AttentioNCE (d_pos 1, d_neg 10, 8 positives), 10 epochs",
        ),
        ("photos_SimCLR_simclr_64_30_linear.csv", "SimCLR, 30 epochs"),
        (
            "cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9.json",
            "BCL (tau_plus 0.1, alpha 0.9, beta 0.9), 400 epochs",
        ),
        ("cifar10_SimCLR_bcl_256_400_0.1_0.9.pth", "cifar10_SimCLR_bcl_256_400_0.1_0.9"),
        ("downloaded_model.pth", "downloaded_model"),
    ],
)
def test_title_says_what_stem_wrote(name, words):
    assert file_names.title(name, LOSSES) == words


def test_title_knows_every_stem():
    for kind, entry in LOSSES.items():
        args = Namespace(
            dataset_name="cifar10", estimator="MoCo", loss=kind, num_pos=4, batch_size=8
        )
        vars(args).update(dict.fromkeys(entry.parameters, 0.5))
        words = [f"{name} 0.5" for name in entry.parameters]
        expected = entry.title + (f" ({', '.join(words)})" if words else "") + ", 7 epochs"
        assert file_names.title(f"{main.stem(args, 7)}.pth", LOSSES) == expected
