"""Metrics by user: classes of users, and those who are served worst."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.metrics.sessions import FloatArray, Sessions

CLASSES = ("low", "middle", "high")
WORST = 0.1  # share of the sessions that count as the worst

Classes = NDArray[np.integer]


def log_rows(users: NDArray[np.integer], n_users: int) -> FloatArray:
    """(n_users,) float64: rows of each user in a log, a measure of activity.

    Args:
        users: (n_rows,) positions of the log's users.
        n_users: U.
    """
    return np.bincount(users, minlength=n_users).astype(np.float64)


def popular_taste(
    users: NDArray[np.integer],
    items: NDArray[np.integer],
    popular: NDArray[np.bool_],
    n_users: int,
) -> FloatArray:
    """(n_users,) float64: popular share of each user's rows in a log, NaN for a user without any.

    Args:
        users: (n_rows,) positions of the log's users.
        items: (n_rows,) positions of its items; those outside the catalogue do not count.
        popular: (n_items,) bool, the popular group.
        n_users: U.
    """
    rows = items < len(popular)
    shown = np.bincount(users[rows], minlength=n_users)
    liked = np.bincount(users[rows], weights=popular[items[rows]], minlength=n_users)
    with np.errstate(invalid="ignore"):
        return np.asarray(liked / shown)


def user_classes(values: FloatArray, population: NDArray[np.integer]) -> Classes:
    """(n_users,) int64 thirds of a population by value: 0 low, 1 middle, 2 high, -1 for no class.

    Users of equal value are in one class, that of the middle one of them, so that classes can
    differ in size.

    Args:
        values: (n_users,) floats, NaN where a user has none.
        population: Positions of the users that are divided, such as the test users.
    """
    members = population[~np.isnan(values[population])]
    ordered = np.sort(values[members])
    ahead = np.searchsorted(ordered, values[members], "left")
    ahead_or_equal = np.searchsorted(ordered, values[members], "right")
    classes = np.full(len(values), -1)
    classes[members] = len(CLASSES) * (ahead + ahead_or_equal) // (2 * len(members))
    return classes


def worst_mean(
    values: FloatArray | NDArray[np.int64], share: float = WORST, weight: FloatArray | None = None
) -> float:
    """Mean of the lowest ``share`` of values, of which one counts in part where need be.

    Also called expected shortfall. It does not depend on the number of values.

    Args:
        values: (S,) numbers.
        share: In (0, 1].
        weight: (S,) multiplicities, all 1 if ``None``.
    """
    order = np.argsort(values, kind="stable")
    mass = np.ones(len(values)) if weight is None else weight[order]
    budget = share * mass.sum()
    below = np.cumsum(mass) - mass
    counted = np.clip(budget - below, 0.0, mass)
    return float(counted @ values[order] / budget)


def summarise_users(sessions: Sessions, classes: Mapping[str, Classes]) -> dict[str, float]:
    """Len and R_each of each class of users, and of the worst tenth of sessions.

    Args:
        sessions: Finished sessions.
        classes: By name, such as ``"activity"``, the (n_users,) classes of :func:`user_classes`.

    Returns:
        ``len_activity_low`` and so on, NaN for a class without sessions; ``len_worst`` and
        ``r_each_worst``, the means of :func:`worst_mean`.
    """
    reward = sessions.rewards.sum(axis=1)
    summary = {
        "len_worst": worst_mean(sessions.length),
        "r_each_worst": worst_mean(reward / sessions.length),
    }
    for name, labels in classes.items():
        label = labels[sessions.users]
        for number, level in enumerate(CLASSES):
            rows = label == number
            steps = sessions.length[rows].sum()
            n_sessions = np.count_nonzero(rows)
            key = f"{name}_{level}"
            summary[f"len_{key}"] = float(steps / n_sessions) if n_sessions else float("nan")
            summary[f"r_each_{key}"] = float(reward[rows].sum() / steps) if steps else float("nan")
    return summary
