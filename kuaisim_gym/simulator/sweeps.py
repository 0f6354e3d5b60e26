"""Variational sweeps that fit the factor model of :mod:`~kuaisim_gym.simulator.factors`.

A sweep places users given items, items given users, and then moves what all of them share: the
priors given features, the levels of the tables, and the pull of tastes on where rows lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

from kuaisim_gym.data.dataset import TrainingData, pair_products
from kuaisim_gym.data.feedback import IntArray, Interactions
from kuaisim_gym.simulator.evidence import Labels, Rows, RowVector, Shares, Table
from kuaisim_gym.simulator.fit import feature_matrix
from kuaisim_gym.simulator.positives import EXPOSURE_POWER, place_losses
from kuaisim_gym.simulator.shards import Evidence, Shards, item_ranges, leading_vectors

PLACING_STEPS = 3  # that place users given the items
FEATURE_RIDGE = 10.0  # users or items that share a value before it has half its say
TINY = 1e-9
_CHUNK = 1 << 16  # rows whose factors are gathered at once: they fit the processor's cache

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Beliefs:
    """Gaussian beliefs about theta = (level, sway, taste) of users.

    Attributes:
        mean: (n_users, D) float64.
        covariance: (n_users, D, D) float64.
    """

    mean: Vector
    covariance: Vector


class Fit:
    """Parameters, and the sweeps of variational expectation maximisation that fit them.

    Args:
        data: Source of rows and features.
        learners: The users whose rows are learned from.
        rank: Number of factors.
        folder: Where the rows of large tables go, in shards.

    Attributes:
        size: Number of users and of items.
        n_shown: Items of the catalogue, the first ones.
        learners: (n,) int, the users.
        logistic: Whether answers are yes or no.
        scale: (n,) float32, ascending, the responses of the train log; none of yes or no.
        evidence: The rows of the learners.
        quality, vectors: Posterior means of items.
        quality_variance, vector_covariance, crossed: Their posterior covariances.
        item_slopes, item_spread: Prior of items, given features.
        user_slopes, user_spread: Prior of users, given features.
        noise: Variance of shares about their scores.
        pull: c, of taste on where rows lie.
        excess: Spread of that between users, beyond chance.
    """

    def __init__(
        self, data: TrainingData, learners: IntArray, rank: int, folder: Path | None = None
    ) -> None:
        self.size = n_users, n_items = data.n_users, data.n_all_items
        self._folder = folder
        self.n_shown = data.n_items
        self.logistic = data.log.link == "logistic"
        empty = np.empty(0, np.float32)  # where scores are log-odds
        self.scale = empty if self.logistic else np.sort(data.train_log.response)
        count = np.bincount(data.train_log.items, minlength=n_items)
        level = np.log(count + 0.5)
        shown = level[: data.n_items]
        self.popularity = (level - shown.mean()) / (shown.std() or 1.0)
        self._count = count
        plain = np.column_stack([np.ones(n_items), self.popularity])
        self._item_design = _design(plain, feature_matrix(data.item_features, n_items))
        self.user_design = _design(
            np.ones((n_users, 1)), feature_matrix(data.user_features, n_users)
        )
        self._learn_from(data, learners)
        self._answered = bool(self.evidence.answers)
        self._positive = not data.log.has_negatives
        unit = 1.0 if self.logistic else 0.1
        self.rank = rank
        self.vectors: Vector = self._start()
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
        self._users = Beliefs(
            np.zeros((n_users, rank + 2)),
            np.broadcast_to(self.user_spread, (n_users, rank + 2, rank + 2)),
        )

    def table(self, rows: Interactions, swayed: float, size: tuple[int, int]) -> Table:
        """A table of answers."""
        if rows.link == "logistic":
            return Labels(rows, size, swayed)
        return Shares(rows, size, swayed, self.scale)

    def evidence_of(self, log: Interactions) -> Evidence:
        """Evidence of a log, at the level of the learners' own."""
        answers, places = self._shards(log)
        return Evidence(answers, self.evidence.levels[: len(answers)], places)

    def _shards(
        self, log: Interactions, randomised: Interactions | None = None
    ) -> tuple[list[Shards[Table]], Shards[Any]]:
        """Tables of answers, and the rows whose places tell, all by the same ranges of items."""
        tables = [(log, 1.0)] + ([] if randomised is None else [(randomised, 0.0)])
        counts = [np.bincount(rows.items, minlength=self.size[1]) for rows, _ in tables]
        ranges = item_ranges(np.sum(counts, axis=0))

        def shards(rows: Interactions, make: Callable[..., Any]) -> Shards[Any]:
            return Shards(rows, self.size[0], ranges, make, self._folder)

        answers = [
            shards(rows, lambda shard, size, swayed=swayed: self.table(shard, swayed, size))
            for rows, swayed in tables
            if rows.has_negatives
        ]
        return answers, answers[0] if log.has_negatives else shards(log, Rows)

    def _learn_from(self, data: TrainingData, learners: IntArray) -> None:
        self.learners = learners
        rows = data.randomised
        if rows is not None:
            mine = ~np.isin(rows.users, np.setdiff1d(data.train_users, learners))
            rows = rows.take(mine) if mine.any() else rows
        answers, places = self._shards(data.log.of_users(learners, self.size[0]), rows)
        means = [sum(shard.total for _, shard in table) / table.n_rows for table in answers]
        levels = [table[0].start(mean) for table, mean in zip(answers, means, strict=True)]
        self.evidence = Evidence(answers, levels, places)

    def over(self, data: TrainingData, learners: IntArray) -> Fit:
        """The fit, to go on with the rows of other users."""
        levels = self.evidence.levels
        self._learn_from(data, learners)
        self.evidence.levels[:] = levels
        return self

    def _start(self) -> Vector:
        """(n_items, rank) leading directions of where the log's rows lie, of unit length."""
        places = self.evidence.places
        # The first direction is that of the counts themselves.
        leading = leading_vectors(places, self.rank + 1)[:, 1:]
        vectors = np.zeros((self.size[1], self.rank))
        vectors[:, : leading.shape[1]] = leading
        if self._positive:
            vectors /= np.sqrt((places.per_item + 1.0) / places.n_rows)[:, None]
        length = np.sqrt((vectors[: self.n_shown] ** 2).sum(axis=1).mean())
        return np.asarray(vectors / (length or 1.0))

    def sweep(self) -> None:
        """One round: users given items, items given users, then everything that both share."""
        self._users = self.place(self.evidence, 1)
        self._move_items()
        self._move_user_prior()
        self._move_item_prior()
        self._move_levels()
        self._move_places()

    def score(self, table: Table, level: float, users: Beliefs, items: slice) -> RowVector:
        """(n,) scores of a table's rows, of a range of items, at the means of both sides."""
        mean, popularity = users.mean.astype(np.float32), self.popularity[items].astype(np.float32)
        left = np.column_stack([mean[:, 0], table.swayed * mean[:, 1], mean[:, 2:]])
        level_column = np.ones(len(popularity), np.float32)
        right = np.column_stack([level_column, popularity, self.vectors[items]]).astype(np.float32)
        score = (np.float32(level) + self.quality[items].astype(np.float32))[table.items]
        for start in range(0, len(score), _CHUNK):
            rows = slice(start, start + _CHUNK)
            score[rows] += pair_products(left, right, table.users[rows], table.items[rows])
        return score

    def place(self, evidence: Evidence, steps: int = PLACING_STEPS, trust: float = 1.0) -> Beliefs:
        """Beliefs about all users, given items and prior.

        Args:
            evidence: What tells of them.
            steps: Gaussian approximations of their answers.
            trust: Power of the likelihood of places, in [0, 1].
        """
        users = self._users
        for _ in range(steps):
            precision, pulled = (trust * part for part in self._of_places(evidence.places))
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
            users = Beliefs(mean, covariance)
        if evidence is self.evidence:  # variance of the scores, about which the noise is
            self._spread = float(np.einsum("nij,nji->", covariance, told))
        return users

    def _of_answers(
        self, table: Shards[Table], level: float, users: Beliefs
    ) -> tuple[Vector, Vector]:
        """Information about users in a table, and its pull on them."""
        n_users, d = self.size[0], self.rank + 2
        n = d * (d + 1) // 2
        sums, pulled = np.zeros((n_users, n + d)), np.zeros((n_users, d))
        for items, shard in table:
            score = self.score(shard, level, users, items)
            curve = shard.curvature(score, self.noise)
            popularity = shard.swayed * self.popularity[items]
            design = np.column_stack([np.ones(len(popularity)), popularity, self.vectors[items]])
            squares = _squares(design, self.vector_covariance[items])
            cross = design * self.quality[items, None]
            cross[:, 2:] += self.crossed[items]
            sums += shard.by_user(curve.information, np.hstack([squares, cross]))
            told = curve.information * (score - np.float32(level)) + curve.residual
            pulled += shard.by_user(told, design)
        return _square(sums[:, :n], d), pulled - sums[:, n:]

    def _of_places(self, places: Shards[Any]) -> tuple[Vector, Vector]:
        """Information about users in where their rows lie, and its pull on them."""
        n_users, d = self.size[0], self.rank + 2
        precision, pulled = np.zeros((n_users, d, d)), np.zeros((n_users, d))
        base, weight = self._base, 1.0 / (1.0 + self.excess * places.per_user)
        region = self._region(places)
        information = self.pull**2 * places.per_user * weight
        precision[:, 2:, 2:] = information[:, None, None] * base.item_spread[region]
        rest = places.by_user(self.vectors)
        rest -= places.per_user[:, None] * base.item_mean[region]
        pulled[:, 2:] = (self.pull * weight)[:, None] * rest
        pulled[:, 2:] += information[:, None] * (base.item_spread @ base.user_mean)[region]
        return precision, pulled

    def _region(self, places: Shards[Any]) -> IntArray:
        """(n_users,) int: 1 for users whose rows all lie outside the catalogue, 0 for others.

        Where a dataset keeps all pairs of some users and the catalogue for its sessions, as KuaiRec
        does, these users' logs lie outside, and that they do tells nothing of taste.
        """
        outside = (places.per_user > 0) & (places.among(self.n_shown) == 0)
        return np.asarray(outside, dtype=np.int32)

    @property
    def _base(self) -> _Base:
        """Means and spreads of vectors and tastes, as the learners' rows weigh them."""
        places, users, k = self.evidence.places, self._users, self.rank
        weight = 1.0 / (1.0 + self.excess * places.per_user)
        per_item = places.by_item(weight[:, None])[:, 0]
        share, of_user = per_item / per_item.sum(), places.per_user * weight
        of_user = of_user / of_user.sum()
        outside = np.where(np.arange(len(share)) < self.n_shown, 0.0, share)
        outside = outside / outside.sum() if outside.any() else share
        items = [_moments(by, self.vectors, self.vector_covariance) for by in (share, outside)]
        item_mean = np.stack([mean for mean, _ in items])
        item_spread = np.stack([spread for _, spread in items]) + TINY * np.eye(k)
        user = _moments(of_user, users.mean[:, 2:], users.covariance[:, 2:, 2:])
        return _Base(per_item, weight, item_mean, item_spread, *user)

    def _move_items(self) -> None:
        """Posterior of items, given users."""
        mean, covariance = self._users.mean, self._users.covariance
        design = np.column_stack([np.ones(self.size[0]), mean[:, 2:]])
        columns = [_squares(design, covariance[:, 2:, 2:])]
        for column in (0, 1):  # level and sway, whose parts of a score are not the item's
            product = design * mean[:, column, None]
            product[:, 1:] += covariance[:, 2:, column]
            columns.append(product)
        base = self._base
        for number, items in enumerate(self.evidence.ranges):
            self._move_range(number, items, design, np.hstack(columns), base)

    def _move_range(
        self, number: int, items: slice, design: Vector, columns: Vector, base: _Base
    ) -> None:
        """Posterior of one range of items, those of a shard.

        Args:
            number: The shard.
            items: Its items.
            design: (n_users, 1 + k) means of what scores are linear in.
            columns: (n_users, m) expected products of it, then with level and sway.
            base: Moments of the rows.
        """
        k, users = self.rank, self._users
        prior = 1.0 / np.maximum(self.item_spread, 1e-8)
        pulled = (self._item_design[items] @ self.item_slopes) * prior
        precision = np.zeros((len(pulled), k + 1, k + 1))
        n = columns.shape[1] - 2 * (k + 1)
        for shards, level in zip(self.evidence.answers, self.evidence.levels, strict=True):
            table = shards[number]
            score = self.score(table, level, users, items)
            curve = table.curvature(score, self.noise)
            sums = table.by_item(curve.information, columns)
            told = curve.information * (score - np.float32(level)) + curve.residual
            precision += _square(sums[:, :n], k + 1)
            pulled += table.by_item(told, design) - sums[:, n : n + k + 1]
            popularity = table.swayed * self.popularity[items]
            pulled -= popularity[:, None] * sums[:, n + k + 1 :]
        told_of_items = precision.copy()
        information = self.pull**2 * base.per_item[items]
        precision[:, 1:, 1:] += information[:, None, None] * base.user_spread
        tastes = base.weight[:, None] * (users.mean[:, 2:] - base.user_mean)
        places = self.evidence.places[number]
        pulled[:, 1:] += self.pull * places.by_item(places.unit_weights, tastes)
        pulled[:, 1:] += information[:, None] * (base.user_spread @ base.item_mean[0])
        precision += np.diag(prior)
        if not self._answered:  # places alone: the quality is given
            inverse = _inverse(precision[:, 1:, 1:])
            self.vector_covariance[items] = inverse
            self.vectors[items] = np.einsum("nij,nj->ni", inverse, pulled[:, 1:])
            return
        inverse = _inverse(precision)
        moved = np.einsum("nij,nj->ni", inverse, pulled)
        self.quality[items], self.vectors[items] = moved[:, 0], moved[:, 1:]
        self.quality_variance[items], self.crossed[items] = inverse[:, 0, 0], inverse[:, 1:, 0]
        self.vector_covariance[items] = inverse[:, 1:, 1:]
        self._spread += float(np.einsum("nij,nji->", inverse, told_of_items))

    def _move_user_prior(self) -> None:
        """Prior of users: a regression on their features, and what it leaves."""
        mine, users = self.learners, self._users
        mean = users.mean[mine]
        self.user_slopes = _ridge(self.user_design[mine], mean)
        self.user_slopes[:, 1] = 0.0
        if len(self.evidence.answers) > 1:  # else the mean sway is a shard of quality
            self.user_slopes[0, 1] = mean[:, 1].mean()
        rest = mean - self.user_design[mine] @ self.user_slopes
        self.user_spread = users.covariance[mine].mean(axis=0) + rest.T @ rest / len(mine)
        self.user_spread += TINY * np.eye(self.rank + 2)

    def _move_item_prior(self) -> None:
        """Prior of items: a regression on popularity and features, and what it leaves."""
        known = self._count > 0
        items = np.column_stack([self.quality, self.vectors])
        self.item_slopes = _ridge(self._item_design[known], items[known])
        square = (items[known] - self._item_design[known] @ self.item_slopes) ** 2
        square[:, 0] += self.quality_variance[known]
        square[:, 1:] += np.einsum("nii->ni", self.vector_covariance[known])
        self.item_spread = square.mean(axis=0)
        if self._positive:  # as rows weigh: places of rare items alone would pull them far apart
            self.item_spread[1:] = np.average(square[:, 1:], axis=0, weights=self._count[known])

    def _move_levels(self) -> None:
        """Levels of the tables, and the noise of shares."""
        tables, levels = self.evidence.answers, self.evidence.levels
        for number, table in enumerate(tables):
            misfit = np.zeros(3)
            for items, shard in table:
                score = self.score(shard, levels[number], self._users, items)
                misfit += shard.misfit(score, self.noise)
            rest, slope, square = misfit / table.n_rows
            levels[number] += float(rest) / max(float(slope), 1e-3)
            if number == 0 and not self.logistic:
                rows = sum(one.n_rows for one in tables)
                self.noise = max(float(square) + self.noise * self._spread / rows, 1e-3)

    def _move_places(self) -> None:
        """Pull of tastes on rows, if answers tell it, and the spread of logs of one taste."""
        base, places, users = self._base, self.evidence.places, self._users
        mine = self.learners[places.per_user[self.learners] > 0]
        n, weight = places.per_user[mine], base.weight[mine]
        region = self._region(places)[mine]
        mean, spread = base.item_mean[region], base.item_spread[region]
        rest = places.by_user(self.vectors)[mine] - n[:, None] * mean
        taste, covariance = users.mean[mine, 2:] - base.user_mean, users.covariance[mine, 2:, 2:]
        size = np.einsum("ni,nij,nj->n", taste, spread, taste)
        size += np.einsum("nij,nij->n", covariance, spread)
        information = float((weight * n * size).sum())
        if not information > TINY:
            return  # nobody's taste differs
        if self._answered:
            self.pull = float((weight * np.einsum("ni,ni->n", rest, taste)).sum()) / information
        error = rest / n[:, None] - self.pull * np.einsum("nij,nj->ni", spread, taste)
        square = np.einsum("ni,nij,nj->n", error, _inverse(base.item_spread)[region], error)
        square += self.pull**2 * np.einsum("nij,nij->n", covariance, spread)
        beyond = np.average(square / self.rank - 1.0 / n, weights=n * weight)
        self.excess = max(float(beyond), 0.0)

    def loss(self, rows: Interactions, users: Beliefs, levels: list[float]) -> Vector:
        """(n,) -log likelihood of the answers of some rows; of positive rows, of their places."""
        if levels:
            table = self.table(rows, 1.0, self.size)
            score = self.score(table, levels[0], users, slice(None))
            return np.asarray(table.loss(score, self.noise))
        taste = self.pull * users.mean[:, 2:]
        count = self.evidence.places.per_item
        return np.asarray(place_losses(taste, self.vectors, count, rows)[0])

    def rotate(self) -> None:
        """Turns tastes to uncorrelated ones of unit variance.

        Those come first that tell the catalogue's items apart most.
        """
        mine, users, k = self.learners, self._users, self.rank
        taste = users.mean[mine, 2:] - users.mean[mine, 2:].mean(axis=0)
        spread = taste.T @ taste / len(mine) + users.covariance[mine, 2:, 2:].mean(axis=0)
        root = np.linalg.cholesky(spread + TINY * np.eye(k))
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
        self._users = Beliefs(self._users.mean @ wide, wide.T @ self._users.covariance @ wide)


@dataclass(frozen=True, eq=False)
class _Base:
    """Rows as they would be without taste.

    Attributes:
        per_item: (n_items,) float64 weights of rows.
        weight: (n_users,) float64, of each row of a user.
        item_mean, item_spread: (2, k) and (2, k, k) float64, moments of the rows' vectors:
            anywhere, and outside the catalogue.
        user_mean, user_spread: (k,) and (k, k) float64, moments of the rows' tastes.
    """

    per_item: Vector
    weight: Vector
    item_mean: Vector
    item_spread: Vector
    user_mean: Vector
    user_spread: Vector


def _moments(weight: Vector, mean: Vector, covariance: Vector) -> tuple[Vector, Vector]:
    """(k,) mean and (k, k) spread of uncertain (n, k) rows, with (n,) weights that sum to one."""
    middle = weight @ mean
    rest = mean - middle
    spread = rest.T @ (weight[:, None] * rest) + np.einsum("n,nij->ij", weight, covariance)
    return middle, spread


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
