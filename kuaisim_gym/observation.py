"""What an agent sees: the user's preference state and the session's context.

The preference state is the response-weighted mean embedding of the user's logged history and of
the session so far. Because the platform chose what to show, it is contaminated by popularity from
the first step on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.core import SessionCore

OBSERVATION_TYPES = ("state", "dict")
CONTEXT = ("progress", "popular_share", "last_reward", "mean_reward")
PREFERENCE_BOUND = 10.0  # standard deviations; keeps the space finite

FloatArray = NDArray[np.float32]
Observation = FloatArray | dict[str, NDArray[np.generic]]


class PreferenceEncoder:
    """Turns weighted item histories into standardised preference states.

    A state is the weighted mean embedding of a history, standardised by the mean and spread of
    the train users' logged states; a user without history sits at the origin.

    Args:
        data: Source of the logged histories.
        catalogue: Source of the embeddings.

    Attributes:
        embedding: (n_all_items, d) float32.
        history_sum: (n_users, d) float32, response-weighted sum of each user's logged items.
        history_weight: (n_users,) float32, sum of those weights.
        mean: (d,) float32.
        scale: (d,) float32.
    """

    def __init__(self, data: TrainingData, catalogue: Catalogue) -> None:
        self.embedding = catalogue.embedding
        log = data.log
        shape = (data.n_users, data.n_all_items)
        weights = csr_matrix((log.response, (log.users, log.items)), shape=shape)
        self.history_sum, self.history_weight = self.pool(weights)
        train = data.train_users
        states = self._mean_embedding(self.history_sum[train], self.history_weight[train])
        self.mean: FloatArray = states.mean(axis=0)
        spread = states.std(axis=0)
        self.scale: FloatArray = np.where(spread > 0, spread, np.float32(1.0))

    @property
    def dim(self) -> int:
        """Dimension d of the preference state."""
        return int(self.embedding.shape[1])

    def pool(self, weights: csr_matrix) -> tuple[FloatArray, FloatArray]:
        """Weighted sums of item embeddings.

        Args:
            weights: (n, n_all_items) sparse, not negative.

        Returns:
            (n, d) float32 sums and (n,) float32 total weights.
        """
        weights = weights.astype(np.float32)
        return weights @ self.embedding, np.asarray(weights.sum(axis=1)).ravel()

    def encode(self, total: FloatArray, weight: FloatArray) -> FloatArray:
        """Standardised states of pooled histories.

        Args:
            total: (n, d) float32 weighted sums.
            weight: (n,) float32 total weights.

        Returns:
            (n, d) float32 in [-PREFERENCE_BOUND, PREFERENCE_BOUND].
        """
        state: FloatArray = (self._mean_embedding(total, weight) - self.mean) / self.scale
        state[weight <= 0] = 0.0
        np.clip(state, -PREFERENCE_BOUND, PREFERENCE_BOUND, out=state)
        return state

    @staticmethod
    def _mean_embedding(total: FloatArray, weight: FloatArray) -> FloatArray:
        return np.divide(total, np.maximum(weight, np.finfo(np.float32).tiny)[:, None])


class ObservationEncoder:
    """Follows N sessions and turns them into observations.

    Args:
        encoder: Encodes preference states.
        core: The sessions.
        observation_type: ``"state"``, one vector; or ``"dict"``, the vector under ``"state"``
            and the session's item positions, -1 padded, under ``"exposed"``.

    Attributes:
        preference_slice: Which part of the state vector is the preference.
        context_slice: Which part is the context, in the order of ``CONTEXT``.
    """

    def __init__(
        self, encoder: PreferenceEncoder, core: SessionCore, observation_type: str
    ) -> None:
        self.encoder = encoder
        self.core = core
        self.observation_type = check_choice(
            "observation_type", observation_type, OBSERVATION_TYPES
        )
        self.preference_slice = slice(0, encoder.dim)
        self.context_slice = slice(encoder.dim, encoder.dim + len(CONTEXT))
        self._total: FloatArray = np.zeros((core.n_sessions, encoder.dim), dtype=np.float32)
        self._weight: FloatArray = np.zeros(core.n_sessions, dtype=np.float32)

    def space(self) -> spaces.Space[Any]:
        """Observation space of one session."""
        low = np.zeros(self.context_slice.stop, dtype=np.float32)
        high = np.ones_like(low)
        low[self.preference_slice] = -PREFERENCE_BOUND
        high[self.preference_slice] = PREFERENCE_BOUND
        state = spaces.Box(low, high, dtype=np.float32)
        if self.observation_type == "state":
            return state
        room = self.core.config.longest * self.core.config.slate_size
        exposed = spaces.Box(-1, len(self.core.popular) - 1, (room,), dtype=np.int32)
        return spaces.Dict({"state": state, "exposed": exposed})

    def reset(self, slots: NDArray[np.bool_]) -> None:
        """Starts from the logged history of the users who have just arrived in ``slots``."""
        users = self.core.users[slots]
        self._total[slots] = self.encoder.history_sum[users]
        self._weight[slots] = self.encoder.history_weight[users]

    def follow(self, slates: NDArray[np.integer], responses: FloatArray) -> None:
        """Adds one step, (N, K) items with their (N, K) responses, to the histories."""
        self._total += np.einsum("nk,nkd->nd", responses, self.encoder.embedding[slates])
        self._weight += responses.sum(axis=1)

    def observe(self) -> Observation:
        """The observations of all N sessions, freshly allocated."""
        core = self.core
        steps = np.maximum(core.steps, 1)
        context = (
            core.steps / core.config.max_len,
            core.popular_share,
            core.rewards[np.arange(core.n_sessions), steps - 1],
            core.rewards.sum(axis=1) / steps,
        )
        preference = self.encoder.encode(self._total, self._weight)
        state = np.column_stack([preference, *context]).astype(np.float32)
        if self.observation_type == "state":
            return state
        return {"state": state, "exposed": core.slates.reshape(core.n_sessions, -1).copy()}
