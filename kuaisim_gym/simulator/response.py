"""Response models: probabilities of a user's answers to an item, by position in the dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from kuaisim_gym.data.dataset import Truth, pair_products
from kuaisim_gym.engine import Engine, find_engine
from kuaisim_gym.engine.types import Scores
from kuaisim_gym.simulator.cells import SortedCells
from kuaisim_gym.snapshots import Snapshot
from kuaisim_gym.tensors import open_tensors, save_tensors

FloatArray = NDArray[np.float32]
Index = NDArray[np.integer]

FACTOR_ARRAYS = ("mean", "slope", "user_effect", "item_effect", "user_factors", "item_factors")
_FORMAT = "kuaisim-factor-model-1"


class SessionAnswers(Protocol):
    """Memory of a response model about N running sessions."""

    def reset(self, slots: NDArray[np.bool_], users: Index) -> None:
        """New sessions begin in some slots.

        Args:
            slots: (N,) bool.
            users: Positions of the users of these slots, in slot order.
        """

    def feedback(self, slates: Index) -> FloatArray:
        """Probabilities of every behaviour for (N, K) items: (N, K, B) float32."""

    def observe(self, slates: Index, feedback: FloatArray) -> None:
        """Records answers to (N, K) items: (N, K, B) float32 in [0, 1]."""

    def snapshot(self) -> Snapshot:
        """Copies of all that is remembered, by name."""

    def restore(self, snapshot: Snapshot) -> None:
        """Takes over a :meth:`snapshot` of as many sessions with the same model."""


class ResponseModel(Protocol):
    """Anything that turns (user, item) positions into probabilities.

    Attributes:
        behaviours: Names of the B behaviours; the first is the response.
    """

    behaviours: tuple[str, ...]

    def probability(self, users: Index, items: Index) -> FloatArray:
        """Probability of a positive response, given the user's logged history.

        Args:
            users: Integer positions, broadcastable with ``items``.
            items: Integer positions.

        Returns:
            float32 in [0, 1], of the broadcast shape.
        """

    def feedback(self, users: Index, items: Index) -> FloatArray:
        """As :meth:`probability`, for every behaviour, along a last axis of size B."""

    def begin(self, n_sessions: int, engine: Engine | None = None) -> SessionAnswers:
        """Answers for N sessions, computed by an engine where the model uses one."""


class LogitModel(ResponseModel, Protocol):
    """A response model of yes-or-no behaviours, which can be calibrated."""

    def logits(self, users: Index, items: Index) -> FloatArray:
        """Log-odds of every behaviour, along a last axis of size B."""

    def rescaled(self, scale: FloatArray, shift: FloatArray) -> LogitModel:
        """The model whose log-odds are ``scale * log-odds + shift``, both (B,) float32."""


class MemorylessAnswers(SessionAnswers):
    """Answers of a model without memory of a session.

    Args:
        model: The model.
        n_sessions: N.
    """

    def __init__(self, model: ResponseModel, n_sessions: int) -> None:
        self.model = model
        self.users: NDArray[np.int32] = np.zeros(n_sessions, dtype=np.int32)

    def reset(self, slots: NDArray[np.bool_], users: Index) -> None:
        self.users[slots] = users

    def feedback(self, slates: Index) -> FloatArray:
        return self.model.feedback(self.users[:, None], slates)

    def observe(self, slates: Index, feedback: FloatArray) -> None:
        pass  # there is nothing to remember

    def snapshot(self) -> Snapshot:
        return {"users": self.users.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        self.users[...] = snapshot["users"]


class MemorylessModel(ResponseModel, Protocol):
    """A response model without memory of a session; of one behaviour by default."""

    def feedback(self, users: Index, items: Index) -> FloatArray:
        return self.probability(users, items)[..., None]

    def begin(self, n_sessions: int, engine: Engine | None = None) -> SessionAnswers:
        return MemorylessAnswers(self, n_sessions)


class FactorAnswers(MemorylessAnswers):
    """Answers of a factor model, whose scores an engine computes.

    Attributes:
        scores: The model's arrays.
    """

    def __init__(self, model: FactorModel, n_sessions: int, engine: Engine | None) -> None:
        super().__init__(model, n_sessions)
        self._engine = find_engine() if engine is None else engine
        # Plain arrays: one that is mapped from a file takes a slower way into compiled code.
        arrays = [np.ascontiguousarray(getattr(model, name)) for name in FACTOR_ARRAYS]
        self.scores = Scores(model.logistic, *arrays)
        self._response = model.response

    def feedback(self, slates: Index) -> FloatArray:
        return self._response(self._engine.factor_scores(self.users, slates, *self.scores[1:]))


@dataclass(frozen=True, eq=False)
class FactorModel(MemorylessModel, LogitModel):
    """Effects and a low-rank interaction, at O(rank) per answer.

    The score of behaviour b is ``mean[b] + user_effect[b, u] + item_effect[b, i] + slope[b] *
    <user_factors[u], item_factors[i]>``; the response is the score clipped to [0, 1], or its
    logistic function.

    Attributes:
        behaviours: Names of the B behaviours.
        logistic: Whether scores are log-odds.
        mean: (B,) float32.
        slope: (B,) float32, one for the first behaviour.
        user_effect: (B, n_users) float32.
        item_effect: (B, n_items) float32.
        user_factors: (n_users, rank) float32; rank may be 0.
        item_factors: (n_items, rank) float32.
    """

    behaviours: tuple[str, ...]
    logistic: bool
    mean: FloatArray
    slope: FloatArray
    user_effect: FloatArray
    item_effect: FloatArray
    user_factors: FloatArray
    item_factors: FloatArray

    def probability(self, users: Index, items: Index) -> FloatArray:
        return self.response(self._scores(users, items, 1)[0])

    def feedback(self, users: Index, items: Index) -> FloatArray:
        return self.response(self.logits(users, items))

    def begin(self, n_sessions: int, engine: Engine | None = None) -> SessionAnswers:
        return FactorAnswers(self, n_sessions, engine)

    def logits(self, users: Index, items: Index) -> FloatArray:
        """Scores of every behaviour, along a last axis; log-odds if ``logistic``."""
        return np.stack(self._scores(users, items, len(self.behaviours)), axis=-1)

    def rescaled(self, scale: FloatArray, shift: FloatArray) -> FactorModel:
        return replace(
            self,
            mean=self.mean * scale + shift,
            slope=self.slope * scale,
            user_effect=self.user_effect * scale[:, None],
            item_effect=self.item_effect * scale[:, None],
        )

    def save(self, path: str | Path) -> None:
        """Writes the model as safetensors, completely or not at all."""
        arrays = {name: getattr(self, name) for name in FACTOR_ARRAYS}
        behaviours, logistic = json.dumps(self.behaviours), json.dumps(self.logistic)
        save_tensors(path, _FORMAT, arrays, behaviours=behaviours, logistic=logistic)

    @classmethod
    def load(cls, path: str | Path) -> FactorModel:
        """Reads the file that :meth:`save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or no factor model.
        """
        with open_tensors(path, _FORMAT, "factor model") as file:
            behaviours = tuple(json.loads(file.header["behaviours"]))
            return cls(behaviours, json.loads(file.header["logistic"]), **file.arrays)

    def _scores(self, users: Index, items: Index, count: int) -> list[FloatArray]:
        """Scores of the first ``count`` behaviours."""
        shared = pair_products(self.user_factors, self.item_factors, users, items)
        return [
            (self.user_effect[b][users] + self.mean[b])
            + self.item_effect[b][items]
            + self.slope[b] * shared
            for b in range(count)
        ]

    def response(self, score: FloatArray) -> FloatArray:
        """Scores of any shape as answers, float32 in [0, 1]."""
        if self.logistic:
            return np.asarray(expit(score), dtype=np.float32)
        return np.minimum(np.maximum(score, np.float32(0.0)), np.float32(1.0))  # np.clip is slow


@dataclass(frozen=True, eq=False)
class TruthModel(MemorylessModel):
    """A synthetic world's own expected responses.

    Attributes:
        behaviours: The name of the behaviour that the world knows.
        truth: The causes of the world.
    """

    behaviours: tuple[str, ...]
    truth: Truth

    def probability(self, users: Index, items: Index) -> FloatArray:
        return self.truth.expected(users, items)


@dataclass(frozen=True, eq=False)
class NoAnswerModel(MemorylessModel):
    """Answers 0 to everything: stands where nothing is ever asked.

    Attributes:
        behaviours: Names of the behaviours.
    """

    behaviours: tuple[str, ...]

    def probability(self, users: Index, items: Index) -> FloatArray:
        return np.zeros(np.broadcast_shapes(np.shape(users), np.shape(items)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class DeferredModel(MemorylessModel):
    """A model that is fitted when it is first asked.

    Attributes:
        behaviours: Names of the model's behaviours.
        fit: Makes the model.
    """

    behaviours: tuple[str, ...]
    fit: Callable[[], ResponseModel]

    @cached_property
    def _model(self) -> ResponseModel:
        return self.fit()

    def probability(self, users: Index, items: Index) -> FloatArray:
        return self._model.probability(users, items)

    def feedback(self, users: Index, items: Index) -> FloatArray:
        return self._model.feedback(users, items)


@dataclass(frozen=True, eq=False)
class TableModel(MemorylessModel):
    """Looks answers up in a table, and asks another model where a cell is empty.

    Attributes:
        behaviours: The name of the behaviour that was observed.
        rows: (n_users,) int32, each user's row in ``table``; -1 for users without one.
        table: (n_rows, n_items) float32 in [0, 1], dense or not; NaN where nothing was observed.
        fallback: Answers the empty cells.
    """

    behaviours: tuple[str, ...]
    rows: NDArray[np.int32]
    table: FloatArray | SortedCells
    fallback: ResponseModel

    def probability(self, users: Index, items: Index) -> FloatArray:
        answers = self.table[self.rows[users], items]
        empty = np.isnan(answers)
        if empty.any():
            users, items = np.broadcast_arrays(users, items)
            answers[empty] = self.fallback.probability(users[empty], items[empty])
        return answers
