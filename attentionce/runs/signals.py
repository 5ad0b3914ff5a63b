"""Signals end a run after the current step, with its state saved."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from attentionce.training import processes

# SIGUSR1 is Slurm's warning. Windows has the first two alone.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


@contextmanager
def handled() -> Iterator[None]:
    """Context manager that gives the caller its own signal handlers back at the end.

    Outside the main thread, as in some servers and notebooks, handlers are left alone.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not installed from Python
                _answer(number, handler)


def _answer(number: int, handler: Callable | int) -> None:
    ignored = signal.getsignal(number) == signal.SIG_IGN  # as nohup does with SIGHUP
    if threading.current_thread() is threading.main_thread() and not ignored:
        signal.signal(number, handler)


def leave_on_signals(announce: Callable[[], None]) -> None:
    """From now on a signal ends the program after announce(): there is nothing to save."""

    def leave(number: int, frame: Any) -> NoReturn:
        for other in SIGNALS:  # only a second Ctrl-C ends this one's work
            _answer(other, signal.SIG_DFL if other == signal.SIGINT else lambda *_: None)
        announce()
        raise SystemExit(exit_status(number))

    if processes.world() == 1:  # of several, one that waits for the others would not notice
        for number in SIGNALS:
            _answer(number, leave)


def catch_signals(state: Path) -> list[int]:
    """From now on a signal is noted in the list returned; a later SIGINT leaves without saving.

    Args:
        state: Where the run's newest state is, for the user who leaves.
    """
    received: list[int] = []
    times: list[float] = []

    def note(number: int, frame: Any) -> None:
        times.append(time.monotonic())
        # Within a second it may be torchrun that passes on what the terminal sent to all.
        patience = 0 if processes.world() == 1 else 1
        if number == signal.SIGINT and received and times[-1] - times[0] >= patience:
            kept = f"the newest state is {state}" if state.exists() else "no state was saved yet"
            raise KeyboardInterrupt(f"interrupted; {kept}")
        if not received and processes.rank() == 0:
            text = f"{signal.Signals(number).name}: saving after this step; Ctrl-C leaves at once\n"
            with suppress(OSError):  # not print, which this signal may have interrupted
                os.write(2, text.encode())
        received.append(number)

    for number in SIGNALS:
        _answer(number, note)
    return received


def exit_status(number: int) -> int:
    """143 for SIGTERM, 130 for SIGINT, 0 for SIGUSR1, which is Slurm's warning and no failure."""
    return 0 if number == getattr(signal, "SIGUSR1", None) else 128 + number
