"""PPO's clipped surrogate over weighted choices."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, weight: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's loss over weighted draws, and their approximate KL divergence.

    Args:
        log_prob: (B,) or (B, m).
        old_log_prob: The same shape.
        advantages: Broadcastable to it; standardised here, under the weights.
        weight: The same shape as ``log_prob``, summing to one, or to zero where nothing counts.
        clip: PPO's clip range.

    Returns:
        () the loss and () the divergence (Schulman's estimator, never negative).
    """
    advantages = advantages.expand_as(weight)
    centred = advantages - (weight * advantages).sum()
    spread = (weight * centred.square()).sum().sqrt()
    standard = centred / (spread + 1e-8)
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    surrogate = torch.minimum(ratio * standard, clipped * standard)
    return -(weight * surrogate).sum(), (weight * (ratio - 1.0 - log_ratio)).sum()
