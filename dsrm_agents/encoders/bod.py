"""BOD: weights that make two objectives agree (Wang et al., KDD 2023).

"Efficient Bi-level Optimization for Recommendation Denoising": a generator g_phi weighs every pair,
w_ui = g_phi(e_u, e_i). The inner level moves the recommender theta by weighted BPR, weighted
alignment and uniformity, with the weights as data. The outer level moves phi alone, so that BPR
and alignment pull theta the same way::

    min_phi  sum_k 1 - cos(d BPR_w / d theta_k, d Align_w / d theta_k)

No clean data take part.

Deviations: BPR scores unit vectors, as alignment does. Where scores are unbounded, the best fitted
pairs have no BPR gradient left, both gradients come from the pairs that fit worst, and the matching
prefers false positives to true ones. The generator also sees the product of its two vectors, and
is a perceptron of one hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class WeightGenerator(nn.Module):
    """g_phi: how much a pair of user and item counts.

    Args:
        dim: d, of users and items.
        hidden: Width of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * dim, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(B, d) users and (B, d) items to (B,) weights in (0, 1)."""
        pairs = torch.cat([users, items, users * items], dim=1)
        return torch.as_tensor(self.layers(pairs)[:, 0].sigmoid())


def weighted_bpr(
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    positive_weights: Tensor,
    negative_weights: Tensor,
) -> Tensor:
    """BPR_w: the mean of -log sigmoid(w_ui e_u.e_i - w_uj e_u.e_j) over unit vectors.

    The weights are factors of the scores: where they were factors of the loss, scaling all of them
    would change nothing that the outer level sees.

    Args:
        users: (B, d) of any length.
        positives: (B, d) items i of any length.
        negatives: (B, d) items j of any length.
        positive_weights: (B,) w_ui.
        negative_weights: (B,) w_uj.

    Returns:
        () float32.
    """
    users, positives, negatives = (
        functional.normalize(one, dim=1) for one in (users, positives, negatives)
    )
    liked = positive_weights * (users * positives).sum(dim=1)
    unseen = negative_weights * (users * negatives).sum(dim=1)
    return -functional.logsigmoid(liked - unseen).mean()


def weighted_alignment(users: Tensor, items: Tensor, weights: Tensor) -> Tensor:
    """Align_w: the mean of w * ||e_u - e_i||^2 over pairs of unit vectors.

    Args:
        users: (B, d) of any length.
        items: (B, d) of any length.
        weights: (B,) of the pairs.

    Returns:
        () float32.
    """
    apart = functional.normalize(users, dim=1) - functional.normalize(items, dim=1)
    return (weights * apart.square().sum(dim=1)).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """log mean exp(-2 ||a - b||^2) over all pairs of the (B, d) vectors, made unit vectors."""
    distances = torch.pdist(functional.normalize(vectors, dim=1))
    return distances.square().mul(-2.0).exp().mean().log()


def gradient_disagreement(bpr: Tensor, alignment: Tensor, parameter: Tensor) -> Tensor:
    """What phi minimises: 1 - cosine of two losses' gradients, summed over rows of a parameter.

    Args:
        bpr: () loss.
        alignment: () loss.
        parameter: (d, m) part of theta, whose rows each make one coordinate of the user vectors.

    Returns:
        () float32, differentiable in the weights that both losses hold.
    """
    first, second = (
        torch.autograd.grad(loss, parameter, create_graph=True)[0] for loss in (bpr, alignment)
    )
    return (1.0 - functional.cosine_similarity(first, second, dim=1)).sum()
