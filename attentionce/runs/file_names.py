"""Names of a run's files, as in the reference: `stl10_SimCLR_4model_256_400_2.0_0.5.pth`."""

from argparse import Namespace
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
