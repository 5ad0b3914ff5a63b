"""AttentioNCE and the losses that it is compared with. This file needs torch alone.

Every image of a batch of B gives two anchors, and perhaps M further views, its positives, which its
two anchors share. Each of the 2B anchors a_j is pulled to its positives p_m and pushed from its
N = 2B − 2 negatives a_k, the anchors of all other images:

    loss = mean_j −log( e^pos_j / (e^pos_j + g_j) )

A loss is a choice of two ingredients: `positives` gives pos_j, how well anchor j agrees with its
positives, and `negatives` gives g_j, the total weight of its negatives. `contrastive` takes any
pair. AttentioNCE, SimCLR, DCL, HCL and BCL are five of them. Nothing leaves log space, because g
itself overflows at low temperatures and among near-duplicate images.

Throughout this file
    T     the temperature
    z     embeddings of length 1, views × B × dim; views 0 and 1 are the anchors
    sim   cosines: of anchors and positives (2 × M × B), or of anchors and negatives (rows ×
          columns, −∞ where a column is not a negative of the row)
    pos   one row per anchor, those of view 0, then those of view 1: 2B × 1, or 2B × M where every
          positive counts on its own
    n     the number of negatives per anchor, N
    sg    the stopped gradient
"""

import functools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Takes this process's anchors (2 × b × dim) and returns those of all processes (2 × B × dim, with
# gradient) and the index of this process's first image among the B.
Gather = Callable[[Tensor], tuple[Tensor, int]]
LogG = Callable[[Tensor, Tensor, int], Tensor]  # (sim of some rows, their pos, n) → log g per row

# ------------------------------------------------------------------- positives: pos, per anchor


