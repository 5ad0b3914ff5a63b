"""The weights that are reported and drawn are those that the loss uses."""

import math

import torch
from helpers.device import DEVICE
from helpers.losses import embeddings

import loss
from attentionce import attention


def log_loss(pos, neg):
    return (torch.logaddexp(pos, torch.logsumexp(neg, dim=1)) - pos).mean()


def test_weights_make_the_loss():
    """AttentioNCE computed from `positive_weights` and `negative_weights` is `attentionce`."""
    z, temperature, d_pos, d_neg = embeddings(6, 7, 5).detach(), 0.4, 0.3, 0.6
    anchors, batch = z[:2].flatten(0, 1), 7
    alpha = attention.positive_weights(z, d_pos)
    prototypes = torch.einsum("abm,mbd->abd", alpha, z[2:]).flatten(0, 1)
    pos = (anchors * prototypes).sum(-1) / temperature
    n = 2 * batch - 2
    beta = n * (attention.negative_weights(z, d_neg) + 1e-6)
    image = torch.arange(batch, device=DEVICE).repeat(2)
    own = image[:, None] == image
    neg = (beta * (anchors @ anchors.T) / temperature).masked_fill(own, -math.inf)
    expected = loss.attentionce(z, temperature, d_pos, d_neg)
    torch.testing.assert_close(log_loss(pos, neg), expected, rtol=1e-12, atol=0)


def test_weights_of_a_queue_make_its_loss():
    z = embeddings(5, 4, 3).detach()
    queue = embeddings(1, 9, 3, seed=1)[0].detach()
    anchors = z[:2].flatten(0, 1)
    alpha = attention.positive_weights(z, 0.3)
    prototypes = torch.einsum("abm,mbd->abd", alpha, z[2:]).flatten(0, 1)
    beta = 9 * (attention.negative_weights(z, 0.6, queue) + 1e-6)
    found = log_loss((anchors * prototypes).sum(-1) / 0.4, beta * (anchors @ queue.T) / 0.4)
    expected = loss.attentionce_queue(z[:2], z[2:], queue, 0.4, 0.3, 0.6)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
