"""Names of a run's files, as in the reference: `stl10_SimCLR_4model_256_400_2.0_0.5.pth`."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any


def file_stem(args: Namespace, epoch: int | str, loss: Any) -> str:
    """A file's name without ending.

    Args:
        args: The flags of main.py.
        epoch: After which epoch; or a placeholder for it.
        loss: The entry of `loss.LOSSES` that `args.loss` names.

    Returns:
        Data set, framework, M or loss, batch size, epoch and the loss's parameters as floats:
        `stl10_SimCLR_4model_256_400_2.0_0.5` or `cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9`.
    """
    method = loss.method.format(num_pos=args.num_pos)
    numbers = [str(float(getattr(args, name))) for name in loss.parameters]
    parts = [args.dataset_name, args.estimator, method, str(args.batch_size), str(epoch)]
    return "_".join(parts + numbers)


def title(path: str | Path, losses: dict[str, Any]) -> str:
    """What a file that `file_stem` named holds, in words; the name of any other file.

    Args:
        losses: `loss.LOSSES`.

    Returns:
        `AttentioNCE (d_pos 2, d_neg 0.5), 400 epochs`, for example.
    """
    name = re.sub(r"(\.pth|_linear\.csv|\.csv|\.json)$", "", Path(path).name)
    for loss in losses.values():
        method = re.escape(loss.method).replace(r"\{num_pos\}", r"(?P<num_pos>\d+)")
        numbers = "".join(rf"_(?P<{parameter}>[-+.\de]+)" for parameter in loss.parameters)
        found = re.fullmatch(rf"[^_]+_[^_]+_{method}_\d+_(?P<epoch>\d+){numbers}", name)
        if found is None:
            continue
        words = [f"{parameter} {float(found[parameter]):g}" for parameter in loss.parameters]
        if loss.positives and found["num_pos"] != "4":
            words.append(f"{found['num_pos']} positives")
        settings = f" ({', '.join(words)})" if words else ""
        return f"{loss.title}{settings}, {found['epoch']} epochs"
    return name
