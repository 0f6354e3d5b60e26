"""Rules: agents without training that show the best items by a score, so many of each group."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.bands import Composition
from dsrm_agents.baselines.slates import best_slates
from dsrm_agents.common.stateless import StatelessAgent
from kuaisim_gym.envs.assembly import SessionBatch


class RuleAgent(StatelessAgent):
    """Shows the best unexposed items by a score.

    Args:
        batch: Sessions to act in.
        composition: Numbers of items of each group in a slate.
    """

    def __init__(self, batch: SessionBatch, composition: Composition) -> None:
        self.batch = batch
        self.composition = composition

    @abstractmethod
    def item_scores(self, observation: Any) -> NDArray[np.float32]:
        """(N, n_items) float32 scores of the catalogue, of the batch's N sessions."""

    @abstractmethod
    def bound_to(self, batch: SessionBatch) -> Self:
        """The same rule for other sessions.

        Raises:
            ConfigError: It cannot act in them.
        """

    def slates(self, observation: Any) -> NDArray[np.int64]:
        """(N, K) item positions for a batch of observations."""
        return self.chosen(self.item_scores(observation))

    def chosen(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """(N, K) item positions by (N, n_items) float32 scores."""
        scores = self.composition.adjusted(scores)
        return best_slates(self.batch, scores, self.composition(scores))
