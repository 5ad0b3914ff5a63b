"""Fit a linear classifier on frozen features: python linear.py --dataset_name cifar10 --model_path results/cifar10/….pth"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import runtime
import views
import weights
from knn import clamp_k, features, knn
from model import ARCHS, Model
from utils import DATASETS, Images, UserError, load


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings, with the reference's names and defaults where it has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model_path", required=True, nargs="+", metavar="PATH",
        help="weights of main.py or of the reference; random: an untrained encoder; several are compared")  # fmt: skip
    add("--root", default="data", help="folder of the data sets; with --dataset_name folder, of your images")
    add("--dataset_name", default="cifar10", metavar="NAME", help=", ".join(DATASETS))
    add("--store_size", type=int, default=64, help="side that the images of a folder are kept at, in pixels")
    add("--image_size", type=int, default=32, help="side of a training view, in pixels; test images keep theirs")
    add("--arch", choices=ARCHS, help="encoder (default: read off the weights; random: resnet50)")
    add("--batch_size", type=int, default=512, help="images a step")
    add("--epochs", type=int, default=100, help="passes over the training images")
    add("--lr", type=float, help="learning rate of Adam (default: 1e-3; stl10: 1e-2)")
    add("--weight_decay", type=float, default=1e-6, help="of Adam")
    add("--encoder_mode", default="frozen", choices=["frozen", "reference"],
        help="reference: the encoder stays in train mode while the classifier trains, so BatchNorm drifts")  # fmt: skip
    add("--k", type=int, default=200, help="neighbours of the kNN accuracy")
    add("--temperature", type=float, default=0.5, help="of the kNN vote")
    add("--seed", type=int, default=0, help="of the classifier, the views and an untrained encoder")
    add("--device", help="cuda, mps or cpu (default: the first that is there)")
    add("--precision", default="auto", choices=runtime.PRECISIONS, help="auto: bf16 on CUDA that has it, else fp32")
    add("--results", default="results", help="folder for the results of an untrained encoder; others lie beside their weights")
    args = parser.parse_args(argv)
    args.lr = args.lr or (1e-2 if args.dataset_name == "stl10" else 1e-3)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded or written.

    Raises:
        UserError: names the flag, its value and what would do.
    """
    if args.dataset_name not in DATASETS:
        raise UserError(f"--dataset_name {args.dataset_name} is not one of {', '.join(DATASETS)}")
    for name in ("temperature", "lr"):
        if not (getattr(args, name) > 0 and math.isfinite(getattr(args, name))):
            raise UserError(f"--{name} must be a positive number, not {getattr(args, name)}")
    for name, least in {"epochs": 1, "batch_size": 2, "k": 1, "seed": 0, "image_size": 4, "weight_decay": 0}.items():
        if not getattr(args, name) >= least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(args, name)}")


def main() -> None:
    """Evaluate every model of `--model_path`; more than one end in a table."""
    args = parse_args()
    check_args(args)
    device = runtime.choose_device(args.device)
    dtype = runtime.choose_precision(args.precision, device)
    encoders = [open_encoder(path, args) for path in args.model_path]  # all, before any takes hours
    train = load(args.dataset_name, args.root, "train", args.store_size)
    test = load(args.dataset_name, args.root, "test", args.store_size)
    if len(train.pixels) < args.batch_size:
        raise UserError(f"{len(train.pixels)} images are fewer than a batch: --batch_size {args.batch_size} is too large")
    args.k = clamp_k(args.k, len(train.pixels))
    results = []
    for path, (model, arch, out) in zip(args.model_path, encoders, strict=True):
        result = evaluate(model.f.to(device, memory_format=torch.channels_last), train, test, args, device, dtype, out)
        print(f"{path} ({arch}): kNN top-1 {result['knn_top1']:.2f} %")
        for which in ("last", "best"):
            row = result[f"{which}_epoch"]
            print(f"  {which} epoch ({row['epoch']}): top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %", flush=True)
        results.append((path, result))
    if len(results) > 1:
        print(f"\n{'kNN':>8} {'linear, last':>13} {'linear, best':>13}   top-1 on {args.dataset_name}, percent")
        for path, result in results:
            numbers = result["knn_top1"], result["last_epoch"]["top1"], result["best_epoch"]["top1"]
            print("{:8.2f} {:13.2f} {:13.2f}   {}".format(*numbers, Path(path).name))


