"""Evaluation without training: weighted k-nearest neighbours over frozen features."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce.data import views
from attentionce.data.transfer import to_device
from attentionce.training import processes
from attentionce.training.devices import autocast

BLOCK = 2**25  # cosines in memory at a time: 128 MiB of float32


@torch.no_grad()
def features(
    f: nn.Module, pixels: Tensor, device: torch.device, dtype: torch.dtype, batch_size: int = 512
) -> Tensor:
    """Encode evaluation images as they are, without crop or resize, with `f` in eval mode.

    Of several processes, each encodes its share and gets all features.

    Args:
        f: The encoder without its projection head, on `device`. Its mode is restored.
        pixels: uint8 N×3×H×W, on any device.
        dtype: The precision in which the encoder computes.
        batch_size: Images of 32×32 pixels to encode at a time. Larger images take smaller batches,
            so that memory stays the same.

    Returns:
        float32 N×D on `device`, not normalised.
    """
    height, width = pixels.shape[2:]
    batch_size = max(1, batch_size * 32**2 // max(32**2, height * width))
    training = f.training
    f.eval()
    out = []
    for index in processes.own_rows(len(pixels)).split(batch_size):
        batch = to_device(pixels[index.to(pixels.device)], device)
        with autocast(device, dtype):
            out.append(f(views.normalize(batch)).flatten(1).float())
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
    """Weighted kNN accuracy: the k nearest features vote with weight exp(cosine / temperature).

    Queries go in blocks, so that there are never more than BLOCK cosines. Of several processes, all
    called with the same arguments, each counts a share of the queries.

    Args:
        bank: Features to search, N×D.
        bank_labels: Their classes, N integers below `classes`.
        queries: Features to classify, Q×D, on the bank's device.
        labels: Their true classes, Q.
        k: How many neighbours vote, at most N (`clamp_k`).
        temperature: The smaller it is, the more the nearest neighbours count.

    Returns:
        (top-1, top-5) accuracy in percent. With fewer than five classes top-5 is 100;
        where fewer than five have a vote, any others fill it up.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    CVPR 2018.
    """
    bank = normalize(bank, dim=1)
    queries = normalize(queries, dim=1)
    bank_labels = bank_labels.to(bank.device)
    labels = labels.to(bank.device)
    own = slice(processes.rank(), None, processes.world())
    rows = max(1, BLOCK // len(bank))
    hits = torch.zeros(2, device=bank.device)
    for query, label in zip(queries[own].split(rows), labels[own].split(rows), strict=True):
        cosine, index = (query @ bank.T).topk(k, dim=1)
        # Dividing all weights of a query by the largest changes no vote. It prevents an overflow at
        # low temperatures.
        weight = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = torch.zeros(len(query), classes, device=bank.device)
        votes.scatter_add_(1, bank_labels[index], weight)
        hit = votes.topk(min(5, classes), dim=1).indices == label[:, None]
        hits += torch.stack([hit[:, 0].sum(), hit.sum()])
    top1, top5 = processes.total(hits).tolist()
    return 100 * top1 / len(labels), 100 * top5 / len(labels)


def clamp_k(k: int, images: int) -> int:
    """Reduce k to the number of images if there are fewer, and print that."""
    if k > images:
        print(f"--k {k} is more than the {images} training images: using {images}", flush=True)
    return min(k, images)
