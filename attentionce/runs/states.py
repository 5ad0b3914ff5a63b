"""Training states on disk: written, found again, and refused where the flags do not match."""

import json
import os
import re
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attentionce.errors import UserError
from attentionce.runs.files import read, read_csv
from attentionce.training import processes
from attentionce.training.devices import code_digests

# Flags that change no result: how a run computes, reads and reports. It may be resumed with others.
COMPUTING = {"compile", "deterministic", "device", "grad_cache"}
READING = {"cache", "resume", "root", "skip_broken", "test_split"}
REPORTING = {"k", "knn_every", "results", "save_every", "state_minutes", "tensorboard"}
FREE_FLAGS = {"epochs"} | COMPUTING | READING | REPORTING
# These may differ too from a state that `--resume` names, as after divergence.
RECOVERY = {"lr", "weight_decay", "precision"}


def previous(path: Path) -> Path:
    """Where the state before the newest one is kept, in case the disk damages that."""
    return path.with_name(path.name + ".previous")


def read_state(path: Path) -> dict[str, Any]:
    """A training state; if it is damaged, say so and read the previous one, or a UserError."""
    try:
        return _read_one(path)
    except UserError as error:
        problem = str(error)
    try:
        state = _read_one(previous(path))
    except UserError as error:
        raise UserError(f"{problem}; {error}; start over with --resume never") from None
    with suppress(OSError):  # else the next save would overwrite the intact previous state
        os.replace(path, path.with_name(path.name + ".damaged"))
    print(f"{problem}: continuing from {previous(path)}", flush=True)
    return state


def _read_one(path: Path) -> dict[str, Any]:
    state = read(path)
    if not all(isinstance(state.get(part), dict) for part in ("flags", "machine", "progress")):
        beside = path.with_suffix(".state")
        hint = f"; {beside} is" if path.suffix == ".pth" and beside.exists() else ""
        raise UserError(f"{path} is not a training state{hint}")
    # The metrics of finished epochs are in the table beside it; older states hold them themselves.
    name = path.name.removesuffix(".previous").removesuffix(".state").removesuffix(".nonfinite")
    table = path.with_name(f"{name}.csv")
    if "rows" not in state["progress"] and table.exists():
        state["progress"]["rows"] = read_csv(table)
    elif "rows" not in state["progress"] and state["progress"].get("epoch") != 1:
        print(f"there is no {table}: the metrics of finished epochs are missing", flush=True)
    return state


def find_state(
    args: Namespace, defaults: dict[str, Any], folder: Path, file_stem: str
) -> dict[str, Any] | None:
    """The state that `--resume` asks for, or None for a fresh start.

    `auto` means this command's own state; if there is none, that of the longest run with the same
    name and fewer epochs, which is then extended.

    Args:
        args: The flags of this run.
        defaults: Every flag's default. A flag that is newer than a file had its default there.
        file_stem: The files' name in `folder`, `{epochs}` in the place of the number of epochs.

    Raises:
        UserError: The state, or results that this run would overwrite, were made with other flags
            that change the result; or the state cannot be read.
    """
    newest = folder / f"{file_stem.format(epochs=args.epochs)}.state"
    if args.resume == "never":  # else an early interruption would continue the old run
        for path in (newest, previous(newest)):
            if path.exists():
                os.replace(path, path.with_name(path.name + ".old"))
        return None
    named = args.resume != "auto"
    free = FREE_FLAGS | RECOVERY if named else FREE_FLAGS
    for path in of_all_epochs(folder, file_stem, ".json").values():
        if flags := _flags_in(path):
            _check_flags(args, {**defaults, **flags}, path, free)
    path = Path(args.resume) if named else newest
    others = of_all_epochs(folder, file_stem, ".state")
    if not (named or newest.exists() or previous(newest).exists()):
        if not others:
            return None
        path = others[max(others)]
    state = read_state(path)
    _check_flags(args, {**defaults, **state["flags"]}, path, free)
    if path != newest and not named:
        if max(others) > args.epochs:
            raise UserError(
                f"{path} is this run with --epochs {max(others)}: give that to continue it, or "
                "start over with --resume never"
            )
        print(f"extending the run of {max(others)} epochs in {path}", flush=True)
    code = code_digests()
    saved = {**code, **state.get("code", {})}
    changed = ", ".join(name for name in code if saved[name] != code[name])
    if changed:
        print(
            f"{changed} changed since the state was saved: the results are of mixed code; to start "
            "over: --resume never",
            flush=True,
        )
    return state


