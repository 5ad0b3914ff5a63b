"""A run that is interrupted anywhere goes on from the very next step: its state, its lock, its signals."""

import glob
import json
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from attentionce.errors import UserError, mending
from attentionce.runs.file_names import stem
from attentionce.runs.files import read, save
from attentionce.training import devices, processes
from attentionce.training.pretraining import Run

# Flags that say where a run runs, where it writes and how often it reports: a run may be resumed with others.
FREE_FLAGS = {
    "root",
    "results",
    "device",
    "compile",
    "grad_cache",
    "deterministic",
    "resume",
    "state_minutes",
    "epochs",
    "save_every",
    "knn_every",
    "k",
    "tensorboard",
}
RECOVERY = {
    "lr",
    "weight_decay",
    "precision",
}  # may differ too from a state that `--resume` names: a run that diverged, say
WHERE = (
    "torch",
    "torchvision",
    "numpy",
    "device",
    "threads",
    "precision",
)  # what decides about a number's last digits


# ---------------------------------------------------------------------------------------------- states


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
    try:
        return _read_one(path)
    except UserError as error:
        problem = str(error)
    try:
        state = _read_one(previous(path))
    except UserError as error:
        raise UserError(f"{problem}; {error}; start anew with --resume never") from None
    with suppress(
        OSError
    ):  # else the next save would put it in the place of the previous one, which is whole
        os.replace(path, path.with_name(path.name + ".damaged"))
    print(f"{problem}: going on from {previous(path)}", flush=True)
    return state


def _read_one(path: Path) -> dict[str, Any]:
    state = read(path)
    if not all(isinstance(state.get(part), dict) for part in ("flags", "machine", "progress")):
        raise UserError(f"{path} is no training state")
    return {**state, "flags": current_names(state["flags"])}


