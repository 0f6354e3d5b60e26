"""The session core as a Stable-Baselines3 ``VecEnv``: same dynamics, same-step reset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dsrm_agents.common.origin import marked, of_dataset
from kuaisim_gym.config import check_choice
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.options import check_seed, reset_options, seeds_of
from kuaisim_gym.envs.replay import options_of
from kuaisim_gym.envs.rows import info_of, rows_of
from kuaisim_gym.envs.shared import RENDER_FPS, BatchView
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError, ResetNeededError
from kuaisim_gym.registration import import_named
from kuaisim_gym.snapshots import Snapshot, taken_apart


class KuaiVecEnv(BatchView, VecEnv):
    """N sessions stepped together; a finished one restarts in the same step.

    ``infos[i]`` is that of the single environment, but for ``"session"``, which it holds at the end
    of a session alone, and with it ``"terminal_observation"``, ``"TimeLimit.truncated"``,
    ``"episode"`` as Stable-Baselines3's ``Monitor`` does, and the session's slates and rewards
    under ``"record"``.

    Args:
        batch: The sessions.
        seed: Slot i is seeded ``seed + i`` and then equals a single environment so seeded;
            ``None`` for an arbitrary seed.
        render_mode: ``"rgb_array"`` or ``None``.

    Attributes:
        spec: Of the single environment that a slot equals, if :func:`make_vec_env` made this one.

    Raises:
        ConfigError: Rewards are vectors, of which Stable-Baselines3 knows nothing.
    """

    spec: EnvSpec | None = None

    def __init__(
        self, batch: SessionBatch, seed: int | None = None, render_mode: str | None = None
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, ("rgb_array",))
        if batch.reward_space.shape:
            raise ConfigError(
                "Stable-Baselines3 learns from numbers, but rewards of this environment are "
                f"{batch.reward_space.shape[0]} numbers a step. Give a reward that weighs them, "
                "such as reward=f of a function f(step) that returns 0.8 * step.utility + 0.2 * "
                "step.fairness."
            )
        # Before the base constructor, which reads render_mode through get_attr.
        self.batch = batch
        self.render_mode = render_mode
        origin = of_dataset(batch.dataset) | {"options": options_of(batch)}
        observations = marked(batch.observation_space, **origin)
        super().__init__(batch.n_sessions, observations, batch.action_space)
        self.metadata: dict[str, Any] = {**self.metadata, "render_fps": RENDER_FPS}
        self._actions: NDArray[np.generic] | None = None
        self._returns = np.zeros(self.num_envs)  # of the running episodes
        self._started = time.monotonic()
        drawn = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._next_seed: int | None = self._first_seed(drawn)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds slot i with ``seed + i``, from the next reset on."""
        seeds = super().seed(None if seed is None else self._first_seed(seed))
        self._next_seed = int(self._seeds[0] or 0)
        self._reset_seeds()
        return seeds

    def reset(self) -> VecEnvObs:
        """Begins a new session in every slot."""
        if self._next_seed is not None:
            self.batch.seed([self._next_seed + slot for slot in range(self.num_envs)])
            self._next_seed = None
        observation, info = self.batch.renew(np.ones(self.num_envs, dtype=bool))
        self._reset_options()
        self.reset_infos = _rows(info)
        self._returns[:] = 0.0
        return observation

    def step_async(self, actions: Any) -> None:
        """Keeps the actions for :meth:`step_wait`.

        Raises:
            InvalidActionError: They are no array of one action a slot.
        """
        self._actions = self.batch.actions.array(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Steps all sessions and restarts the finished ones.

        Raises:
            InvalidActionError: An action is not of the action space.
            ResetNeededError: No actions wait, or a session has not begun.
        """
        if self._actions is None:
            raise ResetNeededError("step_async() must come before step_wait().")
        actions, self._actions = self._actions, None
        result, observation, info = self.batch.play(actions)
        infos, done = _rows(info), result.done
        self._returns += result.reward
        if np.count_nonzero(done):
            rows = done.nonzero()[0]
            seconds = round(time.monotonic() - self._started, 6)
            for row, last in zip(rows.tolist(), rows_of(observation, rows), strict=True):
                session = info_of(info["session"], row)
                infos[row] |= {
                    "session": session,
                    "terminal_observation": last,
                    "TimeLimit.truncated": bool(result.truncated[row]),
                    "episode": {"r": self._returns[row].item(), "l": session["len"], "t": seconds},
                    "record": self.batch.records(np.array([row])),
                }
            self._returns[done] = 0.0
            observation, info = self.batch.renew(done)
            del info["session"]
            for row in rows.tolist():
                self.reset_infos[row] = info_of(info, row)
        return observation, result.reward.astype(np.float32), done, infos

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
        return self.batch.snapshot() | {"returns": self._returns.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        """Continues from a snapshot, whatever the seed; no reset is needed.

        Raises:
            ConfigError: It is of an environment with other options.
        """
        shell = "a Stable-Baselines3 environment"
        sessions, returns = taken_apart(snapshot, "returns", shell)
        self.batch.restore(sessions)
        self._returns[:] = returns
        self._next_seed = self._actions = None
        self.reset_infos = _rows(self.batch.info())

    def close(self) -> None:
        """Forgets what frames were drawn with."""
        self.close_extras()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Refuses options of the next reset, as the single environment does.

        Raises:
            ConfigError: There are some.
        """
        rows = options if isinstance(options, list) else [options] * self.num_envs
        if len(rows) != self.num_envs:
            raise ConfigError(f"options must be {self.num_envs}, one a slot, got {len(rows)}.")
        super().set_options([reset_options(row) for row in rows])

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
        masks = self.batch.actions.masks()
        return [masks[slot].ravel() for slot in self._get_indices(indices)]

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, m) bool: choices that lead to items not yet shown, as MaskablePPO wants them.

        Raises:
            ConfigError: The action type makes no choices.
        """
        return self.batch.actions.masks().reshape(self.num_envs, -1)

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of each slot's session, for :meth:`render`."""
        return [self.drawn().draw(self.batch.view(slot)) for slot in range(self.num_envs)]

    def _first_seed(self, seed: int) -> int:
        """The seed of the first slot, where all slots have one."""
        first = check_seed(seed)
        seeds_of(first, self.num_envs)
        return first

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Tells if it does what a wrapper does: ``Monitor`` alone; others go around it."""
        return [issubclass(Monitor, wrapper_class)] * len(list(self._get_indices(indices)))


def _rows(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Infos of single sessions, but for their metrics, from those of a batch."""
    names = [name for name in info if name != "session"]
    columns = (info[name] for name in names)
    values = zip(*(c.tolist() if c.ndim == 1 else c for c in columns), strict=True)
    return [dict(zip(names, row)) for row in values]  # noqa: B905, whose check costs half as much


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
    env = KuaiVecEnv(batch, seed, render_mode)
    spec = gym.spec(import_named(env_id))
    options = {"split": split, "render_mode": render_mode, **kwargs}
    env.spec = replace(spec, kwargs=spec.kwargs | options)
    return env
