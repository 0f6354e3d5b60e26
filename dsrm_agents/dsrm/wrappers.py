"""Observation wrappers that purify what is shown of the preference, for three kinds of environment.

After them a state is [level, taste (d numbers, in units of beliefs), context].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrm_agents.common.origin import identity, marked, origin_of
from dsrm_agents.dsrm.purifier import Purifier, given_width, load_purifier, purify
from kuaisim_gym.errors import CheckpointError, ConfigError, KuaiSimError
from kuaisim_gym.observation import PREFERENCE_BOUND


class ObservationPurifier:
    """Replaces the preference part of observations by d numbers, and nothing else.

    Args:
        purifier: A purifier, or the path of a saved one.
        attribute: Function from the name of an attribute of the environment to its value.
        strict: Whether to refuse a purifier of another dataset, and preferences that leave the
            space of observations, which are cut at its bounds otherwise.

    Attributes:
        purifier: The purifier.
        preference_slice: Position of what it reads in the environment's state vector.
        dim: d, of the preferences that it gives.

    Raises:
        CheckpointError: The purifier cannot be read; or ``strict``, and it was fitted on another
            dataset.
        ConfigError: The environment is none of ours, or does not show what the purifier reads.
    """

    def __init__(
        self,
        purifier: Purifier | str | Path,
        attribute: Callable[[str], Any],
        strict: bool = True,
    ) -> None:
        self.strict = strict
        try:
            self.preference_slice: slice = attribute("preference_slice")
            shown, fingerprint = attribute("preference"), attribute("dataset_fingerprint")
            self._shown_state = _state_space(attribute("observation_space"))
        except KuaiSimError:
            raise  # it has no preference, and says so itself
        except AttributeError as error:
            raise ConfigError(
                f"Purifiers are for environments of kuaisim_gym; this one says: {error}"
            ) from error
        if isinstance(purifier, (str, Path)):
            purifier = load_purifier(purifier)
        if strict and purifier.fingerprint != fingerprint:
            fitted = getattr(purifier, "dataset", "") or "another dataset"
            raise CheckpointError(
                f"This purifier was fitted on {fitted}; the environment runs on "
                f"{attribute('dataset_description')}: fit it again with fit_purifier(name, "
                "dataset), or insist with strict=False."
            )
        if purifier.reads != shown:
            raise ConfigError(
                f"This purifier reads preference={purifier.reads!r}, the environment shows "
                f"{shown!r}: make it with preference={purifier.reads!r}."
            )
        self.purifier = purifier
        self.dim = given_width(shown, self.preference_slice.stop)

    def space(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        """The purified observations' space, from the (unbatched) space of those that are read.

        Raises:
            ConfigError: A wrapper between this and the environment has changed the state.
        """
        state = _state_space(space)
        if state != self._shown_state:
            raise ConfigError(
                f"A purifier reads the environment's own states, {self._shown_state}, but wrappers "
                f"make them {state}: put the purifier next to the environment."
            )
        assert isinstance(state, spaces.Box)
        purified: spaces.Space[Any] = self._purified(state)
        if isinstance(space, spaces.Dict):
            purified = spaces.Dict({**space.spaces, "state": purified})
        return marked(purified, **origin_of(space), purifier=identity(self.purifier))

    def _purified(self, space: spaces.Box) -> spaces.Box:
        bound = np.full(self.dim, PREFERENCE_BOUND, dtype=np.float32)
        rest = slice(self.preference_slice.stop, None)
        low, high = np.r_[-bound, space.low[rest]], np.r_[bound, space.high[rest]]
        return spaces.Box(low, high, dtype=np.float32)

    def __call__(self, observations: Any, final: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
        """Purifies observations in one pass, into new arrays.

        Args:
            observations: (N, ...) vectors or dicts.
            final: Single observations, without a batch axis, that ended sessions.

        Returns:
            Purified copies of ``observations`` and ``final``.

        Raises:
            ConfigError: The purifier returned another shape, or values that are not finite or lie
                outside the observation space.
        """
        batches = [_state(observations), *(_state(observation)[None] for observation in final)]
        states = np.concatenate(batches)
        preference = purify(self.purifier.denoise, states[:, self.preference_slice], self.dim)
        if not self.strict:
            preference = preference.clip(-PREFERENCE_BOUND, PREFERENCE_BOUND)
        elif preference.size and np.abs(preference).max() > PREFERENCE_BOUND:
            raise ConfigError(
                f"A purifier must return preferences within {PREFERENCE_BOUND:g} of 0, the space "
                f"of observations, got {preference.flat[np.abs(preference).argmax()]}: clip them, "
                "or have the wrapper do so with strict=False."
            )
        states = np.hstack([preference, states[:, self.preference_slice.stop :]])
        n = len(states) - len(final)
        ended = [_with(*pair) for pair in zip(final, states[n:], strict=True)]
        return _with(observations, states[:n]), ended


def _state_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    return space["state"] if isinstance(space, spaces.Dict) and "state" in space.spaces else space


def _refuse_second(env: Any, inner: str, wrapper: type[Any]) -> None:
    """Refuses to purify what is purified already.

    Args:
        env: The environment to wrap.
        inner: Name of the attribute by which a wrapper holds what it wraps.
        wrapper: The purifying wrapper of its kind.

    Raises:
        ConfigError: The wrapper is among those around the environment.
    """
    while env is not None:
        if isinstance(env, wrapper):
            raise ConfigError(
                f"This environment is behind a purifier already, a {wrapper.__name__}: purified "
                "states are no states that a purifier reads. Wrap the bare environment."
            )
        env = vars(env).get(inner)


def _state(observation: Any) -> Any:
    return observation["state"] if isinstance(observation, dict) else observation


def _with(observation: Any, state: Any) -> Any:
    return {**observation, "state": state} if isinstance(observation, dict) else state


class PurifyObservation(gym.ObservationWrapper):
    """Purifies the observations of a single Gymnasium environment.

    Args:
        env: An environment of kuaisim_gym, wrapped or not.
        purifier: A purifier, or the path of a saved one.
        strict: As for :class:`ObservationPurifier`.
    """

    def __init__(
        self, env: gym.Env[Any, Any], purifier: Purifier | str | Path, *, strict: bool = True
    ) -> None:
        super().__init__(env)
        _refuse_second(env, "env", PurifyObservation)
        inner: Any = env.unwrapped
        self.purifier = ObservationPurifier(purifier, lambda name: getattr(inner, name), strict)
        self.observation_space = self.purifier.space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        batch = _state(observation)[None]
        return _with(observation, self.purifier(batch)[0][0])


class PurifyVectorObservation(VectorWrapper[Any, Any, Any, Any, Any]):
    """Purifies the observations of a Gymnasium vector environment, final ones included.

    Args:
        env: A vector environment of kuaisim_gym, in any autoreset mode.
        purifier: A purifier, or the path of a saved one.
        strict: As for :class:`ObservationPurifier`.

    Raises:
        ConfigError: The environment does not give access to its attributes.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], purifier: Purifier | str | Path, *, strict: bool = True
    ) -> None:
        super().__init__(env)
        _refuse_second(env, "env", PurifyVectorObservation)
        get = getattr(env.unwrapped, "get_attr", None)
        if get is None:
            raise ConfigError(f"{env} does not give access to its environments' attributes.")
        self.purifier = ObservationPurifier(purifier, lambda name: get(name)[0], strict)
        self.single_observation_space = self.purifier.space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observations, infos = self.env.reset(seed=seed, options=options)
        return self.purifier(observations)[0], infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        final = infos.get("final_obs", [])
        slots = np.flatnonzero(infos.get("_final_obs", []))
        observations, ended = self.purifier(observations, [final[slot] for slot in slots])
        if "final_obs" in infos:
            purified = np.full(len(final), None, dtype=object)
            for slot, observation in zip(slots, ended, strict=True):
                purified[slot] = observation
            infos = {**infos, "final_obs": purified}
        return observations, rewards, terminations, truncations, infos


