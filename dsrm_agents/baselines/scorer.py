"""Agents without a manager: a continuous scorer with feasible slates and a fairness reward.

The wrapper gives any algorithm with continuous actions the two features that the hierarchical agent
has beside its hierarchy: a control for the worth of the hierarchy itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from dsrm_agents.baselines.bands import Composition, Quota
from dsrm_agents.baselines.slates import best_slates
from dsrm_agents.common.fairness import Fairness
from dsrm_agents.common.origin import marked
from dsrm_agents.common.stateless import StatelessVecEnv, batch_of
from kuaisim_gym.envs.actions import as_actions, as_vectors
from kuaisim_gym.errors import ConfigError


class ScorerVecEnv(StatelessVecEnv):
    """Turns a linear scorer into slates, as ``action_type="scorer"`` does, but fairly.

    An action scores an item by its inner product with the item's row of ``catalogue.known``; the
    best unexposed items are shown.

    Args:
        venv: Of :func:`dsrm_agents.make_vec_env` with ``action_type="slate"``, wrapped or not.
        quota: Whether half of every slate must be popular: the most balanced of the feasible sets
            that a constrained worker draws from.
        fairness_coef: lambda of ``r_t + lambda * Fair(L_t)``, the reward of the one level.
        fairness: Fair, see :class:`~dsrm_agents.common.fairness.Fairness`.

    Raises:
        ConfigError: The environment takes other actions, or has too few items for the quota.
    """

    def __init__(
        self, venv: VecEnv, quota: bool, fairness_coef: float = 0.0, fairness: str = "ad"
    ) -> None:
        batch = batch_of(venv, "ScorerVecEnv")
        if batch.action_type != "slate":
            raise ConfigError(
                f'A scorer needs action_type="slate" beneath it, got {batch.action_type!r}.'
            )
        catalogue = batch.catalogue
        most = batch.longest * -(-batch.config.slate_size // 2)
        popular = int(catalogue.popular.sum())
        if quota and most > min(popular, catalogue.n_items - popular):
            raise ConfigError(
                f"A quota of half a slate can take {most} items of each group in one session, but "
                f"the groups have {popular} and {catalogue.n_items - popular}: shorten sessions "
                "(max_len) or slates, or leave the quota out."
            )
        self.batch = batch
        self.quota = quota
        self._counts = (Quota if quota else Composition)(batch)
        self.fairness_coef = fairness_coef
        self.fair = Fairness(fairness, catalogue, batch.groups)
        self._fair_now: NDArray[np.float32] = np.zeros(venv.num_envs, dtype=np.float32)
        scorers = spaces.Box(-1.0, 1.0, (catalogue.known.shape[1],), dtype=np.float32)
        super().__init__(venv, action_space=marked(scorers, quota=quota))

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments, for checkpoints to compare."""
        return {
            "quota": self.quota,
            "fairness_coef": self.fairness_coef,
            "fairness": self.fair.measure,
        }

    def step_async(self, actions: Any) -> None:
        """Ranks the items and shows the best.

        Raises:
            InvalidActionError: An action is not of the action space.
        """
        shape = (self.num_envs, self.batch.catalogue.known.shape[1])
        scores = as_vectors(as_actions(actions, shape)) @ self.batch.catalogue.known.T
        slates = best_slates(self.batch, scores, self._counts(scores))
        if self.fairness_coef:
            before = self.batch.core.state.slates.reshape(len(slates), -1)
            self._fair_now = self.fair(slates, before)
        self.venv.step_async(slates)

    def step_wait(self) -> VecEnvStepReturn:
        """Adds the fairness reward."""
        observations, rewards, dones, infos = self.venv.step_wait()
        if self.fairness_coef:
            rewards = rewards + np.float32(self.fairness_coef) * self._fair_now
        return observations, rewards, dones, infos
