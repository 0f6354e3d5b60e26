"""A purifier worn as an observation wrapper: three shells over one ``denoise()``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrm_agents.dsrm.purifier import Purifier, load_purifier, purify
from kuaisim_gym.errors import CheckpointError, ConfigError, KuaiSimError


class ObservationPurifier:
    """Replaces the preference part of observations and leaves the rest alone.

    Args:
        purifier: DSRM or anything else with its ``denoise``; or the file that one was saved to.
        attribute: Gives an attribute of the environment by name.

    Raises:
        CheckpointError: The purifier cannot be read, or was fitted on another dataset.
        ConfigError: The environment is none of ours.
    """

    def __init__(self, purifier: Purifier | str | Path, attribute: Callable[[str], Any]) -> None:
        try:
            self.preference_slice: slice = attribute("preference_slice")
            fingerprint = attribute("dataset_fingerprint")
        except KuaiSimError:
            raise  # it has no preference, and says so itself
        except AttributeError as error:
            raise ConfigError(
                f"Purifiers are for environments of kuaisim_gym; this one says: {error}"
            ) from error
        if isinstance(purifier, (str, Path)):
            purifier = load_purifier(purifier)
        if purifier.fingerprint != fingerprint:
            raise CheckpointError(
                f"This purifier was fitted on dataset {purifier.fingerprint!r}, the environment "
                f"runs on {fingerprint!r}: fit it again with fit_purifier(name, dataset)."
            )
        self.purifier = purifier

    def __call__(self, observations: Any, last: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
        """Purifies observations in one pass, into new arrays.

        Args:
            observations: (N, ...) vectors or dicts.
            last: Others without a batch axis, such as those that ended sessions.

        Returns:
            Both, purified.

        Raises:
            ConfigError: The purifier returned something else than a finite state for each.
        """
        states = np.concatenate([_state(observations), *(_state(one)[None] for one in last)])
        preference = states[:, self.preference_slice]
        preference[:] = purify(self.purifier.denoise, preference)
        n = len(states) - len(last)
        others = [_with(one, state) for one, state in zip(last, states[n:], strict=True)]
        return _with(observations, states[:n]), others


def _state(observation: Any) -> Any:
    return observation["state"] if isinstance(observation, dict) else observation


def _with(observation: Any, state: Any) -> Any:
    return {**observation, "state": state} if isinstance(observation, dict) else state


class PurifyObservation(gym.ObservationWrapper):
    """For a single Gymnasium environment.

    Args:
        env: One of ours, wrapped or not.
        purifier: A fitted purifier, or the file that one was saved to.
    """

    def __init__(self, env: gym.Env[Any, Any], purifier: Purifier | str | Path) -> None:
        super().__init__(env)
        inner: Any = env.unwrapped
        self.purifier = ObservationPurifier(purifier, lambda name: getattr(inner, name))

    def observation(self, observation: Any) -> Any:
        """Purifies one observation."""
        batch = _state(observation)[None]
        return _with(observation, self.purifier(batch)[0][0])


class PurifyVectorObservation(VectorWrapper[Any, Any, Any, Any, Any]):
    """For a Gymnasium vector environment, in any autoreset mode; final observations too.

    Args:
        env: A vector environment of ours.
        purifier: A fitted purifier, or the file that one was saved to.

    Raises:
        ConfigError: The environment does not give access to its attributes.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], purifier: Purifier | str | Path) -> None:
        super().__init__(env)
        get = getattr(env.unwrapped, "get_attr", None)
        if get is None:
            raise ConfigError(f"{env} does not give access to its environments' attributes.")
        self.purifier = ObservationPurifier(purifier, lambda name: get(name)[0])

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Purified first observations."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self.purifier(observations)[0], infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Purifies the observations, and those that ended sessions leave in the infos."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        final = infos.get("final_obs", [])
        slots = np.flatnonzero(infos.get("_final_obs", []))
        observations, ended = self.purifier(observations, [final[slot] for slot in slots])
        if "final_obs" in infos:
            last = np.full(len(final), None, dtype=object)
            for slot, one in zip(slots, ended, strict=True):
                last[slot] = one
            infos = {**infos, "final_obs": last}
        return observations, rewards, terminations, truncations, infos


class PurifyVecEnv(VecEnvWrapper):
    """For a Stable-Baselines3 ``VecEnv``; terminal observations are purified too.

    Args:
        venv: A vectorised environment of ours.
        purifier: A fitted purifier, or the file that one was saved to.
    """

    def __init__(self, venv: VecEnv, purifier: Purifier | str | Path) -> None:
        super().__init__(venv)
        get = venv.get_attr
        self.purifier = ObservationPurifier(purifier, lambda name: get(name)[0])

    def reset(self) -> VecEnvObs:
        """Purified first observations."""
        return self.purifier(self.venv.reset())[0]  # type: ignore[no-any-return]

    def observe(self) -> VecEnvObs:
        """What all sessions show now, purified; a purifier remembers nothing between steps."""
        inner: Any = self.venv
        return self.purifier(inner.observe())[0]  # type: ignore[no-any-return]

    def step_wait(self) -> VecEnvStepReturn:
        """Purifies the observations, and those that ended sessions hide in their infos."""
        observations, rewards, dones, infos = self.venv.step_wait()
        slots = np.flatnonzero(dones)
        ended = [infos[slot]["terminal_observation"] for slot in slots]
        observations, last = self.purifier(observations, ended)
        for slot, one in zip(slots, last, strict=True):
            infos[slot]["terminal_observation"] = one
        return observations, rewards, dones, infos
