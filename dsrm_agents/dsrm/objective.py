"""What purifiers are fitted to: squared errors on pairs, and the terms that can stand beside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsrm_agents.dsrm.losses import Adversary, cosine_loss, hsic, info_nce
from dsrm_agents.dsrm.purifier import TrainedPurifier
from dsrm_agents.dsrm.targets import Pairs
from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

MEASURES = ("hsic", "adversarial")


@dataclass(frozen=True)
class LossConfig:
    """Terms beside the squared error, all on the clean states that the network implies.

    Attributes:
        cosine: Weight of one minus the cosine to the target.
        independence: Weight of a measure of dependence on the popularity of the history.
        measure: Which: ``"hsic"``, or ``"adversarial"``, a network that reads popularity off.
        contrastive: Weight of InfoNCE: two parts of one history should give states nearer to each
            other than to those of other users.
    """

    cosine: float = 0.0
    independence: float = 0.0
    measure: str = "hsic"
    contrastive: float = 0.0

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, MEASURES)
        for name in ("cosine", "independence", "contrastive"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}.")


class Objective(nn.Module):
    """The loss of a purifier on random pairs, with what else is trained for its sake.

    Args:
        purifier: What is fitted.
        pairs: What to.
        target: (n, d) their targets in the purifier's units.
        losses: Terms beside the squared error.
    """

    def __init__(
        self, purifier: TrainedPurifier, pairs: Pairs, target: Tensor, losses: LossConfig
    ) -> None:
        super().__init__()
        self.purifier, self.losses = purifier, losses
        self.condition = purifier.condition(torch.from_numpy(pairs.observed))
        self.target = target
        self.weight = torch.from_numpy(pairs.weight)
        self.popularity = torch.from_numpy(pairs.popularity[:, 0])
        self.user = torch.from_numpy(pairs.user)
        self.partner = torch.from_numpy(partners_of(pairs.user))
        adversarial = losses.independence > 0 and losses.measure == "adversarial"
        self.adversary = Adversary(purifier.config.dim) if adversarial else None

    def forward(self, rows: Tensor) -> Tensor:
        """(B,) row numbers to the scalar loss."""
        target, weight = self.target[rows], self.weight[rows]
        loss, clean = self.purifier.loss(self.condition[rows], target)
        total = (weight * loss).mean()
        if self.losses.cosine:
            total = total + self.losses.cosine * cosine_loss(clean, target)
        if self.losses.independence:
            popularity = self.popularity[rows]
            dependence = hsic if self.adversary is None else self.adversary
            total = total + self.losses.independence * dependence(clean, popularity)
        if self.losses.contrastive:
            other = self.partner[rows]
            _, positive = self.purifier.loss(self.condition[other], self.target[other])
            total = total + self.losses.contrastive * info_nce(clean, positive, self.user[rows])
        return torch.as_tensor(total)


def partners_of(user: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row another one of the same user, itself where there is none."""
    order = np.argsort(user, kind="stable")
    following = np.roll(order, -1)
    first = np.concatenate([[True], user[order][1:] != user[order][:-1]])
    start = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    last = np.roll(first, -1)
    partner = np.empty_like(order)
    partner[order] = np.where(last, start, following)
    return partner
