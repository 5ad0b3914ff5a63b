"""What a run reports after every epoch and at its end: a line, metrics, weights, its settings."""

import shlex
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from attentionce.errors import UserError
from attentionce.presets import file_stem
from attentionce.runs import files, states
from attentionce.training import devices, processes
from attentionce.training.pretraining import Run


def finish_epoch(
    run: Run, path: Path, accuracy: tuple[float, float] | None, command: list[str]
) -> None:
    """Print the epoch's line, add its row to the metrics, and write what is due.

    Args:
        path: The run's files, without ending.
        accuracy: kNN top-1 and top-5 in percent, if it was measured.
        command: The program and its flags.
    """
    progress = run.progress
    epoch, effective = progress["epoch"], progress["effective"] or ["", ""]
    row = {
        "epoch": epoch,
        "loss": progress["losses"].cpu().double().nanmean().item(),
        "views": epoch * run.steps * run.args.batch_size * run.views,  # encoded so far
        "seconds": round(progress["seconds"], 3),  # of training so far, without evaluation
        "skipped": int(progress["skipped"]),  # by fp16's gradient scaler
        "effective_positives": effective[0],
        "effective_negatives": effective[1],
        "knn_top1": "",
        "knn_top5": "",
    }
    if accuracy is not None:
        row["knn_top1"], row["knn_top5"] = accuracy
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


def write_results(run: Run, path: Path, command: list[str]) -> None:
    """Metrics, flags and, where they are due, weights after the last epoch that is done."""
    args, progress = run.args, run.progress
    epoch = progress["epoch"] - 1
    if processes.rank() > 0:
        return
    files.save_csv(path.with_name(path.name + ".csv"), progress["rows"])
    description = {
        "flags": vars(args),
        "command": shlex.join(command),
        "machine": devices.machine(run.device),
        "precision": str(run.dtype).removeprefix("torch."),
        "processes": processes.world(),
        "epochs_done": epoch,
        "best_knn": progress["best_knn"],
        "last": progress["rows"][-1],
        "hours": progress["seconds"] / 3600,
    }
    files.save_json(path.with_name(path.name + ".json"), description)
    if epoch % args.save_every == 0 or epoch == args.epochs:
        weights = run.model.state_dict()
        weights = {f"module.{key}": value.cpu().contiguous() for key, value in weights.items()}
        files.save(path.parent / f"{file_stem(args, epoch)}.pth", weights)


def already_trained(run: Run, path: Path, command: list[str]) -> None:
    """Nothing is left to do for a run that was extended or that is called twice.

    Raises:
        UserError: The state that `--resume` names has more epochs than asked for.
    """
    done, epochs = run.progress["epoch"] - 1, run.args.epochs
    if done > epochs:
        raise UserError(
            f"--resume {run.args.resume} has {done} epochs already: give an --epochs above that"
        )
    if not path.with_name(path.name + ".pth").exists():  # perhaps --results names another folder
        write_results(run, path, command)
    print(f"already trained for {epochs} epochs: {path}.pth")


def announce_stop(run: Run, path: Path, command: list[str]) -> None:
    """Say which step the run has reached and how to continue it."""
    epoch, step = run.position
    print(f"stopped at epoch {epoch}, step {step}, state saved; to resume:")
    state = path.with_name(path.name + ".state")
    print(states.resume_command(command, state), flush=True)
