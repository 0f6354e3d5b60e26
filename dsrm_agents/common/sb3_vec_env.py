"""The session core as a Stable-Baselines3 ``VecEnv``: same dynamics, same-step reset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dsrm_agents.common.origin import marked, of_dataset
from kuaisim_gym.config import check_choice
from kuaisim_gym.envs.assembly import SessionBatch, check_seed
from kuaisim_gym.envs.replay import options_of
from kuaisim_gym.envs.shared import RENDER_FPS, BatchView, as_rows, rows_of
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ResetNeededError
from kuaisim_gym.snapshots import Snapshot


class KuaiVecEnv(BatchView, VecEnv):
    """N sessions stepped together; a finished one restarts in the same step.

    On a finished session ``infos[i]`` holds ``"terminal_observation"``, ``"TimeLimit.truncated"``,
    the session's metrics under ``"session"`` and its slates and rewards under ``"record"``; on all
    other steps it is empty.

    Args:
        batch: The sessions.
        seed: Slot i is seeded ``seed + i`` and then equals a single environment so seeded;
            ``None`` for an arbitrary seed.
        render_mode: ``"rgb_array"`` or ``None``.
    """

    def __init__(
        self, batch: SessionBatch, seed: int | None = None, render_mode: str | None = None
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, ("rgb_array",))
        # Before the base constructor, which reads render_mode through get_attr.
        self.batch = batch
        self.render_mode = render_mode
        origin = of_dataset(batch.dataset) | {"options": options_of(batch)}
        observations = marked(batch.observation_space, **origin)
        super().__init__(batch.n_sessions, observations, batch.action_space)
        self.metadata: dict[str, Any] = {**self.metadata, "render_fps": RENDER_FPS}
        self._actions: NDArray[np.generic] | None = None
        drawn = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._next_seed: int | None = check_seed(drawn)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds slot i with ``seed + i``, from the next reset on."""
        seeds = super().seed(None if seed is None else check_seed(seed))
        self._next_seed = int(self._seeds[0] or 0)
        self._reset_seeds()
        return seeds

    def reset(self) -> VecEnvObs:
        """Begins a new session in every slot."""
        if self._next_seed is not None:
            self.batch.seed([self._next_seed + slot for slot in range(self.num_envs)])
            self._next_seed = None
        self.batch.reset()
        self._reset_options()
        self._arrive(np.ones(self.num_envs, dtype=bool))
        return self.batch.observe()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keeps the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Steps all sessions and restarts the finished ones."""
        if self._actions is None:
            raise ResetNeededError("step_async() must come before step_wait().")
        result, observation = self.batch.play(self._actions)
        self._actions = None
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if result.done.any():
            rows = np.flatnonzero(result.done)
            metrics, last = as_rows(self.batch.finished(rows)), rows_of(observation, rows)
            for index, row in enumerate(rows.tolist()):
                infos[row] = {
                    "terminal_observation": last[index],
                    "TimeLimit.truncated": bool(result.truncated[row]),
                    "session": metrics[index],
                    "record": self.batch.records(rows[index : index + 1]),
                }
            observation = self.batch.renew(result.done)
            self._arrive(result.done)
        return observation, result.reward.astype(np.float32), result.done, infos

    def observe(self) -> VecEnvObs:
        """The latest observations, without a step; stateless wrappers have this method too."""
        return self.batch.observe()

    def snapshot(self) -> Snapshot:
        """The state of all sessions, see :meth:`SessionBatch.snapshot`.

        Raises:
            ResetNeededError: The environment was made or seeded, and not reset since.
        """
        if self._next_seed is not None:
            raise ResetNeededError("A seed waits for the next reset: call reset() first.")
        return self.batch.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Continues from a snapshot, whatever the seed; no reset is needed.

        Raises:
            ConfigError: It is of an environment with other options.
        """
        self.batch.restore(snapshot)
        self._next_seed = self._actions = None
        self._arrive(np.ones(self.num_envs, dtype=bool))

    def close(self) -> None:
        """Forgets what frames were drawn with."""
        self.close_extras()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The same attribute of this environment for every slot."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuses: slots share one core and have no attributes."""
        raise AttributeError(f"{attr_name!r} cannot be set: the sessions share one core.")

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Rows of ``"action_masks"``; refuses other methods, because slots are no objects."""
        if method_name != "action_masks":
            raise AttributeError(f"{method_name!r} cannot be called: slots are no objects.")
        return list(self.action_masks()[list(self._get_indices(indices))])

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, m) bool: choices that lead to items not yet shown, as MaskablePPO wants them.

        Raises:
            ConfigError: The action type makes no choices.
        """
        return self.batch.actions.masks()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of each slot's session, for :meth:`render`."""
        return [self.drawn().draw(self.batch.view(slot)) for slot in range(self.num_envs)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Never: wrappers go around this environment (``VecEnvWrapper``)."""
        return [False] * len(list(self._get_indices(indices)))

    def _arrive(self, slots: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(slots)
        for row, arrived in zip(rows.tolist(), as_rows(self.batch.arrivals(rows)), strict=True):
            self.reset_infos[row] = arrived


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    split: str = "train",
    seed: int | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> KuaiVecEnv:
    """Makes the batched Stable-Baselines3 form of a registered environment.

    Args:
        env_id: Such as ``"KuaiRec-Fair-v0"``.
        n_envs: Sessions stepped together.
        split: ``"train"`` or ``"test"``.
        seed: Slot i is seeded ``seed + i``.
        render_mode: ``"rgb_array"`` or ``None``.
        **kwargs: Options of the environment, as for ``gymnasium.make``.

    Returns:
        The vectorised environment.

    Raises:
        ConfigError: Unknown id, option or value.
    """
    batch = make_batch(n_envs, env_id=env_id, split=split, **kwargs)
    return KuaiVecEnv(batch, seed, render_mode)
