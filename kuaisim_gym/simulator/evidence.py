"""Evidence about what users prefer: tables of answers, and where the rows of a log lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit, log_ndtr, ndtri

from kuaisim_gym.data.feedback import Interactions

Vector = NDArray[np.float64]
RowVector = NDArray[np.float32]  # one value a row: single precision, because rows are many


class Rows:
    """Pairs of users and items, grouped by user, and weighted sums over them.

    Args:
        rows: The table.
        size: Number of users and of items.
    """

    def __init__(self, rows: Interactions, size: tuple[int, int]) -> None:
        self.users, self.items, self.size = rows.users, rows.items, size
        self._starts = rows.starts(size[0])

    @cached_property
    def _by_item(self) -> csr_matrix:
        n = len(self.users)
        number = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
        # Built from its arrays: the usual constructors would add up rows of the same cell.
        return csr_matrix((number, self.items, self._starts), shape=self.size).T.tocsr()

    @property
    def unit_weights(self) -> RowVector:
        """(n,) weights of rows that count alike."""
        return np.ones(len(self.users), dtype=np.float32)

    def among(self, n_items: int) -> Vector:
        """(n_users,) numbers of rows of the first so many items."""
        first = self.items < n_items
        return np.bincount(self.users[first], minlength=self.size[0]).astype(np.float64)

    def by_user(self, weight: RowVector, columns: Vector) -> Vector:
        """(n_users, m) sums of the items' (n_items, m) columns with (n,) weights."""
        matrix = csr_matrix((weight, self.items, self._starts), shape=self.size)
        return np.asarray(matrix @ columns.astype(np.float32), dtype=np.float64)

    def by_item(self, weight: RowVector, columns: Vector) -> Vector:
        """(n_items, m) sums of the users' (n_users, m) columns with (n,) weights."""
        order = self._by_item
        matrix = csr_matrix((weight[order.data], order.indices, order.indptr), shape=order.shape)
        return np.asarray(matrix @ columns.astype(np.float32), dtype=np.float64)


class Labels(Rows):
    """Answers that are yes or no, with a score as log-odds.

    Args:
        rows: The table.
        size: Number of users and of items.
        swayed: 1 where popularity may sway answers, 0 in randomised rows.
    """

    def __init__(self, rows: Interactions, size: tuple[int, int], swayed: float) -> None:
        super().__init__(rows, size)
        self.swayed = swayed
        self.answers = rows.response

    @property
    def total(self) -> float:
        """Sum of the answers."""
        return float(self.answers.sum(dtype=np.float64))

    @staticmethod
    def start(mean: float) -> float:
        """Score of a mean answer."""
        return float(np.log((mean + 1e-6) / (1.0 - mean + 1e-6)))

    def curvature(self, score: RowVector, noise: float) -> Curvature:
        """The Gaussian that bounds the answers' likelihood from below and touches it at a score.

        Jaakkola & Jordan, Statistics and Computing 2000: with it no step lowers the likelihood.
        """
        size = np.maximum(np.abs(score), np.float32(1e-3))
        information = np.tanh(size / 2) / (2 * size)
        return Curvature(information, self.answers - np.float32(0.5) - information * score)

    def misfit(self, score: RowVector, noise: float) -> Vector:
        """(3,) sums over rows: of what is left, of its fall by a shift of scores, and no noise."""
        expected = expit(score)
        slope = (expected * (1.0 - expected)).sum(dtype=np.float64)
        return np.array([(self.answers - expected).sum(dtype=np.float64), slope, 0.0])

    def loss(self, score: RowVector, noise: float) -> RowVector:
        """(n,) -log likelihood of the answers."""
        return np.asarray(np.logaddexp(0.0, score) - self.answers * score)


class Shares(Rows):
    """Answers that are shares: normal scores, of which the largest share is censored.

    Args:
        rows: The table.
        size: Number of users and of items.
        swayed: 1 where popularity may sway answers, 0 in randomised rows.
        scale: (n,) float32, ascending, the shares whose ranks make the scale.
    """

    def __init__(
        self,
        rows: Interactions,
        size: tuple[int, int],
        swayed: float,
        scale: RowVector,
    ) -> None:
        super().__init__(rows, size)
        self.swayed = swayed
        response = rows.response
        below, upto = (np.searchsorted(scale, response, side) for side in ("left", "right"))
        self.scores = _normal_score((below + upto) / 2.0, len(scale)).astype(np.float32)
        self.censored = np.flatnonzero(response >= scale[-1])
        first = np.searchsorted(scale, scale[-1], "left")
        self.ceiling = np.float32(_normal_score(np.float64(first), len(scale)))

    @property
    def total(self) -> float:
        """Sum of the scores."""
        return float(self.scores.sum(dtype=np.float64))

    @staticmethod
    def start(mean: float) -> float:
        """Score of a mean answer, which is one."""
        return mean

    def _above(self, score: RowVector, noise: float) -> tuple[Vector, Vector]:
        """Distance of censored rows' scores to the ceiling, and the hazard there, in noise."""
        away = (self.ceiling - score[self.censored]).astype(np.float64) / noise**0.5
        hazard = np.exp(-(away**2) / 2.0 - 0.5 * np.log(2.0 * np.pi) - log_ndtr(-away))
        return away, hazard

    def curvature(self, score: RowVector, noise: float) -> Curvature:
        """Second-order expansion of the log-likelihood."""
        information = np.full(len(score), 1.0 / noise, dtype=np.float32)
        residual = (self.scores - score) / np.float32(noise)
        away, hazard = self._above(score, noise)
        residual[self.censored] = hazard / noise**0.5
        information[self.censored] = np.maximum(hazard * (hazard - away), 1e-3) / noise
        return Curvature(information, residual)

    def misfit(self, score: RowVector, noise: float) -> Vector:
        """(3,) sums over rows: of what is left, of its fall by a shift, and of its square."""
        rest = (self.scores - score).astype(np.float64)
        away, hazard = self._above(score, noise)
        square = rest**2
        rest[self.censored] = hazard * noise**0.5
        square[self.censored] = noise * (1.0 + away * hazard)
        return np.array([rest.sum(), len(rest), square.sum()])

    def loss(self, score: RowVector, noise: float) -> RowVector:
        """(n,) -log likelihood of the answers, up to a constant."""
        loss = (self.scores - score) ** 2 / np.float32(2.0 * noise)
        away, _ = self._above(score, noise)
        loss[self.censored] = -log_ndtr(-away) - 0.5 * np.log(2.0 * np.pi * noise)
        return loss


@dataclass(frozen=True, eq=False)
class Curvature:
    """Gaussian form of answers' likelihood about present scores, row by row.

    Attributes:
        information: (n,) float32, its second derivative, negated.
        residual: (n,) float32, its first derivative.
    """

    information: RowVector
    residual: RowVector


def _normal_score(rank: Vector | np.float64, n: int) -> Vector:
    return np.asarray(ndtri((rank + 0.5) / (n + 1.0)))


Table = Labels | Shares
