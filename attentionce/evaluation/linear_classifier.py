"""A linear classifier on the frozen features of an encoder, tested after every epoch."""

import argparse
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from attentionce.data import views
from attentionce.data.images import Images
from attentionce.data.transfer import batches, to_device
from attentionce.errors import UserError, as_user_error
from attentionce.evaluation.knn import clamp_k, features, knn
from attentionce.runs import files, states
from attentionce.training import devices, processes
from attentionce.training.fallbacks import compiled_or_plain
from attentionce.training.pretraining import restore_moments
from attentionce.weights import digest

# Flags that change no result. More --epochs continue a classifier.
FREE_FLAGS = {"cache", "compile", "device", "epochs", "export", "model_path", "results", "root"}


class Encoder(NamedTuple):
    """What one `--model_path` stands for."""

    path: str
    f: nn.Sequential
    arch: str
    out: Path  # of its results, without ending


@dataclass
class Fit:
    """A classifier, and how far it is."""

    classifier: nn.Linear
    adam: torch.optim.Optimizer
    rows: list[dict[str, Any]]  # of the metrics, one per epoch
    seconds: float


def evaluate(
    encoder: Encoder,
    train: Images,
    test: Images,
    args: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    received: list[int],
) -> dict[str, Any] | None:
    """kNN accuracy of an encoder, then a linear classifier on its features, tested every epoch.

    Rank 0 writes metrics and the classifier after every epoch, from which the same command
    continues, and at the end a JSON, whose content is returned; None after a signal (`received`).
    """
    f, drifts = encoder.f.requires_grad_(False).eval(), args.encoder_mode == "reference"
    origin: dict[str, Any] = {"flags": vars(args), "weights": digest(f), "classes": train.classes}
    origin["images"] = f"{train.fingerprint} {test.fingerprint}"
    origin["size"] = list(test.pixels.shape[2:])
    kept = processes.from_first(lambda: find_classifier(encoder.out, args, origin))
    f = f.to(device).to(memory_format=torch.channels_last)
    train = on_device(train, device)
    train_features = features(f, train.pixels, device, dtype)
    test_features = features(f, test.pixels, device, dtype)
    classes, k = len(train.classes), clamp_k(args.k, len(train.pixels))
    neighbours = (train_features, train.labels, test_features, test.labels)
    knn_top1, knn_top5 = knn(*neighbours, classes, k, args.temperature)
    fit = new_fit(train_features.shape[1], classes, args, device)
    if kept:
        restore(fit, f, kept, encoder.out)
    began = time.monotonic() - fit.seconds
    labels, encode = test.labels.to(device), view_encoder(f, args, device, dtype)
    for epoch in range(len(fit.rows) + 1, args.epochs + 1):
        f.train(drifts)
        loss = fit_epoch(encode, fit.classifier, fit.adam, train, args, device, epoch, received)
        if loss is None:
            return None
        f.eval()
        if drifts:
            processes.same_buffers(f)
            test_features = features(f, test.pixels, device, dtype)
        tested = accuracy(fit.classifier, test_features, labels)
        fit.rows.append({"epoch": epoch, "loss": loss, **tested})
        fit.seconds = time.monotonic() - began
        print_epoch(fit, args.epochs)
        if processes.rank() == 0:
            save(fit, encoder.out, {**origin, "encoder": dict(f.named_buffers()) if drifts else {}})
    result = {
        "flags": vars(args),
        "machine": devices.machine(device),
        "code": devices.code_digests(),
        "precision": str(dtype).removeprefix("torch."),
        "hours": fit.seconds / 3600,
        "knn_top1": knn_top1,
        "knn_top5": knn_top5,
        "last_epoch": fit.rows[-1],
        "best_epoch": max(fit.rows, key=lambda row: row["top1"]),
    }
    if processes.rank() == 0:
        files.save_json(Path(f"{encoder.out}.json"), result)
    return result


def new_fit(width: int, classes: int, args: argparse.Namespace, device: torch.device) -> Fit:
    """The untrained classifier of `--seed`."""
    torch.manual_seed(args.seed)
    classifier = nn.Linear(width, classes).to(device)
    options: dict[str, Any] = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": True}
    return Fit(classifier, torch.optim.Adam(classifier.parameters(), **options), [], 0.0)


def save(fit: Fit, out: Path, origin: dict[str, Any]) -> None:
    """Write the metrics, and the classifier with what it was made of."""
    files.save_csv(Path(f"{out}.csv"), fit.rows)
    moments = fit.adam.state_dict()["state"]
    content = {**origin, "classifier": fit.classifier.state_dict(), "moments": moments}
    content |= {"rows": fit.rows, "seconds": fit.seconds}
    files.save(Path(f"{out}.classifier"), content)


