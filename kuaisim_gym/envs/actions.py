"""Action types: the spaces of actions, and the slates that actions stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kuaisim_gym.engine import bits
from kuaisim_gym.engine.bits import BitArray
from kuaisim_gym.errors import ConfigError, InvalidActionError
from kuaisim_gym.ranking import Ranker
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

    def array(self, actions: Any) -> Actions:
        """(N, ...) array of one array-like action a session, as other methods take it.

        Raises:
            InvalidActionError: They are no array, or of another shape; see :func:`as_actions`.
        """
        return as_actions(actions, (self.core.n_sessions, *(self.space.shape or ())))

    def follow(self, catalogue: Catalogue) -> None:
        """Takes over the catalogue of a new day."""
        return  # there is nothing to do for actions that name items

    @abstractmethod
    def slates(self, actions: Actions) -> Slates:
        """(N, K) item positions of an (N, ...) array of actions.

        Raises:
            InvalidActionError: An action is not of the space; positions are the core's to check.
        """

    def scores(self, actions: Actions) -> NDArray[np.float32]:
        """(N, n_items) float32 scores of the items, by which (N, ...) actions rank them.

        Raises:
            ConfigError: This kind of action scores no items.
        """
        raise ConfigError(
            f'action_type="{self.name}" has actions that score no items: use "scorer" or "shares".'
        )

    def masks(self) -> NDArray[np.bool_]:
        """(N, P, n_items) bool: items not yet shown, for each position that an action chooses for.

        The positions of a session may be one row seen P times: not to be written to.

        Raises:
            ConfigError: This kind of action makes no choices.
        """
        raise ConfigError(
            f'action_type="{self.name}" has no action masks: its slates hold unexposed items '
            "anyway."
        )

    def _unexposed(self) -> NDArray[np.bool_]:
        """(N, n_items) bool; all true where repeats are allowed."""
        if self.core.config.allow_repeats:
            return np.ones((self.core.n_sessions, self.core.groups.n_items), dtype=bool)
        return self.core.unexposed()

    def _hidden(self) -> BitArray | None:
        """(N, ceil(n_items / 8)) bits of items not to be shown again; ``None`` if any may."""
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
        self._columns = catalogue.item_embedding
        self.follow(catalogue)
        n_components = self._columns.shape[1] + len(core.groups)
        self.space = spaces.Box(-1.0, 1.0, (n_components,), dtype=np.float32)

    def follow(self, catalogue: Catalogue) -> None:
        groups = self.core.groups
        self._members = [np.flatnonzero(groups.labels == group) for group in range(len(groups))]
        if catalogue.available is not None:
            self._members = [items[catalogue.available[items]] for items in self._members]
        self._rankers = [Ranker(self._columns[items], self.core.engine) for items in self._members]

    def slates(self, actions: Actions) -> Slates:
        weights, parts = self._divided(actions)
        places = nearest_counts(_proportions(parts), self.core.config.slate_size)
        return self._fill(np.ascontiguousarray(weights), places)

    def _fill(self, weights: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N, K) slates of (N, d) weights and the (N, G) places of the groups."""
        k, hidden = self.core.config.slate_size, ~self._unexposed()
        items, ranks = [], []  # ranks: 0 for items of a place, 1 for others, 2 for hidden ones
        for group, (members, ranker) in enumerate(zip(self._members, self._rankers, strict=True)):
            shown = np.take(hidden, members, axis=1)
            best = ranker.best(weights, min(k, len(members)), bits.pack(shown))
            rank = (np.arange(best.shape[1]) >= places[:, group, None]).astype(np.int8)
            rank[np.take_along_axis(shown, best, axis=1)] = 2
            items.append(members[best])
            ranks.append(rank)
        found = np.concatenate(items, axis=1)
        order = np.lexsort((found, -self._scores(weights, found), np.concatenate(ranks, axis=1)))
        return np.take_along_axis(found, order[:, :k], axis=1)

    def scores(self, actions: Actions) -> NDArray[np.float32]:
        """(N, n_items) float32 inner products with the items' embeddings."""
        weights, _ = self._divided(actions)
        return weights @ self._columns.T

    def _divided(self, actions: Actions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(N, d) weights and (N, G) components of the groups."""
        n_weights = self._columns.shape[1]
        vectors = as_vectors(actions)
        return vectors[:, :n_weights], vectors[:, n_weights:]

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
        self.follow(catalogue)
        self.space = spaces.Box(-1.0, 1.0, (self.ranker.dim,), dtype=np.float32)

    def follow(self, catalogue: Catalogue) -> None:
        self._known = catalogue.known
        self.ranker = Ranker(catalogue.known, self.core.engine)

    def slates(self, actions: Actions) -> Slates:
        return self.ranker.best(as_vectors(actions), self.core.config.slate_size, self._hidden())

    def scores(self, actions: Actions) -> NDArray[np.float32]:
        """(N, n_items) float32 inner products with the items' columns."""
        return as_vectors(actions) @ self._known.T


class SlateAction(ActionKind, name="slate"):
    """``MultiDiscrete([n_items] * K)``: a slate of item positions."""

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        super().__init__(core, catalogue, simulator)
        self.space = spaces.MultiDiscrete([core.groups.n_items] * core.config.slate_size)

    def slates(self, actions: Actions) -> Slates:
        return actions  # type: ignore[return-value]  # the core checks them

    def masks(self) -> NDArray[np.bool_]:
        """(N, K, n_items) bool, the same for every position of the slate."""
        masks = self._unexposed()[:, None]
        return np.broadcast_to(masks, (len(masks), self.core.config.slate_size, masks.shape[2]))


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
        return actions[:, None]  # type: ignore[return-value]

    def masks(self) -> NDArray[np.bool_]:
        """(N, 1, n_items) bool."""
        return self._unexposed()[:, None]


class FusionAction(ActionKind, name="fusion"):
    """``Box(-1, 1, (B,))``: weights of the predicted behaviours, KuaiSim's hyper-action.

    An item's score is ``sum_b weight_b * probability_b``, with the probabilities that the train
    simulator's factor model predicts on either split: what a platform can know. The K best
    unexposed items form the slate. The predictions of a session's user are stored while there is
    room, and else made at each step.

    Raises:
        ConfigError: There is one behaviour alone.
    """

    _ROWS = 16  # users predicted and scored at once, at most: so that probabilities are
    _VALUES = 1 << 20  # about so many, 4 MB
    _ROOM = 1 << 26  # probabilities that are stored, at most: 256 MB, 1,264 sessions of KuaiRand

    def __init__(self, core: SessionCore, catalogue: Catalogue, simulator: Simulator) -> None:
        if core.platform is not None:
            raise ConfigError(
                'action_type="fusion" weighs predictions of a model of logs, which cannot know '
                "items that come later: use another action_type where the catalogue changes."
            )
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
        each = n_behaviours * n_items
        self._rows = min(max(self._VALUES // each, 1), self._ROWS)
        groups = min(self._ROOM // (each * self._rows), -(-core.n_sessions // self._rows))
        # Those of whole groups of slots, the first ones; they stay while a user does.
        shape = (groups * self._rows, n_behaviours, n_items)
        self._stored: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
        self._users: NDArray[np.int32] = np.full(len(self._stored), -1, dtype=np.int32)

    def slates(self, actions: Actions) -> Slates:
        core = self.core
        weights, hidden = as_vectors(actions), self._hidden()
        slates = np.empty((core.n_sessions, core.config.slate_size), dtype=np.int64)
        for start in range(0, core.n_sessions, self._rows):
            rows = slice(start, min(start + self._rows, core.n_sessions))
            predicted = self._predicted(rows)
            scores = weights[rows, 0, None] * predicted[:, 0]
            for b in range(1, weights.shape[1]):  # in order, so that batches change no sum
                scores += weights[rows, b, None] * predicted[:, b]
            of_rows = None if hidden is None else hidden[rows]
            slates[rows] = core.engine.top_items(scores, slates.shape[1], of_rows)
        return slates

    def _predicted(self, rows: slice) -> NDArray[np.float32]:
        """(n, B, n_items) float32 probabilities of the users in a group of slots."""
        users = self.core.state.users[rows]
        if rows.start >= len(self._stored):
            return self._predict(users)
        stored, known = self._stored[rows], self._users[rows]
        changed = np.flatnonzero(known != users)
        if changed.size:
            stored[changed] = self._predict(users[changed])
            known[:] = users
        return stored

    def _predict(self, users: NDArray[np.int32]) -> NDArray[np.float32]:
        """(n, B, n_items) float32 probabilities of some users."""
        items = np.arange(self.core.groups.n_items)
        answers = self.predictor.begin(len(users), self.core.engine)
        answers.reset(np.ones(len(users), dtype=bool), users)
        return answers.feedback(np.tile(items, (len(users), 1))).swapaxes(1, 2)


def as_actions(value: Any, shape: tuple[int, ...]) -> Actions:
    """Turns whatever is array-like into an array of actions, here alone in all environments.

    Args:
        value: An array, or nested lists of numbers.
        shape: Of the action space.

    Returns:
        An array of that shape, of any dtype: it and the values are the action's kind to check.

    Raises:
        InvalidActionError: It is no array, or of another shape.
    """
    try:
        actions = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # as torch's tensors do
        raise InvalidActionError(
            f"Actions must be an array of shape {shape}, got {str(value)[:80]}: {error}"
        ) from error
    if actions.shape != shape:
        raise InvalidActionError(
            f"Actions must have shape {shape}, got {actions.shape}: the environment's option "
            "action_type says what an action is."
        )
    return actions


def as_vectors(actions: Actions) -> NDArray[np.float32]:
    """Returns actions of a ``Box(-1, 1)`` as float32.

    Raises:
        InvalidActionError: They are no floats, not finite, or out of range.
    """
    if actions.dtype.kind != "f":
        raise InvalidActionError(f"A continuous action must be floats, got {actions.dtype}.")
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
