"""AttentionNCE and the four contrastive losses that it is compared with, as functions of the embeddings.

All five are  mean_j −log( e^pos_j / (e^pos_j + g_j) )  over the 2B anchors j of a batch (views 1 and 2 of every image):
pos_j is anchor j's agreement with its positives, g_j the total weight of its N = 2B − 2 negatives: both anchors of all
other images. The losses differ in pos and in g alone, so each is one small function here that returns log g. Nothing
leaves log space: at a temperature of 0.01, or among near-duplicates, g itself overflows. How the mean and its gradient
are computed fast, and in memory linear in B, is the subject of blockwise.py.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from blockwise import losses, mean_over_rows

# Takes this process's anchors (2 × b × dim); returns those of all processes (2 × B × dim, with gradient) and the index
# of this process's first image among the B.
Gather = Callable[[Tensor], tuple[Tensor, int]]


def attention_nce(
    z: Tensor, temperature: float = 0.5, d_pos: float = 1.0, d_neg: float = 1.0, gather: Gather | None = None
) -> Tensor:
    """AttentionNCE: positives averaged, and negatives weighted, by attention.

        pos_j = Σ_m α_jm s_jm / T        α_jm = softmax_m( sg(s_jm) / d_pos )
        g_j   = Σ_k exp(β_jk s_jk / T)   β_jk = N ( softmax_k( sg(s_jk) / d_neg ) + 1e-6 )

    with s the cosines, T the temperature, sg the stopped gradient, m over the M positives of anchor j's image (views
    3 … 2 + M, shared by its two anchors) and k over j's N negatives. Small d_pos trusts the positive that agrees best,
    small d_neg fixes on the hardest negatives.

    Args:
        z: views × batch × dim, L2-normalised; 2 + M views with M ≥ 1, batch ≥ 2. Half precision is computed in float32.
        temperature, d_pos, d_neg: positive and finite.
        gather: None, or the way to the other processes' anchors (see `Gather`); the mean is then over the own anchors.

    Returns:
        A scalar ≥ 0 (float32, or float64 where z is).

    Raises:
        ValueError: an argument outside these ranges, by name.

    Source: "AttentioNCE: Contrastive Learning with Instance Attention".

    Example:
        >>> z = F.normalize(model(views), dim=-1)  # 6 × 256 × 128
        >>> attention_nce(z, temperature=0.5, d_pos=2.0, d_neg=0.5).backward()
    """
    _check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
    if z.ndim != 3 or len(z) < 3:
        raise ValueError(f"z must be views × batch × dim with 2 anchors and at least 1 positive, got {tuple(z.shape)}")
    anchors, positives = _full_precision(z).split([2, len(z) - 2])
    pos = _attended_positives(anchors, positives, temperature, d_pos)
    options = {"temperature": temperature, "d_neg": d_neg}
    return _mean_loss(pos, anchors, partial(_attention, **options), partial(_attention_step, **options), gather)


def attention_nce_queue(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.5, d_pos: float = 1.0, d_neg: float = 1.0
) -> Tensor:
    """AttentionNCE on MoCo: `attention_nce` whose negatives are a queue of earlier keys, so N is the queue's length.

    Args:
        queries: 2 × batch × dim, the anchors; only they carry gradients. All three are L2-normalised.
        keys: M × batch × dim with M ≥ 1, the positives, from the momentum encoder.
        queue: N × dim with N ≥ 1, shared by all anchors.
        temperature, d_pos, d_neg: positive and finite, as in `attention_nce`.

    Returns:
        A scalar ≥ 0, the mean over the 2 · batch queries.

    Raises:
        ValueError: an argument outside these ranges, or shapes that do not fit together, by name.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.

    Example:
        >>> attention_nce_queue(queries, keys, queue, temperature=0.5, d_neg=10.0).backward()
    """
    _check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
    if queries.ndim != 3 or len(queries) != 2 or not queries.numel():
        raise ValueError(f"queries must be 2 × batch × dim, got {tuple(queries.shape)}")
    if keys.ndim != 3 or len(keys) < 1 or keys.shape[1:] != queries.shape[1:]:
        raise ValueError(f"keys must be M × batch × dim as queries {tuple(queries.shape)}, got {tuple(keys.shape)}")
    if queue.ndim != 2 or len(queue) < 1 or queue.shape[1] != queries.shape[2]:
        raise ValueError(f"queue must be N × dim as queries {tuple(queries.shape)}, got {tuple(queue.shape)}")
    queries, keys, queue = (_full_precision(t) for t in (queries, keys.detach(), queue.detach()))
    pos = _attended_positives(queries, keys, temperature, d_pos)
    options = {"temperature": temperature, "d_neg": d_neg}
    step = partial(_attention_step, **options)
    return mean_over_rows(pos, queries.flatten(0, 1), queue, None, partial(_attention, **options), step)


class AttentionNCE(nn.Module):
    """`attention_nce` as a module, for code that wants its loss as one; the same arguments, checked when it is made.

    Example:
        >>> criterion = AttentionNCE(temperature=0.5, d_pos=2.0, d_neg=0.5)
        >>> criterion(z).backward()
    """

    def __init__(
        self, temperature: float = 0.5, d_pos: float = 1.0, d_neg: float = 1.0, gather: Gather | None = None
    ) -> None:
        super().__init__()
        _check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
        self.temperature, self.d_pos, self.d_neg, self.gather = temperature, d_pos, d_neg, gather

    def forward(self, z: Tensor) -> Tensor:
        return attention_nce(z, self.temperature, self.d_pos, self.d_neg, self.gather)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, d_pos={self.d_pos}, d_neg={self.d_neg}"


def simclr(z: Tensor, temperature: float = 0.5, gather: Gather | None = None) -> Tensor:
    """SimCLR's NT-Xent: all negatives alike, g = Σ_k e_k with e_k = exp(s_jk / T), and pos = s(a, a′) / T.

    Args:
        z: 2 × batch × dim, L2-normalised, batch ≥ 2: two views of every image. Half precision is computed in float32.
        temperature: positive and finite.
        gather: as in `attention_nce`.

    Returns:
        A scalar ≥ 0 (float32, or float64 where z is).

    Raises:
        ValueError: an argument outside these ranges, by name.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.

    Example:
        >>> simclr(F.normalize(torch.stack([model(x1), model(x2)]), dim=-1), temperature=0.5).backward()
    """
    anchors, pos = _two_views(z, temperature)
    return _mean_loss(pos, anchors, partial(_simclr, temperature=temperature), gather=gather)


def dcl(z: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, gather: Gather | None = None) -> Tensor:
    """Debiased contrastive loss: a share tau_plus of the negatives is taken to be of the anchor's own class.

        g = max( (Σ_k e_k − τ⁺ N e^pos) / (1 − τ⁺), N e^(−1/T) )

    Args:
        z, temperature, gather: as in `simclr`.
        tau_plus: in [0, 1); 0 is `simclr`.

    Returns, Raises: as `simclr`.

    Source: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020.

    Example:
        >>> dcl(z, temperature=0.5, tau_plus=0.1).backward()
    """
    anchors, pos = _two_views(z, temperature, tau_plus=tau_plus)
    return _mean_loss(pos, anchors, partial(_dcl, temperature=temperature, tau_plus=tau_plus), gather=gather)


def hcl(
    z: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, beta: float = 1.0, gather: Gather | None = None
) -> Tensor:
    """Hard-negative contrastive loss: `dcl` with every negative weighted by w_k = e_k^beta.

        R = Σ_k w_k e_k / mean_k w_k,   g = max( (R − τ⁺ N e^pos) / (1 − τ⁺), N e^(−1/T) )

    The gradient flows through w.

    Args:
        z, temperature, gather: as in `simclr`.
        tau_plus: in [0, 1).
        beta: ≥ 0 and finite; 0 is `dcl`.

    Returns, Raises: as `simclr`.

    Source: Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021.

    Example:
        >>> hcl(z, temperature=0.5, tau_plus=0.1, beta=1.0).backward()
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and at least 0, got {beta}")
    anchors, pos = _two_views(z, temperature, tau_plus=tau_plus)
    options = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta}
    return _mean_loss(pos, anchors, partial(_hcl, **options), gather=gather)


