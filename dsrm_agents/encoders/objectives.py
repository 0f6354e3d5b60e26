"""Losses of next-response prediction: cross-entropies that trust some answers less than others.

Both heuristics of "Denoising Implicit Feedback for Recommendation" (Wang et al., WSDM 2021) take a
positive answer for false when the model finds it unlikely: T-CE leaves it out of the loss, R-CE
shrinks its weight. They see nothing but the loss, and so cannot tell a false positive from a true
one that is hard to predict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dsrm_agents.encoders.states import StateEncoder
from kuaisim_gym.registry import register

LARGEST_DROP_RATE = 0.2  # eps_max; the paper's grid is 0.05 to 0.3
BETA = 0.25  # of R-CE


class Batch(NamedTuple):
    """Examples: histories and the events that followed them.

    Attributes:
        items: (B, H) int64, -1 where there is no event.
        responses: (B, H) float32.
        targets: (B,) int64, the items that came next.
        labels: (B,) float32, whether the answers were positive.
        negatives: (B,) int64, items that the users have not met.
    """

    items: Tensor
    responses: Tensor
    targets: Tensor
    labels: Tensor
    negatives: Tensor


class NextResponse(nn.Module):
    """Predicts the answer to the next item: logit = <s, e_i> + b_i.

    Args:
        encoder: Makes the states s.
        item_embedding: (n_all_items, d) float32 vectors e_i, which stay as they are.
    """

    vectors: Tensor

    def __init__(self, encoder: StateEncoder, item_embedding: NDArray[np.float32]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("vectors", torch.from_numpy(item_embedding.copy()))
        self.bias = nn.Parameter(torch.zeros(len(item_embedding)))

    def forward(self, batch: Batch) -> Tensor:
        """(B,) logits of the answers to the targets."""
        states = self.encoder(batch.items, batch.responses)
        dots = (states * self.vectors[batch.targets]).sum(dim=1)
        return torch.as_tensor(dots + self.bias[batch.targets])


class Objective(ABC):
    """Loss of a batch. A subclass registers itself under its ``name``.

    Args:
        model: The predictor.
        updates: Gradient steps of the whole fit.

    Attributes:
        registry: Subclasses by name.
        positives_only: Whether it learns from positive rows alone.
    """

    registry: ClassVar[dict[str, type[Objective]]] = {}
    positives_only: ClassVar[bool] = False

    def __init_subclass__(cls, name: str) -> None:
        register(Objective.registry, name, cls)

    def __init__(self, model: NextResponse, updates: int) -> None:
        self.model = model
        self.updates = updates

    @abstractmethod
    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The () loss of a batch after ``step`` updates, and the (B,) shares of rows left out."""


class CrossEntropy(Objective, name="ce"):
    """Cross-entropy of the logged answers."""

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        logits = self.model(batch)
        return cross_entropy(logits, batch.labels).mean(), torch.zeros_like(logits)


class TruncatedCrossEntropy(Objective, name="tce"):
    """T-CE, whose drop rate grows over the first half of the updates."""

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        rate = drop_rate(step, max(1, self.updates // 2))
        return truncated_cross_entropy(self.model(batch), batch.labels, rate)


class ReweightedCrossEntropy(Objective, name="rce"):
    """R-CE."""

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        return reweighted_cross_entropy(self.model(batch), batch.labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) binary cross-entropies l of (B,) logits and (B,) float32 labels of 0 or 1."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def drop_rate(step: int, gradual_steps: int, largest: float = LARGEST_DROP_RATE) -> float:
    """Share of a batch that T-CE drops: eps(t) = min(eps_max * t / T, eps_max) at step t."""
    return min(largest * step / gradual_steps, largest)


def trusted(logits: Tensor, labels: Tensor, rate: float) -> Tensor:
    """Rows of a batch that T-CE keeps: all but the positives of the largest losses.

    Rows are ranked by l * y: negatives rank lowest and are always kept. The count to drop is a
    share of all rows of the batch, rounded, so the share of positives that are dropped is larger.

    Args:
        logits: (B,) float32.
        labels: (B,) float32, 0 or 1.
        rate: eps, the share of the batch to drop.

    Returns:
        (B,) bool.
    """
    count = min(round(rate * len(labels)), int(labels.sum()))
    rank = torch.where(labels > 0, cross_entropy(logits.detach(), labels), -1.0)
    mask = torch.ones_like(labels, dtype=torch.bool)
    mask[rank.topk(count).indices] = False
    return mask


def truncated_cross_entropy(logits: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """T-CE: the () mean loss of the rows that :func:`trusted` keeps, and (B,) 1 for the others."""
    mask = trusted(logits, labels, rate)
    return cross_entropy(logits, labels)[mask].mean(), (~mask).float()


def trust(logits: Tensor, labels: Tensor, beta: float = BETA) -> Tensor:
    """Weights of R-CE: yhat**beta of positives, (1 - yhat)**beta of negatives.

    Returns:
        (B,) float32 in [0, 1], without gradient; all 1 for a ``beta`` of 0.
    """
    return torch.exp(-beta * cross_entropy(logits.detach(), labels))


def reweighted_cross_entropy(
    logits: Tensor, labels: Tensor, beta: float = BETA
) -> tuple[Tensor, Tensor]:
    """R-CE: the () mean of losses times the weights of :func:`trust`, and (B,) 1 - weights."""
    weights = trust(logits, labels, beta)
    return (weights * cross_entropy(logits, labels)).mean(), 1.0 - weights
