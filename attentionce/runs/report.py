"""What a run reports after every epoch and at its end: a line, metrics, weights, its settings."""

import shlex
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from attentionce.errors import UserError
from attentionce.presets import file_stem
from attentionce.runs import files, states
from attentionce.training import devices, processes
from attentionce.training.pretraining import Run

EVALUATION = ("knn_top1", "knn_top5", "alignment", "uniformity", "rankme")


def finish_epoch(
    run: Run, path: Path, accuracy: dict[str, float] | None, command: list[str]
) -> None:
    """Print the epoch's line, add its row to the metrics, and write what is due.

    Args:
        path: The run's files, without ending.
        accuracy: The columns of EVALUATION, if they were measured.
        command: The program and its flags.
    """
    progress, epoch = run.progress, run.progress["epoch"]
    row = {
        "epoch": epoch,
        "loss": progress["losses"].cpu().double().nanmean().item(),
        "views": epoch * run.steps * run.args.batch_size * run.views,  # encoded so far
        "seconds": round(progress["seconds"], 3),  # of training so far, without evaluation
        "skipped": int(progress["skipped"]),  # by fp16's gradient scaler
        **dict.fromkeys(("effective_positives", "effective_negatives", *EVALUATION), ""),
        **progress["attention"],
        **(accuracy or {}),
    }
    if accuracy is not None:
        progress["best_knn"] = max(progress["best_knn"], row["knn_top1"])
    print_epoch(run, row)
    progress["rows"].append(row)
    progress.update(epoch=epoch + 1, step=0, losses=torch.zeros_like(progress["losses"]))
    write_results(run, path, command)


def print_epoch(run: Run, row: dict[str, Any]) -> None:
    """The epoch in one line: loss, speed, the time that the rest will take, and accuracy."""
    before = run.progress["rows"][-1]["seconds"] if run.progress["rows"] else 0.0
    seconds = max(row["seconds"] - before, 1e-9)
    words = [
        f"loss {row['loss']:.4f}",
        f"{run.steps * run.args.batch_size / seconds:,.0f} images/s",
        f"{tqdm.format_interval(run.seconds_left)} left",
    ]
    if run.scaler.is_enabled():
        words.append(f"{row['skipped']} steps skipped so far")
    if row["knn_top1"] != "":
        words.append(f"kNN top-1 {row['knn_top1']:.2f} %, top-5 {row['knn_top5']:.2f} %")
    print(f"epoch {row['epoch']}/{run.args.epochs}: {', '.join(words)}", flush=True)
    run.reported = time.monotonic()


def write_metrics(run: Run, path: Path) -> None:
    """The table of metrics, a row per finished epoch."""
    if processes.rank() == 0 and run.progress["rows"]:
        files.save_csv(path.with_name(path.name + ".csv"), run.progress["rows"])


def write_results(run: Run, path: Path, command: list[str]) -> None:
    """Metrics, flags and, where they are due, weights after the last epoch that is done."""
    if processes.rank() > 0:
        return
    write_metrics(run, path)
    args, progress, epoch = run.args, run.progress, run.progress["epoch"] - 1
    description = {
        "flags": vars(args),
        "command": shlex.join(command),
        "machine": devices.machine(run.device),
        "code": devices.code_digests(),
        "precision": str(run.dtype).removeprefix("torch."),
        "processes": processes.world(),
        "epochs_done": epoch,
        "best_knn": progress["best_knn"],
        "last": progress["rows"][-1] if progress["rows"] else None,
        "hours": progress["seconds"] / 3600,
    }
    files.save_json(path.with_name(path.name + ".json"), description)
    if epoch % args.save_every == 0 or epoch == args.epochs:
        weights = run.model.state_dict()
        weights = {f"module.{key}": value.cpu().contiguous() for key, value in weights.items()}
        files.save(path.parent / f"{file_stem(args, epoch)}.pth", weights)


def is_done(state: dict[str, Any], path: Path, epochs: int) -> bool:
    """Whether a state has all epochs and their weights are there; if so, say so.

    Raises:
        UserError: It has more epochs than asked for.
    """
    epoch = state["progress"].get("epoch")
    if not isinstance(epoch, int) or epoch <= epochs:
        return False
    if epoch - 1 > epochs:
        raise UserError(f"the state has {epoch - 1} epochs already: give an --epochs above that")
    weights = path.with_name(path.name + ".pth")
    if weights.exists():  # else --results names another folder
        print(f"already trained for {epochs} epochs: {weights}", flush=True)
    return weights.exists()


def announce_stop(run: Run, path: Path, command: list[str]) -> None:
    """Say which step the run has reached and how to continue it."""
    epoch, step = run.position
    resume = states.resume_command(command, path.with_name(path.name + ".state"))
    print(f"stopped at epoch {epoch}, step {step}, state saved; to resume:\n{resume}", flush=True)