def bcl(
    z: Tensor,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    alpha: float = 0.9,
    beta: float = 0.9,
    gather: Gather | None = None,
) -> Tensor:
    """Bayesian contrastive loss: g = Σ_k ω_k e_k, ω_k from negative k's rank among its anchor's negatives.

    F = share of the N negatives with e ≤ e_k, the empirical distribution function. With τ⁻ = 1 − τ⁺:

        a = (1 − 2α)(τ⁻ − τ⁺) + 1e-3     b = 2(α τ⁻ + (1 − α) τ⁺)     C = (−b + √(b² + 4aF)) / 2a
        φ1 = 2(1 − C)   φ2 = 2C          TN = α φ1 + (1 − α) φ2       FN = (1 − α) φ1 + α φ2
        H = (α(1 − β) φ1 + (1 − α)β φ2) / (α(1 − β) + (1 − α)β + 1e-3)
        ω = H / (TN τ⁻ + FN τ⁺)

    Args:
        z, temperature, gather: as in `simclr`.
        tau_plus: in [0, 1).
        alpha: in [0, 1], how well the encoder ranks already (0.5 is chance).
        beta: in [0, 1], how much hard negatives count (above 0.5, more).

    Returns, Raises: as `simclr`.

    Source: Liu and Wang, "Bayesian Self-Supervised Contrastive Learning", 2023.

    Example:
        >>> bcl(z, temperature=0.5, tau_plus=0.1, alpha=0.9, beta=0.9).backward()
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    anchors, pos = _two_views(z, temperature, tau_plus=tau_plus)
    options = {"temperature": temperature, "tau_plus": tau_plus, "alpha": alpha, "beta": beta}
    return _mean_loss(pos, anchors, partial(_bcl, **options), gather=gather)


# log g of every loss, from pos (R) and the cosines sim (R × columns; −inf where a column is not one of the n negatives)


def _attention(pos: Tensor, sim: Tensor, n: int, temperature: float, d_neg: float) -> Tensor:
    beta = n * (torch.softmax(sim.detach() / d_neg, dim=1) + 1e-6)
    return torch.logsumexp(beta * sim / temperature, dim=1)


def _attention_step(pos: Tensor, sim: Tensor, n: int, temperature: float, d_neg: float) -> tuple[Tensor, ...]:
    """`autograd_step` for `_attention`, differentiated by hand and written over `sim`."""
    sim.div_(d_neg)
    scale = torch.softmax(sim, dim=1).add_(1e-6).mul_(n * d_neg / temperature)  # β d_neg / T
    logits = sim.mul_(scale)
    share = torch.softmax(logits, dim=1)
    # log Σ exp(logits) without another exp: the largest share is exp(largest logit − log Σ)
    log_g = logits.amax(dim=1) - share.amax(dim=1).log()
    push = torch.sigmoid(log_g - pos)  # dloss / dlog g
    return losses(pos, log_g), -push, share.mul_(scale).mul_((push / d_neg)[:, None])


def _simclr(pos: Tensor, sim: Tensor, n: int, temperature: float) -> Tensor:
    return torch.logsumexp(sim / temperature, dim=1)


def _dcl(pos: Tensor, sim: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    return _debias(torch.logsumexp(sim / temperature, dim=1), pos, n, temperature, tau_plus)


def _hcl(pos: Tensor, sim: Tensor, n: int, temperature: float, tau_plus: float, beta: float) -> Tensor:
    log_w = torch.where(sim > -math.inf, beta / temperature * sim, sim)  # 0 · −inf would be NaN
    log_mean_w = torch.logsumexp(log_w, dim=1) - math.log(n)
    log_r = torch.logsumexp(sim / temperature + log_w, dim=1) - log_mean_w
    return _debias(log_r, pos, n, temperature, tau_plus)


def _debias(log_r: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    """log max( (R − τ⁺ N e^pos) / (1 − τ⁺), N e^(−1/T) )."""
    log_false = math.log(tau_plus * n) + pos if tau_plus else torch.full_like(pos, -math.inf)
    gap = log_r - log_false
    # log(R − false) = log R + log(1 − e^−gap) where that exists; the inner where keeps NaN out of the gradient
    left = torch.where(gap > 0, log_r + torch.log(-torch.expm1(-torch.where(gap > 0, gap, 1.0))), -math.inf)
    return (left - math.log1p(-tau_plus)).clamp(min=math.log(n) - 1 / temperature)


def _bcl(
    pos: Tensor, sim: Tensor, n: int, temperature: float, tau_plus: float, alpha: float, beta: float
) -> Tensor:
    sim = sim.sort(dim=1).values[:, -n:]  # the order of a sum is free; −inf sorts to the front and drops out
    ranked = sim.detach().contiguous()
    f = torch.searchsorted(ranked, ranked, right=True).to(sim.dtype) / n  # ties share the larger rank
    tau_minus = 1 - tau_plus
    a = (1 - 2 * alpha) * (tau_minus - tau_plus) + 1e-3
    b = 2 * (alpha * tau_minus + (1 - alpha) * tau_plus)
    c = 2 * f / (b + torch.sqrt(b * b + 4 * a * f))  # the root as usually written cancels, and divides by a
    phi1, phi2 = 2 * (1 - c), 2 * c
    true_negative = alpha * phi1 + (1 - alpha) * phi2
    false_negative = (1 - alpha) * phi1 + alpha * phi2
    easy, hard = alpha * (1 - beta), (1 - alpha) * beta
    h = (easy * phi1 + hard * phi2) / (easy + hard + 1e-3)
    omega = h / (true_negative * tau_minus + false_negative * tau_plus)
    # ω may reach 0 at the ends of alpha's and beta's range
    return torch.logsumexp(sim / temperature + omega.clamp(min=torch.finfo(sim.dtype).tiny).log(), dim=1)


# What the losses share


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _full_precision(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _two_views(z: Tensor, temperature: float, tau_plus: float = 0.0) -> tuple[Tensor, Tensor]:
    """The anchors and their pos, of a loss whose only positive is the other anchor; checks what these losses share."""
    _check_positive(temperature=temperature)
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus must lie in [0, 1), got {tau_plus}")
    if z.ndim != 3 or len(z) != 2:
        raise ValueError(f"z must be 2 views × batch × dim, got {tuple(z.shape)}")
    anchors = _full_precision(z)
    return anchors, ((anchors[0] * anchors[1]).sum(-1) / temperature).repeat(2)


def _attended_positives(anchors: Tensor, positives: Tensor, temperature: float, d_pos: float) -> Tensor:
    sim = (anchors[:, None] * positives).sum(-1)  # 2 × M × batch
    alpha = torch.softmax(sim.detach() / d_pos, dim=1)
    return ((alpha * sim).sum(1) / temperature).flatten()


def _mean_loss(pos, anchors, log_g, step=None, gather=None):
    """The mean loss of this process's anchors (2 × b × dim), against those of all processes."""
    everyone, offset = (anchors, 0) if gather is None else gather(anchors)
    batch = everyone.shape[1]
    if batch < 2:
        raise ValueError(f"z must hold a batch of at least 2 images, got {batch}: one image has no negatives")
    image = torch.arange(offset, offset + anchors.shape[1], device=anchors.device).repeat(2)
    own = torch.stack([image, image + batch], dim=1)  # the columns that are no negatives: an anchor and its twin
    columns = None if gather is None else everyone.flatten(0, 1)
    return mean_over_rows(pos, anchors.flatten(0, 1), columns, own, log_g, step)
