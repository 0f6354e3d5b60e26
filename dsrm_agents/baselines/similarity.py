"""Quality and similarity to the observed state: what a state estimate is worth without training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.baselines.bands import Composition, Quota
from dsrm_agents.baselines.rules import RuleAgent
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError


class SimilarityPolicy(RuleAgent):
    """Shows the unexposed items of the highest ``quality + weight <taste, vector>``.

    An item's quality is column 0 of its embedding, its vector the other d - 1 columns. The taste is
    read from the observation: columns 1 to d - 1 of the state, which follow the user's level, so
    that any wrapper that estimates the state can stand in front. Nothing is learned or remembered.

    Tastes of a belief are in the embedding's units: with a weight of 1 they rank as the reference
    row ``filter`` does. Pooled states are in units of their own spread, and their weight has to be
    chosen.

    Args:
        batch: Sessions with slate actions, whose observations are state vectors or hold one under
            ``"state"``.
        weight: Weight of similarity, finite and at least 0; at 0 quality alone decides.
        composition: Numbers of items of each group in a slate.

    Raises:
        ConfigError: The weight is out of range, the sessions have other actions, or the
            composition does not suit them.
        NoPreferenceError: The observations have no preference.
    """

    def __init__(
        self, batch: SessionBatch, weight: float, composition: type[Composition] = Quota
    ) -> None:
        if not 0 <= weight < math.inf:
            raise ConfigError(f"weight must be finite and at least 0, got {weight}.")
        if batch.action_type != "slate":
            raise ConfigError(
                f'SimilarityPolicy needs action_type="slate", got {batch.action_type!r}.'
            )
        embedding = batch.catalogue.item_embedding
        start = batch.encoder.preference_slice.start  # raises where there is no preference
        super().__init__(batch, composition(batch))
        self.weight = weight
        self.taste = slice(start + 1, start + embedding.shape[1])
        self.quality = embedding[:, 0]
        self.directions = np.float32(weight) * embedding[:, 1:].T

    def bound_to(self, batch: SessionBatch) -> SimilarityPolicy:
        return SimilarityPolicy(batch, self.weight, type(self.composition))

    def item_scores(self, observation: NDArray[np.float32] | dict[str, Any]) -> NDArray[np.float32]:
        """(N, n_items) float32 scores of the catalogue.

        Args:
            observation: (N, m) states, or a dictionary with them under ``"state"``.
        """
        states = observation["state"] if isinstance(observation, dict) else observation
        return np.asarray(self.quality + states[:, self.taste] @ self.directions, np.float32)
