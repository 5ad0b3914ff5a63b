"""One epoch of pretraining: batches, steps, checks of the loss, and states in between."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from attentionce.data import views
from attentionce.data.transfer import batches
from attentionce.errors import UserError
from attentionce.training import fallbacks, one_step, processes
from attentionce.training.pretraining import Run

REFRESH = 2  # seconds between checks of the loss, for which the host waits for a GPU
LOG_EVERY = 60  # seconds between lines about an epoch where no bar is shown
SMALLEST_SCALE = 1e-4  # fp16: below it no gradient was finite 30 times in a row


class NonFinite(UserError):
    """The loss or its gradient is no longer finite."""


def train_epoch(run: Run, received: list[int], save: Callable[[], object]) -> int:
    """Finish the current epoch.

    Args:
        received: The signals that came so far.
        save: Writes the state. Called every `--state_minutes` and before leaving early.

    Returns:
        The signal that ended the epoch early, or 0.
    """
    args, progress = run.args, run.progress
    order = batch_order(run)
    run.good_buffers = one_step.copies(one_step.statistics(run))
    checked = marked = time.monotonic()
    with progress_bar(run) as bar:
        for batch in batches(run.pixels, order[progress["step"] :], run.device):
            fallbacks.take_step_or_change(run, batch)
            progress["step"] += 1
            now = time.monotonic()
            last = progress["step"] == run.steps
            want_check = run.device.type == "cpu" or last or now - checked > REFRESH
            want_save = now - run.saved > 60 * args.state_minutes
            votes = [max(received, default=0), int(want_save), int(want_check)]
            stop, must_save, must_check = processes.maxima(votes)
            if must_check or must_save or stop:
                check_losses(run, bar)
                checked = time.monotonic()
            # This includes waiting for the GPU, but not saving.
            progress["seconds"] += time.monotonic() - marked
            if must_save or stop:
                save()
            if stop:
                return stop
            marked = time.monotonic()
    return 0


def batch_order(run: Run) -> Tensor:
    """The images of each step of this epoch that are this process's: steps × b indices."""
    generator = views.generator(run.args.seed, run.progress["epoch"])
    order = torch.randperm(len(run.pixels), generator=generator)
    order = order[: run.steps * run.args.batch_size]
    return order.view(run.steps, processes.world(), -1)[:, processes.rank()]


def progress_bar(run: Run) -> tqdm:
    """Images of the epoch that are done, on a terminal; a log file gets a line per epoch."""
    return tqdm(
        total=run.steps * run.args.batch_size,
        initial=run.progress["step"] * run.args.batch_size,
        unit=" images",
        desc=f"epoch {run.progress['epoch']}/{run.args.epochs}",
        disable=True if processes.rank() > 0 else None,  # None: where stderr is not a terminal
    )


def check_losses(run: Run, bar: tqdm) -> None:
    """Show the mean loss of the epoch so far; stop the run if it is no longer finite.

    Raises:
        NonFinite: Names epoch, step and flags. Weights, optimiser and progress are those before
            that step; BatchNorm's running statistics are those of the last check.
    """
    progress = run.progress
    losses = progress["losses"][: progress["step"]]
    shown = {"loss": f"{losses.nanmean().item():.4f}"}
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if run.scaler.is_enabled():
        shown["skipped"] = str(int(progress["skipped"]))
        bad = bad[-1:] if run.scaler.get_scale() < SMALLEST_SCALE else []
    shown["left"] = tqdm.format_interval(run.seconds_left)
    bar.set_postfix(shown, refresh=False)
    bar.update(progress["step"] * run.args.batch_size - bar.n)
    if bar.disable and time.monotonic() - run.reported > LOG_EVERY:
        run.reported = time.monotonic()
        words = ", ".join(f"{name} {value}" for name, value in shown.items())
        epoch, step = run.position
        print(f"epoch {epoch}/{run.args.epochs}, step {step}/{run.steps}: {words}", flush=True)
    if bad:
        progress["step"] = bad[0]
        assert run.good_buffers is not None
        for buffer, good in zip(one_step.statistics(run), run.good_buffers, strict=True):
            buffer.copy_(good)
        flags = " ".join(f"--{name} {value}" for name, value in vars(run.args).items())
        raise NonFinite(
            "the loss or its gradient is not finite at "
            f"epoch {progress['epoch']}, step {bad[0] + 1}: {flags}"
        )
    run.good_buffers = one_step.copies(one_step.statistics(run))
