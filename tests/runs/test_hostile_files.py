"""A fuzzer for weights and states: 2,500 files; those for data sets are in test_tinyimagenet.py and test_folder.py."""

import random
import signal
import zipfile
from contextlib import contextmanager

import pytest
import torch
from helpers.programs import At, Small, last, signals
from helpers.samples import mutated

import main
from attentionce.errors import UserError
from attentionce.runs import files, states
from attentionce.training import one_step
from model import Model, load_model


@pytest.fixture(autouse=True)
def modest(under_1_gb):
    """No file may make a program take more memory than that."""


@contextmanager
def quickly():
    """What is inside ends within ten seconds, or the test fails."""

    def give_up(number, frame):
        pytest.fail("a file made the program hang")

    usual = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


def damaged(path, records, draw):
    """Write the zip of these records to path, with damage to the file, or to one record whose checksum is then right."""
    inside = draw.choice(
        [None, draw.choice([*records]), next(name for name in records if name.endswith("data.pkl"))]
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, mutated(content, draw) if name == inside else content)
    if inside is None:
        path.write_bytes(mutated(path.read_bytes(), draw))


def records_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def refused_of(count, path, seed, use):
    """How many of so many damaged forms of the file end in a line; no other exception may leave `use`."""
    records, draw, lines = records_of(path), random.Random(seed), []
    for _ in range(count):
        damaged(path, records, draw)
        with quickly():
            try:
                use()
            except UserError as error:
                lines.append(str(error))
    assert not [line for line in lines if not line.isprintable() or not 20 < len(line) < 3000]
    return len(lines)


def test_fuzz_weights(tmp_path):
    """A few tensors in many records: most of such a file is structure."""
    path = tmp_path / "some.pth"
    state = {f"module.{key}": value for key, value in Model(24, "resnet10").state_dict().items()}
    torch.save({key: value for key, value in state.items() if value.numel() < 100}, path)
    assert (
        1000 < refused_of(1500, path, 0, lambda: files.read(path)) < 1400
    )  # or the fuzzer tests nothing
    torch.save(state, path)
    assert 60 < refused_of(100, path, 1, lambda: load_model(path)) < 100


@pytest.mark.parametrize(
    "stop", [2, 3, 6], ids=["in mid-epoch", "before an epoch's row", "at the end"]
)
def test_fuzz_states(call, tiny, results, monkeypatch, stop):
    """main.py goes on from whatever it accepts, to the end of the run."""
    flags = [*tiny, "--num_pos", 1, "--epochs", 2, "--device", "cpu"]
    monkeypatch.setattr(main, "Model", Small)
    with monkeypatch.context() as patch:
        patch.setattr(one_step, "take_step", one_step.take_step)  # to be put back
        At(stop - 1, signals, signal.SIGTERM)()
        call(main, *flags)
    path = last(results, ".state")
    assert states.read_state(path)["progress"]["step"] == {2: 2, 3: 3, 6: 3}[stop]
    states.previous(path).unlink(missing_ok=True)

    def go_on():
        for name in [*results.rglob("*.damaged"), *results.rglob("*.previous")]:
            name.unlink()
        assert call(main, *flags) == 0

    assert 100 < refused_of(300, path, stop, go_on) < 300
