"""AttentioNCE and the four losses that it is compared with. It needs torch alone.

All five have one form. Every image of a batch of B gives two anchors. Each of the 2B anchors a_j is
pulled to its positives and pushed from its N = 2B − 2 negatives, the anchors of all other images:

    loss = mean_j −log( e^pos_j / (e^pos_j + g_j) )

They differ in pos_j, how well anchor j agrees with its positives, and in g_j, the total weight of
its negatives. Each loss computes pos and hands `mean_loss` a function for log g. Nothing leaves log
space, because g itself overflows at low temperatures and among near-duplicate images.

Throughout this file
    z     embeddings of length 1, views × B × dim; views 0 and 1 are the anchors
    sim   cosines: of anchors and their positives (2 × M × B), or of anchors and negatives
          (rows × columns, −∞ where a column is not a negative of the row)
    pos   2B numbers, one per anchor: those of view 0, then those of view 1
    n     the number of negatives per anchor, N

`mean_loss` never holds the whole 2B × 2B matrix of cosines.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Takes this process's anchors (2 × b × dim) and returns those of all processes (2 × B × dim, with
# gradient) and the index of this process's first image among the B.
Gather = Callable[[Tensor], tuple[Tensor, int]]
LogG = Callable[[Tensor, Tensor, int], Tensor]  # (sim of some rows, their pos, n) → log g per row


def in_full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half-precision embeddings are converted to float32 first, and autocast is off inside."""

    @functools.wraps(function)
    def computed(*args: Any, **kwargs: Any) -> Tensor:
        args = tuple(_at_least_float32(x) for x in args)
        kwargs = {name: _at_least_float32(x) for name, x in kwargs.items()}
        z = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        with torch.autocast("cpu" if z is None else z.device.type, enabled=False):
            return function(*args, **kwargs)

    return computed


