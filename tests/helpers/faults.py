"""What happens to a program: calls that a `Program` makes in its process before it starts."""

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

from attentionce.runs import files, states
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
    """SIGKILL just before the n-th line, counted from 0, of the code that replaces files."""

    def __init__(self, line):
        self.left = line

    def __call__(self):
        codes = [f.__code__ for f in (files.replace, files._flush_folder, states.read_state)]

        def trace(frame, event, argument):
            if frame.f_code not in codes:
                return None
            if event == "line":
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.left -= 1
            return trace

        sys.settrace(trace)


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
