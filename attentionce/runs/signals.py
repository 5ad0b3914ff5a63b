"""Signals end a run after the current step, with its state saved."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from attentionce.training import processes

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is Slurm's warning; Windows does not have it
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def leave_on_signals() -> None:
    """Until `catch_signals`, a signal ends the program: there is nothing to save yet."""

    def leave(number: int, frame: Any) -> NoReturn:
        print("stopped before the first step; the same command starts again", flush=True)
        raise SystemExit(exit_status(number))

    if processes.world() == 1:  # of several, one that waits for the others would not notice
        for number in SIGNALS:
            _answer(number, leave)


def catch_signals() -> list[int]:
    """From now on a signal is only noted in the list returned; a second SIGINT leaves at once."""
    received: list[int] = []
    first: dict[int, float] = {}

    def note(number: int, frame: Any) -> None:
        since = time.monotonic() - first.setdefault(number, time.monotonic())
        if number == signal.SIGINT and processes.world() == 1:
            signal.signal(number, signal.SIG_DFL)  # the next one does not wait for the step to end
        elif number == signal.SIGINT and since > 1:
            # Before that it may be torchrun that passes on what the terminal sent to all.
            os._exit(exit_status(number))
        received.append(number)

    for number in SIGNALS:
        _answer(number, note)
    return received


def exit_status(number: int) -> int:
    """143 for SIGTERM, 130 for SIGINT, 0 for SIGUSR1, after which Slurm starts the job again."""
    return 0 if number == getattr(signal, "SIGUSR1", None) else 128 + number
