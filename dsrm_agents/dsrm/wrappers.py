"""DSRM worn as an observation wrapper: three shells over one ``denoise()``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorObservationWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrm_agents.dsrm.purifier import DSRM
from kuaisim_gym.errors import CheckpointError, ConfigError


class Purifier:
    """Replaces the preference part of observations and leaves the rest alone.

    Args:
        dsrm: The fitted module.
        preference_slice: Which part of the state vector is the preference.
        fingerprint: Of the environment's dataset.

    Raises:
        CheckpointError: The module was fitted on another dataset.
    """

    def __init__(self, dsrm: DSRM, preference_slice: slice, fingerprint: str) -> None:
        if dsrm.config.fingerprint != fingerprint:
            raise CheckpointError(
                f"This DSRM was fitted on dataset {dsrm.config.fingerprint!r}, the environment "
                f"runs on {fingerprint!r}: fit it again with fit_dsrm(dataset)."
            )
        self.dsrm = dsrm
        self.preference_slice = preference_slice

    def batch(self, observation: Any) -> Any:
        """Purifies (N, ...) observations, vectors or dicts, into new arrays."""
        state = observation["state"] if isinstance(observation, dict) else observation
        purified = np.array(state, dtype=np.float32)
        purified[:, self.preference_slice] = self.dsrm.denoise(purified[:, self.preference_slice])
        return {**observation, "state": purified} if isinstance(observation, dict) else purified

    def one(self, observation: Any) -> Any:
        """Purifies one observation without a batch axis."""
        if isinstance(observation, dict):
            batch = self.batch({name: np.asarray(part)[None] for name, part in observation.items()})
            return {name: part[0] for name, part in batch.items()}
        return self.batch(np.asarray(observation)[None])[0]


class PurifyObservation(gym.ObservationWrapper):
    """For a single Gymnasium environment.

    Args:
        env: One of ours, wrapped or not.
        dsrm: The fitted module.
    """

    def __init__(self, env: gym.Env[Any, Any], dsrm: DSRM) -> None:
        super().__init__(env)
        self.purifier = Purifier(
            dsrm,
            env.get_wrapper_attr("preference_slice"),
            env.get_wrapper_attr("dataset").fingerprint,
        )

    def observation(self, observation: Any) -> Any:
        """Purifies one observation."""
        return self.purifier.one(observation)


class PurifyVectorObservation(VectorObservationWrapper):
    """For a Gymnasium vector environment, in any autoreset mode that the base class allows.

    Args:
        env: A vector environment of ours.
        dsrm: The fitted module.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], dsrm: DSRM) -> None:
        super().__init__(env)
        get = getattr(env.unwrapped, "get_attr", None)
        if get is None:
            raise ConfigError(f"{env} does not give access to its environments' attributes.")
        self.purifier = Purifier(dsrm, get("preference_slice")[0], get("dataset")[0].fingerprint)

    def observations(self, observations: Any) -> Any:
        """Purifies a batch of observations."""
        return self.purifier.batch(observations)


class PurifyVecEnv(VecEnvWrapper):
    """For a Stable-Baselines3 ``VecEnv``; terminal observations are purified too.

    Args:
        venv: A vectorised environment of ours.
        dsrm: The fitted module.
    """

    def __init__(self, venv: VecEnv, dsrm: DSRM) -> None:
        super().__init__(venv)
        self.purifier = Purifier(
            dsrm, venv.get_attr("preference_slice")[0], venv.get_attr("dataset")[0].fingerprint
        )

    def reset(self) -> VecEnvObs:
        """Purified first observations."""
        return self.purifier.batch(self.venv.reset())  # type: ignore[no-any-return]

    def step_wait(self) -> VecEnvStepReturn:
        """Purifies the observations, and those that ended sessions hide in their infos."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones):
            last = infos[slot]["terminal_observation"]
            infos[slot]["terminal_observation"] = self.purifier.one(last)
        return self.purifier.batch(observations), rewards, dones, infos
