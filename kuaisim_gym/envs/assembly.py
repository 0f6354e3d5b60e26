"""Puts a world together: dataset, simulator, core, encoder and action kind.

The shells (single, vectorised, Stable-Baselines3) share a :class:`SessionBatch` and add nothing
but the protocol of their library.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kuaisim_gym.config import SessionConfig, check_choice
from kuaisim_gym.data import Dataset, load_dataset
from kuaisim_gym.errors import ConfigError, InvalidActionError, unknown_option
from kuaisim_gym.metrics import Sessions
from kuaisim_gym.observation import Observation, ObservationEncoder, PreferenceEncoder
from kuaisim_gym.simulator import Simulator, build_simulator, load_catalogue
from kuaisim_gym.simulator.core import SessionCore, StepResult

ACTION_TYPES = ("continuous", "slate")
_OPTIONS = (
    "dataset",
    "split",
    "dataset_seed",
    "response_model",
    "calibration",
    "observation_type",
    "action_type",
)
_SESSION_OPTIONS = tuple(option.name for option in fields(SessionConfig))


class SessionBatch:
    """N sessions with their spaces: what every shell is a view of.

    Args:
        n_sessions: N.
        name: Dataset name, such as ``"kuairec"``.
        dataset: A loaded dataset, a folder of published files, or ``None`` for the synthetic
            world.
        split: ``"train"`` or ``"test"``: which simulator answers, and whose sessions they are.
        dataset_seed: Seed of the synthetic world.
        response_model: See :func:`~kuaisim_gym.simulator.build.build_simulator`.
        calibration: See the same function.
        observation_type: See :class:`~kuaisim_gym.observation.ObservationEncoder`.
        action_type: ``"continuous"`` or ``"slate"``, see :meth:`slates_of`.
        **session_options: Fields of :class:`~kuaisim_gym.config.SessionConfig`.

    Raises:
        ConfigError: An unknown option or value.
    """

    def __init__(
        self,
        n_sessions: int,
        name: str = "kuairec",
        *,
        dataset: Dataset | str | Path | None = None,
        split: str = "train",
        dataset_seed: int = 0,
        response_model: str = "factor",
        calibration: str | None = None,
        observation_type: str = "state",
        action_type: str = "continuous",
        **session_options: Any,
    ) -> None:
        for option in session_options:
            if option not in _SESSION_OPTIONS:
                raise unknown_option("An environment option", option, _OPTIONS + _SESSION_OPTIONS)
        self.action_type = check_choice("action_type", action_type, ACTION_TYPES)
        self.config = SessionConfig(**session_options)
        self.dataset = _resolve(name, dataset, dataset_seed)
        self.simulator: Simulator = build_simulator(
            self.dataset, split, response_model, calibration
        )
        self.catalogue = load_catalogue(self.dataset)
        self.core = SessionCore(
            self.simulator.model,
            self.catalogue.popular,
            self.simulator.users,
            self.config,
            n_sessions,
        )
        self.encoder = ObservationEncoder(
            preference_encoder(self.dataset), self.core, observation_type
        )
        self._scored = np.column_stack(
            [self.catalogue.item_embedding, self.catalogue.log_popularity]
        )

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Observation space of one session."""
        return self.encoder.space()

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Action space of one session."""
        if self.action_type == "continuous":
            return spaces.Box(-1.0, 1.0, (self._scored.shape[1],), dtype=np.float32)
        return spaces.MultiDiscrete([self.catalogue.n_items] * self.config.slate_size)

    def reset(self, slots: NDArray[np.bool_] | None = None) -> None:
        """Begins new sessions in some slots, all if ``None``."""
        slots = np.ones(self.core.n_sessions, dtype=bool) if slots is None else slots
        self.core.reset(slots)
        self.encoder.reset(slots)

    def step(self, actions: NDArray[np.generic]) -> StepResult:
        """Acts in all sessions.

        Args:
            actions: (N, ...) one action a session, of :attr:`action_space`.

        Returns:
            What happened.

        Raises:
            InvalidActionError: An action is not of the action space.
            ResetNeededError: A session has not begun or is over.
        """
        slates = self.slates_of(actions)
        result = self.core.step(slates)
        self.encoder.follow(slates, result.responses)
        return result

    def observe(self) -> Observation:
        """Observations of all sessions."""
        return self.encoder.observe()

    def slates_of(self, actions: NDArray[np.generic]) -> NDArray[np.integer]:
        """Turns actions into slates.

        A slate action is its own slate. A continuous action is a linear scorer over
        [item embedding, standardised log-popularity]; the K best unexposed items form the slate,
        best first.

        Args:
            actions: (N, K) integers, or (N, d + 1) floats in [-1, 1].

        Returns:
            (N, K) item positions.

        Raises:
            InvalidActionError: Wrong shape or dtype, not finite, or out of bounds.
        """
        actions = np.asarray(actions)
        if self.action_type == "slate":
            return actions  # type: ignore[return-value]  # the core checks what it is given
        shape = (self.core.n_sessions, self._scored.shape[1])
        if actions.dtype.kind != "f":
            raise InvalidActionError(f"A continuous action must be floats, got {actions.dtype}.")
        if actions.shape != shape:
            raise InvalidActionError(
                f"Continuous actions must have shape {shape}, (sessions, d + 1), "
                f"got {actions.shape}."
            )
        if not np.isfinite(actions).all():
            raise InvalidActionError("A continuous action must be finite, got NaN or infinity.")
        outside = np.abs(actions) > 1.0
        if outside.any():
            raise InvalidActionError(
                f"A continuous action must lie in [-1, 1], got {actions[outside][0]}."
            )
        scores = _row_stable_product(actions.astype(np.float32), self._scored)
        if not self.config.allow_repeats:
            scores[self.core.exposed] = -np.inf
        return top_items(scores, self.config.slate_size)

    def arrival(self, slot: int) -> dict[str, Any]:
        """Who has just arrived in one slot, and in which world, for the reset info."""
        kind = "synthetic" if self.dataset.synthetic else "real"
        user = int(self.dataset.user_ids[self.core.users[slot]])
        return {"user_id": user, "dataset": f"{self.dataset.name} ({kind})"}

    def finished(self, slot: int) -> dict[str, float]:
        """The metrics of the session in one slot, for the final info."""
        core, steps = self.core, int(self.core.steps[slot])
        slates = core.slates[slot, :steps]
        rewards = core.rewards[slot, :steps]
        return {
            "len": steps,
            "r_each": float(rewards.mean()),
            "r_cum": float(rewards.sum()),
            "q": float(core.penalised[slot, :steps].mean()),
            "popular_share": float(core.popular[slates].mean()),
        }

    def record(self, slot: int) -> Sessions:
        """The session in one slot as it stands, for :mod:`kuaisim_gym.metrics`."""
        core, row = self.core, slice(slot, slot + 1)
        return Sessions(
            core.steps[row].copy(),
            core.rewards[row].copy(),
            core.penalised[row].copy(),
            core.slates[row].copy(),
        )


def top_items(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k best columns of each row, best first, ties by column.

    Args:
        scores: (N, n_items) float32.
        k: At most n_items.

    Returns:
        (N, k) int64.
    """
    if k < scores.shape[1]:
        # Candidates in column order, so that the stable sort breaks ties by column.
        candidates = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    else:
        candidates = np.broadcast_to(np.arange(k), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)


