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

from dsrm_agents.common.networks import mlp
from dsrm_agents.encoders.objectives import Batch, NextResponse, Objective

ALIGNMENT, UNIFORMITY = 1.0, 0.5  # weights beside BPR in the inner level
GENERATOR_RATE = 1e-3  # learning rate of the outer level


class WeightGenerator(nn.Module):
    """g_phi: weight of a pair of user and item.

    Args:
        dim: d, of users and items.
        hidden: Width of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = mlp(3 * dim, [hidden], 1, nn.GELU)

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
        functional.normalize(vectors, dim=1) for vectors in (users, positives, negatives)
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
    difference = functional.normalize(users, dim=1) - functional.normalize(items, dim=1)
    return (weights * difference.square().sum(dim=1)).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """log mean exp(-2 ||a - b||^2) over all pairs of the (B, d) vectors at unit length."""
    distances = torch.pdist(functional.normalize(vectors, dim=1))
    return distances.square().mul(-2.0).exp().mean().log()


def gradient_disagreement(bpr: Tensor, alignment: Tensor, parameter: Tensor) -> Tensor:
    """Objective of phi: 1 - cosine of two losses' gradients, summed over rows of a parameter.

    Args:
        bpr: () loss.
        alignment: () loss.
        parameter: (d, m) matrix of theta; its rows make the coordinates of the user vectors.

    Returns:
        () float32, differentiable in the weights that both losses hold.
    """
    first, second = (
        torch.autograd.grad(loss, parameter, create_graph=True)[0] for loss in (bpr, alignment)
    )
    return (1.0 - functional.cosine_similarity(first, second, dim=1)).sum()


class Bod(Objective, name="bod"):
    """Both levels of BOD, on positive pairs with an item each that the user has not met.

    Before a step of the inner level comes one of the outer level on the same pairs, to which theta
    has not yet been fitted anew. It compares the gradients of the encoder's head, whose rows make
    the coordinates of the states; layers beneath the head are not differentiated for it.

    Args:
        model: theta; the item vectors are frozen.
        updates: Not used.
    """

    positives_only = True

    def __init__(self, model: NextResponse, updates: int) -> None:
        super().__init__(model, updates)
        self.encoder, self.vectors = model.encoder, model.vectors
        self.generator = WeightGenerator(self.vectors.shape[1])
        self.optimizer = torch.optim.Adam(self.generator.parameters(), GENERATOR_RATE)

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The inner loss, and one less the weight of each positive pair."""
        summary = self.encoder.summary(batch.items, batch.responses)
        pairs = self.vectors[batch.targets], self.vectors[batch.negatives]
        self.outer_step(summary.detach(), *pairs)
        states = self.encoder.head(summary)
        with torch.no_grad():
            weights = self._weights(states, *pairs)
        bpr, alignment = self._losses(states, *pairs, *weights)
        inner = bpr + ALIGNMENT * alignment + UNIFORMITY * uniformity(states)
        return inner, 1.0 - weights[0]

    def outer_step(self, summary: Tensor, positives: Tensor, negatives: Tensor) -> None:
        """Moves phi alone, towards weights under which both objectives agree.

        Args:
            summary: (B, d) input of the head, as data.
            positives: (B, d) item vectors.
            negatives: (B, d) item vectors.
        """
        states = self.encoder.head(summary)
        weights = self._weights(states.detach(), positives, negatives)
        losses = self._losses(states, positives, negatives, *weights)
        disagreement = gradient_disagreement(*losses, self.encoder.head.weight)
        phi = list(self.generator.parameters())
        for parameter, gradient in zip(phi, torch.autograd.grad(disagreement, phi), strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def _weights(
        self, states: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights of positive and negative pairs, in units of the mean of the positive pairs.

        Without a unit the outer level lowers all weights together: the smaller the scores of BPR
        are, the less its gradient depends on the pair.
        """
        liked, unseen = self.generator(states, positives), self.generator(states, negatives)
        unit = liked.mean()
        return liked / unit, unseen / unit

    def _losses(
        self,
        states: Tensor,
        positives: Tensor,
        negatives: Tensor,
        positive_weights: Tensor,
        negative_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """BPR_w and Align_w."""
        bpr = weighted_bpr(states, positives, negatives, positive_weights, negative_weights)
        return bpr, weighted_alignment(states, positives, positive_weights)
