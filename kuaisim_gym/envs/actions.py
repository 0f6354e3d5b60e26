"""Action types: the spaces of actions, and the slates that actions stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError, InvalidActionError
from kuaisim_gym.ranking import Ranker, pick
from kuaisim_gym.registry import register
from kuaisim_gym.simulator import Simulator, build_simulator
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.core import SessionCore

Actions = NDArray[np.generic]
Slates = NDArray[np.integer]


class ActionKind(ABC):
    """An action type for the N sessions of a core; a subclass registers itself by its name.

    Args:
        core: The sessions.
        catalogue: The items.
        simulator: Answers the sessions.

    Attributes:
        space: Action space of one session.
    """

    name: ClassVar[str]
    space: spaces.Space[Any]

    def __init_subclass__(cls, *, name: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(ACTION_TYPES, name, cls)
        cls.name = name

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        self.core = core

    @abstractmethod
    def slates(self, actions: Actions) -> Slates:
        """(N, K) item positions of (N, ...) actions.

        Raises:
            InvalidActionError: An action is not of the space; positions are the core's to check.
        """

    def scores(self, actions: Actions) -> NDArray[np.float32]:
        """(N, n_items) float32 scores of the items, by which (N, ...) actions rank them.

        Raises:
            ConfigError: This kind of action scores no items.
        """
        raise ConfigError(
            f'action_type="{self.name}" has actions that score no items: use "continuous".'
        )

    def masks(self) -> NDArray[np.bool_]:
        """(N, m) bool: choices that lead to items not yet shown, as sb3-contrib expects.

        Raises:
            ConfigError: This kind of action makes no choices.
        """
        raise ConfigError(
            f'action_type="{self.name}" has no action masks: its slates hold unexposed items '
            "anyway."
        )

    def _unexposed(self) -> NDArray[np.bool_]:
        """(N, n_items) bool; all true where repeats are allowed."""
        exposed = self.core.state.exposed
        return np.ones_like(exposed) if self.core.config.allow_repeats else ~exposed

    def _hidden(self) -> NDArray[np.bool_] | None:
        """(N, n_items) bool, items that must not be shown again; ``None`` if any may."""
        return None if self.core.config.allow_repeats else self.core.state.exposed


ACTION_TYPES: dict[str, type[ActionKind]] = {}


class ScorerAction(ActionKind, name="continuous"):
    """``Box(-1, 1, (d + 1,))``: a linear scorer over the columns of ``catalogue.known``.

    They are the item embedding's, each standardised, and standardised log-popularity.

    The K best unexposed items form the slate, best first.
    """

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        super().__init__(core, catalogue, simulator)
        self._known = catalogue.known
        self.ranker = Ranker(catalogue.known, core.engine)
        self.space = spaces.Box(-1.0, 1.0, (self.ranker.dim,), dtype=np.float32)

    def slates(self, actions: Actions) -> Slates:
        vectors = _vectors(actions, self.core.n_sessions, self.ranker.dim)
        return self.ranker.best(vectors, self.core.config.slate_size, self._hidden())

    def scores(self, actions: Actions) -> NDArray[np.float32]:
        """(N, n_items) float32 inner products with the items' columns."""
        return _vectors(actions, self.core.n_sessions, self.ranker.dim) @ self._known.T


class SlateAction(ActionKind, name="slate"):
    """``MultiDiscrete([n_items] * K)``: a slate of item positions."""

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        super().__init__(core, catalogue, simulator)
        self.space = spaces.MultiDiscrete([core.groups.n_items] * core.config.slate_size)

    def slates(self, actions: Actions) -> Slates:
        return actions  # type: ignore[return-value]  # the core checks them

    def masks(self) -> NDArray[np.bool_]:
        """(N, K * n_items) bool, the same for every position of the slate."""
        return np.tile(self._unexposed(), (1, self.core.config.slate_size))


