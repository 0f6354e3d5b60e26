"""Many users at once: the native Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice, is_whole
from kuaisim_gym.engine.types import BoolArray
from kuaisim_gym.envs.options import reset_options, seeds_of
from kuaisim_gym.envs.rows import Info, masked, merged, rows_of
from kuaisim_gym.envs.shared import RENDER_FPS, BatchView
from kuaisim_gym.envs.tasks import resolve
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.observation import Observation
from kuaisim_gym.rendering import as_text
from kuaisim_gym.snapshots import Snapshot, taken_apart

_RENDER_MODES = ("ansi", "rgb_array")


class KuaiVectorEnv(BatchView, VectorEnv[Any, Any, Any]):
    """N sessions stepped together: ``gymnasium.make_vec(id, num_envs=N)``.

    It does what ``gymnasium.vector.SyncVectorEnv`` of N single environments does, to the last bit
    and with the same infos, many times faster: slot i, seeded ``seed + i``, is the single
    environment so seeded.

    Args:
        num_envs: N.
        name: Dataset name, such as ``"kuairec"``; ``None`` for the task's usual one.
        autoreset_mode: The time at which a finished session is replaced: in the following step,
            whose action for it is ignored (``NEXT_STEP``); in the same step, with the last
            observation and info under ``"final_obs"`` and ``"final_info"`` (``SAME_STEP``); or by
            ``reset(options={"reset_mask": ...})`` alone (``DISABLED``).
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; :meth:`render` gives a frame a slot.
        max_episode_steps: The same as ``max_steps``; ``gymnasium.make`` cuts from outside instead,
            so that the environment knows nothing of it.
        **options: As for the single environment, and ``task``, a key of
            :data:`~kuaisim_gym.envs.tasks.TASKS`.

    Raises:
        ConfigError: An unknown option or value.
    """

    def __init__(
        self,
        num_envs: int = 1,
        name: str | None = None,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        modes = {mode.value: mode for mode in AutoresetMode}
        mode = autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        self.autoreset_mode = modes[check_choice("autoreset_mode", mode, modes)]
        if render_mode is not None:
            check_choice("render_mode", render_mode, _RENDER_MODES)
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": list(_RENDER_MODES),
            "render_fps": RENDER_FPS,
            "autoreset_mode": self.autoreset_mode,
        }
        batch_class, options = resolve(name, **options)
        if max_episode_steps is not None:
            options = batch_class.limited(options, max_episode_steps)
        self.batch = batch_class(num_envs, **options)
        self.num_envs = num_envs
        self.single_observation_space = self.batch.observation_space
        self.single_action_space = self.batch.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._everyone: BoolArray = np.ones(num_envs, dtype=bool)
        self._ended: BoolArray = np.zeros(num_envs, dtype=bool)
        self._seeded: BoolArray = np.zeros(num_envs, dtype=bool)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begins sessions in all slots, or in those of ``options["reset_mask"]``.

        Args:
            seed: Slot i is seeded ``seed + i``; or one seed or ``None`` for each slot. Unseeded
                slots go on with their random sequence.
            options: ``{"reset_mask": (N,) bool}``, or ``None``.

        Returns:
            Observations of all slots, and infos about the users who arrived.

        Raises:
            ConfigError: A seed, the mask, or a key of the options is not what it should be.
        """
        slots = self._slots(options)
        seeds = seeds_of(seed, self.num_envs)
        if is_whole(seed):
            super().reset(seed=int(seed))
        explicit = np.array([value is not None for value in seeds])
        first = slots & ~explicit & ~self._seeded
        chosen = slots & (explicit | first)
        drawn = self.np_random.integers(2**63, size=self.num_envs if first.any() else 1)
        pairs = zip(seeds, np.broadcast_to(drawn, self.num_envs).tolist(), strict=True)
        self.batch.seed([draw if value is None else value for value, draw in pairs], chosen)
        self._seeded |= chosen
        observation, info = self.batch.renew(slots)
        self._ended[slots] = False
        rows = None if slots.all() else np.flatnonzero(slots)
        return observation, masked(info, rows, slots.copy())

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Shows slates; arguments and results are Gymnasium's.

        Raises:
            InvalidActionError: An action is not of the action space.
            ResetNeededError: A session has not begun, or is over in mode ``DISABLED``.
        """
        actions = self.batch.actions.array(actions)
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and np.count_nonzero(self._ended):
            actions = actions.copy()
            actions[self._ended] = 0  # any valid action: it is ignored
            result, observation, info = self.batch.play(actions, ~self._ended)
        else:
            result, observation, info = self.batch.play(actions)
        self._ended = ended = result.done
        if same_step and np.count_nonzero(ended):
            observation, infos = self._restart(info, ended, observation)
        else:
            infos = masked(info, None, self._everyone.copy())
        return observation, result.reward, result.terminated, result.truncated, infos

    def snapshot(self) -> Snapshot:
        """The state of all sessions, see :meth:`~kuaisim_gym.SessionBatch.snapshot`."""
        return self.batch.snapshot() | {"ended": self._ended.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        """Continues from a snapshot, whatever the seed; no reset is needed.

        Raises:
            ConfigError: It is of an environment with other options.
        """
        sessions, ended = taken_apart(snapshot, "ended", "a vector environment")
        self.batch.restore(sessions)
        self._ended = np.array(ended)
        self._seeded[:] = True

    def action_masks(self) -> BoolArray:
        """(N, m) bool: choices that lead to items not yet shown.

        Raises:
            ConfigError: The action type makes no choices.
        """
        return self.batch.actions.masks().reshape(self.num_envs, -1)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of a single environment, for every slot: they share it."""
        prefix = "single_" if name in ("observation_space", "action_space") else ""
        return (getattr(self, prefix + name),) * self.num_envs

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """An attribute, as :meth:`get_attr`, or the method ``"action_masks"`` or ``"render"``.

        The methods give a row and a frame of each slot.

        Raises:
            ConfigError: Another method: slots are no objects.
        """
        if name == "action_masks":
            return tuple(map(np.ravel, self.batch.actions.masks()))
        if name == "render":
            return self.render() or (None,) * self.num_envs
        if args or kwargs or callable(getattr(self, name)):
            raise ConfigError(f"{name!r} cannot be called: slots are no objects.")
        return self.get_attr(name)

    def render(self) -> tuple[Any, ...] | None:
        """A frame for each slot: text or (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        views = [self.batch.view(slot) for slot in range(self.num_envs)]
        if self.render_mode == "ansi":
            return tuple(as_text(view) for view in views)
        return tuple(self.drawn().draw(view) for view in views)

    def _restart(
        self, info: Info, ended: BoolArray, observation: Observation
    ) -> tuple[Observation, dict[str, Any]]:
        """Same-step autoreset: puts final observations and infos aside, then resets their slots."""
        rows = np.flatnonzero(ended)
        final_obs = np.empty(self.num_envs, dtype=object)  # of None
        for row, last in zip(rows.tolist(), rows_of(observation, rows), strict=True):
            final_obs[row] = last
        observation, first = self.batch.renew(ended)
        infos = {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": masked(info, rows, ended.copy()),
            "_final_info": ended.copy(),
        }
        latest = merged(rows, first, info)
        return observation, infos | masked(latest, None, self._everyone.copy())

    def _slots(self, options: dict[str, Any] | None) -> BoolArray:
        mask = reset_options(options, ("reset_mask",)).get("reset_mask")
        if mask is None:
            return self._everyone.copy()
        boolean = isinstance(mask, np.ndarray) and mask.dtype == bool
        if not boolean or mask.shape != (self.num_envs,) or not mask.any():
            raise ConfigError(
                f"reset_mask must be a boolean array of shape ({self.num_envs},) with at least one "
                f"True, got {mask!r}."
            )
        return np.array(mask)