def _at_least_float32(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ----------------------------------------------------------------------------- the five losses


@in_full_precision
def attentionce(
    z: Tensor,
    temperature: float = 0.5,
    d_pos: float = 1.0,
    d_neg: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """AttentioNCE: anchors are pulled to an attention-weighted prototype of their positives and
    pushed from attention-weighted negatives.

        α_jm  = softmax_m( sg(a_j · p_m) / d_pos )
        pos_j = Σ_m α_jm (a_j · p_m) / T = a_j · (Σ_m α_jm p_m) / T
        β_jk  = N ( softmax_k( sg(a_j · a_k) / d_neg ) + 1e-6 )
        g_j   = Σ_k exp( β_jk (a_j · a_k) / T )

    with m over the M positives of anchor j's image, which its two anchors share, k over its N
    negatives, T the temperature and sg(·) the stopped gradient. A small d_pos trusts the positive
    that agrees best; a small d_neg concentrates on the hardest negatives.

    Args:
        z: Embeddings of length 1, (2 + M) × batch × dim with M ≥ 1 and batch ≥ 2: two anchors, then
            the positives.
        temperature: T, positive and finite.
        d_pos: Scale of the attention on positives, positive and finite.
        d_neg: Scale of the attention on negatives, positive and finite.
        gather: How to get the anchors of all processes (`attentionce.training.processes.gather`).
            Without it the negatives are this process's own. The mean is over its own anchors.

    Returns:
        The mean loss, a scalar ≥ 0, in float32 (float64 where z is).

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Source: "AttentioNCE: Contrastive Learning with Instance Attention",
    https://openreview.net/forum?id=FfHGAAoSVJ

    Example:
        >>> z = F.normalize(torch.randn(6, 256, 128), dim=-1)
        >>> loss = attentionce(z, temperature=0.5, d_pos=2.0, d_neg=0.5)
    """
    _check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
    if z.ndim != 3 or len(z) < 3:
        raise ValueError(
            "z must be views × batch × dim with 2 anchors and at least 1 positive, "
            f"got {tuple(z.shape)}"
        )
    anchors, positives = z[:2], z[2:]
    pos = _agreement_with_prototype(anchors, positives, temperature, d_pos)
    log_g = functools.partial(_attended_negatives, temperature=temperature, d_neg=d_neg)
    return mean_loss(anchors, pos, log_g, gather)


def _agreement_with_prototype(
    anchors: Tensor, positives: Tensor, temperature: float, d_pos: float
) -> Tensor:
    """pos_j = Σ_m α_jm (a_j · p_m) / T."""
    sim = (anchors[:, None] * positives).sum(-1)
    alpha = torch.softmax(sim.detach() / d_pos, dim=1)
    return (alpha * sim).sum(1).flatten() / temperature


def _attended_negatives(
    sim: Tensor, pos: Tensor, n: int, temperature: float, d_neg: float
) -> Tensor:
    """log Σ_k exp( β_jk s_jk / T )."""
    # In place where no gradient flows: fresh memory would cost as much time as the arithmetic.
    beta = torch.softmax(sim.detach() / d_neg, dim=1).add_(1e-6).mul_(n)
    return torch.logsumexp(beta.div_(temperature) * sim, dim=1)


@in_full_precision
def attentionce_queue(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    temperature: float = 0.5,
    d_pos: float = 1.0,
    d_neg: float = 1.0,
) -> Tensor:
    """AttentioNCE on MoCo: as `attentionce`, but the negatives are a queue of earlier keys.

    Args:
        queries: The anchors, 2 × batch × dim; only they carry gradients. All three are of length 1.
        keys: The positives from the momentum encoder, M × batch × dim with M ≥ 1.
        queue: The negatives of every anchor, N × dim with N ≥ 1.
        temperature: T, positive and finite.
        d_pos: Scale of the attention on positives, positive and finite.
        d_neg: Scale of the attention on negatives, positive and finite.

    Returns:
        The mean loss over the 2 · batch queries, a scalar ≥ 0.

    Raises:
        ValueError: An argument is outside its range, or shapes do not match; the message names it.

    Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning",
    CVPR 2020.

    Example:
        >>> loss = attentionce_queue(queries, keys, queue, temperature=0.5, d_neg=10.0)
    """
    _check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
    shape = tuple(queries.shape)
    if queries.ndim != 3 or len(queries) != 2 or not queries.numel():
        raise ValueError(f"queries must be 2 × batch × dim, got {shape}")
    if keys.ndim != 3 or len(keys) < 1 or keys.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"keys must be M × batch × dim like queries {shape}, got {tuple(keys.shape)}"
        )
    if queue.ndim != 2 or len(queue) < 1 or queue.shape[1] != queries.shape[2]:
        raise ValueError(f"queue must be N × dim like queries {shape}, got {tuple(queue.shape)}")
    pos = _agreement_with_prototype(queries, keys.detach(), temperature, d_pos)
    log_g = functools.partial(_attended_negatives, temperature=temperature, d_neg=d_neg)
    own = torch.empty(len(pos), 0, dtype=torch.long, device=queue.device)
    return mean_over_rows(queries.flatten(0, 1), queue.detach(), own, pos, log_g)


@in_full_precision
def simclr(z: Tensor, temperature: float = 0.5, gather: Gather | None = None) -> Tensor:
    """SimCLR's NT-Xent: the image's other anchor is the positive; all negatives count the same.

        pos_j = (a_j · a_j′) / T
        g_j   = Σ_k e_k            e_k = exp( (a_j · a_k) / T )

    Args:
        z: Embeddings of length 1, 2 × batch × dim with batch ≥ 2: two views of every image.
        temperature: T, positive and finite.
        gather: As in `attentionce`.

    Returns:
        The mean loss, a scalar ≥ 0, in float32 (float64 where z is).

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020.

    Example:
        >>> z = F.normalize(torch.randn(2, 256, 128), dim=-1)
        >>> loss = simclr(z, temperature=0.5)
    """
    _check_positive(temperature=temperature)
    pos = _agreement_of_anchors(z, temperature)

    def log_g(sim: Tensor, pos: Tensor, n: int) -> Tensor:
        return torch.logsumexp(sim / temperature, dim=1)

    return mean_loss(z, pos, log_g, gather)


@in_full_precision
def dcl(
    z: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, gather: Gather | None = None
) -> Tensor:
    """Debiased contrastive loss: a share τ⁺ of the negatives is assumed to be of the anchor's own
    class.

        pos_j = (a_j · a_j′) / T
        g_j   = max( (Σ_k e_k − τ⁺ N e^pos_j) / (1 − τ⁺), N e^(−1/T) )

    Args:
        z: As in `simclr`.
        temperature: T, positive and finite.
        tau_plus: τ⁺ in [0, 1). With 0 this is `simclr`.
        gather: As in `attentionce`.

    Returns:
        As `simclr`.

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Source: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020.

    Example:
        >>> loss = dcl(z, temperature=0.5, tau_plus=0.1)
    """
    _check_positive(temperature=temperature)
    _check_tau_plus(tau_plus)
    pos = _agreement_of_anchors(z, temperature)

    def log_g(sim: Tensor, pos: Tensor, n: int) -> Tensor:
        log_r = torch.logsumexp(sim / temperature, dim=1)
        return _debiased(log_r, pos, n, temperature, tau_plus)

    return mean_loss(z, pos, log_g, gather)


@in_full_precision
def hcl(
    z: Tensor,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """Contrastive loss with hard negatives: `dcl` with every negative weighted by w_k = e_k^β.

        pos_j = (a_j · a_j′) / T
        R_j   = Σ_k w_k e_k / mean_k w_k
        g_j   = max( (R_j − τ⁺ N e^pos_j) / (1 − τ⁺), N e^(−1/T) )

    The gradient flows through the weights.

    Args:
        z: As in `simclr`.
        temperature: T, positive and finite.
        tau_plus: τ⁺ in [0, 1).
        beta: β ≥ 0, finite: how much hard negatives count. With 0 this is `dcl`.
        gather: As in `attentionce`.

    Returns:
        As `simclr`.

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Source: Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021.

    Example:
        >>> loss = hcl(z, temperature=0.5, tau_plus=0.1, beta=1.0)
    """
    _check_positive(temperature=temperature)
    _check_tau_plus(tau_plus)
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and at least 0, got {beta}")
    pos = _agreement_of_anchors(z, temperature)

    def log_g(sim: Tensor, pos: Tensor, n: int) -> Tensor:
        log_e = sim / temperature
        log_w = torch.where(sim > -math.inf, beta * log_e, sim)  # 0 · −∞ would be NaN
        log_mean_w = torch.logsumexp(log_w, dim=1) - math.log(n)
        log_r = torch.logsumexp(log_w + log_e, dim=1) - log_mean_w
        return _debiased(log_r, pos, n, temperature, tau_plus)

    return mean_loss(z, pos, log_g, gather)


@in_full_precision
def bcl(
    z: Tensor,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    alpha: float = 0.9,
    beta: float = 0.9,
    gather: Gather | None = None,
) -> Tensor:
    """Bayesian contrastive loss: a negative's weight depends on its rank among the anchor's
    negatives.

        pos_j = (a_j · a_j′) / T
        g_j   = Σ_k ω_k e_k

    F_k is the share of the N negatives with e ≤ e_k. With τ⁻ = 1 − τ⁺:

        a  = (1 − 2α)(τ⁻ − τ⁺) + 1e-3     b  = 2(α τ⁻ + (1 − α) τ⁺)     C = (−b + √(b² + 4aF)) / 2a
        φ₁ = 2(1 − C)   φ₂ = 2C           TN = α φ₁ + (1 − α) φ₂        FN = (1 − α) φ₁ + α φ₂
        H  = (α(1 − β) φ₁ + (1 − α)β φ₂) / (α(1 − β) + (1 − α)β + 1e-3)
        ω  = H / (TN τ⁻ + FN τ⁺)

    Args:
        z: As in `simclr`.
        temperature: T, positive and finite.
        tau_plus: τ⁺ in [0, 1).
        alpha: α in [0, 1]: how well the encoder ranks already; 0.5 is chance.
        beta: β in [0, 1]: how much hard negatives count; above 0.5 they count more.
        gather: As in `attentionce`.

    Returns:
        As `simclr`.

    Raises:
        ValueError: An argument is outside its range; the message names it.

    Source: Liu and Wang, "Bayesian Self-Supervised Contrastive Learning", 2023.

    Example:
        >>> loss = bcl(z, temperature=0.5, tau_plus=0.1, alpha=0.9, beta=0.9)
    """
    _check_positive(temperature=temperature)
    _check_tau_plus(tau_plus)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    pos = _agreement_of_anchors(z, temperature)

    def log_g(sim: Tensor, pos: Tensor, n: int) -> Tensor:
        # Sorted, F is a position; −∞ sorts to the front and is cut off. A sum may be in any order.
        sim = sim.sort(dim=1).values[:, -n:]
        ranked = sim.detach().contiguous()
        f = torch.searchsorted(ranked, ranked, right=True).to(sim.dtype) / n
        omega = _bayesian_weight(f, tau_plus, alpha, beta)
        # ω reaches 0 at the ends of the ranges of α and β.
        log_omega = omega.clamp(min=torch.finfo(sim.dtype).tiny).log()
        return torch.logsumexp(log_omega + sim / temperature, dim=1)

    return mean_loss(z, pos, log_g, gather)


# ----------------------------------------------------------------------------- what they share


def _agreement_of_anchors(z: Tensor, temperature: float) -> Tensor:
    """pos_j = (a_j · a_j′) / T, the same for both anchors of an image."""
    if z.ndim != 3 or len(z) != 2:
        raise ValueError(f"z must be 2 views × batch × dim, got {tuple(z.shape)}")
    sim = (z[0] * z[1]).sum(-1)
    return sim.repeat(2) / temperature


def _debiased(log_r: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    """log max( (R − τ⁺ N e^pos) / (1 − τ⁺), N e^(−1/T) )."""
    floor = math.log(n) - 1 / temperature
    if tau_plus == 0:
        return log_r.clamp(min=floor)
    log_false = (
        math.log(tau_plus * n) + pos
    )  # the share that is assumed to be of the anchor's class
    gap = log_r - log_false
    # log(R − false) = log R + log(1 − e^−gap) where R is larger. Where it is not, the inner `where`
    # keeps NaN out of the gradient.
    larger = gap > 0
    log_one_minus = torch.log(-torch.expm1(-torch.where(larger, gap, 1.0)))
    log_difference = torch.where(larger, log_r + log_one_minus, -math.inf)
    return (log_difference - math.log1p(-tau_plus)).clamp(min=floor)


def _bayesian_weight(f: Tensor, tau_plus: float, alpha: float, beta: float) -> Tensor:
    """ω as a function of the rank F in (0, 1], by the formulas in `bcl`."""
    tau_minus = 1 - tau_plus
    a = (1 - 2 * alpha) * (tau_minus - tau_plus) + 1e-3
    b = 2 * (alpha * tau_minus + (1 - alpha) * tau_plus)
    # The same root as above: that form cancels, and divides by an `a` that may be 0.
    c = 2 * f / (b + torch.sqrt(b * b + 4 * a * f))
    phi1, phi2 = 2 * (1 - c), 2 * c
    true_negative = alpha * phi1 + (1 - alpha) * phi2
    false_negative = (1 - alpha) * phi1 + alpha * phi2
    easy, hard = alpha * (1 - beta), (1 - alpha) * beta
    h = (easy * phi1 + hard * phi2) / (easy + hard + 1e-3)
    return h / (true_negative * tau_minus + false_negative * tau_plus)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_tau_plus(tau_plus: float) -> None:
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus must lie in [0, 1), got {tau_plus}")


class AttentioNCE(nn.Module):
    """`attentionce` as a module. Arguments are checked when it is made.

    It normalises its input, so projections may have any length; the functions above do not.

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
        _check_positive(temperature=temperature, d_pos=d_pos, d_neg=d_neg)
        self.temperature, self.d_pos, self.d_neg, self.gather = temperature, d_pos, d_neg, gather

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings (2 + M) × batch × dim, of any length → mean loss."""
        z = F.normalize(_at_least_float32(z), dim=-1)
        return attentionce(z, self.temperature, self.d_pos, self.d_neg, self.gather)

    def extra_repr(self) -> str:
        """The arguments, as `print` shows them."""
        return f"temperature={self.temperature}, d_pos={self.d_pos}, d_neg={self.d_neg}"


# ------------------------------------------------------------------- the mean, block by block


def mean_loss(anchors: Tensor, pos: Tensor, log_g: LogG, gather: Gather | None = None) -> Tensor:
    """mean_j −log( e^pos_j / (e^pos_j + g_j) ), with the anchors of other images as negatives.

    Args:
        anchors: 2 × b × dim, this process's.
        pos: 2b, see above.
        log_g: log g per row from sim, pos and n, for any of the rows.
        gather: As in `attentionce`.

    Returns:
        A scalar, which can be differentiated once.

    Raises:
        ValueError: There is one image only, which has no negatives.
    """
    everyone, first = (anchors, 0) if gather is None else gather(anchors)
    batch = everyone.shape[1]
    if batch < 2:
        raise ValueError(
            f"z must hold a batch of at least 2 images, got {batch}: one image has no negatives"
        )
    image = torch.arange(first, first + anchors.shape[1], device=anchors.device).repeat(2)
    own = torch.stack([image, image + batch], dim=1)
    return mean_over_rows(anchors.flatten(0, 1), everyone.flatten(0, 1), own, pos, log_g)


def mean_over_rows(rows: Tensor, columns: Tensor, own: Tensor, pos: Tensor, log_g: LogG) -> Tensor:
    """The same mean over `rows` (R × dim). A row's negatives are all `columns` (C × dim) but its
    `own` (indices, R × 2 or R × 0), the anchors of the row's image.

    Memory is linear in R and C, because the R × C cosines are made a few rows at a time. A row's
    loss depends on no other row. So autograd computes each block's gradient at once, while the
    block is in cache, and what waits for the backward pass is no larger than the embeddings.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (rows, columns, pos)):
        return _MeanOverRows.apply(rows, columns, own, pos, log_g)
    losses = [
        _row_losses(rows[block], columns, own[block], pos[block], log_g)
        for block in _blocks(rows, columns)
    ]
    return torch.cat(losses).mean()


def _row_losses(rows: Tensor, columns: Tensor, own: Tensor, pos: Tensor, log_g: LogG) -> Tensor:
    """−log( e^pos / (e^pos + g) ) per row, exact for small losses too."""
    sim = (rows @ columns.T).scatter_(1, own, -math.inf)
    n = len(columns) - own.shape[1]
    return -F.logsigmoid(pos - log_g(sim, pos, n))


def _blocks(rows: Tensor, columns: Tensor) -> Iterator[slice]:
    size = block_rows(rows.device.type, len(columns))
    return (slice(start, start + size) for start in range(0, len(rows), size))


def block_rows(device: str, columns: int) -> int:
    """Rows per block: 64 MB of cosines on a GPU; 2 MB, which stay in cache, on a CPU."""
    most = max(1, 2**24 // columns)
    return min(max(128, 2**19 // columns), most) if device == "cpu" else most


class _MeanOverRows(torch.autograd.Function):
    """`mean_over_rows` and, in the same pass, its gradient."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, own: Tensor, pos: Tensor, log_g: LogG
    ) -> Tensor:
        total = pos.new_zeros(())
        by_rows, by_columns = torch.empty_like(rows), torch.zeros_like(columns)
        by_pos = torch.empty_like(pos)
        needs_columns = ctx.needs_input_grad[1]  # not for a queue
        for block in _blocks(rows, columns):
            with torch.enable_grad():
                row = rows[block].detach().requires_grad_()
                column = columns.detach().requires_grad_(needs_columns)
                agreement = pos[block].detach().requires_grad_()
                loss = _row_losses(row, column, own[block], agreement, log_g).sum()
            wanted = [row, agreement, column] if needs_columns else [row, agreement]
            gradients = torch.autograd.grad(loss, wanted)
            by_rows[block], by_pos[block] = gradients[:2]
            if needs_columns:
                by_columns += gradients[2]
            total += loss.detach()
        ctx.save_for_backward(by_rows, by_columns, by_pos)
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: the gradients above have no graph of their own
            raise RuntimeError(
                "the loss can be differentiated only once: its gradient comes without a graph"
            )
        by_rows, by_columns, by_pos = ctx.saved_tensors
        grad = grad / len(by_rows)
        return grad * by_rows, grad * by_columns, None, grad * by_pos, None


# ----------------------------------------------------------------------------- the table


class Loss(NamedTuple):
    """All that the programs know of a loss."""

    function: Callable[..., Tensor]
    title: str  # in tables and pictures
    # Its parameters besides the temperature, with their help. Each is a flag of that name; their
    # values are the last part of file names.
    parameters: dict[str, str]
    method: str  # its part of file names
    positives: bool = False  # takes M further views beside the two anchors
    attention: bool = False  # weighs by α and β, of d_pos and d_neg, which can be reported
    queue: Callable[..., Tensor] | None = None  # its form with MoCo's queue
    settings: dict[str, dict[str, float]] = {}  # its authors' for a data set, if not the defaults

    def views(self, num_pos: int) -> int:
        """Views per image: two anchors, and M positives where the loss takes any."""
        return 2 + num_pos if self.positives else 2


LOSSES = {
    "attentionce": Loss(
        attentionce,
        "AttentioNCE",
        {
            "d_pos": "scale of the attention on positives; large: all positives count the same",
            "d_neg": "scale of the attention on negatives; small: only the hardest negatives count",
        },
        method="{num_pos}model",
        positives=True,
        attention=True,
        queue=attentionce_queue,
    ),
    "simclr": Loss(simclr, "SimCLR", {}, method="simclr"),
    "dcl": Loss(dcl, "DCL", {"tau_plus": "assumed share of false negatives"}, method="dcl"),
    "hcl": Loss(
        hcl,
        "HCL",
        {"tau_plus": "assumed share of false negatives", "beta": "weight of hard negatives"},
        method="hcl",
    ),
    "bcl": Loss(
        bcl,
        "BCL",
        {
            "tau_plus": "assumed share of false negatives",
            "alpha": "how well the encoder ranks already; 0.5 is chance",
            "beta": "weight of hard negatives",
        },
        method="bcl",
        settings={
            "stl10": {"alpha": 0.7, "beta": 1.0},
            "cifar100": {"alpha": 0.7, "beta": 1.0},
            "tinyImageNet": {"alpha": 0.8, "beta": 1.0},
        },
    ),
}
