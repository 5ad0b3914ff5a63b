"""What several test files share: programs, called here or in new processes, and small data."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.device import DEVICE
from helpers.groups import Group
from helpers.programs import Small
from helpers.weights import SMALL
from PIL import Image

import linear
import main
from attentionce.errors import UserError
from attentionce.runs import files
from attentionce.training import one_step
from model import Model

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A data set for `--dataset_name folder`: 24 training and 12 test images of 8×8, 3 classes."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.RandomState(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 128, (8, 8, 3), dtype=np.uint8)
                pixels[..., label] += 64
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


class Toy(NamedTuple):
    """A study so small that it takes seconds: its results, and the flags of reproduce.py for it."""

    folder: Path
    flags: list[str]


@pytest.fixture(scope="session")
def toy(pictures, tmp_path_factory):
    """AttentioNCE on the pictures, evaluated after one and after all four epochs of one run.

    reproduce.py runs main.py and linear.py with their own flags, but here in this process.
    """
    import reproduce
    from experiments import studies

    folder = tmp_path_factory.mktemp("toy")
    size = "--image_size 8 --store_size 8 --k 5"
    flags = ["--epochs", "4", "--arch", "resnet10", "--batch_size", "8", "--seeds", "0"]
    flags += ["--pretrain", f"{size} --knn_every 2 --compile off", "--linear", f"{size} --epochs 2"]
    flags += ["--root", str(pictures), "--results", str(folder), "--row"]
    for number, row in enumerate(studies.all_rows(reproduce.parse_args([])), 1):
        if row.study.name == "folder" and row.loss == "attentionce" and row.epochs in (100, 400):
            flags.append(str(number))
    programs = {"main.py": main, "linear.py": linear}
    with pytest.MonkeyPatch.context() as patch:

        def run_here(command):
            patch.setattr(sys, "argv", command[1:])
            return programs[Path(command[1]).name].main() or 0

        patch.setattr(reproduce, "call", run_here)
        patch.setattr(sys, "argv", ["reproduce.py", *flags])
        reproduce.main()
    yield Toy(folder, flags)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def results(tmp_path):
    """A results folder, removed afterwards: a run leaves 100 MB."""
    folder = tmp_path / "results"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tiny(pictures, results):
    """Flags of main.py for a run of a second: 3 steps per epoch."""
    folders = ["--dataset_name", "folder", "--root", pictures, "--results", results]
    words = "--arch resnet10 --image_size 8 --batch_size 8 --epochs 1 --knn_every 0"
    words += f" --precision fp32 --compile off --device {DEVICE}"
    return [*folders, *words.split()]


@pytest.fixture
def encoder(tmp_path):
    """Weights of an untrained resnet10 whose BatchNorm has seen some images, in a new folder."""
    torch.manual_seed(5)
    model = Model(24, "resnet10")
    model(torch.randn(16, 3, 8, 8))
    path = tmp_path / "weights" / "encoder.pth"
    path.parent.mkdir()
    files.save(path, {f"module.{key}": value for key, value in model.state_dict().items()})
    return path


@pytest.fixture
def weights_path(tmp_path):
    """A weights file that holds `helpers.weights.SMALL`."""
    path = tmp_path / "some.pth"
    torch.save(SMALL, path)
    return path


@pytest.fixture
def evaluation(tiny):
    """Flags of linear.py for an evaluation of a second."""
    return [*tiny[:6], "--image_size", 8, "--batch_size", 8, "--epochs", 1]


@pytest.fixture
def nothing_loaded(monkeypatch):
    """The test fails if a program loads images: it must notice the mistake before."""

    for program in (main, linear):
        monkeypatch.setattr(program, "load", lambda *_: pytest.fail("images were loaded first"))


@pytest.fixture
def group(tmp_path):
    """group(count, function, *args): a `Group`, which ends with the test."""
    made = []

    def make(*args, **options):
        made.append(Group(tmp_path, *args, **options))
        return made[-1]

    yield make
    for g in made:
        g.join(0)


@pytest.fixture
def flags(tiny):
    """Flags of a run of 3 epochs of 3 steps, on the CPU, where every bit repeats."""
    return [*tiny, "--epochs", 3, "--k", 5, "--device", "cpu"]


@pytest.fixture
def saving_flags(flags):
    """The same run, which saves its state after every step; kNN after epochs 2 and 3."""
    return [*flags, "--knn_every", 2, "--state_minutes", 0]


@pytest.fixture
def whole(call, saving_flags, tmp_path, small_encoder):
    """whole(): the results of a run that nothing interrupts; `more`: further flags."""

    def function(more=()):
        assert call(main, *saving_flags, *more, "--results", tmp_path / "whole") == 0
        return tmp_path / "whole"

    return function


@pytest.fixture
def small_encoder(monkeypatch):
    """main.py has an encoder whose steps and files cost next to nothing."""
    monkeypatch.setattr(main, "Model", Small)


@pytest.fixture
def in_step(monkeypatch):
    """in_step(4, action, *arguments): called once, in the fourth step from now."""
    due, done, take_step = {}, [0], one_step.take_step

    def watched(*arguments):
        done[0] += 1
        due.pop(done[0], lambda: None)()
        take_step(*arguments)

    def function(step, action, *arguments):
        due[done[0] + step] = functools.partial(action, *arguments)

    monkeypatch.setattr(one_step, "take_step", watched)
    return function


@pytest.fixture
def stop_after(in_step):
    """stop_after(4): a SIGTERM, or another signal, comes in the fourth step from now."""
    return lambda step, number=signal.SIGTERM: in_step(step, os.kill, os.getpid(), number)


@pytest.fixture
def break_steps(monkeypatch):
    """break_steps(4, value=nan): from now on, counted from 0, these steps have a non-finite loss.

    break_steps() ends that.
    """
    batch_loss, broken, count = one_step.batch_loss, {}, [0]

    def watched(*arguments):
        factor = broken.get(count[0], 1)
        count[0] += 1
        return batch_loss(*arguments) * factor

    def function(*steps, value=torch.inf):
        broken.clear()
        broken.update(dict.fromkeys(steps, value))
        count[0] = 0

    monkeypatch.setattr(one_step, "batch_loss", watched)
    return function


@pytest.fixture
def call(monkeypatch):
    """call(main, "--epochs", 1, …): the module's main() with these flags, in this process."""

    def function(module, *words):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
        return module.main()

    return function


@pytest.fixture
def refused(call):
    """refused(main, "--epochs", 0, …): the one-line message of the UserError that this ends in."""

    def function(module, *words):
        with pytest.raises(UserError) as caught:
            call(module, *words)
        message = str(caught.value)
        assert message.isprintable() and 20 < len(message) < 2000, message
        return message

    return function


@pytest.fixture
def script():
    """script("main.py", "--epochs", 1, …): the program in a new process, as CompletedProcess."""

    def function(*words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )

    return function


@pytest.fixture
def contents():
    """contents(folder): the contents of every file below it, by its path inside."""
    return lambda folder: {
        str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()
    }


@pytest.fixture
def under_1_gb():
    """The test fails if this process takes 1 GB more than it had at any moment of it."""

    def kilobytes(name):
        return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    if not Path("/proc/self/clear_refs").exists():  # not on macOS
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the most that it ever had, begins anew
    before = kilobytes("VmRSS")
    yield
    assert kilobytes("VmHWM") - before < 1e6
