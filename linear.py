"""Fit a linear classifier on frozen features:

python linear.py --dataset_name cifar10 --model_path results/cifar10/….pth
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out

from attentionce import cli
from attentionce.data import views
from attentionce.data.images import Images, summary
from attentionce.data.transfer import batches, to_device
from attentionce.errors import UserError
from attentionce.evaluation.knn import clamp_k, features, knn
from attentionce.runs import file_names, files
from attentionce.training import devices, processes
from model import ARCHS, STEMS, Model, as_resnet, load_encoder, stem_of
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
    add(
        "--encoder_mode",
        default="frozen",
        choices=["frozen", "reference"],
        help="reference: the encoder stays in train mode, so BatchNorm's statistics drift",
    )
    add(
        "--export",
        type=cli.path,
        metavar="FILE",
        help="only write the encoder as safetensors with torchvision's ResNet names",
    )
    cli.add_data_flags(parser, DATASETS)
    add = parser.add_argument_group("classifier").add_argument
    add(
        "--image_size",
        type=int,
        default=32,
        help="side of a training view, in pixels; test images keep their size",
    )
    add("--batch_size", type=int, default=512, help="images per step")
    add("--epochs", type=int, default=100, help="passes over the training images")
    add("--lr", type=float, help="learning rate of Adam (default: 1e-3; stl10: 1e-2)")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add("--seed", type=int, default=0, help="of the classifier, views and an untrained encoder")
    add("--k", type=int, default=200, help="neighbours that vote in the kNN accuracy")
    add("--temperature", type=float, default=0.5, help="of the kNN vote")
    cli.add_device_flags(parser)
    cli.add_compile_flag(parser)
    add(
        "--results",
        type=cli.path,
        default="results",
        help="folder for results that cannot lie beside their weights (random, read-only)",
    )
    args = parser.parse_args(argv)
    if args.lr is None:
        args.lr = 1e-2 if args.dataset_name == "stl10" else 1e-3
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded or written.

    Raises:
        UserError: Names the flag, its value, and what would work.
    """
    if args.export and len(args.model_path) > 1:
        raise UserError(
            f"--export writes one encoder: name one --model_path, not {len(args.model_path)}"
        )
    if args.dataset_name not in DATASETS:
        raise UserError(f"--dataset_name {args.dataset_name} is not one of {', '.join(DATASETS)}")
    cli.check_positive(args, "temperature", "lr")
    cli.check_seed(args)
    cli.check_at_least(
        args, epochs=1, batch_size=2, k=1, seed=0, image_size=4, weight_decay=0, store_size=1
    )


# ------------------------------------------------------------------------------------- programs


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate every model of `--model_path`; more than one end in a table.

    Returns:
        The exit status.
    """
    args = parse_args(argv)
    check_args(args)
    if args.export:
        processes.from_first(lambda: export(args))
        return 0
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(args.precision, device)
    devices.reproducible(False)
    encoders = processes.from_first(lambda: open_encoders(args))
    where = args.dataset_name, args.root
    how = args.store_size, cli.folder_options(args)
    train = processes.in_turn(load, *where, "train", *how)
    print(f"training on {summary(train)}", flush=True)
    test = processes.in_turn(load, *where, "test", *how)
    print(f"testing on {summary(test)}", flush=True)
    results = []
    for path, f, arch, out in encoders:
        f = f.to(device, memory_format=torch.channels_last)
        result = evaluate(f, train, test, args, device, dtype, out)
        print(f"{path} ({arch}): kNN top-1 {result['knn_top1']:.2f} %")
        for which in ("last", "best"):
            row = result[f"{which}_epoch"]
            print(
                f"  {which} epoch ({row['epoch']}): "
                f"top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %",
                flush=True,
            )
        results.append((path, result))
    if len(results) > 1:
        print_comparison(results, args.dataset_name)
    return 0


def print_comparison(results: list[tuple[str, dict[str, Any]]], dataset: str) -> None:
    """A line per model."""
    names = f"{'kNN':>8} {'linear, last':>13} {'linear, best':>13}"
    print(f"\n{names}   top-1 on {dataset}, percent")
    for path, result in results:
        last, best = result["last_epoch"]["top1"], result["best_epoch"]["top1"]
        print(f"{result['knn_top1']:8.2f} {last:13.2f} {best:13.2f}   {Path(path).name}")


def open_encoder(path: str, args: argparse.Namespace) -> tuple[nn.Sequential, str]:
    """(encoder, arch) of weights, or untrained for `random`."""
    if path != "random":
        return load_encoder(path, args.arch, args.stem)
    torch.manual_seed(args.seed)
    arch = args.arch or "resnet50"
    return Model(arch=arch, stem=args.stem or "small").f, arch


def open_encoders(args: argparse.Namespace) -> list[tuple[str, nn.Sequential, str, Path]]:
    """Every encoder of `--model_path`, all before any of them takes hours.

    Returns:
        For each (path, encoder, arch, path of its results without ending).
    """
    opened = []
    for path in args.model_path:
        f, arch = open_encoder(path, args)
        out = file_names.evaluation_path(path, args, arch)
        opened.append((path, f, arch, files.writable_folder(out.parent) / out.name))
    return opened


def export(args: argparse.Namespace) -> None:
    """Write the encoder to `--export` with the names of torchvision's ResNet.

    Arch and normalisation are in the file's metadata.

    Raises:
        UserError: safetensors is not installed, or the file cannot be written.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("--export needs one more package: pip install safetensors") from None
    f, arch = open_encoder(args.model_path[0], args)
    facts = {"format": "pt", "arch": arch, "mean": str(views.MEAN), "std": str(views.STD)}
    state = as_resnet(f, arch).state_dict()
    content = save(state, facts)
    files.replace(Path(args.export), lambda file: file.write(content))
    print(f"{args.export}: {arch}, {STEMS[stem_of(state['conv1.weight'])]}, no fc")


