"""One epoch of pretraining: batches, steps, looks at the loss and states in between."""

import signal
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from attentionce.data import views
from attentionce.errors import UserError
from attentionce.training import one_step, processes
from attentionce.training.pretraining import Run

REFRESH = 0.3  # seconds between looks at the loss; on a GPU a look waits for it


SMALLEST_SCALE = 1e-4  # fp16: a gradient scale that fell below this has found no finite gradient 30 times in a row


class NonFinite(UserError):
    """The loss or its gradient is no longer finite."""


def train_epoch(run: Run, received: list[int], save_state: Callable[[], None]) -> int:
    """The rest of the current epoch.

    Args:
        received: the signals that came so far.
        save_state: writes the state; called every `--state_minutes` and before leaving early.

    Returns:
        the signal that ended the epoch early, or 0.
    """
    args, progress = run.args, run.progress
    order = torch.randperm(len(run.pixels), generator=views.generator(args.seed, progress["epoch"]))
    order = order[: run.steps * args.batch_size].view(run.steps, processes.world(), -1)[
        :, processes.rank()
    ]
    run.good_buffers = [buffer.clone() for buffer in one_step.statistics(run)]
    saved = looked = marked = time.monotonic()
    bar = tqdm(
        total=run.steps * args.batch_size,
        initial=progress["step"] * args.batch_size,
        unit=" images",
        desc=f"epoch {progress['epoch']}/{args.epochs}",
        disable=processes.rank() > 0,
    )
    with bar:
        for batch in batches(run.pixels, order[progress["step"] :], run.device):
            one_step.take_step(run, batch)
            progress["step"] += 1
            now = time.monotonic()
            want_look = (
                run.device.type == "cpu" or now - looked > REFRESH or progress["step"] == run.steps
            )
            want_save = now - saved > 60 * args.state_minutes
            signalled = max(received, default=int(signal.SIGTERM) if processes.orphaned() else 0)
            stop, save, look = processes.largest([signalled, int(want_save), int(want_look)])
            if look or save or stop:
                look_at_losses(run, bar)
                looked = time.monotonic()
            progress["seconds"] += (
                time.monotonic() - marked
            )  # with the wait for the GPU that a look is, without the saving
            if save or stop:
                save_state()
                saved = time.monotonic()
            if stop:
                return stop
            marked = time.monotonic()
    return 0


def look_at_losses(run: Run, bar: tqdm) -> None:
    """Show the mean loss of the epoch so far; stop when it is no longer finite.

    Raises:
        NonFinite: names epoch, step and flags. Weights, optimiser and progress are those before that step, BatchNorm's
            running statistics those of the last look.
    """
    progress = run.progress
    losses = progress["losses"][: progress["step"]]
    shown = {"loss": f"{losses.nanmean().item():.4f}"}
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    if run.scaler.is_enabled():
        shown["skipped"] = int(progress["skipped"])
        bad = bad[-1:] if run.scaler.get_scale() < SMALLEST_SCALE else []
    bar.set_postfix(shown, refresh=False)
    bar.update(progress["step"] * run.args.batch_size - bar.n)
    if bad:
        progress["step"] = bad[0]
        for buffer, good in zip(one_step.statistics(run), run.good_buffers, strict=True):
            buffer.copy_(good)
        flags = " ".join(f"--{name} {value}" for name, value in vars(run.args).items())
        raise NonFinite(
            f"the loss or its gradient is not finite at epoch {progress['epoch']}, step {bad[0] + 1}: {flags}"
        )
    run.good_buffers = [buffer.clone() for buffer in one_step.statistics(run)]


def batches(pixels: Tensor, order: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Batch after batch, uint8 B×3×H×W on `device`.

    For a GPU that does not hold the pixels they are pinned and copied one batch ahead on a side stream.

    Args:
        pixels: uint8 N×3×H×W, on `device` or on the CPU (memory-mapped, perhaps).
        order: steps × B indices, on the CPU.
    """
    if device.type != "cuda" or pixels.is_cuda:
        for index in order:
            yield pixels[index.to(pixels.device, non_blocking=True)].to(device)
        return
    side = torch.cuda.Stream(device)

    def copy(index: Tensor) -> Tensor:
        with torch.cuda.stream(side):
            return pixels[index].pin_memory().to(device, non_blocking=True)

    ahead = copy(order[0]) if len(order) else None
    for following in range(1, len(order) + 1):
        torch.cuda.current_stream(device).wait_stream(side)
        batch = ahead
        batch.record_stream(torch.cuda.current_stream(device))
        ahead = copy(order[following]) if following < len(order) else None
        yield batch
