"""Response model of watch ratios of which a sample and all likes are known.

A pair that is in neither is known to be no like, and its answer is modelled given that. What tells
of it are the answers of the sample that are no likes, and the matrix of likes, which is complete:
how many likes a user and a video have, and where they stand in its leading directions, are the
prior of effects, and the products of the two the interaction. All of it is linear and fitted by
ridge regressions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from scipy.special import expit, logit

from kuaisim_gym.data.feedback import Interactions
from kuaisim_gym.simulator.fit import LINKS
from kuaisim_gym.simulator.response import FactorModel

RANK = 8  # leading directions of the likes
SWEEPS = 10
PRIOR_RIDGE = 10.0  # rows' worth of no effect of a coordinate on an effect
PRODUCT_RIDGE = 1000.0  # the same of a product of coordinates on a response

Vector = NDArray[np.float64]


def fit_watch_model(
    rows: Interactions, n_items: int, size: tuple[int, int], likes_known: bool = True
) -> FactorModel:
    """Fits the responses below ``complete_from``.

    Args:
        rows: A table with ``complete_from``, all of whose items are of the catalogue.
        n_items: Size of the catalogue.
        size: Number of user and of item positions.
        likes_known: Whether to use the matrix of likes; without it effects alone are left.

    Returns:
        A factor model with the identity link; users without rows have no effect.
    """
    users, row_user = np.unique(rows.users, return_inverse=True)
    like = ~rows.is_sample
    likes = np.zeros((len(users), n_items), dtype=bool)
    likes[row_user[like], rows.items[like]] = True
    answered = rows.take(~like)
    owners: dict[str, NDArray[np.integer]]
    owners = {"user": row_user[~like], "item": answered.items}
    response = answered.response.astype(np.float64)
    coordinates = _coordinates(likes) if likes_known else None
    mean, effects = _effects(response, owners, likes.shape, coordinates)
    factors = {"user": np.zeros((len(users), 0)), "item": np.zeros((n_items, 0))}
    if coordinates is not None:
        residual = response - mean
        for side, owner in owners.items():
            residual -= effects[side][owner]
        left, right = (coordinates[side][owners[side]] for side in owners)
        weights = _products(left, right, residual)
        factors = {"user": coordinates["user"] @ weights, "item": coordinates["item"]}
    user_effect, item_effect = np.zeros((1, size[0])), np.zeros((1, size[1]))
    user_effect[0, users], item_effect[0, :n_items] = effects["user"], effects["item"]
    user_factors = np.zeros((size[0], factors["user"].shape[1]))
    item_factors = np.zeros((size[1], factors["item"].shape[1]))
    user_factors[users], item_factors[:n_items] = factors["user"], factors["item"]
    return FactorModel(
        rows.behaviours,
        False,
        *(
            array.astype(np.float32)
            for array in (
                np.array([mean]),
                np.ones(1),
                user_effect,
                item_effect,
                user_factors,
                item_factors,
            )
        ),
    )


def _coordinates(likes: NDArray[np.bool_]) -> dict[str, Vector]:
    """By side (n, 3 + rank), standardised: powers of the log-odds of a like, and directions.

    The directions are those of the likes less what is expected of their numbers.
    """
    share = (likes.sum() + 0.5) / (likes.size + 1.0)
    odds = {
        side: logit((likes.sum(axis=axis) + 0.5) / (likes.shape[axis] + 1.0))
        for side, axis in (("user", 1), ("item", 0))
    }
    expected = expit(odds["user"][:, None] + odds["item"] - logit(share))
    # A hundredth keeps pairs that almost nobody likes from dominating.
    deviation = (likes - expected) / np.sqrt(expected * (1.0 - expected) + 0.01)
    rank = min(RANK, min(likes.shape) - 1)
    left, _, right = svds(deviation, k=rank, v0=np.ones(min(likes.shape)))
    coordinates = {}
    for side, directions in (("user", left), ("item", right.T)):
        level = _standardised(odds[side][:, None])
        powers = _standardised(np.hstack([level, level**2, level**3]))
        coordinates[side] = np.hstack([powers, _standardised(directions)])
    return coordinates


def _standardised(columns: Vector) -> Vector:
    spread = columns.std(axis=0)
    return np.asarray((columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _effects(
    response: Vector,
    owners: dict[str, NDArray[np.integer]],
    size: tuple[int, int],
    coordinates: dict[str, Vector] | None,
) -> tuple[float, dict[str, Vector]]:
    """Mean and, by side, effects: ridge regressions towards priors linear in the coordinates."""
    link = LINKS["identity"]
    ridge = {"user": link.user_ridge, "item": link.item_ridge}
    sizes = dict(zip(owners, size, strict=True))
    count = {side: np.bincount(owners[side], minlength=n) for side, n in sizes.items()}
    mean = float(response.mean())
    effects = {side: np.zeros(n) for side, n in sizes.items()}
    prior = {side: np.zeros(n) for side, n in sizes.items()}
    for _ in range(SWEEPS):
        for side, opposite in (("item", "user"), ("user", "item")):
            residual = response - mean - effects[opposite][owners[opposite]]
            total = np.bincount(owners[side], residual, len(prior[side]))
            if coordinates is not None:
                # A mean of few rows says little of the effect behind it.
                weight = count[side] / (count[side] + ridge[side])
                design = np.column_stack([np.ones(len(total)), coordinates[side]])
                gram = (design.T * weight) @ design + PRIOR_RIDGE * np.eye(design.shape[1])
                average = total / np.maximum(count[side], 1)
                prior[side] = design @ np.linalg.solve(gram, design.T @ (weight * average))
            effects[side] = (total + ridge[side] * prior[side]) / (count[side] + ridge[side])
    return mean, effects


def _products(left: Vector, right: Vector, residual: Vector) -> Vector:
    """(a, b) ridge weights of the products of (n, a) and (n, b) coordinates in (n,) residuals."""
    products = (left[:, :, None] * right[:, None, :]).reshape(len(residual), -1)
    gram = products.T @ products + PRODUCT_RIDGE * np.eye(products.shape[1])
    weights = np.linalg.solve(gram, products.T @ residual)
    return np.asarray(weights.reshape(left.shape[1], right.shape[1]))
