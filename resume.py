"""A run that is interrupted anywhere goes on from the very next step: its state, its lock, its signals."""

import fcntl
import os
import shlex
import signal
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, TextIO

import torch

import distributed
import runtime
from train import Run
from utils import UserError
from weights import read, save, stem

# Flags that say where a run runs, where it writes and how often it reports: a run may be resumed with others.
FREE_FLAGS = {
    "root", "results", "device", "compile", "grad_cache", "deterministic", "resume", "state_minutes", "epochs",
    "save_every", "knn_every", "k", "tensorboard",
}  # fmt: skip


def previous(path: Path) -> Path:
    """Where the state before the newest one is kept."""
    return path.with_name(path.name + ".previous")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state; the one before it stays beside it, in case that the disk damages this one."""
    save(path, state, previous(path))


def read_state(path: Path) -> dict[str, Any]:
    """A training state, or, where the newest is damaged (and says so), the one before it.

    Raises:
        UserError: neither can be read.
    """
    problems = []
    for candidate in (path, previous(path)):
        try:
            state = read(candidate)
            if "flags" not in state:
                raise UserError(f"{candidate} is no training state")
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            print(f"{problems[0]}: going on from {candidate}", flush=True)
        return state
    raise UserError("; ".join(problems) + "; start anew with --resume never")


def write_state(run: Run, path: Path) -> None:
    """Save all that the run needs to go on from its next step, with any number of processes; all wait for it."""
    if distributed.rank() == 0:
        save_state(path, state_of(run))
    distributed.largest([0])  # if one left earlier, torchrun would end the one that writes


def state_of(run: Run) -> dict[str, Any]:
    """All that changes while a run runs, and the flags."""
    return {
        "flags": vars(run.args),
        "machine": runtime.machine(run.device),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "moco": run.moco.state_dict() if run.moco else None,
        "progress": run.progress,
    }


def restore(run: Run, state: dict) -> None:
    """Go on from where the state was saved."""
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    if run.moco:
        run.moco.load_state_dict(state["moco"])
    progress = state["progress"]
    if len(progress["losses"]) != run.steps:
        raise UserError(f"the state was made with {len(progress['losses'])} steps an epoch, these images give {run.steps}")
    run.progress = {key: value.to(run.device) if isinstance(value, torch.Tensor) else value for key, value in progress.items()}
    print(f"going on from epoch {progress['epoch']}, step {progress['step']}", flush=True)


def announce_stop(run: Run, path: Path) -> None:
    """Say where the run stands and how it goes on."""
    print(f"stopped at epoch {run.progress['epoch']}, step {run.progress['step']}, state saved; to go on:")
    print(resume_command(path.with_name(path.name + ".state")), flush=True)


def find_state(args: Namespace, folder: Path) -> dict[str, Any] | None:
    """The state that `--resume` asks for, or None for a fresh start.

    `auto` is this command's own state, else that of the longest run of the same name with fewer epochs, which it extends.

    Raises:
        UserError: the state was made with other flags that change the result, or cannot be read.
    """
    if args.resume == "never":
        return None
    if args.resume != "auto":
        state = read_state(Path(args.resume))
        _check_flags(args, state, args.resume)
        return state
    path = folder / f"{stem(args, args.epochs)}.state"
    if path.exists() or previous(path).exists():
        state = read_state(path)
        _check_flags(args, state, path)
        return state
    before, after = f"{stem(args, '|')}.state".split("|")
    names = {other.name[len(before) : -len(after)]: other for other in folder.glob(f"{before}*{after}")}
    shorter = {int(name): other for name, other in names.items() if name.isdigit() and int(name) < args.epochs}
    for epochs in sorted(shorter, reverse=True):
        state = read_state(shorter[epochs])
        if not differing_flags(args, state):
            print(f"extending the run of {epochs} epochs in {shorter[epochs]}", flush=True)
            return state
    return None


def differing_flags(args: Namespace, state: dict[str, Any]) -> list[str]:
    """The flags that change the result and differ: `--seed 1 (the state: 0)`."""
    flags = state["flags"]
    return [
        f"--{name} {value} (the state: {flags.get(name)})"
        for name, value in vars(args).items()
        if name not in FREE_FLAGS and flags.get(name) != value
    ]


def _check_flags(args: Namespace, state: dict[str, Any], path: str | Path) -> None:
    different = differing_flags(args, state)
    if different:
        raise UserError(
            f"{path} was made with other flags: {', '.join(different)}; use those, name another --results, "
            "or start anew with --resume never"
        )


def resume_command(state: Path) -> str:
    """The command line that continues this run, whatever `--resume` it was started with."""
    words, given = [], iter(sys.argv[1:])
    for word in given:
        if word == "--resume":
            next(given, None)
        elif not word.startswith("--resume="):
            words.append(word)
    launcher = ["python"] if distributed.world() == 1 else ["torchrun", f"--nproc_per_node={distributed.world()}"]
    return shlex.join([*launcher, sys.argv[0], *words, "--resume", str(state)])


def catch_signals() -> list[int]:
    """From now on SIGTERM, SIGINT and SIGUSR1 are only noted in the list returned; a second SIGINT leaves at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            os._exit(128 + signal.SIGINT)
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)
    return received


def exit_status(number: int) -> int:
    """143 for SIGTERM, 130 for SIGINT, 0 for SIGUSR1 (Slurm's warning before the time is up)."""
    return 0 if number == signal.SIGUSR1 else 128 + number


def lock(path: Path) -> TextIO:
    """Hold `path` until this process ends, however it ends: the kernel lets go of it.

    Raises:
        UserError: names the process that holds it.
    """
    while True:
        file = open(path, "a+")  # open as long as the process
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"{owner} is at work on this run ({path}): wait for it, or name another --results") from None
        try:
            held = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            held = False
        if held:  # else its last holder removed it between our open and our lock
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def unlock(path: Path, file: TextIO) -> None:
    """Let go of a lock and leave no file behind."""
    path.unlink(missing_ok=True)
    file.close()