def _row_stable_product(
    rows: NDArray[np.float32], items: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``rows @ items.T`` with rows that do not depend on how many there are.

    BLAS takes another path for a single row, whose last bits differ; a slate must not.
    """
    if len(rows) == 1:
        return (np.repeat(rows, 2, axis=0) @ items.T)[:1]
    return rows @ items.T


@lru_cache(maxsize=2)
def _load(name: str, path: str | None, seed: int) -> Dataset:
    return load_dataset(name, path, seed)


def shared_dataset(name: str, path: str | Path | None, seed: int) -> Dataset:
    """As :func:`~kuaisim_gym.data.load_dataset`, one object for all who ask in this process."""
    return _load(name, None if path is None else str(Path(path).resolve()), seed)


@lru_cache(maxsize=2)
def preference_encoder(dataset: Dataset) -> PreferenceEncoder:
    """The preference encoder of a dataset, shared by its environments."""
    return PreferenceEncoder(dataset.training, load_catalogue(dataset))


def _resolve(name: str, dataset: Dataset | str | Path | None, seed: int) -> Dataset:
    if isinstance(dataset, Dataset):
        if dataset.name != name:
            raise ConfigError(
                f"This environment simulates {name}, got a dataset of {dataset.name}."
            )
        return dataset
    if dataset is None or isinstance(dataset, (str, Path)):
        return shared_dataset(name, dataset, seed)
    raise ConfigError(f"dataset must be a Dataset, a folder or None, got {type(dataset).__name__}.")
