"""What `--loss` stands for: positives, negatives, their authors' settings, titles, file names."""

from argparse import Namespace
from typing import Any

# --loss: (--positives, --negatives)
PRESETS = {
    "attentionce": ("attention", "attention"),
    "simclr": ("pair", "uniform"),
    "dcl": ("pair", "debiased"),
    "hcl": ("pair", "hard"),
    "bcl": ("pair", "bayes"),
}
TITLES = {
    "attentionce": "AttentioNCE",
    "simclr": "SimCLR",
    "dcl": "DCL",
    "hcl": "HCL",
    "bcl": "BCL",
}
PARAMETERS = ("d_pos", "d_neg", "tau_plus", "alpha", "beta")  # in the order of file names
# The settings of BCL's authors for a data set, where they are not the defaults of loss.py.
BAYES = {
    "stl10": {"alpha": 0.7, "beta": 1.0},
    "cifar100": {"alpha": 0.7, "beta": 1.0},
    "tinyImageNet": {"alpha": 0.8, "beta": 1.0},
}


def preset_of(positives: str, negatives: str) -> str | None:
    """The `--loss` that has these ingredients, if any."""
    return next((name for name, pair in PRESETS.items() if pair == (positives, negatives)), None)


def ingredients_of(flags: dict[str, Any]) -> tuple[str, str]:
    """Positives and negatives of a run with these flags; older ones have `loss` alone."""
    positives, negatives = PRESETS.get(flags["loss"], ("", ""))
    return flags.get("positives") or positives, flags.get("negatives") or negatives


def title(flags: dict[str, Any]) -> str:
    """A run's loss in words, by its flags: `AttentioNCE`, or `each + hard, 25 % noisy`."""
    name, noise = preset_of(*ingredients_of(flags)), flags.get("noisy_positives")
    words = TITLES[name] if name else " + ".join(ingredients_of(flags))
    return f"{words}, {100 * noise:g} % noisy" if noise else words


def file_stem(args: Namespace, epoch: int | str = "{epochs}") -> str:
    """The name of a run's files after an epoch, without ending, as in the reference.

    Data set, framework, M or loss, batch size, epoch and the loss's parameters as floats:
    `stl10_SimCLR_4model_256_400_2.0_0.5`, `cifar10_SimCLR_bcl_256_400_0.1_0.9_0.9` or, of other
    combinations, `cifar10_SimCLR_4each-hard_256_400_0.1_1.0`.
    """
    preset = preset_of(args.positives, args.negatives)
    positives = args.positives if args.num_pos is None else f"{args.num_pos}{args.positives}"
    method = preset or f"{positives}-{args.negatives}"
    if preset == "attentionce":
        method = f"{args.num_pos}model"
    values = [getattr(args, name) for name in PARAMETERS]
    numbers = [str(float(value)) for value in values if value is not None]
    if args.noisy_positives:
        method += f"-noisy{args.noisy_positives}"
    parts = [args.dataset_name, args.estimator, method, str(args.batch_size), str(epoch)]
    return "_".join(parts + numbers)
