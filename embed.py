"""Write the features of images to a file:

python embed.py --model_path results/cifar10/….pth --root DIR --out features.npz
"""

import argparse
import glob
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.data.image_folder import FolderOptions
from attentionce.data.images import Images, summary
from attentionce.errors import UserError
from attentionce.evaluation.knn import features
from attentionce.runs import files, locks, states
from attentionce.runs.feature_files import WRITERS, fill_rows
from attentionce.training import devices, processes
from attentionce.weights import digest
from model import ARCHS, STEMS, load_encoder, load_model, untrained
from utils import DATASETS, load


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    add = parser.add_argument_group("encoder").add_argument
    text = "weights that hold an encoder, or random for an untrained one"
    add("--model_path", type=cli.path, required=True, metavar="PATH", help=text)
    add("--arch", choices=ARCHS, help="default: read off the weights; random: resnet50")
    add("--stem", choices=STEMS, help="default: read off the weights; random: small")
    add("--seed", type=int, default=0, help="of an untrained encoder")
    text = "a ….classifier of linear.py on these weights: also write the class of each image"
    add("--classifier", type=cli.path, metavar="FILE", help=text)
    add = parser.add_argument_group("images").add_argument
    add("--root", type=cli.path, default="data", help="folder of your images, or of the data sets")
    add("--dataset_name", default="folder", choices=DATASETS, help="which images")
    text = "side of a folder's images once read, in pixels (default: that of pretraining, or 64)"
    add("--store_size", "--image_size", type=int, help=text)
    cli.add_folder_flags(add)
    text = "images of 32 px to encode at a time; of larger ones fewer, in the same memory"
    add("--batch_size", type=int, default=512, help=text)
    add = parser.add_argument_group("output").add_argument
    text = "ends in .npz or .csv"
    add("--out", type=cli.path, default="features.npz", metavar="FILE", help=text)
    add("--projection", action="store_true", help="also write the projections")
    cli.add_device_flags(parser)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise a UserError for what cannot work, before anything is loaded or written."""
    if processes.world() > 1:
        raise UserError("embed.py works in one process: start it without torchrun")
    cli.check_seed(args)
    cli.check_at_least(args, batch_size=1, store_size=4, seed=0)
    out = Path(args.out)
    if out.suffix not in WRITERS:
        raise UserError(f"--out {out} must end in {' or '.join(WRITERS)}")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out} must name a file in a folder that exists")


def main(argv: Sequence[str] | None = None) -> int:
    """Encode all images and write `--out`; finished rows are in a file beside it meanwhile."""
    args = parse_args(argv)
    classifier = open_classifier(args.classifier) if args.classifier else None
    if classifier and args.store_size is None:
        args.store_size = max(classifier["size"])
    states.take_sizes(args, [] if args.model_path == "random" else [args.model_path])
    check_args(args)
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(args.precision, device)
    devices.reproducible(False)
    encoder, arch = open_encoder(args)
    widths = {"feature": 512 * ARCHS[arch][0].expansion}
    if args.projection:
        widths["projection"] = len(encoder.state_dict()["g.3.bias"])
    options = FolderOptions(skip_broken=args.skip_broken, cache=args.cache)
    images = load(args.dataset_name, args.root, "all", args.store_size, options)
    print(summary(images), flush=True)
    if classifier:
        check_classifier(classifier, args, encoder.f, images)
    print(f"{arch} on {device} in {str(dtype).removeprefix('torch.')}", flush=True)
    settings = ascii((digest(encoder), str(dtype), images.fingerprint, widths)).encode()
    out = Path(args.out)
    partial = out.with_name(f"{out.name}.{hashlib.sha256(settings).hexdigest()[:16]}.partial")
    encoder = encoder.to(device).to(memory_format=torch.channels_last)

    def rows(first: int, last: int) -> np.ndarray:
        pixels = images.pixels[first:last]
        return features(encoder, pixels, device, dtype, args.batch_size).cpu().numpy()

    taken = f"{out}: wait for it, or name another --out"
    with locks.held(out.with_name(f"{out.name}.lock"), taken):
        shape = (len(images.labels), sum(widths.values()))
        filled = fill_rows(partial, shape, args.batch_size, rows)
        parts = np.split(filled, [widths["feature"]], axis=1)
        arrays = {"path": np.array(images.paths), **dict(zip(widths, parts, strict=False))}
        if images.classes:
            arrays |= {"label": images.labels.numpy(), "classes": np.array(images.classes)}
        if classifier:
            arrays |= predict(classifier, arrays["feature"])
        files.replace(out, lambda file: WRITERS[out.suffix](file, arrays))
        for path in out.parent.glob(f"{glob.escape(out.name)}.{16 * '[0-9a-f]'}.partial"):
            path.unlink()  # those of other settings too
    sizes = ", ".join(f"{name} of {width} numbers" for name, width in widths.items())
    print(f"{out}: {len(images.labels):,} images, {sizes}")
    return 0


class Encoder(nn.Module):
    """Images → features and, if there is a projection head, projections beside them: B×(D + P)."""

    def __init__(self, f: nn.Module, g: nn.Module | None = None):
        super().__init__()
        self.f, self.g = f, g

    def forward(self, images: Tensor) -> Tensor:
        feature = torch.flatten(self.f(images), 1)
        return feature if self.g is None else torch.cat([feature, self.g(feature)], 1)


def open_encoder(args: argparse.Namespace) -> tuple[Encoder, str]:
    """(encoder, arch) of weights, or untrained for `random`."""
    if args.model_path == "random":
        model, arch = untrained(args.arch, args.stem, args.seed)
    elif args.projection:
        model, arch = load_model(args.model_path, args.arch, args.stem)
    else:
        f, arch = load_encoder(args.model_path, args.arch, args.stem)
        return Encoder(f), arch
    return Encoder(model.f, model.g if args.projection else None), arch


def open_classifier(path: str) -> dict[str, Any]:
    """What linear.py has fitted to the features of an encoder that was frozen."""
    content = files.read(path)
    if not content.keys() >= {"classifier", "classes", "size", "weights", "encoder"}:
        raise UserError(f"{path} is not a classifier of linear.py")
    if content["encoder"]:
        raise UserError(f"{path} was fitted with --encoder_mode reference: only frozen will do")
    return content


def check_classifier(
    classifier: dict[str, Any], args: argparse.Namespace, f: nn.Module, images: Images
) -> None:
    """Raise a UserError if the classifier was fitted to another encoder or another size."""
    if classifier["weights"] != digest(f):
        raise UserError(f"{args.classifier} was fitted to other weights than {args.model_path}")
    if classifier["size"] != [*images.pixels.shape[2:]]:
        height, width = classifier["size"]
        raise UserError(
            f"{args.classifier} was fitted to images of {width}×{height} px, these are of another "
            f"size: give --store_size {max(height, width)}"
        )


def predict(classifier: dict[str, Any], feature: np.ndarray) -> dict[str, np.ndarray]:
    """The class of each feature, N×D, as an index into `predicted`."""
    weight, bias = (classifier["classifier"][name].numpy() for name in ("weight", "bias"))
    blocks = np.array_split(feature, len(feature) // 4096 + 1)  # they may be mapped
    classes = [(block @ weight.T + bias).argmax(1) for block in blocks]
    return {"prediction": np.concatenate(classes), "predicted": np.array(classifier["classes"])}


if __name__ == "__main__":
    cli.run(main)
