"""What happens to a program: calls that a `Program` makes in its process before it starts."""

import ctypes
import io
import os
import resource
import signal
import time
from pathlib import Path

from attentionce.runs import files
from attentionce.training import one_step

SOAK = bool(os.environ.get("SOAK"))  # set by `make soak`


class At:
    """Just before a step, counted from 0 over all epochs, the program calls action(*arguments)."""

    def __init__(self, step, action, *arguments):
        self.step, self.action, self.arguments = step, action, arguments

    def __call__(self):
        take_step = one_step.take_step

        def watched(run, batch):
            if (run.progress["epoch"] - 1) * run.steps + run.progress["step"] == self.step:
                self.action(*self.arguments)
            take_step(run, batch)

        one_step.take_step = watched


class KillInSave:
    """SIGKILL just before one of the events, counted from 0, in which files are replaced."""

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

        def watched_open(path, mode):
            return Watched(io.FileIO(path, "w")) if mode == "wb" else open(path, mode)

        files.open = watched_open


def limit(size):
    """From now on no file of this process may be larger, as if the disk were full there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def signals(*numbers):
    """This process gets these signals."""
    for number in numbers:
        os.kill(os.getpid(), number)


def hold(path):
    """The program makes the file `path` as a sign that it is there, and waits for its end."""
    Path(path).touch()
    time.sleep(600)


def obey_permissions():
    """From now on root, too, may not write into read-only folders: it drops two capabilities."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data, libc = (ctypes.c_uint32 * 6)(), ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for i in (0, 1):  # effective, permitted
        data[i] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0
