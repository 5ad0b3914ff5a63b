"""TensorBoard (`--tensorboard`): scalars, the grid of views and the attention picture, as training goes."""

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid

from attentionce.errors import UserError
from attentionce.evaluation import figures
from attentionce.training.pretraining import Run
from model import Model


def open_board(path: Path, epoch: int) -> Any:
    """A writer of events into `path`.tensorboard; those of `epoch` and later, left by an interrupted run, are dropped.

    Raises:
        UserError: tensorboard or matplotlib, which draws the attention picture, is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs two more packages: pip install tensorboard matplotlib ({error})"
        ) from None
    threading.excepthook = _passed_on
    return SummaryWriter(str(path.with_name(path.name + ".tensorboard")), purge_step=epoch)


def _passed_on(failure: threading.ExceptHookArgs) -> None:
    """A full disk meets the writer in a thread of its own; `flush` raises the same error here, where it is reported."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def write_epoch(board: Any, run: Run, pixels: Tensor) -> None:
    """The epoch's row of metrics as scalars; pictures whenever the kNN accuracy is due, and with the first and last epoch.

    Raises:
        UserError: the disk is full, read-only or gone.
    """
    try:
        _write_epoch(board, run, pixels)
    except OSError as error:
        raise UserError(
            f"cannot write for TensorBoard: {error.strerror}; mend that or go on without --tensorboard"
        ) from error


def _write_epoch(board: Any, run: Run, pixels: Tensor) -> None:
    row = run.progress["rows"][-1]
    for name, value in row.items():
        if name != "epoch" and value != "":
            board.add_scalar(name, value, row["epoch"])
    every = run.args.knn_every or run.args.epochs
    if row["epoch"] % every == 0 or row["epoch"] in (1, run.args.epochs):
        write_pictures(board, run, pixels, row["epoch"])
    board.flush()


@torch.no_grad()
def write_pictures(board: Any, run: Run, pixels: Tensor, epoch: int) -> None:
    """The views of eight images, and what the attention makes of them among 64. Always the same images and views."""
    from matplotlib.figure import Figure

    count = min(64, len(pixels))
    made = figures.some_views(pixels, count, run.views - 2, run.args.image_size, run.args.seed)
    board.add_image(
        "views",
        make_grid(torch.stack([figures.displayed(v) for v in made[:, :8].flatten(0, 1)]), nrow=8),
        epoch,
    )
    if run.args.loss == "attentionce":
        model = Model(run.args.feature_dim, run.args.arch).to(
            run.device
        )  # no SyncBatchNorm: only one process is here
        model.load_state_dict(run.model.state_dict())
        z = figures.embed(model.eval(), made)
        figure = Figure(figsize=(11, 3.4))
        figures.attention_panel(
            figure, z, made, run.args.d_pos, run.args.d_neg, min(3, count), f"epoch {epoch}"
        )
        board.add_figure("attention", figure, epoch)
