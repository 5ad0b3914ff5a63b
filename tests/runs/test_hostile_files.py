"""A fuzzer for weights and states. Those for data sets are in tests/data."""

import random
import signal
import zipfile

import pytest
import torch
from helpers.faults import SOAK
from helpers.outputs import last
from helpers.samples import mutated

import main
from attentionce.errors import UserError
from attentionce.runs import files, states
from model import Model, load_model


@pytest.fixture(autouse=True)
def modest(under_1_gb):
    """No file may make a program take more memory than that, or ten seconds."""

    def give_up(number, frame):
        pytest.fail("a file made the program hang")

    usual = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, usual)


def count_refused(count, path, seed, use):
    """How many of `count` damaged forms of the file use() refuses, in one line each.

    Damaged is the file, or a record whose checksum is made right. use() may raise nothing else.
    """
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    draw, lines = random.Random(seed), []
    for _ in range(count):
        inside = draw.choice([None, draw.choice([*records]), pickled])
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, mutated(content, draw) if name == inside else content)
        if inside is None:
            path.write_bytes(mutated(path.read_bytes(), draw))
        signal.alarm(10)
        try:
            use()
        except UserError as error:
            lines.append(str(error))
    assert not [line for line in lines if not line.isprintable() or not 20 < len(line) < 3000]
    return len(lines)


@pytest.mark.soak
def test_fuzz_weights(tmp_path):
    """A few tensors in many records: most of such a file is structure."""
    path = tmp_path / "some.pth"
    state = {f"module.{key}": value for key, value in Model(24, "resnet10").state_dict().items()}
    torch.save({key: value for key, value in state.items() if value.numel() < 100}, path)
    many, few = (1500, 100) if SOAK else (200, 8)
    # Were none or all refused, the fuzzer would test nothing.
    assert 0.6 * many < count_refused(many, path, 0, lambda: files.read(path)) < many
    torch.save(state, path)
    assert 0 < count_refused(few, path, 1, lambda: load_model(path)) < few


@pytest.mark.soak
@pytest.mark.parametrize(
    "steps, in_epoch", [(2, 2), (3, 3), (6, 3)], ids=["mid-epoch", "before its row", "at the end"]
)
def test_fuzz_states(call, tiny, results, small_encoder, stop_after, steps, in_epoch):
    """main.py resumes from whatever it accepts, to the end of the run."""
    flags, count = [*tiny, "--epochs", 2, "--device", "cpu"], 300 if SOAK else 20
    stop_after(steps)
    call(main, *flags)
    path = last(results, ".state")
    assert states.read_state(path)["progress"]["step"] == in_epoch
    states.previous(path).unlink(missing_ok=True)

    def resume():
        for name in [*results.rglob("*.damaged"), *results.rglob("*.previous")]:
            name.unlink()
        assert call(main, *flags) == 0

    assert 0 < count_refused(count, path, steps, resume) < count
