"""What an action is: each kind has its space, and turns actions into slates."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError, InvalidActionError
from kuaisim_gym.ranking import Ranker, pick
from kuaisim_gym.simulator import Simulator, build_simulator
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.core import SessionCore

Actions = NDArray[np.generic]
Slates = NDArray[np.integer]


class ActionKind(Protocol):
    """One kind of action, for the N sessions of a core."""

    @property
    def space(self) -> spaces.Space[Any]:
        """Action space of one session."""
        ...

    def slates(self, actions: Actions) -> Slates:
        """(N, K) item positions of (N, ...) actions.

        Raises:
            InvalidActionError: An action is not of the space; positions are the core's to check.
        """
        ...

    def masks(self) -> NDArray[np.bool_]:
        """(N, m) bool: which choices lead to items not yet shown, as sb3-contrib wants it.

        Raises:
            ConfigError: This kind of action makes no choices.
        """
        ...


class SlateAction:
    """``MultiDiscrete([n_items] * K)``: a slate of item positions.

    Args:
        core: The sessions.
    """

    def __init__(self, core: SessionCore) -> None:
        self.core = core
        self.space = spaces.MultiDiscrete([len(core.popular)] * core.config.slate_size)

    def slates(self, actions: Actions) -> Slates:
        """See :class:`ActionKind`: the action itself."""
        return actions  # type: ignore[return-value]  # the core checks what it is given

    def masks(self) -> NDArray[np.bool_]:
        """See :class:`ActionKind`: (N, K * n_items), the same for every place of the slate."""
        return np.tile(_unexposed(self.core), (1, self.core.config.slate_size))


class DiscreteAction:
    """``Discrete(n_items)``: one item a step.

    Args:
        core: The sessions, with slates of one item.

    Raises:
        ConfigError: Slates are longer.
    """

    def __init__(self, core: SessionCore) -> None:
        if core.config.slate_size != 1:
            raise ConfigError(
                'action_type="discrete" shows one item a step, got '
                f'slate_size={core.config.slate_size}; use "slate" for more.'
            )
        self.core = core
        self.space = spaces.Discrete(len(core.popular))

    def slates(self, actions: Actions) -> Slates:
        """See :class:`ActionKind`: slates of one item."""
        if actions.shape != (self.core.n_sessions,):
            raise InvalidActionError(
                f"Discrete actions must have shape ({self.core.n_sessions},), (sessions,), "
                f"got {actions.shape}."
            )
        return actions[:, None]  # type: ignore[return-value]

    def masks(self) -> NDArray[np.bool_]:
        """See :class:`ActionKind`: (N, n_items)."""
        return _unexposed(self.core)


class ScorerAction:
    """``Box(-1, 1, (d + 1,))``: a linear scorer over [item embedding, standardised log-popularity].

    The K best unexposed items form the slate, best first.

    Args:
        core: The sessions.
        catalogue: The items.
    """

    def __init__(self, core: SessionCore, catalogue: Catalogue) -> None:
        self.core = core
        self.ranker = Ranker(catalogue.known, core.engine)
        self.space = spaces.Box(-1.0, 1.0, (self.ranker.dim,), dtype=np.float32)

    def slates(self, actions: Actions) -> Slates:
        """See :class:`ActionKind`."""
        vectors = _vectors(actions, self.core.n_sessions, self.ranker.dim)
        return self.ranker.best(vectors, self.core.config.slate_size, _shown(self.core))

    def masks(self) -> NDArray[np.bool_]:
        """See :class:`ActionKind`."""
        raise _no_choices("continuous")


class FusionAction:
    """``Box(-1, 1, (B,))``: weights of the predicted behaviours, KuaiSim's hyper-action.

    An item's score is ``sum_b weight_b * probability_b``, with the probabilities that the train
    simulator's factor model predicts on either split: what a platform can know. The K best
    unexposed items form the slate. The predictions of a session's user are kept, 0.2 MB each.

    Args:
        core: The sessions.
        simulator: Whose train sibling predicts.

    Raises:
        ConfigError: There is one behaviour alone.
    """

    _ROWS = 16  # users predicted or scored at once: 16 x 7,583 x 7 probabilities are 3 MB

    def __init__(self, core: SessionCore, simulator: Simulator) -> None:
        predictor = build_simulator(simulator.dataset, "train").model
        if len(predictor.behaviours) < 2:
            raise ConfigError(
                f'action_type="fusion" weighs several behaviours; {simulator.dataset.name} has one.'
            )
        self.core = core
        self.predictor = predictor
        n_behaviours, n_items = len(predictor.behaviours), len(core.popular)
        self.space = spaces.Box(-1.0, 1.0, (n_behaviours,), dtype=np.float32)
        # Predictions stay while a user does.
        self._users: NDArray[np.int32] = np.full(core.n_sessions, -1, dtype=np.int32)
        self._predicted = np.zeros((core.n_sessions, n_behaviours, n_items + 1), dtype=np.float32)

    def slates(self, actions: Actions) -> Slates:
        """See :class:`ActionKind`."""
        core = self.core
        weights = _vectors(actions, core.n_sessions, self._predicted.shape[1])
        hidden = _shown(core)
        self._predict(np.flatnonzero(self._users != core.state.users))
        slates = np.empty((core.n_sessions, core.config.slate_size), dtype=np.int64)
        for start in range(0, core.n_sessions, self._ROWS):
            rows = slice(start, start + self._ROWS)
            scores = weights[rows, 0, None] * self._predicted[rows, 0]
            for b in range(1, weights.shape[1]):  # in order, whoever else is scored beside
                scores += weights[rows, b, None] * self._predicted[rows, b]
            own = None if hidden is None else hidden[rows]
            slates[rows] = pick(scores, slates.shape[1], own, core.engine)
        return slates

    def _predict(self, changed: NDArray[np.int64]) -> None:
        """Predicts all behaviours of the users in some slots."""
        items = np.arange(len(self.core.popular))
        for start in range(0, len(changed), self._ROWS):
            rows = changed[start : start + self._ROWS]
            users = self.core.state.users[rows]
            answers = self.predictor.begin(len(rows), self.core.engine)
            answers.reset(np.ones(len(rows), dtype=bool), users)
            probability = answers.feedback(np.tile(items, (len(rows), 1)))
            self._predicted[rows, :, :-1] = probability.swapaxes(1, 2)
            self._users[rows] = users

    def masks(self) -> NDArray[np.bool_]:
        """See :class:`ActionKind`."""
        raise _no_choices("fusion")


ACTION_TYPES = ("continuous", "slate", "discrete", "fusion")


def action_kind(
    name: str, core: SessionCore, catalogue: Catalogue, simulator: Simulator
) -> ActionKind:
    """The kind of that name, one of ``ACTION_TYPES``."""
    if name == "continuous":
        return ScorerAction(core, catalogue)
    if name == "fusion":
        return FusionAction(core, simulator)
    return SlateAction(core) if name == "slate" else DiscreteAction(core)


def _no_choices(name: str) -> ConfigError:
    return ConfigError(
        f'action_type="{name}" has no action masks: its slates hold unexposed items anyway.'
    )


def _unexposed(core: SessionCore) -> NDArray[np.bool_]:
    """(N, n_items) bool; all true where repeats are allowed."""
    if core.config.allow_repeats:
        return np.ones_like(core.state.exposed)
    return ~core.state.exposed


def _shown(core: SessionCore) -> NDArray[np.int32] | None:
    """(N, m) int32 items that must not be shown again, -1 padded; ``None`` if any may."""
    if core.config.allow_repeats:
        return None
    slates = core.state.slates[:, : int(core.state.steps.max())]
    return slates.reshape(core.n_sessions, -1)


def _vectors(actions: Actions, n_sessions: int, dim: int) -> NDArray[np.float32]:
    """The actions as float32, if they are of ``Box(-1, 1, (dim,))``."""
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
