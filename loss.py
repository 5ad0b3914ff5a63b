"""AttentioNCE as a function of the embeddings, with SimCLR's two anchors an image or with MoCo's queue; and its baselines.

Like them it is  mean_j −log( e^pos_j / (e^pos_j + g_j) )  over the 2B anchors j of a batch (views 1 and 2 of every image):
pos_j is anchor j's agreement with its positives, g_j the total weight of its N = 2B − 2 negatives: both anchors of all
other images. The losses differ in pos and in g alone. Nothing leaves log space: at a temperature of 0.01, or among
near-duplicates, g itself overflows. How the mean and its gradient are computed fast, and in memory linear in B, is the
subject of blockwise.py.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from baselines import bcl, dcl, hcl, simclr
from blockwise import (
    Gather,
    LogG,
    Positives,
    Step,
    check_positive,
    full_precision,
    mean_loss,
    mean_over_rows,
)

__all__ = ["AttentioNCE", "attentionce", "attentionce_queue", "bcl", "dcl", "hcl", "simclr"]


def attentionce(
    z: Tensor,
    temperature: float = 0.5,
    d_pos: float = 1.0,
    d_neg: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """AttentioNCE: positives averaged, and negatives weighted, by attention.

        pos_j = Σ_m α_jm s_jm / T        α_jm = softmax_m( sg(s_jm) / d_pos )
        g_j   = Σ_k exp(β_jk s_jk / T)   β_jk = N ( softmax_k( sg(s_jk) / d_neg ) + 1e-6 )

    with s the cosines, T the temperature, sg the stopped gradient, m over the M positives of anchor j's image (views
    3 … 2 + M, shared by its two anchors) and k over j's N negatives. Small d_pos trusts the positive that agrees best,
    small d_neg fixes on the hardest negatives.

    Args:
        z: views × batch × dim, L2-normalised; 2 + M views with M ≥ 1, batch ≥ 2. Half precision is computed in float32.
        temperature, d_pos, d_neg: positive and finite.
        gather: None, or the way to the other processes' anchors (`blockwise.Gather`); the mean is then over the own anchors.

    Returns:
        A scalar ≥ 0 (float32, or float64 where z is).

    Raises:
        ValueError: an argument outside these ranges, by name.

    Source: "AttentioNCE: Contrastive Learning with Instance Attention".

    Example:
        >>> z = F.normalize(model(views), dim=-1)  # 6 × 256 × 128
        >>> attentionce(z, temperature=0.5, d_pos=2.0, d_neg=0.5).backward()
    """
    check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
    if z.ndim != 3 or len(z) < 3:
        raise ValueError(
            f"z must be views × batch × dim with 2 anchors and at least 1 positive, got {tuple(z.shape)}"
        )
    return mean_loss(full_precision(z), *_parts(temperature, d_pos, d_neg), gather)


def attentionce_queue(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    temperature: float = 0.5,
    d_pos: float = 1.0,
    d_neg: float = 1.0,
) -> Tensor:
    """AttentioNCE on MoCo: `attentionce` whose negatives are a queue of earlier keys, so N is the queue's length.

    Args:
        queries: 2 × batch × dim, the anchors; only they carry gradients. All three are L2-normalised.
        keys: M × batch × dim with M ≥ 1, the positives, from the momentum encoder.
        queue: N × dim with N ≥ 1, shared by all anchors.
        temperature, d_pos, d_neg: positive and finite, as in `attentionce`.

    Returns:
        A scalar ≥ 0, the mean over the 2 · batch queries.

    Raises:
        ValueError: an argument outside these ranges, or shapes that do not fit together, by name.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.

    Example:
        >>> attentionce_queue(queries, keys, queue, temperature=0.5, d_neg=10.0).backward()
    """
    check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
    if queries.ndim != 3 or len(queries) != 2 or not queries.numel():
        raise ValueError(f"queries must be 2 × batch × dim, got {tuple(queries.shape)}")
    if keys.ndim != 3 or len(keys) < 1 or keys.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"keys must be M × batch × dim as queries {tuple(queries.shape)}, got {tuple(keys.shape)}"
        )
    if queue.ndim != 2 or len(queue) < 1 or queue.shape[1] != queries.shape[2]:
        raise ValueError(
            f"queue must be N × dim as queries {tuple(queries.shape)}, got {tuple(queue.shape)}"
        )
    z = full_precision(torch.cat([queries, keys.detach()]))
    return mean_over_rows(
        z, full_precision(queue.detach()), None, *_parts(temperature, d_pos, d_neg)
    )


class AttentioNCE(nn.Module):
    """`attentionce` as a module, for code that wants its loss as one; the same arguments, checked when it is made.

    Example:
        >>> criterion = AttentioNCE(temperature=0.5, d_pos=2.0, d_neg=0.5)
        >>> criterion(z).backward()
    """

    def __init__(
        self,
        temperature: float = 0.5,
        d_pos: float = 1.0,
        d_neg: float = 1.0,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
        self.temperature, self.d_pos, self.d_neg, self.gather = temperature, d_pos, d_neg, gather

    def forward(self, z: Tensor) -> Tensor:
        return attentionce(z, self.temperature, self.d_pos, self.d_neg, self.gather)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, d_pos={self.d_pos}, d_neg={self.d_neg}"


# `Positives`, `LogG` and `Step` of blockwise.py. The derivatives are written out: they take half of autograd's time.


def _parts(temperature: float, d_pos: float, d_neg: float) -> tuple[float, Positives, LogG, Step]:
    """What `mean_loss` is made of: the cosines' factor, the positives, the negatives' weight, and that with its gradients."""
    positives = partial(_attended, temperature=temperature, d_pos=d_pos)
    log_g, step = (partial(f, strength=d_neg / temperature) for f in (_attention, _attention_step))
    return 1 / d_neg, positives, log_g, step


def _attended(
    z: Tensor, temperature: float, d_pos: float
) -> tuple[Tensor, Callable[[Tensor, Tensor], object]]:
    """pos_j = a_j · (Σ_m α_jm p_m) / T with constant α: the anchor's gradient is its prototype, a positive's α_jm a_j."""
    anchors, positives = z[:2], z[2:]
    sim = (anchors[:, None] * positives).sum(-1)  # 2 × M × B
    weight = torch.softmax(sim / d_pos, dim=1).div_(temperature)

    def back(grad_pos: Tensor, grad: Tensor) -> None:
        share = (weight * grad_pos.view(2, 1, -1))[..., None]
        for m, positive in enumerate(positives):
            grad[:2].addcmul_(share[:, m], positive)
        torch.mul(share[0], anchors[0], out=grad[2:]).addcmul_(share[1], anchors[1])

    return (weight * sim).sum(1).flatten(), back


def _attention(pos: Tensor, sim: Tensor, n: int, strength: float) -> Tensor:
    """log Σ_k exp(β_k s_k / T) from sim = s / d_neg and strength = d_neg / T."""
    beta = n * (torch.softmax(sim.detach(), dim=1) + 1e-6)
    return torch.logsumexp(strength * beta * sim, dim=1)


def _attention_step(
    pos: Tensor, sim: Tensor, spare: Tensor, n: int, strength: float
) -> tuple[Tensor | None, ...]:
    """`autograd_step` for `_attention`, differentiated by hand and written over `sim`."""
    weight = torch.softmax(sim, dim=1, out=spare)
    # strength · β in one pass
    scale = torch.add(sim.new_full((), strength * n * 1e-6), weight, alpha=strength * n, out=weight)
    logits = sim.mul_(scale)
    largest = logits.amax(dim=1, keepdim=True)
    share = logits.sub_(largest).exp_()
    total = share.sum(dim=1, keepdim=True)
    return (largest + total.log()).squeeze(1), None, share.mul_(scale).div_(total)
