"""Fit a linear classifier on frozen features:

python linear.py --dataset_name cifar10 --model_path results/cifar10/….pth
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.data import views
from attentionce.data.images import Images, summary
from attentionce.errors import UserError
from attentionce.evaluation.linear_classifier import Encoder, evaluate
from attentionce.runs import files, signals, states
from attentionce.training import devices, processes
from model import ARCHS, STEMS, as_resnet, load_encoder, stem_of, untrained
from utils import DATASETS, load

# ------------------------------------------------------------------------------------- settings


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings, with the reference's names and defaults where it has them."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    add = parser.add_argument_group("encoder").add_argument
    add(
        "--model_path",
        type=cli.path,
        required=True,
        nargs="+",
        metavar="PATH",
        help="weights that hold an encoder, or random for an untrained one; several are compared",
    )
    add("--arch", choices=ARCHS, help="default: read off the weights; random: resnet50")
    add("--stem", choices=STEMS, help="default: read off the weights; random: small")
    text = "reference: the encoder stays in train mode, so BatchNorm's statistics drift"
    add("--encoder_mode", default="frozen", choices=["frozen", "reference"], help=text)
    text = "only write the encoder as safetensors with torchvision's ResNet names"
    add("--export", type=cli.path, metavar="FILE", help=text)
    cli.add_data_flags(parser, DATASETS)
    add = parser.add_argument_group("classifier").add_argument
    text = "side of a training view, in pixels; test images keep their size "
    add("--image_size", type=int, help=f"{text}(default: that of pretraining, or 32)")
    add("--batch_size", type=int, default=512, help="images per step")
    add("--epochs", type=int, default=100, help="passes over the training images")
    add("--lr", type=float, help="learning rate of Adam (default: 1e-3; stl10: 1e-2)")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add("--seed", type=int, default=0, help="of the classifier, views and an untrained encoder")
    add("--k", type=int, default=200, help="neighbours that vote in the kNN accuracy")
    add("--temperature", type=float, default=0.5, help="of the kNN vote")
    cli.add_device_flags(parser)
    cli.add_compile_flag(parser)
    text = "folder for the results (default: beside the weights; of random ones: results)"
    add("--results", type=cli.path, help=text)
    args = parser.parse_args(argv)
    if args.lr is None:
        args.lr = 1e-2 if args.dataset_name == "stl10" else 1e-3
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise a UserError for flags that cannot work, before anything is loaded or written."""
    if args.export and len(args.model_path) > 1:
        raise UserError(
            f"--export writes one encoder: name one --model_path, not {len(args.model_path)}"
        )
    cli.check_positive(args, "temperature", "lr")
    cli.check_seed(args)
    cli.check_at_least(args, epochs=1, batch_size=2, k=1, seed=0, image_size=4, weight_decay=0)


# ------------------------------------------------------------------------------------- programs


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate every `--model_path`, several with a table at the end; returns the exit status."""
    args = parse_args(argv)
    states.take_sizes(args, [path for path in args.model_path if path != "random"])
    check_args(args)
    if args.export:
        processes.from_first(lambda: export(args))
        return 0
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(args.precision, device)
    devices.reproducible(False)
    encoders = processes.from_first(lambda: [open_encoder(path, args) for path in args.model_path])
    train = processes.in_turn(load, *cli.source(args, "train"))
    print(f"training on {summary(train)}", flush=True)
    cli.warn_of_small_images(train, args)
    test = processes.in_turn(load, *cli.source(args, "test"))
    print(f"testing on {summary(test)}", flush=True)
    results = []
    with signals.handled():
        received = signals.catch_signals(Path(f"{encoders[0].out}.classifier"))
        for encoder in encoders:
            result = evaluate(encoder, train, test, args, device, dtype, received)
            if result is not None:
                print_result(encoder, result, test)
                results.append((encoder.path, result))
            if stop := processes.maxima([max(received, default=0)])[0]:
                print("stopped; the same command continues after the last epoch that is done")
                return signals.exit_status(stop)
    if len(results) > 1:
        print_comparison(results, args.dataset_name)
    return 0


def print_result(encoder: Encoder, result: dict[str, Any], test: Images) -> None:
    """A model's accuracies; the mean over classes too where these differ in size."""
    print(f"{encoder.path} ({encoder.arch}): kNN top-1 {result['knn_top1']:.2f} %")
    uneven = len(set(test.labels.bincount().tolist())) > 1
    for which in ("last", "best"):
        row = result[f"{which}_epoch"]
        mean = f", mean over classes {row['class_mean']:.2f} %" if uneven else ""
        text = f"top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %{mean}"
        print(f"  {which} epoch ({row['epoch']}): {text}", flush=True)


def print_comparison(results: list[tuple[str, dict[str, Any]]], dataset: str) -> None:
    """A line per model."""
    names = f"{'kNN':>8} {'linear, last':>13} {'linear, best':>13}"
    print(f"\n{names}   top-1 on {dataset}, percent")
    for path, result in results:
        last, best = result["last_epoch"]["top1"], result["best_epoch"]["top1"]
        print(f"{result['knn_top1']:8.2f} {last:13.2f} {best:13.2f}   {Path(path).name}")


def open_encoder(path: str, args: argparse.Namespace) -> Encoder:
    """The encoder of a `--model_path`, and where its results go."""
    f, arch = load_or_make(path, args)
    out = result_path(path, arch, args)
    files.writable_folder(out.parent)
    return Encoder(path, f, arch, out)


def load_or_make(path: str, args: argparse.Namespace) -> tuple[nn.Sequential, str]:
    """The encoder of weights, or for `random` an untrained one; and its arch."""
    if path == "random":
        model, arch = untrained(args.arch, args.stem, args.seed)
        return model.f, arch
    return load_encoder(path, args.arch, args.stem)


def result_path(path: str, arch: str, args: argparse.Namespace) -> Path:
    """The results of a `--model_path`, without their ending.

    They go beside the weights, or to `--results`. A data set other than that of the weights, and
    another mode than frozen, are part of their name.
    """
    folder = Path(args.results or "results") / args.dataset_name
    if path == "random":
        stem = "" if args.stem in (None, "small") else f"_{args.stem}"
        name = f"random_{arch}{stem}_{args.seed}"
    else:
        name = Path(path).name.removesuffix(".pth")
        if name.split("_")[0] != args.dataset_name:
            name += f"_{args.dataset_name}"
        if args.results is None and os.access(Path(path).parent, os.W_OK):
            folder = Path(path).parent
    if args.encoder_mode != "frozen":
        name += f"_{args.encoder_mode}"
    return folder / f"{name}_linear"


def export(args: argparse.Namespace) -> None:
    """Write the encoder to `--export` with the names of torchvision's ResNet.

    Arch and normalisation are in the file's metadata.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("--export needs one more package: pip install safetensors") from None
    f, arch = load_or_make(args.model_path[0], args)
    facts = {"format": "pt", "arch": arch, "mean": str(views.MEAN), "std": str(views.STD)}
    state = as_resnet(f, arch).state_dict()
    content = save(state, facts)
    files.replace(Path(args.export), lambda file: file.write(content))
    print(f"{args.export}: {arch}, {STEMS[stem_of(state['conv1.weight'])]}, no fc")


if __name__ == "__main__":
    cli.run(main)