class PurifyVecEnv(VecEnvWrapper):
    """Purifies the observations of a Stable-Baselines3 ``VecEnv``, terminal ones included.

    Args:
        venv: A ``VecEnv`` of kuaisim_gym.
        purifier: A purifier, or the path of a saved one.
        strict: As for :class:`ObservationPurifier`.
    """

    preference_unit: ClassVar[str] = "score"  # a taste's inner product with a vector is a score

    def __init__(
        self, venv: VecEnv, purifier: Purifier | str | Path, *, strict: bool = True
    ) -> None:
        _refuse_second(venv, "venv", PurifyVecEnv)
        get = venv.get_attr
        self.purifier = ObservationPurifier(purifier, lambda name: get(name)[0], strict)
        super().__init__(venv, observation_space=self.purifier.space(venv.observation_space))

    def reset(self) -> VecEnvObs:
        return self.purifier(self.venv.reset())[0]  # type: ignore[no-any-return]

    def observe(self) -> VecEnvObs:
        """Current observations of all sessions, purified; purifiers have no memory."""
        inner: Any = self.venv
        return self.purifier(inner.observe())[0]  # type: ignore[no-any-return]

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        slots = np.flatnonzero(dones)
        final = [infos[slot]["terminal_observation"] for slot in slots]
        observations, ended = self.purifier(observations, final)
        for slot, observation in zip(slots, ended, strict=True):
            infos[slot]["terminal_observation"] = observation
        return observations, rewards, dones, infos
