"""Many users at once: the native Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice
from kuaisim_gym.engine.types import BoolArray, StepResult
from kuaisim_gym.envs.assembly import check_seed
from kuaisim_gym.envs.shared import RENDER_FPS, BatchView, rows_of
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError, InvalidActionError
from kuaisim_gym.rendering import as_text

_RENDER_MODES = ("ansi", "rgb_array")


class KuaiVectorEnv(BatchView, VectorEnv[Any, Any, Any]):
    """N sessions stepped together: ``gymnasium.make_vec(id, num_envs=N)``.

    It does what ``gymnasium.vector.SyncVectorEnv`` of N single environments does, to the last bit
    and with the same infos, many times faster: slot i, seeded ``seed + i``, is the single
    environment so seeded.

    Args:
        num_envs: N.
        name: Dataset name, such as ``"kuairec"``.
        autoreset_mode: When a finished session makes way for the next: in the following step, whose
            action for it is ignored (``NEXT_STEP``); in the same step, with the last observation
            and info under ``"final_obs"`` and ``"final_info"`` (``SAME_STEP``); or by
            ``reset(options={"reset_mask": ...})`` alone (``DISABLED``).
        render_mode: ``None``, ``"ansi"`` or ``"rgb_array"``; :meth:`render` gives a frame a slot.
        max_episode_steps: The same as ``max_steps``; ``gymnasium.make`` cuts from outside instead,
            so that the environment knows nothing of it.
        **options: As for the single environment.

    Raises:
        ConfigError: An unknown option or value.
    """

    def __init__(
        self,
        num_envs: int = 1,
        name: str = "kuairec",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        modes = {mode.value: mode for mode in AutoresetMode}
        wanted = (
            autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        )
        self.autoreset_mode = modes[check_choice("autoreset_mode", wanted, modes)]
        if render_mode is not None:
            check_choice("render_mode", render_mode, _RENDER_MODES)
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": list(_RENDER_MODES),
            "render_fps": RENDER_FPS,
            "autoreset_mode": self.autoreset_mode,
        }
        if max_episode_steps is not None:
            if options.get("task") == "retention":
                raise ConfigError("max_episode_steps does not cut visits; set n_visits instead.")
            own = options.get("max_steps")
            options["max_steps"] = max_episode_steps if own is None else min(max_episode_steps, own)
        self.batch = make_batch(num_envs, name, **options)
        self.num_envs = num_envs
        self.single_observation_space = self.batch.observation_space
        self.single_action_space = self.batch.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
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
            Observations of all slots, and who arrived.

        Raises:
            ConfigError: A seed, the mask, or a key of the options is not what it should be.
        """
        slots = self._slots(options)
        seeds = self._seeds(seed)
        given = np.array([one is not None for one in seeds])
        fresh = slots & ~given & ~self._seeded
        chosen = slots & (given | fresh)
        drawn = self.np_random.integers(2**63, size=self.num_envs if fresh.any() else 1)
        pairs = zip(seeds, np.broadcast_to(drawn, self.num_envs).tolist(), strict=True)
        self.batch.seed([own if one is None else one for one, own in pairs], chosen)
        self._seeded |= chosen
        self.batch.reset(slots)
        self._ended[slots] = False
        infos: dict[str, Any] = {}
        self._arrive(infos, slots)
        return self.batch.observe(), infos

    def step(
        self, actions: Any
    ) -> tuple[Any, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Shows slates; see :meth:`gymnasium.vector.VectorEnv.step`.

        Raises:
            InvalidActionError: An action is not of the action space.
            ResetNeededError: A session has not begun, or is over in mode ``DISABLED``.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InvalidActionError(
                f"Actions must have shape {self.action_space.shape}, got {actions.shape}."
            )
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._ended.any():
            arriving = self._ended
            actions = actions.copy()
            actions[arriving] = 0  # whatever it is, it is not looked at
            result = self.batch.step(actions, ~arriving)
            self.batch.reset(arriving)
            if not arriving.all():
                self._tell(infos, result, ~arriving)
            self._arrive(infos, arriving)
        else:
            result = self.batch.step(actions)
            if self.autoreset_mode is AutoresetMode.SAME_STEP and result.done.any():
                self._restart(infos, result)
            else:
                self._tell(infos, result, np.ones(self.num_envs, dtype=bool))
        self._ended = result.done
        return self.batch.observe(), result.reward, result.terminated, result.truncated, infos

    def action_masks(self) -> BoolArray:
        """(N, m) bool: choices that lead to items not yet shown.

        Raises:
            ConfigError: The action type makes no choices.
        """
        return self.batch.actions.masks()

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of a single environment, for every slot: they share it."""
        own = f"single_{name}" if name in ("observation_space", "action_space") else name
        return (getattr(self, own),) * self.num_envs

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As :meth:`get_attr`; of methods there is ``"action_masks"``, a row for each slot."""
        if name == "action_masks":
            return tuple(self.action_masks())
        if args or kwargs or callable(getattr(self, name)):
            raise ConfigError(f"{name!r} cannot be called: slots are no objects.")
        return self.get_attr(name)

    def close_extras(self, **kwargs: Any) -> None:
        """Forgets what frames were drawn with."""
        self.close_canvas()

    def render(self) -> tuple[Any, ...] | None:
        """A frame for each slot: text or (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        views = [self.batch.view(slot) for slot in range(self.num_envs)]
        if self.render_mode == "ansi":
            return tuple(as_text(view) for view in views)
        return tuple(self.drawn().draw(view) for view in views)

    def _restart(self, infos: dict[str, Any], result: StepResult) -> None:
        """Same-step reset: the finished sessions' last words, then the next users."""
        done = result.done
        last, rows = self.batch.observe(), np.flatnonzero(done)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row, one in zip(rows.tolist(), rows_of(last, rows), strict=True):
            final_obs[row] = one
        final_info: dict[str, Any] = {}
        self._tell(final_info, result, done)
        infos.update(final_obs=final_obs, _final_obs=done.copy())
        infos.update(final_info=final_info, _final_info=done.copy())
        self.batch.reset(done)
        if not done.all():
            self._tell(infos, result, ~done)
        self._arrive(infos, done)

    def _tell(self, infos: dict[str, Any], result: StepResult, slots: BoolArray) -> None:
        """Adds what a step did in some slots."""
        told: dict[str, NDArray[Any]]
        told = {"responses": result.responses, "penalised": result.penalised}
        if result.feedback.shape[2] > 1:
            told["feedback"] = result.feedback
        if not slots.all():
            told = {name: _only(values, slots) for name, values in told.items()}
        done = result.done & slots
        mask = slots.copy()
        infos.update(told, **{f"_{name}": mask for name in told})
        if done.any():
            session: dict[str, Any] = {}
            _put(session, self.batch.finished(np.flatnonzero(done)), done)
            infos.update(session=session, _session=done)

    def _arrive(self, infos: dict[str, Any], slots: BoolArray) -> None:
        """Adds who has just arrived in some slots."""
        _put(infos, self.batch.arrivals(np.flatnonzero(slots)), slots)

    def _slots(self, options: dict[str, Any] | None) -> BoolArray:
        options = options or {}
        for option in options:
            check_choice("options: a key", option, ("reset_mask",))
        mask = options.get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        right = isinstance(mask, np.ndarray) and mask.dtype == bool
        if not right or mask.shape != (self.num_envs,) or not mask.any():
            raise ConfigError(
                f"reset_mask must be a boolean array of shape ({self.num_envs},) with at least one "
                f"True, got {mask!r}."
            )
        return np.array(mask)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        """A seed or ``None`` for each slot."""
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, (Sequence, np.ndarray)):
            first = check_seed(seed)
            super().reset(seed=first)
            return [first + slot for slot in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(f"seed must hold {self.num_envs} seeds, got {len(seed)}.")
        return seed


def _only(values: NDArray[Any], slots: BoolArray) -> NDArray[Any]:
    """(N, ...) values of some slots, zero elsewhere."""
    return values * slots.reshape(-1, *(1,) * (values.ndim - 1))


def _put(infos: dict[str, Any], columns: dict[str, NDArray[Any]], slots: BoolArray) -> None:
    """Adds columns of some slots the way Gymnasium does: arrays of all slots, and a mask."""
    mask = slots.copy()
    for name, values in columns.items():
        whole = np.full(len(slots), None if values.dtype == object else 0, dtype=values.dtype)
        whole[mask] = values
        infos[name], infos[f"_{name}"] = whole, mask
