"""Names of a run's files, as in the reference: `stl10_SimCLR_4model_256_400_2.0_0.5.pth`."""

import os
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


def evaluation_path(model_path: str, args: Namespace, arch: str = "resnet50") -> Path:
    """The path of linear.py's results, without ending: `…/cifar10_…_10.0_reference_linear`.

    They lie beside the weights if it may write there, else in `--results`. A data set other than
    that of the weights, and another mode than frozen, are part of the name.

    Args:
        model_path: The weights, or `random` for an untrained encoder.
        args: The flags of linear.py.
        arch: Of an untrained encoder.
    """
    folder, name = Path(args.results, args.dataset_name), Path(model_path).name.removesuffix(".pth")
    if model_path == "random":
        stem = "" if args.stem in (None, "small") else f"_{args.stem}"
        name = f"random_{arch}{stem}_{args.seed}"
    else:
        if name.split("_")[0] != args.dataset_name:
            name += f"_{args.dataset_name}"
        if os.access(Path(model_path).parent, os.W_OK):
            folder = Path(model_path).parent
    if args.encoder_mode != "frozen":
        name += f"_{args.encoder_mode}"
    return folder / f"{name}_linear"
