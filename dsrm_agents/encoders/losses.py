"""Cross-entropies that trust some answers less than others (Wang et al., WSDM 2021).

Both heuristics of "Denoising Implicit Feedback for Recommendation" take a positive answer for false
when the model finds it unlikely: T-CE leaves it out of the loss, R-CE shrinks its weight. They see
nothing but the loss, and so cannot tell a false positive from a true one that is hard to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_DROP_RATE = 0.2  # eps_max; the paper's grid is 0.05 to 0.3
BETA = 0.25  # of R-CE


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) binary cross-entropies l of (B,) logits and (B,) float32 labels of 0 or 1."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def drop_rate(step: int, gradual_steps: int, largest: float = LARGEST_DROP_RATE) -> float:
    """Schedule of T-CE: eps(t) = min(eps_max * t / T, eps_max).

    Args:
        step: t, updates made.
        gradual_steps: T, updates until the largest rate is reached, at least 1.
        largest: eps_max.

    Returns:
        The share of a batch to drop.
    """
    return min(largest * step / gradual_steps, largest)


def trusted(logits: Tensor, labels: Tensor, rate: float) -> Tensor:
    """Which rows of a batch T-CE keeps: all but the positives of the largest losses.

    Rows are ranked by l * y: negatives rank lowest and are always kept. The count to drop is a
    share of the whole batch, rounded, so the share of the positives that are dropped is larger.

    Args:
        logits: (B,) float32.
        labels: (B,) float32, 0 or 1.
        rate: eps, the share of the batch to drop.

    Returns:
        (B,) bool.
    """
    count = min(round(rate * len(labels)), int(labels.sum()))
    rank = torch.where(labels > 0, cross_entropy(logits.detach(), labels), -1.0)
    kept = torch.ones_like(labels, dtype=torch.bool)
    kept[rank.topk(count).indices] = False
    return kept


def truncated_cross_entropy(logits: Tensor, labels: Tensor, rate: float) -> Tensor:
    """T-CE: the mean loss of the rows that :func:`trusted` keeps.

    Args:
        logits: (B,) float32.
        labels: (B,) float32, 0 or 1.
        rate: eps, the share of the batch to drop.

    Returns:
        () float32.
    """
    return cross_entropy(logits, labels)[trusted(logits, labels, rate)].mean()


def trust(logits: Tensor, labels: Tensor, beta: float = BETA) -> Tensor:
    """Weights of R-CE: yhat**beta of positives, (1 - yhat)**beta of negatives.

    Args:
        logits: (B,) float32.
        labels: (B,) float32, 0 or 1.
        beta: How much smaller the weights of unlikely answers are; 0 for equal ones.

    Returns:
        (B,) float32 in [0, 1], without gradient.
    """
    return torch.exp(-beta * cross_entropy(logits.detach(), labels))


def reweighted_cross_entropy(logits: Tensor, labels: Tensor, beta: float = BETA) -> Tensor:
    """R-CE: the mean of losses times the weights of :func:`trust`.

    Args:
        logits: (B,) float32.
        labels: (B,) float32, 0 or 1.
        beta: See :func:`trust`.

    Returns:
        () float32.
    """
    return (trust(logits, labels, beta) * cross_entropy(logits, labels)).mean()
