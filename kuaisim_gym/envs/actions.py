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
from kuaisim_gym.simulator.groups import nearest_counts

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


class SharesAction(ActionKind, name="shares"):
    """``Box(-1, 1, (d + G,))``: weights of the embedding, and the share of the slate of each group.

    An item's score is the inner product of its ``catalogue.item_embedding`` with the first d
    components, in which direction alone counts. The others, a_g, divide the K places of the slate
    between the G groups of ``core.groups`` in proportion to ``1 + a_g``, by largest remainder, ties
    to the first group; where all are -1, evenly. A group fills its places with its best unexposed
    items. Where it has too few, the best of the other groups fill the rest.

    All zeros are an even division and no ranking: items by position. Slates list the items of the
    groups' places first, then those that fill the rest, both best first.
    """

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        super().__init__(core, catalogue, simulator)
        labels = core.groups.labels
        self._columns = catalogue.item_embedding
        self._members = [np.flatnonzero(labels == group) for group in range(len(core.groups))]
        self._rankers = [Ranker(self._columns[items], core.engine) for items in self._members]
        n_components = self._columns.shape[1] + len(core.groups)
        self.space = spaces.Box(-1.0, 1.0, (n_components,), dtype=np.float32)

    def slates(self, actions: Actions) -> Slates:
        n_weights = self._columns.shape[1]
        vectors = _vectors(actions, self.core.n_sessions, n_weights + len(self._members))
        weights = np.ascontiguousarray(vectors[:, :n_weights])
        places = nearest_counts(_proportions(vectors[:, n_weights:]), self.core.config.slate_size)
        return self._fill(weights, places)

    def _fill(self, weights: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, K) slates of (N, d) weights and the (N, G) places of the groups."""
        k, hidden = self.core.config.slate_size, self._hidden()
        items, ranks = [], []  # ranks: 0 for items of a place, 1 for others, 2 for hidden ones
        for group, (members, ranker) in enumerate(zip(self._members, self._rankers, strict=True)):
            shown = None if hidden is None else np.take(hidden, members, axis=1)
            best = ranker.best(weights, min(k, len(members)), shown)
            rank = (np.arange(best.shape[1]) >= places[:, group, None]).astype(np.int8)
            if shown is not None:
                rank[np.take_along_axis(shown, best, axis=1)] = 2
            items.append(members[best])
            ranks.append(rank)
        found = np.concatenate(items, axis=1)
        order = np.lexsort((found, -self._scores(weights, found), np.concatenate(ranks, axis=1)))
        return np.take_along_axis(found, order[:, :k], axis=1)

    def _scores(
        self, weights: NDArray[np.float32], items: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(N, m) scores of (N, m) items, summed as engines do: in the order of the columns."""
        scores = np.zeros(items.shape, dtype=np.float32)
        for weight, column in zip(weights.T, self._columns.T, strict=True):
            scores += weight[:, None] * column[items]
        return scores


class ScorerAction(ActionKind, name="scorer"):
    """``Box(-1, 1, (d + 1,))``: a linear scorer over the columns of ``catalogue.known``.

    They are the item embedding's, each standardised, and standardised log-popularity.

    The K best unexposed items form the slate, best first.
    """

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        super().__init__(core, catalogue, simulator)
        self.ranker = Ranker(catalogue.known, core.engine)
        self.space = spaces.Box(-1.0, 1.0, (self.ranker.dim,), dtype=np.float32)

    def slates(self, actions: Actions) -> Slates:
        vectors = _vectors(actions, self.core.n_sessions, self.ranker.dim)
        return self.ranker.best(vectors, self.core.config.slate_size, self._hidden())


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


def _proportions(components: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, G) shares in proportion to one plus the (N, G) components; even ones where all are -1."""
    parts = 1.0 + components.astype(np.float64)
    total = parts.sum(axis=1, keepdims=True)
    shares = np.full_like(parts, 1.0 / parts.shape[1])
    np.divide(parts, total, out=shares, where=total > 0)
    return shares
