"""Quality and similarity with a quota: the value of a state to a policy of one parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.bands import Quota
from dsrm_agents.baselines.slates import best_slates, check_picks_items
from dsrm_agents.common.stateless import StatelessAgent
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError


class SimilarityPolicy(StatelessAgent):
    """Shows the unexposed items of the highest ``quality + alpha <preference, embedding>``.

    Half of every slate is popular, as in *quality+quota*, which this is at ``alpha = 0``. The
    preference is the observed part of the state: behind a purifier, the purified one. Column 0 of
    the embedding is the item's quality, the others are compared with the preference; the inner
    product is divided by the square root of their number.

    Args:
        batch: Sessions with ``observation_type="dict"`` and slate actions.
        alpha: Weight of similarity.

    Raises:
        ConfigError: ``alpha`` is negative, or the sessions have other observations or actions.
    """

    def __init__(self, batch: SessionBatch, alpha: float) -> None:
        if not alpha >= 0:
            raise ConfigError(f"alpha must be at least 0, got {alpha}.")
        check_picks_items(batch)
        self.batch = batch
        self._counts = Quota(batch)
        embedding = batch.catalogue.item_embedding
        self.quality = embedding[:, 0]
        self.directions = np.float32(alpha) * embedding[:, 1:].T / np.sqrt(embedding.shape[1] - 1)
        self.preference = slice(0, embedding.shape[1])

    def slates(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
        preference = observation["state"][:, self.preference]
        scores = np.asarray(self.quality + preference[:, 1:] @ self.directions, dtype=np.float32)
        return best_slates(self.batch, scores, self._counts(scores))
