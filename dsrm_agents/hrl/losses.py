"""PPO's losses on two levels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Losses(NamedTuple):
    """Of a minibatch; columns of two are [manager, worker].

    Attributes:
        policy: (2,) negative clipped surrogates.
        value: (2,) squared errors.
        kl: (2,) approximate divergences from the policy that acted.
        entropy: () of the worker, 0 where it earns no bonus.
    """

    policy: Tensor
    value: Tensor
    kl: Tensor
    entropy: Tensor

    def total(self, vf_coef: float, ent_coef: float) -> Tensor:
        """() what is minimised; no term has gradients in two levels."""
        return self.policy.sum() + vf_coef * self.value.sum() - ent_coef * self.entropy

    def detached(self) -> Tensor:
        """(6,) all but the entropy."""
        return torch.cat([self.policy, self.value, self.kl]).detach()


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
