"""Quality of a response model on held-out rows, and its calibration by them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.feedback import IntArray, Interactions
from kuaisim_gym.errors import ConfigError

HOLD_OUT_SHARE = 0.1
MEASURES = ("auc", "user_auc", "log_loss", "calibration_error", "mse", "rate", "rows")
_BINS = 20  # of equal size, for the calibration error
_NEWTON_STEPS = 25

FloatArray = NDArray[np.floating]


def last_rows(table: Interactions) -> NDArray[np.bool_]:
    """Marks the last tenth of every user's rows, which a model should predict from the rest.

    Args:
        table: Rows grouped by user, in the order of time; users with less than ten keep all.

    Returns:
        (n,) bool.
    """
    starts = table.starts(int(table.users.max(initial=-1)) + 1)
    position_from_end = starts[table.users + 1] - np.arange(len(table))  # 1 for the last row
    chosen = np.floor(np.diff(starts) * HOLD_OUT_SHARE)
    marked: NDArray[np.bool_] = position_from_end <= chosen[table.users]
    return marked


def platt(logits: FloatArray, positive: FloatArray) -> tuple[float, float]:
    """Scale (one over the temperature) and shift that make log-odds true to held-out rows.

    Logistic regression of the answers on the log-odds (Platt, 1999), by Newton's method with half a
    row's pull towards leaving them as they are.

    Args:
        logits: (n,) log-odds.
        positive: (n,) answers in [0, 1].

    Returns:
        Scale, at least 0.05 so that a useless model keeps its order, and shift.
    """
    design = np.stack([np.asarray(logits, dtype=np.float64), np.ones(len(logits))])
    start = np.array([1.0, 0.0])
    theta = start.copy()
    for _ in range(_NEWTON_STEPS):
        expected = 1.0 / (1.0 + np.exp(-np.clip(theta @ design, -30.0, 30.0)))
        gradient = design @ (positive - expected) - 0.5 * (theta - start)
        information = (design * (expected * (1.0 - expected))) @ design.T + 0.5 * np.eye(2)
        step = np.linalg.solve(information, gradient)
        theta += step / max(1.0, float(np.abs(step).max()))  # at most one unit at a time
        if np.abs(step).max() < 1e-8:
            break
    return max(float(theta[0]), 0.05), float(theta[1])


class UserRanking(NamedTuple):
    """Quality of a ranking of each user's own rows.

    Attributes:
        users: (n,) the users with rows of both kinds, ascending.
        auc: (n,) float64, AUC within each.
        top_quarter: (n,) float64, share of positives among the quarter of the user's rows that
            scores highest, one row at least.
        rate: (n,) float64, share of positives among all of the user's rows.
        left_out: How many users with rows had those of one kind alone, or too few.
    """

    users: IntArray
    auc: NDArray[np.float64]
    top_quarter: NDArray[np.float64]
    rate: NDArray[np.float64]
    left_out: int

    @property
    def gauc(self) -> float:
        """GAUC: the mean AUC within a user, all users alike; NaN if none was judged."""
        return float(self.auc.mean()) if len(self.auc) else float("nan")


def rank_users(
    score: FloatArray, positive: NDArray[np.bool_], users: IntArray, least_rows: int = 2
) -> UserRanking:
    """Judges a ranking within each user's own rows.

    Equal scores share their places: they have their average rank, as if ties were broken at random.

    Args:
        score: (n,) score of each row, in any order of rows.
        positive: (n,) bool, which rows should come first.
        users: (n,) int whose rows they are.
        least_rows: Users with fewer rows are left out, and so are those without both kinds.

    Returns:
        The measures of each user who was judged.

    Raises:
        ConfigError: The scores are not a finite number a row.
    """
    score, users = np.asarray(score), np.asarray(users)
    if score.shape != users.shape or not np.isfinite(score).all():
        raise ConfigError(
            f"scores must be ({len(users)},) finite numbers, one a row, got {score.shape}."
        )
    order = np.lexsort((score, users))
    score, hit = score[order], positive[order].astype(np.float64)
    names, owner, size = np.unique(users[order], return_inverse=True, return_counts=True)
    # Ties are runs of equal scores of a user: [first, end) of the order.
    changes = np.ones(len(owner), dtype=bool)
    changes[1:] = (score[1:] != score[:-1]) | (owner[1:] != owner[:-1])
    run, starts = np.cumsum(changes) - 1, np.flatnonzero(changes)
    first, end = starts[run], np.append(starts[1:], len(owner))[run]

    ends, n_users = np.cumsum(size), len(names)
    hits = np.bincount(owner, hit, n_users)
    judged = (size >= least_rows) & (hits > 0) & (hits < size)
    mean_rank = (first + end + 1) / 2.0 - (ends - size)[owner]
    above = np.bincount(owner, hit * mean_rank, n_users) - hits * (hits + 1.0) / 2.0
    quarter = np.maximum(np.rint(size / 4.0), 1.0)
    top_from = (ends - quarter)[owner]
    share_in_top = np.clip(end - np.maximum(first, top_from), 0.0, None) / (end - first)
    top = np.bincount(owner, hit * share_in_top, n_users)[judged] / quarter[judged]
    left_out, hits, size = int((~judged).sum()), hits[judged], size[judged]
    area = above[judged] / (hits * (size - hits))
    return UserRanking(names[judged], area, top, hits / size, left_out)


def auc(score: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive row scores above a negative one, ties counting half."""
    return rank_users(score, positive, np.zeros(len(score), dtype=np.int32)).gauc


