"""Quality of a response model on held-out rows, and its calibration by them."""

from __future__ import annotations

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


def auc(score: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive row scores above a negative one, ties counting half."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, which, ties = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[which][positive].sum()  # the mean of tied ones
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def per_user_auc(score: FloatArray, positive: NDArray[np.bool_], users: IntArray) -> float:
    """Mean AUC within the users who have both kinds of rows."""
    order = np.argsort(users, kind="stable")
    score, positive = score[order], positive[order]
    ends = np.cumsum(np.bincount(users))
    values = [
        auc(score[start:end], positive[start:end])
        for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True)
        if 0 < positive[start:end].sum() < end - start
    ]
    return float(np.mean(values)) if values else float("nan")


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
        "user_auc": per_user_auc(probability, positive, users),
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

    Measured are the AUC within a user (GAUC is its mean over users) and the share of positives
    among the quarter of a user's rows that scores highest. Ties count as if they were broken at
    random. Users are independent: intervals are normal ones over users.

    Args:
        rows: Rows with answers, of any table whose rows were not chosen for their answers, such as
            labelled random exposures. A response of at least .5 is positive.
        scores: (n,) score of each row's item for its user.
        least_rows: Users with fewer rows, or with answers of a single kind, are left out.

    Returns:
        ``"gauc"`` and ``"top_quarter_rate"``, each with ``"_low"`` and ``"_high"``, the bounds of
        the 95 % interval; ``"rate"``, the share of positives that a random order puts into the
        quarter; and ``"users"``, how many were counted. All NaN if none was.

    Raises:
        ConfigError: The scores are not a finite number a row.
    """
    if scores.shape != (len(rows),) or not np.isfinite(scores).all():
        raise ConfigError(
            f"scores must be ({len(rows)},) finite numbers, one a row, got {scores.shape}."
        )
    order = np.lexsort((scores, rows.users))
    positive = rows.is_positive[order].astype(np.float64)
    starts = rows.starts(int(rows.users.max(initial=-1)) + 1)
    user, start = rows.users, starts[rows.users]
    score = scores[order]
    # Ties are runs of equal scores of a user: [first, end) of the order.
    changes = np.r_[True, (score[1:] != score[:-1]) | (user[1:] != user[:-1])]
    run = np.cumsum(changes) - 1
    first = np.flatnonzero(changes)[run]
    end = np.r_[np.flatnonzero(changes)[1:], len(rows)][run]

    n_users, size = len(starts) - 1, np.diff(starts)
    hits = np.bincount(user, positive, n_users)
    counted = (size >= least_rows) & (hits > 0) & (hits < size)
    if not counted.any():
        names = ["gauc", "gauc_low", "gauc_high", "rate"]
        names += ["top_quarter_rate", "top_quarter_rate_low", "top_quarter_rate_high"]
        return dict.fromkeys(names, float("nan")) | {"users": 0.0}
    mean_rank = (first + end + 1) / 2.0 - start
    above = np.bincount(user, positive * mean_rank, n_users) - hits * (hits + 1.0) / 2.0
    quarter = np.maximum(np.rint(size / 4.0), 1.0)
    top_from = starts[1:][user] - quarter[user]
    share_in_top = np.clip(end - np.maximum(first, top_from), 0.0, None) / (end - first)
    top = np.bincount(user, positive * share_in_top, n_users)[counted] / quarter[counted]
    hits, size, above = hits[counted], size[counted], above[counted]
    return {
        **_interval("gauc", above / (hits * (size - hits))),
        **_interval("top_quarter_rate", top),
        "rate": float(np.mean(hits / size)),
        "users": float(len(hits)),
    }


def _interval(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of the users' values, and the bounds of its 95 % interval."""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
