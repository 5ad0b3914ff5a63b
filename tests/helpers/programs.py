"""Runs of main.py in processes of their own, which begin with torch imported, and faults that happen to them."""

import csv
import ctypes
import io
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize

import main
from attentionce import cli
from attentionce.runs import files
from attentionce.training import one_step
from helpers.forkserver import CONTEXT

SOAK = bool(os.environ.get("SOAK"))  # set by `make soak`


class Small(nn.Module):
    """An encoder whose steps and files cost next to nothing."""

    def __init__(self, feature_dim=128, arch="resnet50", stem="small"):
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.g = nn.Linear(16, feature_dim)

    def forward(self, x, recompute=None):
        feature = self.f(x).flatten(1)
        return normalize(feature, dim=-1), normalize(self.g(feature), dim=-1)


class Program:
    """main.py with these flags; `faults` are called before it starts."""

    def __init__(self, folder, flags, *faults):
        self.path = folder / f"output{len(list(folder.glob('output*')))}"
        self.process = CONTEXT.Process(
            target=_run, args=(self.path, [*map(str, flags)], faults), daemon=True
        )
        self.process.start()

    def kill(self, number=signal.SIGKILL):
        os.kill(self.process.pid, number)

    def wait(self, seconds=120):
        """The exit status; negative is the signal that ended it. One that takes longer is killed."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def output(self):
        return self.path.read_text()

    def refusal(self):
        """The one line that it ends in, which must be the only one of its kind."""
        assert self.wait() == 2, self.output()
        lines = [line for line in re.split(r"[\r\n]+", self.output()) if line]
        assert "Traceback" not in self.output() and "Exception" not in self.output(), self.output()
        assert [line.startswith("error: ") for line in lines].count(True) == 1 and lines[
            -1
        ].startswith("error: "), lines
        return lines[-1]


def _run(path, flags, faults):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = ["main.py", *flags]
    for fault in faults:
        fault()
    cli.run(main.main)


def wait_for(condition, seconds=60):
    """Until condition() is true; returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing has come"
        time.sleep(0.01)
    return found


# ---- faults ----


class At:
    """Just before the given step (counted from 0 over epochs) `action(*arguments)` happens, inside of the program."""

    def __init__(self, step, action, *arguments):
        self.step, self.action, self.arguments = step, action, arguments

    def __call__(self):
        take_step = one_step.take_step

        def watched(run, batch):
            if (run.progress["epoch"] - 1) * run.steps + run.progress["step"] == self.step:
                self.action(*self.arguments)
            take_step(run, batch)

        one_step.take_step = watched


def small():
    """The program has a small encoder."""
    main.Model = Small


def signals(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def hold(path):
    """The program says that it is there, and waits until it is ended."""
    Path(path).touch()
    time.sleep(600)


class KillInSave:
    """SIGKILL just before the given event among all that the program does to files that it replaces."""

    def __init__(self, event):
        self.left = event

    def happens(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def before(self, function):
        def watched(*arguments):
            self.happens()
            return function(*arguments)

        return watched

    def __call__(self):
        os.fsync, os.replace = self.before(os.fsync), self.before(os.replace)
        files.check = self.before(files.check)
        happens = self.happens

        class Watched(io.BufferedWriter):
            written = 0

            def write(self, data):
                self.written += 1
                if self.written in (1, 20):
                    happens()
                return super().write(data)

        files.open = lambda path, mode: (
            Watched(io.FileIO(path, "w")) if mode == "wb" else open(path, mode)
        )


def obey_permissions():
    """root may write into read-only folders; without two of its capabilities it may not, like anybody else."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data, libc = (ctypes.c_uint32 * 6)(), ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for i in (0, 1):  # effective, permitted
        data[i] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0


# ---- what is left ----


def last(folder, ending):
    """The path of the only file with that ending."""
    (path,) = folder.rglob(f"*{ending}")
    return path


def rows(folder):
    with open(last(folder, ".csv"), newline="") as file:
        return list(csv.DictReader(file))


def same_bits(one, other):
    """Whether two state_dicts, or what contains them, are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


def check_end(results, whole):
    """The run in `results` is over and is the one in `whole`, which nothing has interrupted; nothing else is left."""
    for ending in (".pth", ".state"):
        a, b = (files.read(last(folder, ending)) for folder in (results, whole))
        if ending == ".state":
            a, b = (
                {part: state[part] for part in ("model", "optimizer", "moco")} for state in (a, b)
            )
        assert same_bits(a, b)
    for one, other in zip(rows(results), rows(whole), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    left = {
        path.name.removeprefix(last(results, ".csv").stem)
        for path in last(results, ".csv").parent.iterdir()
    }
    assert left - {".state.damaged"} == {".csv", ".json", ".pth", ".state", ".state.previous"}


def check_meanwhile(results):
    """After a fault: every file that has its name is whole, and of temporary ones there is at most one; how many it is."""
    for path in results.rglob("*"):
        if path.suffix in (".pth", ".state", ".previous"):
            assert files.read(path)
    temporary = len(list(results.rglob("*.tmp")))
    assert temporary <= 1
    return temporary


def finish(flags, results, whole, tmp_path, *faults):
    """The same command once more: it ends, and all is as if nothing had happened."""
    program = Program(tmp_path, flags, *faults)
    assert program.wait() == 0, program.output()
    check_end(results, whole)