class DiscreteAction(ActionKind, name="discrete"):
    """``Discrete(n_items)``: one item a step.

    Raises:
        ConfigError: The core's slates are longer.
    """

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        if core.config.slate_size != 1:
            raise ConfigError(
                'action_type="discrete" shows one item a step, got '
                f'slate_size={core.config.slate_size}; use "slate" for more.'
            )
        super().__init__(core, catalogue, simulator)
        self.space = spaces.Discrete(core.groups.n_items)

    def slates(self, actions: Actions) -> Slates:
        if actions.shape != (self.core.n_sessions,):
            raise InvalidActionError(
                f"Discrete actions must have shape ({self.core.n_sessions},), (sessions,), "
                f"got {actions.shape}."
            )
        return actions[:, None]  # type: ignore[return-value]

    def masks(self) -> NDArray[np.bool_]:
        """(N, n_items) bool."""
        return self._unexposed()


class FusionAction(ActionKind, name="fusion"):
    """``Box(-1, 1, (B,))``: weights of the predicted behaviours, KuaiSim's hyper-action.

    An item's score is ``sum_b weight_b * probability_b``, with the probabilities that the train
    simulator's factor model predicts on either split: what a platform can know. The K best
    unexposed items form the slate. The predictions of a session's user are stored, 0.2 MB each.

    Raises:
        ConfigError: There is one behaviour alone.
    """

    _ROWS = 16  # users predicted or scored at once: 16 x 7,583 x 7 probabilities are 3 MB

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        predictor = build_simulator(simulator.dataset, "train").model
        if len(predictor.behaviours) < 2:
            raise ConfigError(
                f'action_type="fusion" weighs several behaviours; {simulator.dataset.name} has '
                "one. Use data with more, or another action_type."
            )
        super().__init__(core, catalogue, simulator)
        self.predictor = predictor
        n_behaviours, n_items = len(predictor.behaviours), core.groups.n_items
        self.space = spaces.Box(-1.0, 1.0, (n_behaviours,), dtype=np.float32)
        # Predictions stay while a user does.
        self._users: NDArray[np.int32] = np.full(core.n_sessions, -1, dtype=np.int32)
        self._predicted = np.zeros((core.n_sessions, n_behaviours, n_items), dtype=np.float32)

    def slates(self, actions: Actions) -> Slates:
        core = self.core
        weights = _vectors(actions, core.n_sessions, self._predicted.shape[1])
        hidden = self._hidden()
        self._predict(np.flatnonzero(self._users != core.state.users))
        slates = np.empty((core.n_sessions, core.config.slate_size), dtype=np.int64)
        for start in range(0, core.n_sessions, self._ROWS):
            rows = slice(start, start + self._ROWS)
            scores = weights[rows, 0, None] * self._predicted[rows, 0]
            for b in range(1, weights.shape[1]):  # in order, so that batches change no sum
                scores += weights[rows, b, None] * self._predicted[rows, b]
            of_rows = None if hidden is None else hidden[rows]
            slates[rows] = pick(scores, slates.shape[1], of_rows, core.engine)
        return slates

    def _predict(self, changed: NDArray[np.int64]) -> None:
        """Predicts all behaviours of the users in some slots."""
        items = np.arange(self.core.groups.n_items)
        for start in range(0, len(changed), self._ROWS):
            rows = changed[start : start + self._ROWS]
            users = self.core.state.users[rows]
            answers = self.predictor.begin(len(rows), self.core.engine)
            answers.reset(np.ones(len(rows), dtype=bool), users)
            probability = answers.feedback(np.tile(items, (len(rows), 1)))
            self._predicted[rows] = probability.swapaxes(1, 2)
            self._users[rows] = users


def _vectors(actions: Actions, n_sessions: int, dim: int) -> NDArray[np.float32]:
    """Returns actions of ``Box(-1, 1, (dim,))`` as float32."""
    if actions.dtype.kind != "f":
        raise InvalidActionError(f"A continuous action must be floats, got {actions.dtype}.")
    if actions.shape != (n_sessions, dim):
        raise InvalidActionError(
            f"Continuous actions must have shape ({n_sessions}, {dim}), got {actions.shape}."
        )
    inside = np.abs(actions) <= 1.0  # false for NaN too
    if not inside.all():
        raise InvalidActionError(
            f"A continuous action must be finite and lie in [-1, 1], got {actions[~inside][0]}."
        )
    return actions.astype(np.float32)
