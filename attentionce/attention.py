"""The attention weights: α of positives, β of negatives, and how many of them effectively count."""

import torch
from torch import Tensor


def positive_weights(z: Tensor, d_pos: float) -> Tensor:
    """α, the weights of every anchor's positives.

    Args:
        z: Embeddings of length 1, (2 + M) × B × dim: two anchors, then M positives.
        d_pos: Scale of the attention.

    Returns:
        2 × B × M; each row sums to 1.
    """
    similarity = torch.einsum("abd,mbd->abm", z[:2], z[2:])
    return (similarity / d_pos).softmax(-1)


def negative_weights(
    z: Tensor, d_neg: float, queue: Tensor | None = None, rows: slice = slice(None)
) -> Tensor:
    """β, the weights of every anchor's negatives, without the factor N and the constant 1e-6.

    Args:
        z: Embeddings of length 1, views × B × dim; the first two views are the anchors.
        d_neg: Scale of the attention.
        queue: MoCo's negatives, K × dim. Without a queue they are the anchors of other images.
        rows: Which of the 2B anchors to compute.

    Returns:
        Rows × 2B, with zeros for the anchors of the row's own image; with a queue, rows × K. Each
        row sums to 1.
    """
    anchors = z[:2].flatten(0, 1)
    if queue is not None:
        return (anchors[rows] @ queue.T / d_neg).softmax(1)
    image = torch.arange(z.shape[1], device=z.device).repeat(2)
    same_image = image[rows, None] == image
    similarity = anchors[rows] @ anchors.T
    return (similarity / d_neg).masked_fill(same_image, -torch.inf).softmax(1)


def effective_number(weights: Tensor) -> Tensor:
    """exp(entropy) of weights that sum to 1 over the last dimension.

    It is 1 where one weight is everything, and n where n weights are equal and the rest are 0.
    """
    return torch.special.entr(weights).sum(-1).exp()