def log_loss(probability: FloatArray, response: FloatArray) -> float:
    """Mean cross-entropy in nats; probabilities are kept 1e-6 away from 0 and 1."""
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-6, 1.0 - 1e-6)
    return float(-np.mean(response * np.log(p) + (1.0 - response) * np.log1p(-p)))


def calibration_error(probability: FloatArray, response: FloatArray) -> float:
    """Mean distance of predicted and observed rate over bins of equally many rows."""
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, min(_BINS, len(order)))
    gaps = [abs(float(probability[rows].mean() - response[rows].mean())) for rows in bins]
    return float(np.average(gaps, weights=[len(rows) for rows in bins]))


def quality(probability: FloatArray, response: FloatArray, users: IntArray) -> dict[str, float]:
    """All measures of one behaviour on held-out rows.

    A row is positive, for the two AUCs, where its response is 1: clicked, or watched to the end.

    Args:
        probability: (n,) predictions in [0, 1].
        response: (n,) answers in [0, 1].
        users: (n,) int32 whose rows they are.

    Returns:
        Each of ``MEASURES``; ``rate`` is that of the answers.
    """
    positive = response >= 1.0
    return {
        "auc": auc(probability, positive),
        "user_auc": rank_users(probability, positive, users).gauc,
        "log_loss": log_loss(probability, response),
        "calibration_error": calibration_error(probability, response),
        "mse": float(np.mean((probability - response) ** 2)),
        "rate": float(np.mean(response)),
        "rows": float(len(response)),
    }


def ranking_quality(
    rows: Interactions, scores: NDArray[np.floating], least_rows: int = 10
) -> dict[str, float]:
    """Quality of a ranking of each user's own rows, on their real answers.

    The summary of :func:`rank_users`. Users are independent: intervals are normal ones over users.

    Args:
        rows: Rows with answers, of any table whose rows were not chosen for their answers, such as
            labelled random exposures. A response of at least .5 is positive.
        scores: (n,) score of each row's item for its user.
        least_rows: Users with fewer rows, or with answers of a single kind, are left out.

    Returns:
        ``"gauc"``, the mean AUC within a user, and ``"top_quarter_rate"``, the share of positives
        among the best quarter of a user's rows, each with ``"_low"`` and ``"_high"``, the bounds of
        the 95 % interval; ``"rate"``, the share of positives that a random order puts into the
        quarter; and ``"users"`` and ``"left_out"``, how many were judged and were not. All but
        these two are NaN if none was judged.

    Raises:
        ConfigError: The scores are not a finite number a row.
    """
    judged = rank_users(scores, rows.is_positive, rows.users, least_rows)
    rate = float(judged.rate.mean()) if len(judged.rate) else float("nan")
    return {
        **_interval("gauc", judged.auc),
        **_interval("top_quarter_rate", judged.top_quarter),
        "rate": rate,
        "users": float(len(judged.users)),
        "left_out": float(judged.left_out),
    }


def _interval(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of the users' values, and the bounds of its 95 % interval; NaN without users."""
    if not len(values):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
