"""What the attention does: the weights α of positives and β of negatives, and how many of them really count."""

import torch
from torch import Tensor


def positive_weights(z: Tensor, d_pos: float) -> Tensor:
    """α: embeddings views × B × dim (two anchors, M positives) → 2 × B × M, each row sums to 1."""
    return (torch.einsum("abd,mbd->abm", z[:2], z[2:]) / d_pos).softmax(-1)


def negative_weights(
    z: Tensor, d_neg: float, queue: Tensor | None = None, rows: slice = slice(None)
) -> Tensor:
    """β without its constant and the factor N: 2B × 2B with zeros for an anchor's own image, or 2B × K for a queue K × dim.

    Each row sums to 1; `rows` are those wanted.
    """
    anchors = z[:2].flatten(0, 1)
    if queue is not None:
        return (anchors[rows] @ queue.T / d_neg).softmax(1)
    image = torch.arange(z.shape[1], device=z.device).repeat(2)
    own = image[rows, None] == image
    return (anchors[rows] @ anchors.T / d_neg).masked_fill(own, -torch.inf).softmax(1)


def effective_number(weights: Tensor) -> Tensor:
    """exp(entropy) of weights that sum to 1 over the last dimension: 1 where one has all, n where n have the same."""
    return torch.special.entr(weights).sum(-1).exp()
