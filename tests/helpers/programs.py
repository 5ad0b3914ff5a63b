"""main.py in new processes, which begin with torch imported, with an encoder that costs nothing."""

import os
import re
import signal
import sys
import time

import torch
from torch import nn
from torch.nn.functional import normalize

import main
from attentionce import cli
from helpers.forkserver import CONTEXT


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
    """main.py with these flags and the encoder `Small`, in a new process.

    `faults` are functions that the process calls before it starts.
    """

    def __init__(self, folder, flags, *faults):
        self.path = folder / f"output{len(list(folder.glob('output*')))}"
        arguments = self.path, [str(flag) for flag in flags], faults
        self.process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    def kill(self, number=signal.SIGKILL):
        os.kill(self.process.pid, number)

    def wait(self, seconds=120):
        """The exit status, or minus the signal that ended it. After `seconds` it is killed."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def output(self):
        """What it has written to stdout and stderr so far."""
        return self.path.read_text()

    def refusal(self):
        """The one line that it ends with, `error: …`. There must be no other and no traceback."""
        assert self.wait() == 2, self.output()
        assert "Traceback" not in self.output() and "Exception" not in self.output(), self.output()
        *before, line = [line for line in re.split(r"[\r\n]+", self.output()) if line]
        assert line.startswith("error: "), self.output()
        assert not any(line.startswith("error: ") for line in before), self.output()
        return line


def _run(path, flags, faults):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    main.Model = Small
    sys.argv = ["main.py", *flags]
    for fault in faults:
        fault()
    cli.run(main.main)


def wait_for(condition, seconds=60):
    """Wait until condition() is true; returns it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing has come"
        time.sleep(0.01)
    return found
