"""TensorBoard (`--tensorboard`): the metrics as scalars, and pictures, as training goes."""

import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from attentionce.errors import UserError


def open_board(path: Path, epoch: int) -> Any:
    """A writer of events into `path`.tensorboard; those of `epoch` and later are dropped."""
    try:
        import matplotlib  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs two more packages: pip install tensorboard matplotlib ({error})"
        ) from None
    threading.excepthook = _ignore_full_disk
    return SummaryWriter(str(path.with_name(path.name + ".tensorboard")), purge_step=epoch)


def _ignore_full_disk(failure: threading.ExceptHookArgs) -> None:
    """The writer's thread meets a full disk; `flush` raises the same error where it is reported."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def write_epoch(board: Any, row: dict[str, Any], pictures: dict[str, Any]) -> None:
    """Write an epoch's metrics, "" where one was not measured, and its pictures.

    Pictures are float images 3×H×W in [0, 1] or matplotlib's figures. A full disk is a UserError.
    """
    epoch = row["epoch"]
    try:
        for name, value in row.items():
            if name != "epoch" and value != "":
                board.add_scalar(name, value, epoch)
        for name, picture in pictures.items():
            add = board.add_image if isinstance(picture, Tensor) else board.add_figure
            add(name, picture, epoch)
        board.flush()
    except OSError as error:
        raise UserError(
            f"cannot write for TensorBoard: {error.strerror}; fix this or continue without "
            "--tensorboard"
        ) from error
