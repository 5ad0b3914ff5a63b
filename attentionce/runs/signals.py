"""Signals end a run at the next step, with its state saved."""

import os
import signal
import time
from typing import Any, NoReturn

from attentionce.training import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def leave_on_signals() -> None:
    """Until `catch_signals` the three signals end the program with their exit status: there is nothing to save yet."""

    def leave(number: int, frame: Any) -> NoReturn:
        print("stopped before the first step; the same command goes on", flush=True)
        raise SystemExit(exit_status(number))

    for number in (
        SIGNALS if processes.world() == 1 else ()
    ):  # of several, one that waits for others would not notice
        signal.signal(number, leave)


def catch_signals() -> list[int]:
    """From now on SIGTERM, SIGINT and SIGUSR1 are only noted in the list returned; a second SIGINT leaves at once."""
    received: list[int] = []
    first: dict[int, float] = {}

    def note(number: int, frame: Any) -> None:
        since = time.monotonic() - first.setdefault(number, time.monotonic())
        if number == signal.SIGINT and processes.world() == 1:
            signal.signal(
                number, signal.SIG_DFL
            )  # the kernel's own, which does not wait for a step to end
        elif (
            number == signal.SIGINT and since > 1
        ):  # torchrun passes on at once what the terminal has sent to all already
            os._exit(exit_status(number))
        received.append(number)

    for number in SIGNALS:
        signal.signal(number, note)
    return received


def exit_status(number: int) -> int:
    """143 for SIGTERM, 130 for SIGINT, 0 for SIGUSR1 (Slurm's warning before the time is up)."""
    return 0 if number == signal.SIGUSR1 else 128 + number
