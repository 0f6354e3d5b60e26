"""Fits the factor model by alternating ridge regressions.

Items are learned from the train users only; every user, test users included, is then a ridge
estimate from its own logged rows given the items. A test user's log therefore places that user
and moves nothing else.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Interactions
from kuaisim_gym.simulator.response import FactorModel

# Rows' worth of pull towards zero: the noise variance, .05, over that of the effects on the real
# rows, .0055 for users and .04 for videos.
USER_RIDGE, ITEM_RIDGE = 9.0, 1.2
RANK = 8
FACTOR_RIDGES = (2.0, 4.0, 8.0)  # tried on held-out rows, beside effects alone
SWEEPS = 6  # alternations; the held-out error is flat from the fifth on
VALIDATION_SHARE = 0.1

Vector = NDArray[np.float64]

logger = logging.getLogger(__name__)


def fit_factor_model(
    train: Interactions, everyone: Interactions, n_users: int, n_items: int, seed: int = 0
) -> FactorModel:
    """Fits effects and, where they predict held-out rows better, low-rank factors.

    Args:
        train: Rows that items are learned from.
        everyone: Rows that users are placed by; ``train`` is normally a part of them.
        n_users: Number of user positions.
        n_items: Number of item positions.
        seed: Seed of the validation split and of the factors' start.

    Returns:
        The model. Users and items without rows get the mean.
    """
    rng = np.random.default_rng(seed)
    held_out = rng.random(len(train)) < VALIDATION_SHARE
    fit_rows, check_rows = train.take(~held_out), train.take(held_out)
    errors: dict[float | None, float] = {}
    if len(fit_rows) and len(check_rows):
        for ridge in (None, *FACTOR_RIDGES):
            model = _fit(fit_rows, fit_rows, n_users, n_items, ridge, seed)
            predicted = model.probability(check_rows.users, check_rows.items)
            errors[ridge] = float(np.mean((predicted - check_rows.response) ** 2))
        logger.info("Held-out squared error by factor ridge (None: effects alone): %s", errors)
    best = min(errors, key=errors.__getitem__) if errors else None
    return _fit(train, everyone, n_users, n_items, best, seed)


def _fit(
    train: Interactions,
    everyone: Interactions,
    n_users: int,
    n_items: int,
    ridge: float | None,
    seed: int,
) -> FactorModel:
    """One fit; ``ridge=None`` leaves the factors out."""
    mean = float(train.response.mean())
    user_effect, item_effect = np.zeros(n_users), np.zeros(n_items)
    for _ in range(SWEEPS):
        rest = train.response - mean - user_effect[train.users]
        item_effect = _effect(train.items, rest, n_items, ITEM_RIDGE)
        rest = train.response - mean - item_effect[train.items]
        user_effect = _effect(train.users, rest, n_users, USER_RIDGE)
    rest = everyone.response - mean - item_effect[everyone.items]
    user_effect = _effect(everyone.users, rest, n_users, USER_RIDGE)

    user_factors, item_factors = np.zeros((n_users, 0)), np.zeros((n_items, 0))
    if ridge is not None:
        start = np.random.default_rng(seed).standard_normal((n_items, RANK)) / np.sqrt(RANK)
        rest = train.response - mean - user_effect[train.users] - item_effect[train.items]
        item_factors = start
        for _ in range(SWEEPS):
            user_factors = _ridge_rows(train.users, train.items, rest, item_factors, n_users, ridge)
            item_factors = _ridge_rows(train.items, train.users, rest, user_factors, n_items, ridge)
        rest = everyone.response - mean - user_effect[everyone.users] - item_effect[everyone.items]
        user_factors = _ridge_rows(
            everyone.users, everyone.items, rest, item_factors, n_users, ridge
        )
    return FactorModel(
        mean,
        user_effect.astype(np.float32),
        item_effect.astype(np.float32),
        user_factors.astype(np.float32),
        item_factors.astype(np.float32),
    )


def _effect(groups: NDArray[np.int32], residual: Vector, n_groups: int, ridge: float) -> Vector:
    """Shrunken mean residual of each group."""
    total = np.bincount(groups, weights=residual, minlength=n_groups)
    shrunken: Vector = total / (np.bincount(groups, minlength=n_groups) + ridge)
    return shrunken


def _ridge_rows(
    groups: NDArray[np.int32],
    others: NDArray[np.int32],
    residual: Vector,
    features: Vector,
    n_groups: int,
    ridge: float,
) -> Vector:
    """One ridge regression a group: residuals on the features of the other side.

    Returns:
        (n_groups, rank) coefficients; zero for groups without rows.
    """
    rank = features.shape[1]
    order = np.argsort(groups, kind="stable")
    sorted_features, sorted_residual = features[others[order]], residual[order]
    counts = np.bincount(groups, minlength=n_groups)
    ends = np.cumsum(counts)
    gram = np.tile(ridge * np.eye(rank), (n_groups, 1, 1))
    target = np.zeros((n_groups, rank))
    for group in np.flatnonzero(counts):
        rows = slice(ends[group] - counts[group], ends[group])
        gram[group] += sorted_features[rows].T @ sorted_features[rows]
        target[group] = sorted_features[rows].T @ sorted_residual[rows]
    return np.asarray(np.linalg.solve(gram, target[..., None])[..., 0], dtype=np.float64)
