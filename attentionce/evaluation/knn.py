"""Evaluation without training: weighted k-nearest neighbours over frozen features."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce.data.views import normalize as normalize_pixels
from attentionce.errors import UserError
from attentionce.training import processes
from attentionce.training.devices import autocast

BLOCK = 2**25  # cosines held at a time: 128 MiB of float32


@torch.no_grad()
def features(
    f: nn.Module, pixels: Tensor, device: torch.device, dtype: torch.dtype, batch_size: int = 512
) -> Tensor:
    """Features of evaluation images: no crop, no resize, `f` in eval mode (and its mode restored).

    Of several processes each encodes its share; all get all features.

    Args:
        f: the encoder without its projection head.
        pixels: uint8 N×3×H×W, anywhere.
        device, dtype: where and in which precision the encoder computes.

    Returns:
        float32 N×D on `device`, not normalised.
    """
    batch_size = max(
        1, batch_size * 32**2 // max(32**2, pixels.shape[2] * pixels.shape[3])
    )  # as much memory at any size
    training = f.training
    f.eval()
    out = []
    for index in processes.share(len(pixels)).split(batch_size):
        batch = pixels[index.to(pixels.device)].to(device, non_blocking=True)
        with autocast(device, dtype):
            out.append(f(normalize_pixels(batch)).flatten(1).float())
    f.train(training)
    return processes.gather_rows(torch.cat(out))[: len(pixels)]


@torch.no_grad()
def knn(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    classes: int,
    k: int = 200,
    temperature: float = 0.5,
) -> tuple[float, float]:
    """Weighted kNN accuracy: the k nearest images of the bank vote with weight exp(cosine / temperature).

    Memory stays bounded: queries go in blocks, so that at most `BLOCK` cosines are held at a time. Of several processes,
    all called with the same, each counts a share of the queries.

    Args:
        bank, queries: features N×D and Q×D on one device.
        bank_labels, labels: their classes, N and Q integers below `classes`.
        k: neighbours that vote; at most N (clamp before: `clamp_k`).

    Returns:
        (top-1, top-5) in percent. With fewer than five classes top-5 is 100.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.
    """
    bank, queries = normalize(bank, dim=1), normalize(queries, dim=1)
    bank_labels, labels = bank_labels.to(bank.device), labels.to(bank.device)
    hits = torch.zeros(2, device=bank.device)
    rows = max(1, BLOCK // len(bank))
    own = slice(processes.rank(), None, processes.world())
    for query, label in zip(queries[own].split(rows), labels[own].split(rows), strict=True):
        cosine, index = (query @ bank.T).topk(k, dim=1)
        votes = torch.zeros(len(query), classes, device=bank.device)
        # exp((cos − 1)/T) is the same vote up to a common factor and cannot overflow at small temperatures.
        votes.scatter_add_(1, bank_labels[index], ((cosine - cosine[:, :1]) / temperature).exp())
        hit = votes.topk(min(5, classes), dim=1).indices == label[:, None]
        hits += torch.stack([hit[:, 0].sum(), hit.sum()])
    top1, top5 = processes.total(hits).tolist()
    return 100 * top1 / len(labels), 100 * top5 / len(labels)


def clamp_k(k: int, images: int) -> int:
    """k, or the number of images where that is smaller, and says so."""
    if k < 1:
        raise UserError(f"--k must be at least 1, not {k}")
    if k > images:
        print(f"--k {k} is more than the {images} training images: using {images}", flush=True)
    return min(k, images)
