"""Whether features collapse: alignment, uniformity and RankMe, none of which needs labels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from attentionce.evaluation.figures import some_views
from attentionce.training.devices import autocast


def alignment(one: Tensor, other: Tensor) -> float:
    """The mean squared distance of two views' normalised features, N×D each.

    Source: Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere, ICML 2020 (α = 2).
    """
    return (normalize(one, dim=1) - normalize(other, dim=1)).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(−2 ‖x − y‖²) over all pairs of normalised features, N×D.

    Source: Wang and Isola, as above (t = 2).
    """
    z, count = normalize(features, dim=1), len(features)
    total = sum((4 * (rows @ z.T - 1)).exp().sum().item() for rows in z.split(1024))
    pairs = torch.tensor(total - count)  # without those of an image with itself
    return (pairs / (count * (count - 1))).log().item()


def rankme(features: Tensor) -> float:
    """How many dimensions features N×D effectively have: exp(entropy) of their singular values.

    Source: Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained
    Self-Supervised Representations by Their Rank, ICML 2023.
    """
    z = features.double().cpu()
    if not z.isfinite().all():
        return torch.nan
    singular = torch.linalg.eigvalsh(z.T @ z).clamp(min=0).sqrt()
    p = singular / singular.sum() + 1e-7
    return torch.special.entr(p).sum().exp().item()


@torch.no_grad()
def collapse_numbers(
    f: nn.Module, pixels: Tensor, features: Tensor, size: int, seed: int, dtype: torch.dtype
) -> dict[str, float]:
    """Alignment, uniformity and RankMe of an encoder on test images.

    Alignment compares two random views, as in pretraining and always the same, of up to 1,024 of
    the images. The other two are of all images as they are.

    Args:
        f: The encoder without its projection head. Its mode is restored.
        pixels: The test images, uint8 N×3×H×W.
        features: Their features, N×D on the encoder's device, not normalised.
        size: Side of the views in pixels, which `seed` decides on.
        dtype: The precision in which the encoder computes.
    """
    chosen = torch.linspace(0, len(pixels) - 1, min(1024, len(pixels))).long().to(pixels.device)
    training, device, pairs = f.training, features.device, []
    f.eval()
    for index in chosen.split(128):
        made = some_views(pixels[index].cpu(), len(index), 0, size, seed)
        with autocast(device, dtype):
            pairs.append([f(view.to(device)).flatten(1).float() for view in made])
    f.train(training)
    one, other = (torch.cat(views) for views in zip(*pairs, strict=True))
    numbers = {"alignment": alignment(one, other), "uniformity": uniformity(features)}
    return {**numbers, "rankme": rankme(features)}