def restore(fit: Fit, f: nn.Module, kept: dict[str, Any], out: Path) -> None:
    """Continue from what `save` wrote."""
    with as_user_error(f"{out}.classifier is damaged: remove it"):
        fit.classifier.load_state_dict(kept["classifier"])
        restore_moments(fit.adam, kept["moments"])
        f.load_state_dict(kept["encoder"], strict=False)
        fit.rows, fit.seconds = kept["rows"], kept["seconds"]


def print_epoch(fit: Fit, epochs: int) -> None:
    """The newest epoch in one line."""
    row = fit.rows[-1]
    left = tqdm.format_interval(fit.seconds / row["epoch"] * (epochs - row["epoch"]))
    words = f"loss {row['loss']:.4f}, top-1 {row['top1']:.2f} %, {left} left"
    print(f"epoch {row['epoch']}/{epochs}: {words}", flush=True)


def find_classifier(
    out: Path, args: argparse.Namespace, origin: dict[str, Any]
) -> dict[str, Any] | None:
    """What an earlier call of the same command left, if it was of the same weights.

    Raises:
        UserError: It was made with other flags or other images.
    """
    path = Path(f"{out}.classifier")
    if not path.exists():
        return None
    kept = files.read(path)
    advice = f"name another --results, or remove {path}"
    with as_user_error(f"{path} is not a classifier of this program: {advice}"):
        different = states.differing_flags(args, kept["flags"], FREE_FLAGS)
        if kept["images"] != origin["images"]:
            different.append("other images")
        rows, same_weights = len(kept["rows"]), kept["weights"] == origin["weights"]
    if not same_weights:
        print(f"{path} belongs to different weights: starting over", flush=True)
        return None
    if different:
        raise UserError(f"{path} was made otherwise: {', '.join(different)}; {advice}")
    if rows > args.epochs:
        raise UserError(f"{path} has {rows} epochs already: give more --epochs, or {advice}")
    print(f"continuing after epoch {rows} of {path}", flush=True)
    return kept


def on_device(images: Images, device: torch.device) -> Images:
    """The labels on the device, the pixels too where they fit."""
    return Images(devices.keep(images.pixels, device), images.labels.to(device), images.classes)


def view_encoder(
    f: nn.Module, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, views.Draw], Tensor]:
    """A function of images and their random parameters: the features of one view per image, b×D.

    Encoder and views are compiled as in pretraining.
    """

    @torch.no_grad()
    def encode(encoder: Callable, ops: views.Ops, images: Tensor, draw: views.Draw) -> Tensor:
        with devices.autocast(device, dtype):
            view = views.make_view(images, draw, 0, args.image_size, ops)
            return encoder(view).flatten(1).float()

    plain = functools.partial(encode, f, views.Ops())
    if not devices.wants_compiler(args.compile, device):
        return plain
    compiled = functools.partial(encode, torch.compile(f, dynamic=False), views.compiled())
    return compiled_or_plain(compiled, plain)


def fit_epoch(
    encode: Callable[[Tensor, views.Draw], Tensor],
    classifier: nn.Linear,
    optimizer: torch.optim.Optimizer,
    train: Images,
    args: argparse.Namespace,
    device: torch.device,
    epoch: int,
    received: list[int],
) -> float | None:
    """One pass over the training images, one random view each; no host-device synchronisation.

    Of several processes each encodes its share of a batch. Then all take the same step on the
    features of the whole batch.

    Returns:
        The mean loss, a UserError if it is not finite; None as soon as a signal has come.
    """
    total = torch.zeros((), device=device)
    order = torch.randperm(len(train.pixels), generator=views.generator(args.seed, epoch))
    height, width = train.pixels.shape[2:]
    labels = train.labels[to_device(order, train.labels.device)].split(args.batch_size)
    parts = order.split(args.batch_size)
    shares = [processes.own_rows(len(part)) for part in parts]
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
        if processes.maxima([len(received)])[0]:
            return None
    mean = total.item() / len(order)
    if not math.isfinite(mean):
        raise UserError(f"the classifier's loss is {mean} in epoch {epoch}: try a smaller --lr")
    return mean


@torch.no_grad()
def accuracy(classifier: nn.Linear, feature: Tensor, labels: Tensor) -> dict[str, float]:
    """Of labels N from features N×D, in percent; with fewer than five classes top-5 is 100.

    Returns:
        top1, top5, and class_mean, the mean over the classes of their top-1.
    """
    scores = classifier(feature)
    hit = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    sizes = labels.bincount()
    hits = labels[hit[:, 0]].bincount(minlength=len(sizes))
    return {
        "top1": 100 * hit[:, 0].float().mean().item(),
        "top5": 100 * hit.any(1).float().mean().item(),
        "class_mean": 100 * (hits[sizes > 0] / sizes[sizes > 0]).mean().item(),
    }
