"""Agents and wrappers that remember nothing between steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError


class StatelessAgent(ABC):
    """An agent whose slates depend on the present observation and sessions alone."""

    @abstractmethod
    def slates(self, observation: Any) -> NDArray[np.int64]:
        """(N, K) item positions, best first, for a batch of observations."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Slates for a batch of observations.

        Args:
            observation: As the environment gives it, purified or not.
            state: Not used.
            episode_start: Not used.
            deterministic: Not used: the agent draws nothing.

        Returns:
            (N, K) item positions, and no hidden state.
        """
        return self.slates(observation), None


class StatelessVecEnv(VecEnvWrapper):
    """A wrapper that remembers nothing between steps, so that checkpoints may resume behind it."""

    def reset(self) -> VecEnvObs:
        """First observations."""
        return self.venv.reset()

    def observe(self) -> VecEnvObs:
        """The latest observations, without a step."""
        return self.venv.observe()  # type: ignore[attr-defined,no-any-return]

    def step_wait(self) -> VecEnvStepReturn:
        """Results of the step."""
        return self.venv.step_wait()


def batch_of(venv: VecEnv, wrapper: str) -> SessionBatch:
    """Sessions beneath a vectorised environment.

    Args:
        venv: Of :func:`dsrm_agents.make_vec_env`, wrapped or not.
        wrapper: Name of the wrapper that needs them, for the error.

    Raises:
        ConfigError: The environment has none, or more than it steps together.
    """
    try:
        batch = venv.get_attr("batch")[0]
    except AttributeError:
        batch = None
    if not isinstance(batch, SessionBatch) or batch.n_sessions != venv.num_envs:
        raise ConfigError(
            f"{wrapper} is for environments of dsrm_agents.make_vec_env, whose sessions are "
            f"stepped together; got {venv}."
        )
    return batch
