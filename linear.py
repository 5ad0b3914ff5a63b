"""Fit a linear classifier on frozen features: python linear.py --dataset_name cifar10 --model_path results/cifar10/….pth"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from attentionce import cli
from attentionce.data import views
from attentionce.data.images import Images
from attentionce.errors import UserError
from attentionce.evaluation.knn import clamp_k, features, knn
from attentionce.runs import files
from attentionce.training import devices, processes
from model import ARCHS, Model, as_resnet, load_model
from utils import DATASETS, load


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings, with the reference's names and defaults where it has them."""
    parser = cli.Parser(description=__doc__, formatter_class=cli.Help)
    add = parser.add_argument
    add(
        "--model_path",
        required=True,
        nargs="+",
        metavar="PATH",
        help="weights of main.py or of the reference; random: an untrained encoder; several are compared",
    )
    add(
        "--export",
        metavar="FILE",
        help="write the encoder as safetensors in torchvision's ResNet naming, and end",
    )
    add(
        "--root",
        default="data",
        help="folder of the data sets; with --dataset_name folder, of your images",
    )
    add("--dataset_name", default="cifar10", metavar="NAME", help=", ".join(DATASETS))
    add(
        "--store_size",
        type=int,
        default=64,
        help="side that the images of a folder are kept at, in pixels",
    )
    add(
        "--image_size",
        type=int,
        default=32,
        help="side of a training view, in pixels; test images keep theirs",
    )
    add("--arch", choices=ARCHS, help="encoder (default: read off the weights; random: resnet50)")
    add("--batch_size", type=int, default=512, help="images a step")
    add("--epochs", type=int, default=100, help="passes over the training images")
    add("--lr", type=float, help="learning rate of Adam (default: 1e-3; stl10: 1e-2)")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add(
        "--encoder_mode",
        default="frozen",
        choices=["frozen", "reference"],
        help="reference: the encoder stays in train mode while the classifier trains, so BatchNorm drifts",
    )
    add("--k", type=int, default=200, help="neighbours of the kNN accuracy")
    add("--temperature", type=float, default=0.5, help="of the kNN vote")
    add("--seed", type=int, default=0, help="of the classifier, the views and an untrained encoder")
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    add(
        "--precision",
        default="auto",
        choices=devices.PRECISIONS,
        help="auto: bf16 on CUDA that has it, else fp32",
    )
    add(
        "--results",
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
        UserError: names the flag, its value and what would do.
    """
    if args.export and len(args.model_path) > 1:
        raise UserError(
            f"--export writes one encoder: name one --model_path, not {len(args.model_path)}"
        )
    if args.dataset_name not in DATASETS:
        raise UserError(f"--dataset_name {args.dataset_name} is not one of {', '.join(DATASETS)}")
    for name in ("temperature", "lr"):
        if not (getattr(args, name) > 0 and math.isfinite(getattr(args, name))):
            raise UserError(f"--{name} must be a positive number, not {getattr(args, name)}")
    for name, least in {
        "epochs": 1,
        "batch_size": 2,
        "k": 1,
        "seed": 0,
        "image_size": 4,
        "weight_decay": 0,
    }.items():
        if not getattr(args, name) >= least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(args, name)}")


def main() -> None:
    """Evaluate every model of `--model_path`; more than one end in a table."""
    args = parse_args()
    check_args(args)
    if args.export:
        return processes.from_first(lambda: export(args))
    device = devices.choose_device(args.device)
    dtype = devices.choose_precision(args.precision, device)
    devices.reproducible(False)
    encoders = processes.from_first(lambda: open_encoders(args))
    train = processes.in_turn(load, args.dataset_name, args.root, "train", args.store_size)
    test = processes.in_turn(load, args.dataset_name, args.root, "test", args.store_size)
    results = []
    for path, model, arch, out in encoders:
        result = evaluate(
            model.f.to(device, memory_format=torch.channels_last),
            train,
            test,
            args,
            device,
            dtype,
            out,
        )
        print(f"{path} ({arch}): kNN top-1 {result['knn_top1']:.2f} %")
        for which in ("last", "best"):
            row = result[f"{which}_epoch"]
            print(
                f"  {which} epoch ({row['epoch']}): top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %",
                flush=True,
            )
        results.append((path, result))
    if len(results) > 1:
        print(
            f"\n{'kNN':>8} {'linear, last':>13} {'linear, best':>13}   top-1 on {args.dataset_name}, percent"
        )
        for path, result in results:
            numbers = result["knn_top1"], result["last_epoch"]["top1"], result["best_epoch"]["top1"]
            print("{:8.2f} {:13.2f} {:13.2f}   {}".format(*numbers, Path(path).name))


def open_encoder(path: str, args: argparse.Namespace) -> tuple[Model, str]:
    """(model, arch) of weights, or untrained for `random`."""
    if path != "random":
        return load_model(path, args.arch)
    torch.manual_seed(args.seed)
    arch = args.arch or "resnet50"
    return Model(arch=arch), arch


def open_encoders(args: argparse.Namespace) -> list[tuple[str, Model, str, Path]]:
    """(path, model, arch, the results' path without ending) of every `--model_path`: all, before any takes hours.

    Results lie beside the weights. Another data set than the one in the weights' name, and another mode, are part of theirs.
    """
    opened = []
    for path in args.model_path:
        model, arch = open_encoder(path, args)
        name = (
            f"random_{arch}_{args.seed}"
            if path == "random"
            else Path(path).name.removesuffix(".pth")
        )
        name += (
            f"_{args.dataset_name}"
            if path != "random" and name.split("_")[0] != args.dataset_name
            else ""
        )
        name += "" if args.encoder_mode == "frozen" else f"_{args.encoder_mode}"
        folder = Path(args.results) / args.dataset_name
        if path != "random" and os.access(Path(path).parent, os.W_OK):
            folder = Path(path).parent
        opened.append((path, model, arch, files.writable_folder(folder) / name))
    return opened


def export(args: argparse.Namespace) -> None:
    """Write the encoder to `--export` in the names of torchvision's ResNet, with arch and normalisation as metadata.

    Raises:
        UserError: safetensors is not installed, or the file cannot be written.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("--export needs one more package: pip install safetensors") from None
    model, arch = open_encoder(args.model_path[0], args)
    facts = {"format": "pt", "arch": arch, "mean": str(views.MEAN), "std": str(views.STD)}
    content = save(as_resnet(model.f, arch).state_dict(), facts)
    files.replace(Path(args.export), lambda file: file.write(content))
    print(f"{args.export}: {arch}, 3×3 stride-1 conv1, no max-pool, no fc")


def evaluate(
    f: nn.Module,
    train: Images,
    test: Images,
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    out: Path,
) -> dict:
    """kNN accuracy of `f`, then a linear classifier on its features, tested after every epoch; rank 0 writes CSV and JSON.

    `f` is frozen: nothing of it changes, BatchNorm's statistics included, except with `--encoder_mode reference`.

    Returns:
        the content of the JSON file: the last epoch's accuracies and the best epoch's, each named as what it is.
    """
    began = time.monotonic()
    f.requires_grad_(False).eval()
    train = on_device(train, device)
    known, asked = (features(f, split.pixels, device, dtype) for split in (train, test))
    k = clamp_k(args.k, len(train.pixels))
    knn_top1, knn_top5 = knn(
        known, train.labels, asked, test.labels, len(train.classes), k, args.temperature
    )
    torch.manual_seed(args.seed)
    classifier = nn.Linear(known.shape[1], len(train.classes)).to(device)
    optimizer = torch.optim.Adam(
        classifier.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
    )
    labels = test.labels.to(device)
    rows = []
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(f, classifier, optimizer, train, args, device, dtype, epoch)
        if args.encoder_mode == "reference":
            processes.same_buffers(f)
            asked = features(f, test.pixels, device, dtype)  # its statistics have moved
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
        files.save_csv(out.with_name(out.name + "_linear.csv"), rows)
        files.save_json(out.with_name(out.name + "_linear.json"), result)
    return result


def on_device(images: Images, device: torch.device) -> Images:
    """The labels on the device, the pixels too where they fit."""
    return Images(devices.keep(images.pixels, device), images.labels.to(device), images.classes)


def train_epoch(
    f: nn.Module,
    classifier: nn.Linear,
    optimizer: torch.optim.Optimizer,
    train: Images,
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    epoch: int,
) -> float:
    """One pass over the training images, one random view each; returns the mean loss.

    Of several processes each encodes its share of a batch, then all take the same step on the features of the whole.
    """
    f.train(args.encoder_mode == "reference")
    total = torch.zeros((), device=device)
    order = torch.randperm(len(train.pixels), generator=views.generator(args.seed, epoch))
    bar = tqdm(
        order.split(args.batch_size),
        f"linear {epoch}/{args.epochs}",
        leave=False,
        disable=processes.rank() > 0,
    )
    for step, index in enumerate(bar):
        draw = views.draw(
            1, len(index), *train.pixels.shape[2:], views.generator(args.seed, epoch, step)
        )
        own = processes.share(len(index))
        first, last = own[0].item(), own[-1].item() + 1
        batch = train.pixels[index[first:last].to(train.pixels.device)].to(device)
        with torch.no_grad(), devices.autocast(device, dtype):
            view = views.make_view(
                batch, views.to(views.part(draw, first, last), device), 0, args.image_size
            )
            feature = f(view).flatten(1).float()
        if processes.world() > 1:
            feature = processes.gather_rows(feature[own.to(device) - first])[: len(index)]
        loss = cross_entropy(classifier(feature), train.labels[index.to(train.labels.device)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    f.eval()
    return total.item() / len(order)


@torch.no_grad()
def accuracy(classifier: nn.Linear, feature: Tensor, labels: Tensor) -> tuple[float, float]:
    """(top-1, top-5) in percent of labels N from features N×D; with fewer than five classes top-5 is 100."""
    scores = classifier(feature)
    hit = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return 100 * hit[:, 0].float().mean().item(), 100 * hit.any(1).float().mean().item()


if __name__ == "__main__":
    cli.run(main)