def open_encoder(path: str, args: argparse.Namespace) -> tuple[Model, str, Path]:
    """(model, arch, the results' path without ending) of weights, or of an untrained encoder for `random`."""
    if path == "random":
        torch.manual_seed(args.seed)
        arch = args.arch or "resnet50"
        model, out = Model(arch=arch), Path(args.results) / args.dataset_name / f"random_{arch}_{args.seed}"
    else:
        model, arch = weights.load_model(path, args.arch)
        out = Path(path).with_suffix("")
    weights.writable_folder(out.parent)
    return model, arch, out


def evaluate(f: nn.Module, train: Images, test: Images, args: argparse.Namespace, device: torch.device,
             dtype: torch.dtype, out: Path) -> dict:  # fmt: skip
    """kNN accuracy of `f`, then a linear classifier on its features, tested after every epoch; writes CSV and JSON.

    `f` is frozen: nothing of it changes, BatchNorm's statistics included, except with `--encoder_mode reference`.

    Returns:
        the content of the JSON file: the last epoch's accuracies and the best epoch's, each named as what it is.
    """
    began = time.monotonic()
    f.requires_grad_(False).eval()
    known, asked = (features(f, split.pixels, device, dtype) for split in (train, test))
    knn_top1, knn_top5 = knn(known, train.labels, asked, test.labels, len(train.classes), args.k, args.temperature)
    torch.manual_seed(args.seed)
    classifier = nn.Linear(known.shape[1], len(train.classes)).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    labels = test.labels.to(device)
    rows = []
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(f, classifier, optimizer, train, args, device, dtype, epoch)
        if args.encoder_mode == "reference":
            asked = features(f, test.pixels, device, dtype)  # its statistics have moved
        top1, top5 = accuracy(classifier, asked, labels)
        rows.append({"epoch": epoch, "loss": loss, "top1": top1, "top5": top5})
    result = {
        "flags": vars(args),
        "machine": runtime.machine(device),
        "precision": str(dtype).removeprefix("torch."),
        "hours": (time.monotonic() - began) / 3600,
        "knn_top1": knn_top1,
        "knn_top5": knn_top5,
        "last_epoch": rows[-1],
        "best_epoch": max(rows, key=lambda row: row["top1"]),
    }
    weights.save_csv(out.with_name(out.name + "_linear.csv"), rows)
    weights.save_json(out.with_name(out.name + "_linear.json"), result)
    return result


def train_epoch(f: nn.Module, classifier: nn.Linear, optimizer: torch.optim.Optimizer, train: Images,
                args: argparse.Namespace, device: torch.device, dtype: torch.dtype, epoch: int) -> float:  # fmt: skip
    """One pass over the training images, one random view each; returns the mean loss."""
    f.train(args.encoder_mode == "reference")
    total = torch.zeros((), device=device)
    order = torch.randperm(len(train.pixels), generator=views.generator(args.seed, epoch))
    for step, index in enumerate(tqdm(order.split(args.batch_size), desc=f"linear {epoch}/{args.epochs}", leave=False)):
        batch = train.pixels[index].to(device)
        draw = views.draw(1, len(index), *batch.shape[2:], views.generator(args.seed, epoch, step))
        with torch.no_grad(), runtime.autocast(device, dtype):
            feature = f(views.make_view(batch, views.to(draw, device), 0, args.image_size)).flatten(1)
        loss = cross_entropy(classifier(feature.float()), train.labels[index].to(device))
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
    runtime.run(main)
