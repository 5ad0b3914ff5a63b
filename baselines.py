"""The losses that AttentioNCE is compared with: SimCLR's, DCL, HCL and BCL, of the two anchors of every image alone.

All four are  mean_j −log( e^pos_j / (e^pos_j + g_j) )  with pos_j = s(a_j, a_j′) / T, the other anchor as only positive;
they differ in g, the total weight of the negatives, so each is one small function here that returns log g.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from blockwise import Gather, LogG, check_positive, full_precision, mean_loss


def simclr(z: Tensor, temperature: float = 0.5, gather: Gather | None = None) -> Tensor:
    """SimCLR's NT-Xent: all negatives alike, g = Σ_k e_k with e_k = exp(s_jk / T), and pos = s(a, a′) / T.

    Args:
        z: 2 × batch × dim, L2-normalised, batch ≥ 2: two views of every image. Half precision is computed in float32.
        temperature: positive and finite.
        gather: as in `loss.attentionce`.

    Returns:
        A scalar ≥ 0 (float32, or float64 where z is).

    Raises:
        ValueError: an argument outside these ranges, by name.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.

    Example:
        >>> simclr(F.normalize(torch.stack([model(x1), model(x2)]), dim=-1), temperature=0.5).backward()
    """
    return _of_two_views(_simclr, z, gather, temperature)


def dcl(
    z: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, gather: Gather | None = None
) -> Tensor:
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
    return _of_two_views(_dcl, z, gather, temperature, tau_plus=tau_plus)


def hcl(
    z: Tensor,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    gather: Gather | None = None,
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
    return _of_two_views(_hcl, z, gather, temperature, tau_plus=tau_plus, beta=beta)


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
    return _of_two_views(_bcl, z, gather, temperature, tau_plus=tau_plus, alpha=alpha, beta=beta)


# log g of every loss, from pos (R) and sim (R × columns: cosine / temperature; −inf where a column is none of the n negatives)


def _simclr(pos: Tensor, sim: Tensor, n: int, temperature: float) -> Tensor:
    return torch.logsumexp(sim, dim=1)


def _dcl(pos: Tensor, sim: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    return _debias(torch.logsumexp(sim, dim=1), pos, n, temperature, tau_plus)


def _hcl(
    pos: Tensor, sim: Tensor, n: int, temperature: float, tau_plus: float, beta: float
) -> Tensor:
    log_w = torch.where(sim > -math.inf, beta * sim, sim)  # 0 · −inf would be NaN
    log_mean_w = torch.logsumexp(log_w, dim=1) - math.log(n)
    log_r = torch.logsumexp(sim + log_w, dim=1) - log_mean_w
    return _debias(log_r, pos, n, temperature, tau_plus)


def _debias(log_r: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    """log max( (R − τ⁺ N e^pos) / (1 − τ⁺), N e^(−1/T) )."""
    log_false = math.log(tau_plus * n) + pos if tau_plus else torch.full_like(pos, -math.inf)
    gap = log_r - log_false
    # log(R − false) = log R + log(1 − e^−gap) where that exists; the inner where keeps NaN out of the gradient
    left = torch.where(
        gap > 0, log_r + torch.log(-torch.expm1(-torch.where(gap > 0, gap, 1.0))), -math.inf
    )
    return (left - math.log1p(-tau_plus)).clamp(min=math.log(n) - 1 / temperature)


def _bcl(
    pos: Tensor, sim: Tensor, n: int, temperature: float, tau_plus: float, alpha: float, beta: float
) -> Tensor:
    sim = sim.sort(dim=1).values[
        :, -n:
    ]  # the order of a sum is free; −inf sorts to the front and drops out
    ranked = sim.detach().contiguous()
    f = (
        torch.searchsorted(ranked, ranked, right=True).to(sim.dtype) / n
    )  # ties share the larger rank
    tau_minus = 1 - tau_plus
    a = (1 - 2 * alpha) * (tau_minus - tau_plus) + 1e-3
    b = 2 * (alpha * tau_minus + (1 - alpha) * tau_plus)
    c = (
        2 * f / (b + torch.sqrt(b * b + 4 * a * f))
    )  # the root as usually written cancels, and divides by a
    phi1, phi2 = 2 * (1 - c), 2 * c
    true_negative = alpha * phi1 + (1 - alpha) * phi2
    false_negative = (1 - alpha) * phi1 + alpha * phi2
    easy, hard = alpha * (1 - beta), (1 - alpha) * beta
    h = (easy * phi1 + hard * phi2) / (easy + hard + 1e-3)
    omega = h / (true_negative * tau_minus + false_negative * tau_plus)
    # ω may reach 0 at the ends of alpha's and beta's range
    return torch.logsumexp(sim + omega.clamp(min=torch.finfo(sim.dtype).tiny).log(), dim=1)


def _of_two_views(
    log_g: LogG, z: Tensor, gather: Gather | None, temperature: float, **options: float
) -> Tensor:
    """The mean loss where the other anchor is the only positive; checks what these losses share."""
    check_positive(temperature=temperature)
    if not 0 <= options.get("tau_plus", 0) < 1:
        raise ValueError(f"tau_plus must lie in [0, 1), got {options['tau_plus']}")
    if z.ndim != 3 or len(z) != 2:
        raise ValueError(f"z must be 2 views × batch × dim, got {tuple(z.shape)}")
    positives, log_g = (
        partial(_other, temperature=temperature),
        partial(log_g, temperature=temperature, **options),
    )
    return mean_loss(full_precision(z), 1 / temperature, positives, log_g, gather=gather)


def _other(z: Tensor, temperature: float) -> tuple[Tensor, Callable[[Tensor, Tensor], object]]:
    """`blockwise.Positives`: pos = s(a, a′) / T, alike for both anchors of an image."""

    def back(grad_pos: Tensor, grad: Tensor) -> None:
        grad.addcmul_(grad_pos.view(2, -1, 1).sum(0), z.flip(0), value=1 / temperature)

    return ((z[0] * z[1]).sum(-1) / temperature).repeat(2), back
