"""The session core as a Stable-Baselines3 ``VecEnv``: same dynamics, same-step reset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

import kuaisim_gym
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError, ResetNeededError
from kuaisim_gym.simulator.catalogue import Catalogue


class KuaiVecEnv(VecEnv):
    """N sessions stepped together; a finished one restarts in the same step.

    On a finished session ``infos[i]`` holds ``"terminal_observation"``, ``"TimeLimit.truncated"``,
    the session's metrics under ``"session"`` and its slates and rewards under ``"record"``; on all
    other steps it is empty.

    Args:
        batch: The sessions.
        seed: Slot i is seeded ``seed + i`` and then equals a single environment so seeded;
            ``None`` for an arbitrary seed.
    """

    def __init__(self, batch: SessionBatch, seed: int | None = None) -> None:
        # Before the base constructor, which reads render_mode through get_attr.
        self.batch = batch
        self.render_mode = None
        super().__init__(batch.core.n_sessions, batch.observation_space, batch.action_space)
        self._actions: NDArray[np.generic] | None = None
        self._start(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)

    @property
    def preference_slice(self) -> slice:
        """Which part of the state vector is the preference."""
        return self.batch.encoder.preference_slice

    @property
    def dataset(self) -> Dataset:
        """Where the world comes from."""
        return self.batch.dataset

    @property
    def catalogue(self) -> Catalogue:
        """The items, as the platform knows them from the train log."""
        return self.batch.catalogue

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds slot i with ``seed + i``, from the next reset on."""
        seeds = super().seed(seed)
        self._start(int(self._seeds[0] or 0))
        self._reset_seeds()
        return seeds

    def reset(self) -> VecEnvObs:
        """Begins a new session in every slot."""
        self.batch.reset()
        self._reset_options()
        self.reset_infos = [self.batch.arrival(slot) for slot in range(self.num_envs)]
        return self.batch.observe()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keeps the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steps all sessions and restarts the finished ones."""
        if self._actions is None:
            raise ResetNeededError("step_async() must come before step_wait().")
        result = self.batch.step(self._actions)
        self._actions = None
        observation = self.batch.observe()
        done = result.done
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            for slot in np.flatnonzero(done).tolist():
                infos[slot] = {
                    "terminal_observation": _row(observation, slot),
                    "TimeLimit.truncated": bool(result.truncated[slot]),
                    "session": self.batch.finished(slot),
                    "record": self.batch.record(slot),
                }
            self.batch.reset(done)
            for slot in np.flatnonzero(done).tolist():
                self.reset_infos[slot] = self.batch.arrival(slot)
            observation = self.batch.observe()
        return observation, result.reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The same attribute of this environment for every slot."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: slots share one core and have no attributes of their own."""
        raise AttributeError(f"{attr_name!r} cannot be set: the sessions share one core.")

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Refused: there is no environment object per slot."""
        raise AttributeError(f"{method_name!r} cannot be called: there is no object per session.")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Never: wrap the whole in a ``VecEnvWrapper`` instead."""
        return [False] * len(list(self._get_indices(indices)))

    def _start(self, seed: int) -> None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise ConfigError(f"A seed must be an integer in [0, 2**63), got {seed!r}.")
        self.batch.core.seed(np.arange(self.num_envs, dtype=np.uint64) + np.uint64(seed))


def make_vec_env(
    env_id: str, n_envs: int = 1, split: str = "train", seed: int | None = None, **kwargs: Any
) -> KuaiVecEnv:
    """Makes the batched Stable-Baselines3 form of a registered environment.

    Args:
        env_id: Such as ``"KuaiRec-Fair-v0"``.
        n_envs: Sessions stepped together.
        split: ``"train"`` or ``"test"``.
        seed: Slot i is seeded ``seed + i``.
        **kwargs: Options of the environment, as for ``gymnasium.make``.

    Returns:
        The vectorised environment.

    Raises:
        ConfigError: Unknown id, option or value.
    """
    check_choice("env_id", env_id, kuaisim_gym.ENVIRONMENTS)
    options = {**kuaisim_gym.ENVIRONMENTS[env_id], **kwargs}
    return KuaiVecEnv(SessionBatch(n_envs, split=split, **options), seed)


def _row(observation: Any, slot: int) -> Any:
    """One session's observation out of the batch's."""
    if isinstance(observation, dict):
        return {name: part[slot].copy() for name, part in observation.items()}
    return observation[slot].copy()
