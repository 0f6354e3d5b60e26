"""Factor model of what users prefer, and the belief about every user that it gives.

The score of a user and an item is linear in what is not known of the user,

    s = m + b + q_i + <p, v_i>     [+ g * popularity_i, where the platform chose the item],

theta = (b, g, p) being Gaussian given the user's features, and an item's (q, v) given its own. A
score is seen in two ways:

* by the answer: a yes has the log-odds s; a share that was watched is a monotone map of
  s + noise, its largest value all that lies above (a censored normal score);
* by where the rows of a log lie: with an item's share of all rows as the base, it is in a user's
  log with a weight proportional to exp(c <p, v_i>). To second order that is Gaussian evidence about
  p, whose information grows with the n rows of a log like n / (1 + excess * n): logs of one taste
  differ by more than chance.

g, the sway of popularity on answers, is a nuisance: it is estimated and left out of the belief. In
a log of positives alone only places tell; c is then given by the assumption of
:mod:`~kuaisim_gym.simulator.positives` on how much of them is exposure.

All parameters are estimated by variational expectation maximisation (an empirical-Bayes
probabilistic factorisation) on the rows of train users and on randomised rows; the number of
factors is chosen on hidden rows of held-out train users. Every user is then placed by the own log.
"""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from scipy.special import expit, log_ndtr, ndtr, ndtri

from kuaisim_gym.data.dataset import TrainingData, pair_products
from kuaisim_gym.data.feedback import IntArray, Interactions
from kuaisim_gym.simulator.fit import feature_matrix
from kuaisim_gym.simulator.positives import EXPOSURE_POWER
from kuaisim_gym.simulator.response import FactorModel
from kuaisim_gym.simulator.spectral import leading_item_vectors

RANKS = (8, 4, 2, 1, 0)  # numbers of factors to compare
SWEEPS = 8
LAST_SWEEPS = 3  # of the chosen number, over all train users
PLACING_STEPS = 3  # that place users given the items
HELD_OUT = 10  # every tenth train user chooses the number of factors
FEATURE_RIDGE = 10.0  # users or items that share a value before it has half its say
LEVEL_VARIANCE = 1.0  # of log-odds, by which a session may answer on another level than the log
LINK_POINTS = 1025
LINK_BOUND = 8.0  # scores beyond it count as there
_LEAST_CHANCE = 0.01  # an expected answer is kept this far from 0 and 1
_TINY = 1e-9
_CHUNK = 1 << 16  # rows whose factors are gathered at once: they fit the processor's cache

Vector = NDArray[np.float64]

logger = logging.getLogger(__name__)

