"""The weights that are reported and drawn are those that the loss uses."""

import pytest
import torch
from helpers.losses import assert_same, embeddings

import loss


@pytest.mark.parametrize("with_queue", [False, True])
def test_weights_make_the_loss(with_queue):
    """AttentioNCE computed from `positive_weights` and `negative_weights` is `contrastive`."""
    z, anchors = embeddings(6, 7, 5).detach(), embeddings(6, 7, 5).detach()[:2].flatten(0, 1)
    queue = embeddings(1, 9, 5, seed=1)[0].detach() if with_queue else None
    alpha, beta = loss.positive_weights(z, 0.3), loss.negative_weights(z, 0.6, queue)
    prototypes = torch.einsum("abm,mbd->abd", alpha, z[2:]).flatten(0, 1)
    pos = (anchors * prototypes).sum(-1) / 0.4
    sim = anchors @ (anchors if queue is None else queue).T
    neg = ((9 if with_queue else 12) * (beta + 1e-6) * sim / 0.4).masked_fill(beta == 0, -torch.inf)
    found = (torch.logaddexp(pos, torch.logsumexp(neg, dim=1)) - pos).mean()
    expected = loss.contrastive(z, temperature=0.4, d_pos=0.3, d_neg=0.6, queue=queue)
    assert_same([found], [expected], 1e-12)
    assert_same([loss.negative_weights(z, 0.6, queue, slice(3, 5))], [beta[3:5]], 1e-12)


def test_effective_numbers():
    weights = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(loss.effective_number(weights), torch.tensor([1.0, 2.0, 4.0]))
    z = embeddings(6, 200, 5).detach()  # more rows than are computed at a time
    alpha, noisy = loss.positive_weights(z, 0.3), torch.zeros(4, 200)
    noisy[1, :50] = 1
    of_positives = {
        "effective_positives": loss.effective_number(alpha).mean().item(),
        "noisy_positives": 50 / 800,
        "attention_on_noisy": alpha[:, :50, 1].sum().item() / 400,
    }
    assert loss.attention_numbers(z, 0.3, None, None, noisy) == pytest.approx(of_positives)
    for queue in (None, z[0, :9]):
        beta = loss.negative_weights(z, 0.6, queue)
        expected = {"effective_negatives": loss.effective_number(beta).mean().item()}
        assert loss.attention_numbers(z, None, 0.6, queue) == pytest.approx(expected, rel=1e-12)