# ------------------------------------------------------------------------------------- evaluation


def evaluate(
    f: nn.Module,
    train: Images,
    test: Images,
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    out: Path,
) -> dict[str, Any]:
    """kNN accuracy of `f`, then a linear classifier on its features, tested after every epoch.

    `f` is frozen: nothing in it changes, BatchNorm's statistics included, except with
    `--encoder_mode reference`. Rank 0 writes CSV and JSON.

    Args:
        out: The path of the results, without ending.

    Returns:
        The content of the JSON file: the accuracies of the last epoch and those of the best.
    """
    began = time.monotonic()
    f.requires_grad_(False).eval()
    train = on_device(train, device)
    known = features(f, train.pixels, device, dtype)
    asked = features(f, test.pixels, device, dtype)
    k = clamp_k(args.k, len(train.pixels))
    knn_top1, knn_top5 = knn(
        known, train.labels, asked, test.labels, len(train.classes), k, args.temperature
    )
    torch.manual_seed(args.seed)
    classifier = nn.Linear(known.shape[1], len(train.classes)).to(device)
    adam = torch.optim.Adam(
        classifier.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
    )
    labels = test.labels.to(device)
    encode = Encode(f, args, device, dtype)
    rows = []
    for epoch in range(1, args.epochs + 1):
        f.train(args.encoder_mode == "reference")
        loss = train_epoch(encode, classifier, adam, train, args, device, epoch)
        f.eval()
        if args.encoder_mode == "reference":
            processes.same_buffers(f)
            asked = features(f, test.pixels, device, dtype)  # BatchNorm's statistics have moved
        top1, top5 = accuracy(classifier, asked, labels)
        rows.append({"epoch": epoch, "loss": loss, "top1": top1, "top5": top5})
    result = {
        "flags": vars(args),
        "machine": devices.machine(device),
        "precision": str(dtype).removeprefix("torch."),
        "hours": (time.monotonic() - began) / 3600,
        "knn_top1": knn_top1,
        "knn_top5": knn_top5,
        "last_epoch": rows[-1],
        "best_epoch": max(rows, key=lambda row: row["top1"]),
    }
    if processes.rank() == 0:
        files.save_csv(out.with_name(out.name + ".csv"), rows)
        files.save_json(out.with_name(out.name + ".json"), result)
    return result


def on_device(images: Images, device: torch.device) -> Images:
    """The labels on the device, the pixels too where they fit."""
    return Images(devices.keep(images.pixels, device), images.labels.to(device), images.classes)


class Encode:
    """Images and their random parameters → features of one view per image, b×D in float32.

    The encoder and the views are compiled as in pretraining; if that fails the first time, one line
    says so and they go on uncompiled.
    """

    def __init__(
        self, f: nn.Module, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
    ):
        self.f, self.size, self.device, self.dtype = f, args.image_size, device, dtype
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.ops = views.Ops()
        if cli.wants_compiler(args, device):
            self.compiled, self.ops = torch.compile(f, dynamic=False), views.compiled()
        self.works = False  # once it has been called

    @torch.no_grad()
    def __call__(self, images: Tensor, draw: views.Draw) -> Tensor:
        encoder = self.f if self.compiled is None else self.compiled
        try:
            with devices.autocast(self.device, self.dtype):
                view = views.make_view(images, draw, 0, self.size, self.ops)
                feature = encoder(view).flatten(1).float()
            self.works = True
            return feature
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.compiled is None or self.works:
                raise
            name = type(error).__name__
        print(f"torch.compile failed ({name}): continuing without", flush=True)
        self.compiled, self.ops = None, views.Ops()
        return self(images, draw)


def train_epoch(
    encode: Encode,
    classifier: nn.Linear,
    optimizer: torch.optim.Optimizer,
    train: Images,
    args: argparse.Namespace,
    device: torch.device,
    epoch: int,
) -> float:
    """One pass over the training images, one random view each; no host-device synchronisation.

    Of several processes each encodes its share of a batch. Then all take the same step on the
    features of the whole batch.

    Returns:
        The mean loss.
    """
    total = torch.zeros((), device=device)
    order = torch.randperm(len(train.pixels), generator=views.generator(args.seed, epoch))
    height, width = train.pixels.shape[2:]
    labels = train.labels[to_device(order, train.labels.device)].split(args.batch_size)
    parts = order.split(args.batch_size)
    shares = [processes.share(len(part)) for part in parts]
    own = [part[share[0] : share[-1] + 1] for part, share in zip(parts, shares, strict=True)]
    bar = tqdm(
        batches(train.pixels, own, device),
        f"linear {epoch}/{args.epochs}",
        total=len(parts),
        leave=False,
        disable=True if processes.rank() > 0 else None,  # None: where stderr is not a terminal
    )
    for step, images in enumerate(bar):
        size, share = len(parts[step]), shares[step]
        first = int(share[0])
        draw = views.draw(1, size, height, width, views.generator(args.seed, epoch, step))
        draw = views.to(views.part(draw, first, first + len(images)), device)
        feature = encode(images, draw)
        if processes.world() > 1:
            feature = processes.gather_rows(feature[share.to(device) - first])[:size]
        loss = cross_entropy(classifier(feature), labels[step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * size
    return total.item() / len(order)


@torch.no_grad()
def accuracy(classifier: nn.Module, feature: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of labels N from features N×D, in percent; with fewer than five classes top-5 is 100.

    Returns:
        (top-1, top-5)
    """
    scores = classifier(feature)
    hit = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return 100 * hit[:, 0].float().mean().item(), 100 * hit.any(1).float().mean().item()


if __name__ == "__main__":
    cli.run(main)