PREFERENCE_ARRAYS = (
    "quality", "vectors", "variance", "mean", "covariance", "population_mean",
    "population_covariance", "link",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PreferenceModel:
    """Items, and beliefs about users before a session, with d = 1 + number of factors.

    A user's preference is (level, taste): an answer's score is ``quality + level +
    <taste, vector>`` of its item. Tastes have unit variance over train users,
    the most telling factor first.

    Attributes:
        quality: (n_all_items,) float64, an item's score for a user of zero preference.
        vectors: (n_all_items, d - 1) float64.
        variance: (n_all_items,) float64, of a mean user's score, because items are not known.
        mean: (n_users, d) float64, belief about every user given features and own log.
        covariance: (n_users, d, d) float64.
        population_mean: (n_users, d) float64, belief given the features alone.
        population_covariance: (d, d) float64, the same for all.
        link: (points, 2) float64: expected answer and its slope, at scores spaced evenly from
            ``-LINK_BOUND`` to ``LINK_BOUND``.
    """

    quality: Vector
    vectors: Vector
    variance: Vector
    mean: Vector
    covariance: Vector
    population_mean: Vector
    population_covariance: Vector
    link: Vector

    def __post_init__(self) -> None:
        for name in PREFERENCE_ARRAYS:
            getattr(self, name).setflags(write=False)

    @property
    def dim(self) -> int:
        """d, the level and the factors."""
        return 1 + int(self.vectors.shape[1])

    def expected(self, scores: Vector) -> Vector:
        """Expected answers, in [0, 1], at scores of any shape."""
        grid = np.linspace(-LINK_BOUND, LINK_BOUND, len(self.link))
        return np.asarray(np.interp(scores, grid, self.link[:, 0]))


def fit_preference_model(
    data: TrainingData, rehearsal: FactorModel | None = None
) -> PreferenceModel:
    """Fits the model and places every user.

    Args:
        data: Source of log, randomised rows and features.
        rehearsal: A response model that stands for the one that answers sessions, fitted to train
            users; ``None`` where sessions are answered by real rows. Its users' tastes are
            compared with the beliefs of their logs: the belief about a session is what this
            regression predicts, and as uncertain as it errs.

    Returns:
        The model, which is the same for the same rows.
    """
    train = data.train_users
    held_out = train[HELD_OUT // 2 :: HELD_OUT] if len(train) >= 2 * HELD_OUT else train[:0]
    fit = _Fit(data, np.setdiff1d(train, held_out))
    for _ in range(SWEEPS):
        fit.sweep()
    if len(held_out):
        fit.cut(_choose_rank(fit, data, held_out))
        fit = fit.over(data, train)
        for _ in range(LAST_SWEEPS):
            fit.sweep()
    fit.rotate()
    log = _Evidence.of_log(data.log, fit)
    return _placed(fit, fit.place(log), rehearsal, data)


def _placed(
    fit: _Fit, users: _Beliefs, rehearsal: FactorModel | None, data: TrainingData
) -> PreferenceModel:
    """The model, with beliefs about sessions of all users."""
    seen = np.r_[0, 2 : fit.rank + 2]  # without the sway
    mean, covariance = users.mean[:, seen], users.covariance[:, seen][:, :, seen]
    prior = (fit.user_design @ fit.user_slopes)[:, seen]
    spread = fit.user_spread[np.ix_(seen, seen)].copy()
    if rehearsal is not None and fit.rank:
        relation = _Relation.between(fit, mean, covariance, rehearsal, data)
        mean, covariance = relation(mean, covariance)
        prior, spread = relation(prior, spread)
    if fit.logistic:
        covariance[:, 0, 0] += LEVEL_VARIANCE
        spread[0, 0] += LEVEL_VARIANCE
    taste = (spread + np.atleast_2d(np.cov(prior[fit.learners].T, bias=True)))[1:, 1:]
    variance = fit.quality_variance + np.einsum("nij,ij->n", fit.vector_covariance, taste)
    return PreferenceModel(
        quality=(fit.evidence.levels[-1] if fit.evidence.levels else fit.session_level)
        + fit.quality,
        vectors=fit.vectors.copy(),
        variance=variance,
        mean=mean,
        covariance=(covariance + covariance.swapaxes(1, 2)) / 2.0,  # symmetric to the last bit
        population_mean=prior,
        population_covariance=(spread + spread.T) / 2.0,
        link=fit.link(),
    )


@dataclass(frozen=True, eq=False)
class _Beliefs:
    """Gaussian beliefs about theta = (level, sway, taste) of users.

    Attributes:
        mean: (n_users, D) float64.
        covariance: (n_users, D, D) float64.
    """

    mean: Vector
    covariance: Vector


class _Rows:
    """Pairs of users and items, grouped by user, and weighted sums over them.

    Args:
        rows: The table.
        size: Number of users and of items.
    """

    def __init__(self, rows: Interactions, size: tuple[int, int]) -> None:
        self.users, self.items, self.size = rows.users, rows.items, size
        self.per_user = np.bincount(rows.users, minlength=size[0]).astype(np.float64)
        self._starts = rows.starts(size[0])
        number = np.arange(len(rows), dtype=np.int32 if len(rows) < 2**31 else np.int64)
        # Built from its arrays: the usual constructors would add up rows of the same cell.
        self._by_item = csr_matrix((number, rows.items, self._starts), shape=size).T.tocsr()

    def by_user(self, weight: NDArray[np.float32], columns: Vector) -> Vector:
        """(n_users, m) sums of the items' (n_items, m) columns with (n,) weights."""
        matrix = csr_matrix((weight, self.items, self._starts), shape=self.size)
        return np.asarray(matrix @ columns.astype(np.float32), dtype=np.float64)

    def by_item(self, weight: NDArray[np.float32], columns: Vector) -> Vector:
        """(n_items, m) sums of the users' (n_users, m) columns with (n,) weights."""
        order = self._by_item
        matrix = csr_matrix((weight[order.data], order.indices, order.indptr), shape=order.shape)
        return np.asarray(matrix @ columns.astype(np.float32), dtype=np.float64)


class _Labels(_Rows):
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

    def start(self) -> float:
        """Mean answer, as a score."""
        mean = float(self.answers.mean(dtype=np.float64))
        return float(np.log((mean + 1e-6) / (1.0 - mean + 1e-6)))

    def curvature(self, score: NDArray[np.float32], noise: float) -> _Curvature:
        """The Gaussian that bounds the answers' likelihood from below and touches it at a score.

        Jaakkola & Jordan, Statistics and Computing 2000: with it no step lowers the likelihood.
        """
        size = np.maximum(np.abs(score), np.float32(1e-3))
        information = np.tanh(size / 2) / (2 * size)
        return _Curvature(information, self.answers - np.float32(0.5) - information * score)

    def misfit(self, score: NDArray[np.float32], noise: float) -> tuple[float, float]:
        """Shift of all scores that fits better, and no noise."""
        expected = expit(score)
        slope = float((expected * (1.0 - expected)).mean(dtype=np.float64))
        return float((self.answers - expected).mean(dtype=np.float64)) / max(slope, 1e-3), 0.0

    def loss(self, score: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
        """(n,) -log likelihood of the answers."""
        return np.asarray(np.logaddexp(0.0, score) - self.answers * score)


class _Shares(_Rows):
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
        scale: NDArray[np.float32],
    ) -> None:
        super().__init__(rows, size)
        self.swayed = swayed
        response = rows.response
        below, upto = (np.searchsorted(scale, response, side) for side in ("left", "right"))
        self.scores = _normal_score((below + upto) / 2.0, len(scale)).astype(np.float32)
        self.censored = np.flatnonzero(response >= scale[-1])
        first = np.searchsorted(scale, scale[-1], "left")
        self.ceiling = np.float32(_normal_score(np.float64(first), len(scale)))

    def start(self) -> float:
        """Mean answer, as a score."""
        return float(self.scores.mean(dtype=np.float64))

    def _above(self, score: NDArray[np.float32], noise: float) -> tuple[Vector, Vector]:
        """Distance of censored rows' scores to the ceiling, and the hazard there, in noise."""
        away = (self.ceiling - score[self.censored]).astype(np.float64) / noise**0.5
        hazard = np.exp(-(away**2) / 2.0 - 0.5 * np.log(2.0 * np.pi) - log_ndtr(-away))
        return away, hazard

    def curvature(self, score: NDArray[np.float32], noise: float) -> _Curvature:
        """Second-order expansion of the log-likelihood."""
        information = np.full(len(score), 1.0 / noise, dtype=np.float32)
        residual = (self.scores - score) / np.float32(noise)
        away, hazard = self._above(score, noise)
        residual[self.censored] = hazard / noise**0.5
        information[self.censored] = np.maximum(hazard * (hazard - away), 1e-3) / noise
        return _Curvature(information, residual)

    def misfit(self, score: NDArray[np.float32], noise: float) -> tuple[float, float]:
        """Shift of all scores that fits better, and the mean square of what is left."""
        rest = (self.scores - score).astype(np.float64)
        away, hazard = self._above(score, noise)
        square = rest**2
        rest[self.censored] = hazard * noise**0.5
        square[self.censored] = noise * (1.0 + away * hazard)
        return float(rest.mean()), float(square.mean())

    def loss(self, score: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
        """(n,) -log likelihood of the answers, up to a constant."""
        loss = (self.scores - score) ** 2 / np.float32(2.0 * noise)
        away, _ = self._above(score, noise)
        loss[self.censored] = -log_ndtr(-away) - 0.5 * np.log(2.0 * np.pi * noise)
        return loss


@dataclass(frozen=True, eq=False)
class _Curvature:
    """Gaussian form of answers' likelihood about present scores, row by row.

    Attributes:
        information: (n,) float32, its second derivative, negated.
        residual: (n,) float32, its first derivative.
    """

    information: NDArray[np.float32]
    residual: NDArray[np.float32]


def _normal_score(rank: Vector | np.float64, n: int) -> Vector:
    return np.asarray(ndtri((rank + 0.5) / (n + 1.0)))


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Evidence about users: tables of answers, and the rows whose places tell.

    Attributes:
        answers: The tables, with the level of each.
        levels: (tables,) list, the constant of each table's scores.
        places: The log.
    """

    answers: list[_Labels | _Shares]
    levels: list[float]
    places: _Rows

    @classmethod
    def of_log(cls, log: Interactions, fit: _Fit) -> _Evidence:
        """Evidence of a log, given a fit."""
        answers = [fit.table(log, 1.0)] if log.has_negatives else []
        places = answers[0] if answers else _Rows(log, fit.size)
        return cls(answers, fit.evidence.levels[: len(answers)], places)


class _Fit:
    """Parameters, and the sweeps of variational expectation maximisation that fit them.

    Args:
        data: Source of rows and features.
        learners: The users whose rows are learned from.

    Attributes:
        size: Number of users and of items.
        n_shown: Items of the catalogue, the first ones.
        learners: (n,) int, the users.
        logistic: Whether answers are yes or no.
        evidence: Their rows.
        quality, vectors: Posterior means of items.
        quality_variance, vector_covariance, crossed: Their posterior covariances.
        item_slopes, item_spread: Prior of items, given features.
        user_slopes, user_spread: Prior of users, given features.
        noise: Variance of shares about their scores.
        pull: c, of taste on where rows lie.
        excess: Spread of that between users, beyond chance.
    """

    def __init__(self, data: TrainingData, learners: IntArray) -> None:
        self.size = n_users, n_items = data.n_users, data.n_all_items
        self.n_shown = data.n_items
        self.logistic = data.log.link == "logistic"
        self._scale = np.sort(data.train_log.response)
        count = np.bincount(data.train_log.items, minlength=n_items)
        level = np.log(count + 0.5)
        shown = level[: data.n_items]
        self.popularity = (level - shown.mean()) / (shown.std() or 1.0)
        self._known = count > 0
        plain = np.column_stack([np.ones(n_items), self.popularity])
        self._item_design = _design(plain, feature_matrix(data.item_features, n_items))
        self.user_design = _design(
            np.ones((n_users, 1)), feature_matrix(data.user_features, n_users)
        )
        self._learn_from(data, learners)
        self._answered = bool(self.evidence.answers)
        unit = 1.0 if self.logistic else 0.1
        rank = self.rank = RANKS[0]
        self.vectors: Vector = self._start(data.log.of_users(learners, n_users), data.n_items)
        self.quality: Vector = np.zeros(n_items)
        self.quality_variance: Vector = np.zeros(n_items)
        self.vector_covariance: Vector = np.zeros((n_items, rank, rank))
        self.crossed: Vector = np.zeros((n_items, rank))
        self.item_spread: Vector = np.full(rank + 1, unit)
        self.item_slopes: Vector = np.zeros((self._item_design.shape[1], rank + 1))
        self.user_spread: Vector = np.diag(np.r_[unit, 0.02 * unit, np.full(rank, unit)])
        self.user_slopes: Vector = np.zeros((self.user_design.shape[1], rank + 2))
        self.noise, self.pull, self.excess = 0.6, 1.0, 0.0
        self.session_level = 0.0
        if not self._answered:  # what the log cannot tell, see the module positives
            self.pull = 1.0 / EXPOSURE_POWER
            self.quality = (level - shown.mean()) / self.pull
            self.quality_variance[:] = EXPOSURE_POWER * (1.0 - EXPOSURE_POWER) * shown.var()
            rate = data.positive_rate
            self.session_level = float(np.log(rate / (1.0 - rate)))
        self._users = _Beliefs(
            np.zeros((n_users, rank + 2)),
            np.broadcast_to(self.user_spread, (n_users, rank + 2, rank + 2)),
        )

    def table(self, rows: Interactions, swayed: float) -> _Labels | _Shares:
        """A table of answers."""
        if rows.link == "logistic":
            return _Labels(rows, self.size, swayed)
        return _Shares(rows, self.size, swayed, self._scale)

    def _learn_from(self, data: TrainingData, learners: IntArray) -> None:
        self.learners = learners
        n_users = self.size[0]
        log = data.log.of_users(learners, n_users)
        answers = [self.table(log, 1.0)] if log.has_negatives else []
        places = answers[0] if answers else _Rows(log, self.size)
        if data.randomised is not None:
            others = np.setdiff1d(data.train_users, learners)
            mine = ~np.isin(data.randomised.users, others)
            answers.append(self.table(data.randomised.take(mine), 0.0))
        self.evidence = _Evidence(answers, [table.start() for table in answers], places)

    def over(self, data: TrainingData, learners: IntArray) -> _Fit:
        """The fit, to go on with the rows of other users."""
        levels = self.evidence.levels
        self._learn_from(data, learners)
        self.evidence.levels[:] = levels
        return self

    def _start(self, log: Interactions, n_shown: int) -> Vector:
        """(n_items, rank) leading directions of where the log's rows lie, of unit length."""
        cells = (np.ones(len(log)), (log.users, log.items))
        matrix = csr_matrix(cells, shape=self.size)
        per_user = np.bincount(log.users, minlength=self.size[0])
        count = np.bincount(log.items, minlength=self.size[1])
        # The first direction is that of the counts themselves.
        leading = leading_item_vectors(matrix, per_user, count, self.rank + 1)[:, 1:]
        vectors = np.zeros((self.size[1], self.rank))
        vectors[:, : leading.shape[1]] = leading
        if not log.has_negatives:
            vectors /= np.sqrt((count + 1.0) / len(log))[:, None]
        length = np.sqrt((vectors[:n_shown] ** 2).sum(axis=1).mean())
        return np.asarray(vectors / (length or 1.0))

    def sweep(self) -> None:
        """One round: users given items, items given users, then everything that both share."""
        self._users = self.place(self.evidence, 1)
        self._move_items()
        self._move_user_prior()
        self._move_item_prior()
        self._move_levels()
        if self._answered and self.rank:
            self._move_pull()

    def score(self, table: _Labels | _Shares, level: float, users: _Beliefs) -> NDArray[np.float32]:
        """(n,) scores of a table's rows at the means of users and items."""
        mean, popularity = users.mean.astype(np.float32), self.popularity.astype(np.float32)
        left = np.column_stack([mean[:, 0], table.swayed * mean[:, 1], mean[:, 2:]])
        right = np.column_stack([np.ones(len(popularity), np.float32), popularity, self.vectors])
        right = right.astype(np.float32)
        score = (np.float32(level) + self.quality.astype(np.float32))[table.items]
        for start in range(0, len(score), _CHUNK):
            rows = slice(start, start + _CHUNK)
            score[rows] += pair_products(left, right, table.users[rows], table.items[rows])
        return score

    def place(self, evidence: _Evidence, steps: int = PLACING_STEPS) -> _Beliefs:
        """Beliefs about all users, given items and prior.

        Args:
            evidence: What tells of them.
            steps: Gaussian approximations of their answers.
        """
        users = self._users
        for _ in range(steps):
            precision, pulled = self._of_places(evidence.places)
            inverse = _inverse(self.user_spread)
            precision += inverse
            pulled += (self.user_design @ self.user_slopes) @ inverse
            told = np.zeros_like(precision)
            for table, level in zip(evidence.answers, evidence.levels, strict=True):
                info, shift = self._of_answers(table, level, users)
                told += info
                pulled += shift
            covariance = _inverse(precision + told)
            mean = np.einsum("nij,nj->ni", covariance, pulled)
            users = _Beliefs(mean, covariance)
        if evidence is self.evidence:  # variance of the scores, about which the noise is
            self._spread = float(np.einsum("nij,nji->", covariance, told))
        return users

    def _of_answers(
        self, table: _Labels | _Shares, level: float, users: _Beliefs
    ) -> tuple[Vector, Vector]:
        """Information about users in a table, and its pull on them."""
        score = self.score(table, level, users)
        curve = table.curvature(score, self.noise)
        design = np.column_stack(
            [np.ones(self.size[1]), table.swayed * self.popularity, self.vectors]
        )
        squares = _squares(design, self.vector_covariance)
        cross = design * self.quality[:, None]
        cross[:, 2:] += self.crossed
        sums = table.by_user(curve.information, np.hstack([squares, cross]))
        n = squares.shape[1]
        told = curve.information * (score - np.float32(level)) + curve.residual
        return _square(sums[:, :n], self.rank + 2), table.by_user(told, design) - sums[:, n:]

    def _of_places(self, places: _Rows) -> tuple[Vector, Vector]:
        """Information about users in where their rows lie, and its pull on them."""
        n_users, d = self.size[0], self.rank + 2
        precision, pulled = np.zeros((n_users, d, d)), np.zeros((n_users, d))
        base, weight = self._base, 1.0 / (1.0 + self.excess * places.per_user)
        information = self.pull**2 * places.per_user * weight
        precision[:, 2:, 2:] = information[:, None, None] * base.item_spread
        rest = places.by_user(np.ones(len(places.users), np.float32), self.vectors)
        rest -= places.per_user[:, None] * base.item_mean
        pulled[:, 2:] = (self.pull * weight)[:, None] * rest
        pulled[:, 2:] += information[:, None] * (base.item_spread @ base.user_mean)
        return precision, pulled

    @property
    def _base(self) -> _Base:
        """Means and spreads of vectors and tastes, as the learners' rows weigh them."""
        places, users, k = self.evidence.places, self._users, self.rank
        weight = 1.0 / (1.0 + self.excess * places.per_user)
        one = np.ones(len(places.users), np.float32)
        per_item = places.by_item(one, weight[:, None])[:, 0]
        share, of_user = per_item / per_item.sum(), places.per_user * weight
        of_user = of_user / of_user.sum()
        item_mean, user_mean = share @ self.vectors, of_user @ users.mean[:, 2:]
        vectors, tastes = self.vectors - item_mean, users.mean[:, 2:] - user_mean
        item_spread = vectors.T @ (share[:, None] * vectors)
        item_spread += np.einsum("n,nij->ij", share, self.vector_covariance) + _TINY * np.eye(k)
        user_spread = tastes.T @ (of_user[:, None] * tastes)
        user_spread += np.einsum("n,nij->ij", of_user, users.covariance[:, 2:, 2:])
        return _Base(per_item, weight, item_mean, item_spread, user_mean, user_spread)

    def _move_items(self) -> None:
        """Posterior of items, given users."""
        k, users = self.rank, self._users
        mean, covariance = users.mean, users.covariance
        design = np.column_stack([np.ones(self.size[0]), mean[:, 2:]])
        squares = _squares(design, covariance[:, 2:, 2:])
        cross = []
        for column in (0, 1):  # level and sway, whose parts of a score are not the item's
            part = design * mean[:, column, None]
            part[:, 1:] += covariance[:, 2:, column]
            cross.append(part)
        prior = 1.0 / np.maximum(self.item_spread, 1e-8)
        precision = np.zeros((self.size[1], k + 1, k + 1))
        pulled = (self._item_design @ self.item_slopes) * prior
        n = squares.shape[1]
        for table, level in zip(self.evidence.answers, self.evidence.levels, strict=True):
            score = self.score(table, level, users)
            curve = table.curvature(score, self.noise)
            sums = table.by_item(curve.information, np.hstack([squares, *cross]))
            told = curve.information * (score - np.float32(level)) + curve.residual
            precision += _square(sums[:, :n], k + 1)
            pulled += table.by_item(told, design) - sums[:, n : n + k + 1]
            pulled -= (table.swayed * self.popularity)[:, None] * sums[:, n + k + 1 :]
        told_of_items = precision.copy()
        base, places = self._base, self.evidence.places
        information = self.pull**2 * base.per_item
        precision[:, 1:, 1:] += information[:, None, None] * base.user_spread
        tastes = base.weight[:, None] * (mean[:, 2:] - base.user_mean)
        one = np.ones(len(places.users), np.float32)
        pulled[:, 1:] += self.pull * places.by_item(one, tastes)
        pulled[:, 1:] += information[:, None] * (base.user_spread @ base.item_mean)
        precision += np.diag(prior)
        if not self._answered:  # places alone: the quality is given
            self.vector_covariance = _inverse(precision[:, 1:, 1:])
            self.vectors = np.einsum("nij,nj->ni", self.vector_covariance, pulled[:, 1:])
            return
        inverse = _inverse(precision)
        moved = np.einsum("nij,nj->ni", inverse, pulled)
        self.quality, self.vectors = moved[:, 0], moved[:, 1:]
        self.quality_variance, self.crossed = inverse[:, 0, 0], inverse[:, 1:, 0]
        self.vector_covariance = inverse[:, 1:, 1:]
        self._spread += float(np.einsum("nij,nji->", inverse, told_of_items))

    def _move_user_prior(self) -> None:
        """Prior of users: a regression on their features, and what it leaves."""
        mine, users = self.learners, self._users
        mean = users.mean[mine]
        self.user_slopes = _ridge(self.user_design[mine], mean)
        self.user_slopes[:, 1] = 0.0
        if len(self.evidence.answers) > 1:  # else the mean sway is a part of quality
            self.user_slopes[0, 1] = mean[:, 1].mean()
        rest = mean - self.user_design[mine] @ self.user_slopes
        self.user_spread = users.covariance[mine].mean(axis=0) + rest.T @ rest / len(mine)
        self.user_spread += _TINY * np.eye(self.rank + 2)

    def _move_item_prior(self) -> None:
        """Prior of items: a regression on popularity and features, and what it leaves."""
        known = self._known
        items = np.column_stack([self.quality, self.vectors])
        slopes = _ridge(self._item_design[known], items[known])
        rest = items[known] - self._item_design[known] @ slopes
        spread = (rest**2).mean(axis=0)
        spread[0] += self.quality_variance[known].mean()
        spread[1:] += np.einsum("nii->ni", self.vector_covariance[known]).mean(axis=0)
        self.item_slopes, self.item_spread = slopes, spread

    def _move_levels(self) -> None:
        """Levels of the tables, and the noise of shares."""
        tables, levels = self.evidence.answers, self.evidence.levels
        for number, table in enumerate(tables):
            score = self.score(table, levels[number], self._users)
            shift, square = table.misfit(score, self.noise)
            levels[number] += shift
            if number == 0 and not self.logistic:
                rows = sum(len(one.users) for one in tables)
                self.noise = max(square + self.noise * self._spread / rows, 1e-3)

    def _move_pull(self) -> None:
        """Pull of tastes on rows, and the spread of logs of one taste beyond chance."""
        base, places, users = self._base, self.evidence.places, self._users
        mine = self.learners[places.per_user[self.learners] > 0]
        n, weight = places.per_user[mine], base.weight[mine]
        one = np.ones(len(places.users), np.float32)
        rest = places.by_user(one, self.vectors)[mine] - n[:, None] * base.item_mean
        taste, covariance = users.mean[mine, 2:] - base.user_mean, users.covariance[mine, 2:, 2:]
        size = np.einsum("ni,ij,nj->n", taste, base.item_spread, taste)
        size += np.einsum("nij,ij->n", covariance, base.item_spread)
        information = float((weight * n * size).sum())
        if not information > _TINY:
            return  # nobody's taste differs
        self.pull = float((weight * np.einsum("ni,ni->n", rest, taste)).sum()) / information
        error = rest / n[:, None] - self.pull * taste @ base.item_spread
        square = np.einsum("ni,ij,nj->n", error, _inverse(base.item_spread), error)
        square += self.pull**2 * np.einsum("nij,ij->n", covariance, base.item_spread)
        beyond = np.average(square / self.rank - 1.0 / n, weights=n * weight)
        self.excess = max(float(beyond), 0.0)

    def loss(self, rows: Interactions, users: _Beliefs, levels: list[float]) -> Vector:
        """(n,) -log likelihood of the answers of some rows.

        Of positive rows it is (n_users,) that of their places, to second order as in the fit.
        """
        if levels:
            table = self.table(rows, 1.0)
            return np.asarray(table.loss(self.score(table, levels[0], users), self.noise))
        places, base = _Rows(rows, self.size), self._base
        taste = self.pull * (users.mean[:, 2:] - base.user_mean)
        rest = places.by_user(np.ones(len(rows), np.float32), self.vectors)
        rest -= places.per_user[:, None] * base.item_mean
        size = np.einsum("ni,ij,nj->n", taste, base.item_spread, taste)
        return np.asarray(places.per_user * size / 2.0 - np.einsum("ni,ni->n", rest, taste))

    def rotate(self) -> None:
        """Turns tastes to uncorrelated ones of unit variance.

        Those come first that tell the catalogue's items apart most.
        """
        mine, users, k = self.learners, self._users, self.rank
        taste = users.mean[mine, 2:] - users.mean[mine, 2:].mean(axis=0)
        spread = taste.T @ taste / len(mine) + users.covariance[mine, 2:, 2:].mean(axis=0)
        root = np.linalg.cholesky(spread + _TINY * np.eye(k))
        vectors = self.vectors[: self.n_shown]
        axes = np.linalg.eigh(root.T @ (vectors.T @ vectors) @ root)[1]
        axes = axes[:, ::-1] * np.where(axes[:, ::-1].sum(axis=0) < 0, -1.0, 1.0)
        self._transform(root @ axes)

    def cut(self, rank: int) -> None:
        """Keeps the most telling tastes alone."""
        self.rotate()
        self._transform(np.eye(self.rank)[:, :rank])
        self.rank = rank

    def _transform(self, turn: Vector) -> None:
        """Changes coordinates: vectors v become turn' v, tastes those that score alike."""
        back = np.linalg.pinv(turn).T
        wide, item = (
            np.block(
                [
                    [np.eye(n), np.zeros((n, matrix.shape[1]))],
                    [np.zeros((len(matrix), n)), matrix],
                ]
            )
            for n, matrix in ((2, back), (1, turn))
        )
        self.vectors = self.vectors @ turn
        self.vector_covariance = turn.T @ self.vector_covariance @ turn
        self.crossed = self.crossed @ turn
        self.item_slopes = self.item_slopes @ item
        self.item_spread = np.einsum("ij,i,ij->j", item, self.item_spread, item)
        self.user_slopes = self.user_slopes @ wide
        self.user_spread = wide.T @ self.user_spread @ wide
        self._users = _Beliefs(self._users.mean @ wide, wide.T @ self._users.covariance @ wide)

    def link(self) -> Vector:
        """(points, 2) expected answers, and their slope, at evenly spaced scores."""
        scores = np.linspace(-LINK_BOUND, LINK_BOUND, LINK_POINTS)
        if self.logistic:
            expected = np.asarray(expit(scores))
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(40)
            rank = ndtr(scores[:, None] + np.sqrt(self.noise) * nodes) * len(self._scale)
            rank = np.minimum(rank.astype(np.int64), len(self._scale) - 1)
            expected = self._scale[rank].astype(np.float64) @ (weights / weights.sum())
        expected = np.clip(expected, _LEAST_CHANCE, 1.0 - _LEAST_CHANCE)
        slope = np.maximum(np.gradient(expected, scores), 1e-3)
        return np.column_stack([expected, slope])


@dataclass(frozen=True, eq=False)
class _Base:
    """Rows as they would be without taste: see :attr:`_Fit._base`."""

    per_item: Vector
    weight: Vector
    item_mean: Vector
    item_spread: Vector
    user_mean: Vector
    user_spread: Vector


@dataclass(frozen=True, eq=False)
class _Relation:
    """Taste in a session, as a linear regression on the belief of the log: what to trust it with.

    Attributes:
        slopes: (k, k) float64.
        constant: (k,) float64.
        rest: (k, k) float64, covariance of what the regression leaves, the belief's own apart.
    """

    slopes: Vector
    constant: Vector
    rest: Vector

    @classmethod
    def between(
        cls, fit: _Fit, mean: Vector, covariance: Vector, answering: FactorModel, data: TrainingData
    ) -> _Relation:
        """Compares beliefs with the tastes of a model's users, over the fit's learners."""
        shown, k = slice(0, data.n_items), fit.rank
        own = fit.vectors[shown] - fit.vectors[shown].mean(axis=0)
        theirs = answering.item_factors[shown].astype(np.float64)
        theirs = theirs - theirs.mean(axis=0)
        # Their taste as ours: the one whose scores of all items are nearest.
        turn = np.linalg.solve(own.T @ own + _TINY * np.eye(k), own.T @ theirs)
        factors = answering.user_factors[fit.learners] * answering.slope[0]
        taste, told = factors.astype(np.float64) @ turn.T, mean[fit.learners, 1:]
        centred, aim = told - told.mean(axis=0), taste - taste.mean(axis=0)
        gram = centred.T @ centred
        slopes = np.linalg.solve(gram + 1e-6 * np.trace(gram) * np.eye(k) / k, centred.T @ aim).T
        error = aim - centred @ slopes.T
        own_error = slopes @ covariance[fit.learners, 1:, 1:].mean(axis=0) @ slopes.T
        values, axes = np.linalg.eigh(error.T @ error / len(error) - own_error)
        rest = (axes * np.maximum(values, 0.0)) @ axes.T
        return cls(slopes, taste.mean(axis=0) - slopes @ told.mean(axis=0), rest)

    def __call__(self, mean: Vector, covariance: Vector) -> tuple[Vector, Vector]:
        """Beliefs about sessions, from (n, d) means and (..., d, d) covariances of logs."""
        d = mean.shape[1]
        wide = np.eye(d)
        wide[1:, 1:] = self.slopes
        moved, spread = mean @ wide.T, wide @ covariance @ wide.T
        moved[:, 1:] += self.constant
        spread[..., 1:, 1:] += self.rest
        return moved, spread


def _choose_rank(fit: _Fit, data: TrainingData, held_out: IntArray) -> int:
    """The number of factors that predicts hidden rows of held-out users best."""
    log = data.log.of_users(held_out, fit.size[0])
    hidden = np.random.default_rng(0).random(len(log)) < 0.5
    if hidden.all() or not hidden.any():
        return RANKS[0]
    losses = {}
    fit.rotate()
    for rank in RANKS:
        trial = copy(fit)
        trial.cut(rank)
        seen, check = log.take(~hidden), log.take(hidden)
        evidence = _Evidence.of_log(seen, trial)
        users = trial.place(evidence)
        losses[rank] = float(trial.loss(check, users, evidence.levels).mean())
    best = min(losses, key=losses.__getitem__)
    logger.info("Loss of hidden rows by number of factors: %s", losses)
    return best


def _squares(design: Vector, covariance: Vector) -> Vector:
    """(n, D (D + 1) / 2) expected products of uncertain (n, D) rows, upper triangles.

    Args:
        design: Their means.
        covariance: (n, k, k), of the last k columns.
    """
    first, second = np.triu_indices(design.shape[1])
    products = design[:, first] * design[:, second]
    known = design.shape[1] - covariance.shape[1]
    uncertain = first >= known
    products[:, uncertain] += covariance[:, first[uncertain] - known, second[uncertain] - known]
    return products


def _square(upper: Vector, d: int) -> Vector:
    """(n, d, d) symmetric matrices, from their upper triangles."""
    first, second = np.triu_indices(d)
    matrix = np.empty((len(upper), d, d))
    matrix[:, first, second] = upper
    matrix[:, second, first] = upper
    return matrix


def _inverse(matrix: Vector) -> Vector:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _design(plain: Vector, features: csr_matrix | None) -> csr_matrix:
    """(n, m) sparse: some columns, and the features if there are any."""
    return csr_matrix(plain) if features is None else hstack([csr_matrix(plain), features], "csr")


def _ridge(design: csr_matrix, target: Vector) -> Vector:
    """Ridge regression."""
    gram = (design.T @ design).toarray() + FEATURE_RIDGE * np.eye(design.shape[1])
    return np.asarray(np.linalg.solve(gram, design.T @ target))