def current_names(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of a state or a result file; older ones spell the loss attention_nce."""
    return {**flags, "loss": "attentionce"} if flags.get("loss") == "attention_nce" else flags


def write_state(run: Run, path: Path) -> None:
    """Save all that the run needs to go on from its next step, with any number of processes; all wait for it."""
    if processes.rank() == 0:
        save_state(path, state_of(run))
    run.saved_at = run.position
    processes.largest([0])  # if one left earlier, torchrun would end the one that writes


def state_of(run: Run) -> dict[str, Any]:
    """All that changes while a run runs, and the flags."""
    return {
        "flags": vars(run.args),
        "machine": where(run),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "moco": run.moco.state_dict() if run.moco else None,
        "progress": run.progress,
        "images": len(run.pixels),
    }


def where(run: Run) -> dict[str, str]:
    """Machine and versions, and what `--precision auto` means there."""
    return {**devices.machine(run.device), "precision": str(run.dtype).removeprefix("torch.")}


def restore(run: Run, state: dict) -> None:
    """Go on from where the state was saved.

    Raises:
        UserError: it was saved with other images, or is not what `state_of` makes.
    """
    if state.get("images") != len(run.pixels):
        raise UserError(
            f"the state was made with {state.get('images')} images, here are {len(run.pixels)}"
        )
    with mending("the state does not fit this run; start anew with --resume never"):
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in run.optimizer.state.items():
            if any(value.shape not in (parameter.shape, ()) for value in kept.values()):
                raise ValueError("the optimiser's numbers are of another shape")
        run.scaler.load_state_dict(state["scaler"])
        if run.moco:
            run.moco.load_state_dict(state["moco"])
        run.progress = _like(run.progress, state["progress"], run.steps)
        run.saved_at = run.position
    for group in run.optimizer.param_groups:  # not the state's: see RECOVERY
        group.update(lr=run.args.lr, weight_decay=run.args.weight_decay)
    there, here = state["machine"], where(run)
    changed = [
        f"{name} {there.get(name)} (here: {here[name]})"
        for name in WHERE
        if there.get(name) != here[name]
    ]
    if changed:
        print(
            f"saved with {', '.join(changed)}: the numbers may differ in their last digits",
            flush=True,
        )
    print(f"going on from epoch {run.progress['epoch']}, step {run.progress['step']}", flush=True)


def _like(fresh: dict[str, Any], progress: dict[str, Any], steps: int) -> dict[str, Any]:
    """The saved progress on the fresh one's device, if it has the same parts, types and shapes."""
    result = {}
    for name, value in fresh.items():
        saved = progress[name]
        if type(saved) is not type(value) or (
            isinstance(value, Tensor) and saved.shape != value.shape
        ):
            raise ValueError(f"its {name} is of another kind")
        result[name] = saved.to(value) if isinstance(value, Tensor) else saved
    if not (result["epoch"] >= 1 and 0 <= result["step"] <= steps):
        raise ValueError(f"there is no epoch {result['epoch']}, step {result['step']}")
    if not all(
        isinstance(row, dict) and row.keys() == result["rows"][0].keys() for row in result["rows"]
    ):
        raise ValueError("its table of metrics is none")
    return result


def announce_stop(run: Run, path: Path) -> None:
    """Say where the run stands and how it goes on."""
    print(
        f"stopped at epoch {run.progress['epoch']}, step {run.progress['step']}, state saved; to go on:"
    )
    print(resume_command(path.with_name(path.name + ".state")), flush=True)


def find_state(args: Namespace, folder: Path) -> dict[str, Any] | None:
    """The state that `--resume` asks for, or None for a fresh start.

    `auto` is this command's own state, else that of the longest run of the same name with fewer epochs, which it extends.

    Raises:
        UserError: the state, or results whose names this run's would have, were made with other flags that change the
            result; or it cannot be read.
    """
    if args.resume == "never":
        return None
    if args.resume != "auto":
        state = read_state(Path(args.resume))
        _check_flags(args, state, args.resume, RECOVERY)
        return state
    for path in of_all_epochs(args, folder, ".json").values():
        with suppress(
            OSError, json.JSONDecodeError, KeyError, TypeError
        ):  # damaged, it protects nothing
            flags = current_names(json.loads(path.read_text())["flags"])
            _check_flags(
                args, {"flags": {**vars(args), **flags}}, path
            )  # an older version's may lack some
    path = folder / f"{stem(args, args.epochs)}.state"
    if path.exists() or previous(path).exists():
        state = read_state(path)
        _check_flags(args, state, path)
        return state
    known = {
        *of_all_epochs(args, folder, ".state"),
        *of_all_epochs(args, folder, ".state.previous"),
    }
    for epochs in sorted((number for number in known if number < args.epochs), reverse=True):
        shorter = folder / f"{stem(args, epochs)}.state"
        state = read_state(shorter)
        if not differing_flags(args, state):
            print(f"extending the run of {epochs} epochs in {shorter}", flush=True)
            return state
    return None


def of_all_epochs(args: Namespace, folder: Path, ending: str) -> dict[int, Path]:
    """The files of this run and of those that differ from it in `--epochs` alone, by epochs."""
    before, after = f"{stem(args, '|')}{ending}".split("|")
    found = folder.glob(f"{glob.escape(before)}*{glob.escape(after)}")
    numbers = {path.name[len(before) : len(path.name) - len(after)]: path for path in found}
    return {
        int(number): path
        for number, path in numbers.items()
        if number.isascii() and number.isdigit()
    }


def remove_temporary(args: Namespace, folder: Path) -> None:
    """Remove what runs that were killed while they wrote a file have left; only for the holder of the lock."""
    for ending in (".state", ".nonfinite.state", ".csv", ".json", ".pth"):
        for path in of_all_epochs(args, folder, ending + ".tmp").values():
            path.unlink(missing_ok=True)


def differing_flags(
    args: Namespace, state: dict[str, Any], free: Collection[str] = ()
) -> list[str]:
    """The flags that change the result and differ, but for the free ones: `--seed 1 (there: 0)`."""
    flags = state["flags"]
    return [
        f"--{name} {value} (there: {flags.get(name)})"
        for name, value in vars(args).items()
        if name not in FREE_FLAGS and name not in free and flags.get(name) != value
    ]


def _check_flags(
    args: Namespace, state: dict[str, Any], path: str | Path, free: Collection[str] = ()
) -> None:
    different = differing_flags(args, state, free)
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
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    each = int(os.environ.get("LOCAL_WORLD_SIZE", processes.world()))
    nodes = [f"--nnodes={processes.world() // each}"] if each < processes.world() else []
    launcher = (
        [python] if processes.world() == 1 else ["torchrun", *nodes, f"--nproc_per_node={each}"]
    )
    return shlex.join([*launcher, sys.argv[0], *words, "--resume", str(state)])


# ---------------------------------------------------------------------------------------------- signals


# ---------------------------------------------------------------------------------------------- lock
