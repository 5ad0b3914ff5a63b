"""Names of a run's files, as in the reference."""

import re
from argparse import Namespace
from pathlib import Path

METHODS = {
    "attentionce": "AttentioNCE",
    "simclr": "SimCLR",
    "dcl": "DCL",
    "hcl": "HCL",
    "bcl": "BCL",
}


# What each loss is computed with besides the temperature: the last part of a file's name.
PARAMETERS = {
    "attentionce": ("d_pos", "d_neg"),
    "simclr": (),
    "dcl": ("tau_plus",),
    "hcl": ("tau_plus", "beta"),
    "bcl": ("tau_plus", "alpha", "beta"),
}


def stem(args: Namespace, epoch: int | str) -> str:
    """A file's name without ending: `stl10_SimCLR_4model_256_400_2.0_0.5`, or `cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9`."""
    method = f"{args.num_pos}model" if args.loss == "attentionce" else args.loss
    numbers = [str(float(getattr(args, name))) for name in PARAMETERS[args.loss]]
    return "_".join(
        [args.dataset_name, args.estimator, method, str(args.batch_size), str(epoch), *numbers]
    )


def title(path: str | Path) -> str:
    """What a file that `stem` named is of, in words: `AttentioNCE (d_pos 2, d_neg 0.5), 400 epochs`; else its name."""
    name = re.sub(r"(\.pth|_linear\.csv|\.csv|\.json)$", "", Path(path).name)
    positives = re.match(r"[^_]+_[^_]+_(\d+)model_", name)
    for loss, names in PARAMETERS.items():
        method = rf"{positives[1]}model" if positives and loss == "attentionce" else loss
        found = re.fullmatch(rf"[^_]+_[^_]+_{method}_\d+_(\d+)" + r"_([\d.]+)" * len(names), name)
        if found:
            numbers = [
                f"{name} {float(value):g}"
                for name, value in zip(names, found.groups()[1:], strict=True)
            ]
            numbers += [f"{positives[1]} positives"] if positives and positives[1] != "4" else []
            return (
                METHODS[loss]
                + (f" ({', '.join(numbers)})" if numbers else "")
                + f", {found[1]} epochs"
            )
    return name
