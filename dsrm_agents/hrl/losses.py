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
