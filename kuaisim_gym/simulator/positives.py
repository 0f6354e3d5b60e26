"""Response model of a log of positives alone.

A pair without a row was answered no, or was never shown, and the log cannot tell which. Three
assumptions take the place of what it does not say:

* A pair was shown in proportion to the square roots of its user's and its item's positives
  (:data:`EXPOSURE_POWER`): half of what makes a count large, in logarithms, is exposure, and the
  other half that more is liked.
* The share of positives among all exposures is a given number, ``Dataset.positive_rate``.
* Beside that, a pair without a row is a negative that weighs as much as the number of positives
  that it would have without any taste, ``n_user * n_item / n``: an absent popular item in the log
  of an active user is a surer negative than an absent rare one.

The taste is then a weighted implicit factorisation over all pairs (Hu, Koren & Volinsky, ICDM
2008), its weights of absent pairs of rank one (He et al., SIGIR 2016), so that alternating ridge
regressions need one Gram matrix a side: with weights ``w = n_user * n_item / n`` it minimises
``sum w (x / w - 1 - <p, q>)^2 + ridge (|p|^2 + |q|^2)`` over all pairs, x being 1 where there is a
row. Without the ridge this is correspondence analysis.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit, logsumexp

from kuaisim_gym.data.dataset import TrainingData, pair_products
from kuaisim_gym.data.feedback import Interactions, LabelLog
from kuaisim_gym.simulator.response import FactorModel
from kuaisim_gym.simulator.spectral import leading_item_vectors

RANK = 16
EXPOSURE_POWER = 0.5  # of counts of positives, to which exposures are proportional
SWEEPS = 8
RIDGES = (64.0, 32.0, 16.0, 8.0)  # to compare, on held-out rows, with effects alone
SLOPES = (0.5, 0.75, 1.0)  # of the factors in log-odds
VALIDATION_SHARE = 0.1
_MOST_USERS = 512  # by whose rows models are compared, and whose pairs calibrate the level
_REDRAWS = 10  # of negatives that fell on positives
_USERS = 128  # whose scores of all items are held at once

Vector = NDArray[np.float64]

logger = logging.getLogger(__name__)


def fit_positive_model(
    train: Interactions,
    everyone: Interactions,
    size: tuple[int, int],
    positive_rate: float,
    seed: int = 0,
) -> FactorModel:
    """Fits effects and, where held-out rows are predicted better with them, factors.

    Args:
        train: Rows that items are learned from, all positive.
        everyone: Rows that users are placed by; ``train`` is normally a part of them.
        size: Number of user and of item positions.
        positive_rate: Share of positives among the exposures, in (0, 1): the mean probability over
            pairs as the exposures are assumed.
        seed: Seed of the validation split.

    Returns:
        A logistic factor model. Users without rows have an effect as if they had half a row, and
        no factors; items likewise.
    """
    held_out = np.random.default_rng(seed).random(len(train)) < VALIDATION_SHARE
    if held_out.all():
        held_out[:] = False  # too few rows to hold any out
    slope, ridge = _choose(train.take(~held_out), train.take(held_out), size)
    users, items = np.zeros((size[0], 0)), np.zeros((size[1], 0))
    if slope:
        items = _Factors(train, size).items(ridge)
        users = slope * _Factors(everyone, size).users(items, ridge, _counts(train, size)[1])
    effects = [
        (1.0 - EXPOSURE_POWER) * (np.log(count + 0.5) - np.log(count.mean() + 0.5))
        for count in (_counts(everyone, size)[0], _counts(train, size)[1])
    ]
    mean = _level(train, effects, (users, items), positive_rate)
    return FactorModel(
        behaviours=train.behaviours,
        logistic=True,
        mean=np.array([mean], dtype=np.float32),
        slope=np.ones(1, dtype=np.float32),
        user_effect=effects[0][None].astype(np.float32),
        item_effect=effects[1][None].astype(np.float32),
        user_factors=users.astype(np.float32),
        item_factors=items.astype(np.float32),
    )


def with_taste(model: FactorModel, taste: FactorModel, rows: Interactions) -> FactorModel:
    """Adds the taste that a log of positives tells to a model of few labels.

    Args:
        model: Logistic model of the labels; one that has factors is returned as it is.
        taste: The log's model, whose factors are taken over.
        rows: The labels, by which the factors' slope is chosen.

    Returns:
        The model with the log's factors, in the proportion that the labels confirm.
    """
    if model.user_factors.shape[1] or not taste.user_factors.shape[1]:
        return model
    from scipy.optimize import brentq  # only fits need it, and it is slow to import

    offset = model.logits(rows.users, rows.items)[:, 0].astype(np.float64)
    product = pair_products(taste.user_factors, taste.item_factors, rows.users, rows.items)

    def gradient(slope: float) -> float:
        return float(product @ (rows.response - expit(offset + slope * product)))

    low, high = 0.0, 2.0
    if gradient(low) <= 0.0:
        return model
    slope = high if gradient(high) >= 0.0 else float(brentq(gradient, low, high, xtol=1e-4))
    return replace(
        model,
        slope=np.array([slope], dtype=np.float32),
        user_factors=taste.user_factors,
        item_factors=taste.item_factors,
    )


def exposures_behind(data: TrainingData) -> Vector:
    """(n_all_items,) exposures of each item behind the train log.

    They are its rows; where it holds positives alone, those that :mod:`this module
    <kuaisim_gym.simulator.positives>` assumes, and at least the positives.
    """
    count = np.bincount(data.train_log.items, minlength=data.n_all_items).astype(np.float64)
    if data.train_log.has_negatives:
        return count
    weight = (count + 0.5) ** EXPOSURE_POWER
    total = len(data.train_log) / data.positive_rate
    return np.asarray(np.maximum(count, total * weight / weight.sum()))


def answers_behind(data: TrainingData, seed: int = 0) -> Interactions:
    """Rows with both answers: the train log, or its positives beside drawn negatives.

    Negatives are pairs without a row, drawn as exposures are assumed, repeatedly too, as many as
    ``positive_rate`` demands: for models that need them as rows.

    Args:
        data: Source of the train log.
        seed: Of the draws.
    """
    log = data.train_log
    if log.has_negatives:
        return log
    rng = np.random.default_rng(seed)
    n_negative = round(len(log) * (1.0 / data.positive_rate - 1.0))
    logged = log.users.astype(np.int64) * data.n_all_items + log.items
    shares = []
    for column, size in ((log.users, data.n_users), (log.items, data.n_all_items)):
        count = np.bincount(column, minlength=size).astype(np.float64)
        weight = np.where(count > 0, (count + 0.5) ** EXPOSURE_POWER, 0.0)
        shares.append(weight / weight.sum())
    pairs = np.empty(0, dtype=np.int64)
    for _ in range(_REDRAWS):
        missing = n_negative - len(pairs)
        users, items = (rng.choice(len(share), missing, p=share) for share in shares)
        drawn = users * data.n_all_items + items
        pairs = np.concatenate([pairs, drawn[~np.isin(drawn, logged)]])
    owners, shown = (half.astype(np.int32) for half in np.divmod(pairs, data.n_all_items))
    negatives = LabelLog(owners, shown, np.zeros(len(pairs), np.uint8))
    negatives = negatives.take(np.argsort(owners, kind="stable"))
    return LabelLog(log.users, log.items, np.ones(len(log), np.uint8)).merged(negatives)


def _counts(rows: Interactions, size: tuple[int, int]) -> tuple[Vector, Vector]:
    """Numbers of positives of each user and of each item, as floats."""
    users, items = (
        np.bincount(owner, minlength=n).astype(np.float64)
        for owner, n in zip((rows.users, rows.items), size, strict=True)
    )
    return users, items


@dataclass(frozen=True, eq=False)
class _Factors:
    """The alternating ridge regressions on one table.

    Attributes:
        rows: The positives.
        size: Number of users and of items.
    """

    rows: Interactions
    size: tuple[int, int]

    @property
    def _matrix(self) -> csr_matrix:
        cells = (np.ones(len(self.rows)), (self.rows.users, self.rows.items))
        return csr_matrix(cells, shape=self.size)

    def items(self, ridge: float) -> Vector:
        """(n_items, rank) factors."""
        matrix = self._matrix
        transposed = matrix.T.tocsr()
        user_count, item_count = _counts(self.rows, self.size)
        # The first direction is that of the counts themselves, which the effects have.
        start = leading_item_vectors(matrix, user_count, item_count, RANK + 1)[:, 1:]
        items = start / np.sqrt((item_count + 1.0) / len(self.rows))[:, None]
        for _ in range(SWEEPS):
            users = _ridge(matrix @ items, user_count, items, item_count, ridge)
            items = _ridge(transposed @ users, item_count, users, user_count, ridge)
        return items

    def users(self, items: Vector, ridge: float, item_count: Vector) -> Vector:
        """(n_users, rank) factors, given the items' and the counts that weigh them."""
        count = _counts(self.rows, self.size)[0]
        return _ridge(self._matrix @ items, count, items, item_count, ridge)