def pair(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """pos_j = a_j · a_j′ / T, with a_j′ the image's other anchor."""
    sim = (anchors[0] * anchors[1]).sum(-1)
    return sim.repeat(2)[:, None] / temperature


def mean(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """pos_j = Σ_m a_j · p_m / (M T)."""
    return _cosines(anchors, positives).mean(1).flatten()[:, None] / temperature


def each(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """pos_jm = a_j · p_m / T; the loss is averaged over m, as SupCon's L_out does."""
    return _cosines(anchors, positives).transpose(1, 2).flatten(0, 1) / temperature


def prototype(anchors: Tensor, positives: Tensor, temperature: float, d_pos: float) -> Tensor:
    """pos_j = a_j · (Σ_m α_jm p_m) / T, with α of `attention_on_positives`."""
    sim = _cosines(anchors, positives)
    alpha = attention_on_positives(sim.detach(), d_pos)
    return (alpha * sim).sum(1).flatten()[:, None] / temperature


def attention_on_positives(sim: Tensor, d_pos: float) -> Tensor:
    """α_jm = softmax_m( sg(a_j · p_m) / d_pos )."""
    return torch.softmax(sim / d_pos, dim=1)


def _cosines(anchors: Tensor, positives: Tensor) -> Tensor:
    return (anchors[:, None] * positives).sum(-1)


# ----------------------------------------------------------------- negatives: log g, per anchor


def uniform(sim: Tensor, pos: Tensor, n: int, temperature: float) -> Tensor:
    """g_j = Σ_k e_k, with e_k = exp( a_j · a_k / T )."""
    return torch.logsumexp(sim / temperature, dim=1, keepdim=True)


def debiased(sim: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    """g_j = max( (R_j − τ⁺ N e^pos_j) / (1 − τ⁺), N e^(−1/T) ), with R_j = Σ_k e_k."""
    return _debias(uniform(sim, pos, n, temperature), pos, n, temperature, tau_plus)


def hard(
    sim: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float, beta: float
) -> Tensor:
    """`debiased` with R_j = Σ_k w_k e_k / mean_k w_k, w_k = e_k^β; gradient flows through w too."""
    log_e = sim / temperature
    log_w = torch.where(sim > -math.inf, beta * log_e, sim)  # 0 · −∞ would be NaN
    log_mean_w = torch.logsumexp(log_w, dim=1, keepdim=True) - math.log(n)
    log_r = torch.logsumexp(log_w + log_e, dim=1, keepdim=True) - log_mean_w
    return _debias(log_r, pos, n, temperature, tau_plus)


def _debias(log_r: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float) -> Tensor:
    floor = math.log(n) - 1 / temperature
    if tau_plus == 0:
        return log_r.clamp(min=floor)
    gap = log_r - (math.log(tau_plus * n) + pos)
    # log(R − false) = log R + log(1 − e^−gap) where R is larger; elsewhere the inner `where` keeps
    # NaN out of the gradient.
    larger = gap > 0
    log_one_minus = torch.log(-torch.expm1(-torch.where(larger, gap, 1.0)))
    log_difference = torch.where(larger, log_r + log_one_minus, -math.inf)
    return (log_difference - math.log1p(-tau_plus)).clamp(min=floor)


def bayes(
    sim: Tensor, pos: Tensor, n: int, temperature: float, tau_plus: float, alpha: float, beta: float
) -> Tensor:
    """g_j = Σ_k ω(F_k) e_k, with F_k the share of the negatives with e ≤ e_k."""
    # Sorted, F is a position; −∞ sorts to the front and is cut off. A sum may be in any order.
    sim = sim.sort(dim=1).values[:, -n:]
    ranked = sim.detach().contiguous()
    f = torch.searchsorted(ranked, ranked, right=True).to(sim.dtype) / n
    omega = _bayesian_weight(f, tau_plus, alpha, beta)
    # ω reaches 0 at the ends of the ranges of α and β.
    log_omega = omega.clamp(min=torch.finfo(sim.dtype).tiny).log()
    return torch.logsumexp(log_omega + sim / temperature, dim=1, keepdim=True)


def _bayesian_weight(f: Tensor, tau_plus: float, alpha: float, beta: float) -> Tensor:
    """ω = H / (TN τ⁻ + FN τ⁺) at the rank F in (0, 1], with τ⁻ = 1 − τ⁺.

    TN and FN are the densities of true and false negatives at F, H that of the hardness wanted.
    """
    tau_minus = 1 - tau_plus
    a = (1 - 2 * alpha) * (tau_minus - tau_plus) + 1e-3
    b = 2 * (alpha * tau_minus + (1 - alpha) * tau_plus)
    # C = (−b + √(b² + 4aF)) / 2a in a form that neither cancels nor divides by an `a` of 0.
    c = 2 * f / (b + torch.sqrt(b * b + 4 * a * f))
    phi1, phi2 = 2 * (1 - c), 2 * c
    true_negative = alpha * phi1 + (1 - alpha) * phi2
    false_negative = (1 - alpha) * phi1 + alpha * phi2
    of_easy, of_hard = alpha * (1 - beta), (1 - alpha) * beta
    h = (of_easy * phi1 + of_hard * phi2) / (of_easy + of_hard + 1e-3)
    return h / (true_negative * tau_minus + false_negative * tau_plus)


def attended(sim: Tensor, pos: Tensor, n: int, temperature: float, d_neg: float) -> Tensor:
    """g_j = Σ_k exp( β_jk (a_j · a_k) / T ), with β_jk = N ( `attention_on_negatives` + 1e-6 )."""
    # In place where no gradient flows: fresh memory would cost as much time as the arithmetic.
    beta = attention_on_negatives(sim.detach(), d_neg).add_(1e-6).mul_(n)
    return torch.logsumexp(beta.div_(temperature) * sim, dim=1, keepdim=True)


def attention_on_negatives(sim: Tensor, d_neg: float) -> Tensor:
    """softmax_k( sg(a_j · a_k) / d_neg ), which is β without N and the 1e-6."""
    return torch.softmax(sim / d_neg, dim=1)


# By name: the function, and the defaults of its parameters besides the temperature.
POSITIVES: dict[str, tuple[Callable[..., Tensor], dict[str, float]]] = {
    "pair": (pair, {}),
    "mean": (mean, {}),
    "each": (each, {}),
    "attention": (prototype, {"d_pos": 1.0}),
}
NEGATIVES: dict[str, tuple[Callable[..., Tensor], dict[str, float]]] = {
    "uniform": (uniform, {}),
    "debiased": (debiased, {"tau_plus": 0.1}),
    "hard": (hard, {"tau_plus": 0.1, "beta": 1.0}),
    "bayes": (bayes, {"tau_plus": 0.1, "alpha": 0.9, "beta": 0.9}),
    "attention": (attended, {"d_neg": 1.0}),
}

# ------------------------------------------------------------------------- any two of them


def contrastive(
    z: Tensor,
    positives: str = "attention",
    negatives: str = "attention",
    temperature: float = 0.5,
    gather: Gather | None = None,
    queue: Tensor | None = None,
    **parameters: float | None,
) -> Tensor:
    """mean_j −log( e^pos_j / (e^pos_j + g_j) ), with any positives and any negatives.

    `debiased` and `hard` take the pos of the same anchor; with `each`, of the same positive.

    Args:
        z: Embeddings of length 1, (2 + M) × batch × dim with batch ≥ 2: two anchors, then M ≥ 1
            positives, or none with `pair`. Half precision is converted to float32.
        positives: `pair`, `mean`, `each` or `attention`.
        negatives: `uniform`, `debiased`, `hard`, `bayes` or `attention`.
        temperature: T, positive and finite.
        gather: Takes this process's anchors to those of all processes
            (`attentionce.training.processes.gather`), whose other images are then the negatives.
            The mean is over this process's own anchors.
        queue: MoCo's negatives, N × dim, the same for every anchor, instead of other images. The
            positives are then keys: no gradient flows to them, and `pair` has none.
        parameters: Numbers that the ingredients take; None stands for the default.
            d_pos (`attention`) > 0, default 1: small trusts the positive that agrees best.
            d_neg (`attention`) > 0, default 1: small concentrates on the hardest negatives.
            tau_plus (`debiased`, `hard`, `bayes`) in [0, 1), default 0.1: the share of negatives
            that is assumed to be false.
            beta (`hard`) ≥ 0, default 1, or (`bayes`) in [0, 1], default 0.9: large weighs hard
            negatives up.
            alpha (`bayes`) in [0, 1], default 0.9: how well the encoder ranks already.

    Returns:
        The mean loss, a scalar ≥ 0, in float32 (float64 where z is). It can be differentiated once.

    Raises:
        ValueError: An argument has the wrong shape, is not a number (a tensor), is out of range, or
            has no effect on the chosen ingredients.

    Source of `each`: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020; of the queue:
    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.
    """
    agreement, log_g = ingredients(positives, negatives, temperature, **parameters)
    views = "2 views" if positives == "pair" else "2 anchors and at least 1 positive"
    if z.ndim != 3 or not z.numel() or (len(z) != 2 if positives == "pair" else len(z) < 3):
        raise ValueError(f"z must be views × batch × dim, {views}, got {tuple(z.shape)}")
    if queue is not None and (positives == "pair" or gather is not None):
        raise ValueError("queue needs positives other than 'pair', and no gather")
    z = _at_least_float32(z)
    anchors = z[:2]
    with torch.autocast(z.device.type, enabled=False):
        pos = agreement(anchors, z[2:] if queue is None else z[2:].detach())
        columns, own = candidates(anchors, gather, queue)
        return mean_over_rows(anchors.flatten(0, 1), columns, own, pos, log_g)


def ingredients(
    positives: str, negatives: str, temperature: float = 0.5, **parameters: float | None
) -> tuple[Callable[[Tensor, Tensor], Tensor], LogG]:
    """The two functions of a loss, with all parameters filled in.

    Raises:
        ValueError: A name is unknown, or a parameter is not taken, not a number or out of range.
    """
    if positives not in POSITIVES:
        raise ValueError(f"positives must be one of {', '.join(POSITIVES)}, got {positives!r}")
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives must be one of {', '.join(NEGATIVES)}, got {negatives!r}")
    (agreement, of_pos), (log_g, of_neg) = POSITIVES[positives], NEGATIVES[negatives]
    values = {"temperature": temperature, **of_pos, **of_neg}
    given = {name: value for name, value in parameters.items() if value is not None}
    if unused := [name for name in given if name not in values]:
        chosen = f"positives {positives!r}, negatives {negatives!r}"
        raise ValueError(f"{unused[0]} has no effect with {chosen}")
    values = {name: _number(name, value, negatives) for name, value in {**values, **given}.items()}
    return (
        functools.partial(agreement, **{name: values[name] for name in ("temperature", *of_pos)}),
        functools.partial(log_g, **{name: values[name] for name in ("temperature", *of_neg)}),
    )


def _number(name: str, value: Any, negatives: str) -> float:
    """A parameter as a float. A tensor is refused, because its gradient would be wrong or lost."""
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got a {type(value).__name__}")
    number = float(value)
    if name == "tau_plus":
        fits, range_ = 0 <= number < 1, "in [0, 1)"
    elif name == "beta" and negatives == "hard":
        fits, range_ = 0 <= number < math.inf, "finite and at least 0"
    elif name in ("alpha", "beta"):
        fits, range_ = 0 <= number <= 1, "in [0, 1]"
    else:
        fits, range_ = 0 < number < math.inf, "positive and finite"
    if not fits:
        raise ValueError(f"{name} must be {range_}, got {value}")
    return number


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ----------------------------------------------------------------------------- five by name


def attentionce(
    z: Tensor,
    temperature: float = 0.5,
    d_pos: float = 1.0,
    d_neg: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """AttentioNCE: anchors are pulled to an attention-weighted prototype of their positives and
    pushed from attention-weighted negatives: `prototype` with `attended`, as `contrastive`.

    Source: "AttentioNCE: Contrastive Learning with Instance Attention",
    https://openreview.net/forum?id=FfHGAAoSVJ
    """
    return contrastive(z, "attention", "attention", temperature, gather, d_pos=d_pos, d_neg=d_neg)


def simclr(z: Tensor, temperature: float = 0.5, gather: Gather | None = None) -> Tensor:
    """SimCLR's NT-Xent for two views, z of 2 × batch × dim: `pair` with `uniform`.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020.
    """
    return contrastive(z, "pair", "uniform", temperature, gather)


def dcl(
    z: Tensor, temperature: float = 0.5, tau_plus: float = 0.1, gather: Gather | None = None
) -> Tensor:
    """`pair` with `debiased`: a share τ⁺ of the negatives is assumed to be of the anchor's class.

    Source: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020.
    """
    return contrastive(z, "pair", "debiased", temperature, gather, tau_plus=tau_plus)


def hcl(
    z: Tensor,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    beta: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """`pair` with `hard`: as `dcl`, and negatives near the anchor count more.

    Source: Robinson et al., "Contrastive Learning with Hard Negative Samples", ICLR 2021.
    """
    return contrastive(z, "pair", "hard", temperature, gather, tau_plus=tau_plus, beta=beta)


def bcl(
    z: Tensor,
    temperature: float = 0.5,
    tau_plus: float = 0.1,
    alpha: float = 0.9,
    beta: float = 0.9,
    gather: Gather | None = None,
) -> Tensor:
    """`pair` with `bayes`: negatives count by how likely their rank makes them true ones.

    Source: Liu and Wang, "Bayesian Self-Supervised Contrastive Learning", 2023.
    """
    return contrastive(
        z, "pair", "bayes", temperature, gather, tau_plus=tau_plus, alpha=alpha, beta=beta
    )


class ContrastiveLoss(nn.Module):
    """`contrastive` as a module. Arguments are checked when it is made.

    It normalises its input, so projections may have any length; the functions above do not.
    """

    def __init__(
        self,
        positives: str = "attention",
        negatives: str = "attention",
        temperature: float = 0.5,
        gather: Gather | None = None,
        **parameters: float | None,
    ) -> None:
        super().__init__()
        ingredients(positives, negatives, temperature, **parameters)
        self.positives, self.negatives, self.temperature = positives, negatives, temperature
        self.gather = gather
        self.settings: dict[str, Any] = parameters

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings views × batch × dim, of any length → mean loss."""
        z = F.normalize(_at_least_float32(z), dim=-1)
        chosen = self.positives, self.negatives, self.temperature, self.gather
        return contrastive(z, *chosen, **self.settings)

    def extra_repr(self) -> str:
        """The arguments, as `print` shows them."""
        shown: dict[str, Any] = {"positives": self.positives, "negatives": self.negatives}
        shown |= {"temperature": self.temperature, **self.settings}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class AttentioNCE(ContrastiveLoss):
    """`attentionce` as a module: `AttentioNCE(temperature=0.5, d_pos=2.0)(z).backward()`."""

    def __init__(
        self,
        temperature: float = 0.5,
        d_pos: float = 1.0,
        d_neg: float = 1.0,
        gather: Gather | None = None,
    ) -> None:
        super().__init__("attention", "attention", temperature, gather, d_pos=d_pos, d_neg=d_neg)


# ------------------------------------------------------- the weights of attention, to report


def positive_weights(z: Tensor, d_pos: float) -> Tensor:
    """α of embeddings (2 + M) × B × dim, 2 × B × M; each row sums to 1."""
    return attention_on_positives(_cosines(z[:2], z[2:]), d_pos).transpose(1, 2)


def negative_weights(
    z: Tensor, d_neg: float, queue: Tensor | None = None, rows: slice = slice(None)
) -> Tensor:
    """β of embeddings views × B × dim, without N and the 1e-6; each row sums to 1.

    Args:
        queue: MoCo's negatives, K × dim. Without a queue they are the anchors of other images.
        rows: Which of the 2B anchors to compute.

    Returns:
        Rows × 2B, with zeros for the anchors of the row's own image; with a queue, rows × K.
    """
    columns, own = candidates(z[:2], queue=queue)
    sim = _cosines_with_negatives(z[:2].flatten(0, 1)[rows], columns, own[rows])
    return attention_on_negatives(sim, d_neg)


def effective_number(weights: Tensor) -> Tensor:
    """exp(entropy) of weights that sum to 1 over the last dimension; n of n equal weights."""
    return torch.special.entr(weights).sum(-1).exp()


def attention_numbers(
    z: Tensor,
    d_pos: float | None,
    d_neg: float | None,
    queue: Tensor | None = None,
    noisy: Tensor | None = None,
) -> dict[str, float]:
    """What attention looks at, averaged over the anchors; without attention (None), nothing.

    Args:
        z: Embeddings, views × B × dim.
        queue: MoCo's negatives, K × dim.
        noisy: M × B, 1 where a positive shows another image than its anchor's, else 0.

    Returns:
        effective_positives and effective_negatives, how many per anchor count; noisy_positives, the
        share of the positives that is noisy, and attention_on_noisy, the share of α that they get.
    """
    found = {}
    if d_pos is not None:
        alpha = positive_weights(z, d_pos)
        found["effective_positives"] = effective_number(alpha).mean().item()
        if noisy is not None:
            found["noisy_positives"] = noisy.mean().item()
            found["attention_on_noisy"] = (alpha * noisy.T).sum(2).mean().item()
    if d_neg is not None:  # never all 2B × 2B weights at once
        blocks = (slice(start, start + 256) for start in range(0, 2 * z.shape[1], 256))
        counts = [effective_number(negative_weights(z, d_neg, queue, rows)) for rows in blocks]
        found["effective_negatives"] = torch.cat(counts).mean().item()
    return found


# ------------------------------------------------------------------- the mean, block by block


def candidates(
    anchors: Tensor, gather: Gather | None = None, queue: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The columns among which an anchor's negatives are, C × dim, and the indices of the others.

    The columns are the anchors of all images; the others are the two of the anchor's own image
    (2b × 2). With a queue, the columns are its keys, and there are no others (2b × 0).

    Raises:
        ValueError: There are no negatives, or they have another dim.
    """
    if queue is not None:
        if queue.ndim != 2 or not queue.numel() or queue.shape[1] != anchors.shape[2]:
            raise ValueError(
                f"queue must be N × {anchors.shape[2]}, N ≥ 1, got {tuple(queue.shape)}"
            )
        own = torch.empty(2 * anchors.shape[1], 0, dtype=torch.long, device=anchors.device)
        return queue.detach().to(anchors.dtype), own
    everyone, first = (anchors, 0) if gather is None else gather(anchors)
    batch = everyone.shape[1]
    if batch < 2:
        raise ValueError(f"z must hold a batch of at least 2 images to have negatives, got {batch}")
    image = torch.arange(first, first + anchors.shape[1], device=anchors.device).repeat(2)
    return everyone.flatten(0, 1), torch.stack([image, image + batch], dim=1)


def mean_over_rows(rows: Tensor, columns: Tensor, own: Tensor, pos: Tensor, log_g: LogG) -> Tensor:
    """mean_j −log( e^pos_j / (e^pos_j + g_j) ) over anchors `rows`, R × dim, among `columns`.

    Memory is linear in R and C, because the R × C cosines are made a few rows at a time. A row's
    loss depends on no other row. So autograd computes each block's gradient at once, while the
    block is in cache, and what waits for the backward pass is no larger than the embeddings.
    torch.compile and torch.func cannot trace that: for them autograd keeps all blocks.
    """
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() and rows.requires_grad and not traced:
        return _MeanOverRows.apply(rows, columns, own, pos, log_g)
    losses = [
        _row_losses(rows[block], columns, own[block], pos[block], log_g)
        for block in _blocks(rows, columns)
    ]
    return torch.cat(losses).mean()


def _row_losses(rows: Tensor, columns: Tensor, own: Tensor, pos: Tensor, log_g: LogG) -> Tensor:
    """−log( e^pos / (e^pos + g) ) per row, exact for small losses too."""
    sim = _cosines_with_negatives(rows, columns, own)
    n = len(columns) - own.shape[1]
    return -F.logsigmoid(pos - log_g(sim, pos, n)).mean(1)


def _cosines_with_negatives(rows: Tensor, columns: Tensor, own: Tensor) -> Tensor:
    return (rows @ columns.T).scatter_(1, own, -math.inf)


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
        total, by_rows, by_pos = pos.new_zeros(()), torch.empty_like(rows), torch.empty_like(pos)
        columns = columns.detach().requires_grad_(ctx.needs_input_grad[1])  # not a queue
        for block in _blocks(rows, columns):
            row = rows[block].detach().requires_grad_()
            row_pos = pos[block].detach().requires_grad_()
            with torch.enable_grad():
                loss = _row_losses(row, columns, own[block], row_pos, log_g).sum()
            loss.backward()
            assert row.grad is not None and row_pos.grad is not None
            by_rows[block], by_pos[block] = row.grad, row_pos.grad
            total += loss.detach()
        ctx.save_for_backward(by_rows, columns.grad, by_pos)
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph: the gradients below have no graph of their own
            raise RuntimeError("the loss can be differentiated only once, except by torch.func")
        grad = grad / len(ctx.saved_tensors[0])
        by_rows, by_columns, by_pos = (None if x is None else grad * x for x in ctx.saved_tensors)
        return by_rows, by_columns, None, by_pos, None