def of_all_epochs(folder: Path, file_stem: str, ending: str) -> dict[int, Path]:
    """The files of this run and of those that differ from it in `--epochs` alone, by epochs."""
    pattern = re.escape(file_stem + ending).replace(re.escape("{epochs}"), "([0-9]+)")
    found = {path: re.fullmatch(pattern, path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in found.items() if match}


def remove_temporary(folder: Path, file_stem: str) -> None:
    """Remove what killed runs left of files that they were writing. Only for the lock's holder."""
    before, after = map(re.escape, file_stem.split("{epochs}"))
    for path in folder.glob("*.tmp"):
        if re.fullmatch(rf"{before}[0-9]+{after}\..+", path.name):  # not linear.py's
            path.unlink(missing_ok=True)


def differing_flags(args: Namespace, there: dict[str, Any], free: Collection[str]) -> list[str]:
    """The flags that differ, except the free ones: `--seed 1 (there: 0)`."""
    return [
        f"--{name} {value} (there: {there.get(name)})"
        for name, value in vars(args).items()
        if value is not None and name not in free and there.get(name) != value  # None: no effect
    ]


def _check_flags(args: Namespace, there: dict[str, Any], path: Path, free: Collection[str]) -> None:
    if different := differing_flags(args, there, free):
        raise UserError(
            f"{path} was made with other flags: {', '.join(different)}; use those, name another "
            "--results, or start over with --resume never"
        )


def take_sizes(args: Namespace, paths: list[str]) -> None:
    """Fill in `--image_size` and `--store_size` if the program has them and they are not given.

    They are those of pretraining, by the JSON beside the weights; else 32, and at least 64. A
    UserError if the weights were trained at different sizes.
    """
    for name in ("image_size", "store_size"):
        if getattr(args, name, 0) is not None:
            continue
        default = 32 if name == "image_size" else max(64, getattr(args, "image_size", 0))
        sizes = {flags_beside(path).get(name, default) for path in paths} or {default}
        if len(sizes) > 1:
            raise UserError(f"the weights were trained with different --{name}: give one for all")
        setattr(args, name, sizes.pop())
        if getattr(args, name) != default:
            print(f"--{name} {getattr(args, name)}, as in pretraining", flush=True)


def flags_beside(path: str | Path) -> dict[str, Any]:
    """The flags of the run that wrote weights or metrics, by its JSON; none without such a file.

    The JSON is named after the run's last epoch, weights after theirs.
    """
    parts = [re.escape(part) for part in Path(path).stem.split("_")]
    if len(parts) > 4:
        parts[4] = "[0-9]+"
    pattern = "_".join(parts) + "[.]json"  # never linear.py's
    for found in sorted(Path(path).parent.glob("*.json")):
        if re.fullmatch(pattern, found.name) and (flags := _flags_in(found)):
            return flags
    return {}


def _flags_in(path: Path) -> dict[str, Any]:
    """The flags in a run's JSON; none if it cannot be read."""
    with suppress(OSError, json.JSONDecodeError, KeyError, TypeError):
        return dict(json.loads(path.read_text())["flags"])
    return {}


def resume_command(command: Sequence[str], state: Path) -> str:
    """The command line that continues a run that was started with `command`."""
    before = command[:-2] if command[-2:-1] == ["--resume"] else command  # the last one counts
    world = processes.world()
    if world == 1:
        launcher = ["python" if shutil.which("python") == sys.executable else sys.executable]
    else:
        each = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        launcher = ["torchrun", f"--nnodes={world // each}", f"--nproc_per_node={each}"]
    return shlex.join([*launcher, *before, "--resume", str(state)])