def _ridge(
    sums: Vector, count: Vector, other_side: Vector, other_count: Vector, ridge: float
) -> Vector:
    """(n, rank) ridge regressions of one side on the factors of the other.

    Args:
        sums: (n, rank) sums of the other side's factors over each one's rows.
        count: (n,) numbers of rows.
        other_side: (m, rank) factors.
        other_count: (m,) numbers of rows.
        ridge: Pull towards zero.
    """
    weight = other_count / other_count.sum()
    values, axes = np.linalg.eigh(other_side.T @ (weight[:, None] * other_side))
    excess = sums - count[:, None] * (weight @ other_side)
    return np.asarray(((excess @ axes) / (count[:, None] * values + ridge)) @ axes.T)


def _choose(fit: Interactions, check: Interactions, size: tuple[int, int]) -> tuple[float, float]:
    """Slope and ridge that predict best which items held-out rows are of; slope 0 for no factors.

    Factors must beat effects by more than chance: by two standard errors of the difference.
    """
    if not len(check) or min(len(np.unique(fit.users)), len(np.unique(fit.items))) < 2:
        return 0.0, RIDGES[0]
    item_count = _counts(fit, size)[1]
    chosen = check.distinct_users
    check = check.of_users(chosen[:: -(-len(chosen) // _MOST_USERS)], size[0])
    none = np.zeros((size[0], 1)), np.zeros((size[1], 1))
    base = place_losses(*none, item_count, check)[0]
    best, lowest = (0.0, RIDGES[0]), float(base.mean())
    problem = _Factors(fit, size)
    for ridge in RIDGES:
        items = problem.items(ridge)
        users = problem.users(items, ridge, item_count)
        for slope, losses in zip(
            SLOPES, place_losses(users, items, item_count, check, SLOPES), strict=True
        ):
            error = (base - losses).std() / np.sqrt(len(losses))
            loss = float(losses.mean())
            if loss < min(lowest, float(base.mean() - 2.0 * error)):
                best, lowest = (slope, ridge), loss
    logger.info("Held-out loss: effects alone %.5f, chosen %.5f", base.mean(), lowest)
    return best


def place_losses(
    users: Vector,
    items: Vector,
    item_count: NDArray[np.floating] | NDArray[np.integer],
    check: Interactions,
    slopes: tuple[float, ...] = (1.0,),
) -> Vector:
    """Losses of where positive rows lie.

    Users are compared with nobody else: how active they are, and the level, do not count.

    Args:
        users: (n_users, k) factors.
        items: (n_items, k) factors.
        item_count: (n_items,) numbers of rows, which the probabilities are proportional to but for
            taste.
        check: The n rows.
        slopes: Of the factors in log-odds.

    Returns:
        (slopes, n) -log of the probability that a user's positive is of a row's item, no other.
    """
    losses = np.empty((len(slopes), len(check)))
    chosen, row_user = np.unique(check.users, return_inverse=True)
    level = np.log(item_count + 0.5).astype(np.float32)
    users, items = users[chosen].astype(np.float32), items.astype(np.float32)
    for start in range(0, len(chosen), _USERS):
        taste = users[start : start + _USERS] @ items.T
        rows = np.flatnonzero((row_user >= start) & (row_user < start + _USERS))
        local, column = row_user[rows] - start, check.items[rows]
        for number, slope in enumerate(slopes):
            scores = level + np.float32(slope) * taste
            losses[number, rows] = logsumexp(scores, axis=1)[local] - scores[local, column]
    return losses


def _level(
    train: Interactions, effects: list[Vector], factors: tuple[Vector, Vector], rate: float
) -> float:
    """Constant of the log-odds that makes the mean probability over the assumed exposures right."""
    from scipy.optimize import brentq

    users = train.distinct_users[:: -(-len(train.distinct_users) // _MOST_USERS)]
    # Effects are (1 - power) times log counts: this gives exposures as counts to the power.
    shown = [
        np.exp(effect * EXPOSURE_POWER / (1.0 - EXPOSURE_POWER))
        for effect in (effects[0][users], effects[1])
    ]
    shown = [weights / weights.sum() for weights in shown]
    scores = effects[0][users, None] + effects[1] + factors[0][users] @ factors[1].T

    def excess(mean: float) -> float:
        return float(shown[0] @ expit(scores + mean) @ shown[1]) - rate

    return float(brentq(excess, -60.0, 60.0, xtol=1e-6))
