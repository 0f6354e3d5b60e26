"""The difference of two arms after every session, with users as independent units.

A metric is a ratio of sums over the sessions of an arm: Len is steps a session, reward a step is
rewards over steps, the long-tail share is exposures over exposures. By the delta method the
variance of ``R = A / B`` over n users with sums a and b is ``n / (n - 1) sum (a - R b)^2 / B^2``
(Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics", KDD 2018), which is also
the cluster-robust variance of a mean of sessions. It needs no more than sums of squares, so that
one pass gives it after every session.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuaisim_gym.errors import DataFormatError

FloatArray = NDArray[np.float64]


class Estimate(NamedTuple):
    """A difference, treatment less control, that is normal around the true one.

    Attributes:
        effect: The difference.
        variance: Of its sampling error.
    """

    effect: float
    variance: float

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Ends of the fixed-horizon interval, for a number of sessions that was chosen before."""
        radius = NormalDist().inv_cdf(1.0 - alpha / 2.0) * math.sqrt(self.variance)
        return self.effect - radius, self.effect + radius

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference, for a number of sessions that was chosen before."""
        if self.variance == 0.0:
            return float(self.effect == 0.0)
        return math.erfc(abs(self.effect) / math.sqrt(2.0 * self.variance))


class Comparison(NamedTuple):
    """A test after each of its S sessions, in the order of their arrival.

    Attributes:
        control: (S,) float64 metric of the control arm, NaN before its first session.
        treatment: (S,) float64, likewise.
        variance: (S,) float64 variance of their difference, NaN before each arm has two users.
        users: (S, 2) int64 users so far of control and treatment.
    """

    control: FloatArray
    treatment: FloatArray
    variance: FloatArray
    users: NDArray[np.int64]

    @property
    def effect(self) -> FloatArray:
        """(S,) float64: treatment less control."""
        return self.treatment - self.control

    @property
    def last(self) -> Estimate:
        """The difference after all sessions."""
        return Estimate(float(self.effect[-1]), float(self.variance[-1]))


def running_ratio(
    users: NDArray[np.integer], numerator: ArrayLike, denominator: ArrayLike
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """A ratio of sums after each of n sessions, its variance, and the number of users.

    Args:
        users: (n,) whose sessions they are, in the order of arrival.
        numerator: (n,) numbers.
        denominator: (n,) positive numbers.

    Returns:
        (n,) float64 ratios; (n,) float64 variances, NaN for a single user; (n,) int64 users.
    """
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if not len(b):
        return np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)
    centre = a.sum() / b.sum()
    a = a - centre * b  # squares of large sums would cancel out
    order = np.argsort(users, kind="stable")
    is_first = np.empty(len(users), dtype=bool)
    is_first[order] = np.diff(users[order], prepend=users[order[0]] - 1) != 0
    n_users = np.cumsum(is_first)
    a_after, b_after = (_by_user(values, order, is_first) for values in (a, b))
    squares, products, weights = (
        np.cumsum(after - before)
        for after, before in (
            (a_after**2, (a_after - a) ** 2),
            (a_after * b_after, (a_after - a) * (b_after - b)),
            (b_after**2, (b_after - b) ** 2),
        )
    )
    total = np.cumsum(b)
    ratio = np.cumsum(a) / total
    deviation = np.maximum(squares - 2.0 * ratio * products + ratio**2 * weights, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(n_users > 1, n_users / (n_users - 1) * deviation / total**2, np.nan)
    return ratio + centre, variance, n_users


def _by_user(
    values: FloatArray, order: NDArray[np.int64], is_first: NDArray[np.bool_]
) -> FloatArray:
    """(n,) sums of each session's user up to this session, in the order of arrival."""
    sums = np.cumsum(values[order])
    starts = np.flatnonzero(is_first[order])
    before = np.repeat(sums[starts] - values[order[starts]], np.diff(starts, append=len(values)))
    running = np.empty(len(values))
    running[order] = sums - before
    return running


def compare(
    users: NDArray[np.integer],
    treated: NDArray[np.bool_],
    numerator: ArrayLike,
    denominator: ArrayLike,
) -> Comparison:
    """Both arms after each of S sessions.

    Args:
        users: (S,) whose sessions they are, in the order of arrival.
        treated: (S,) bool, sessions of users of the treatment arm.
        numerator: (S,) numbers, such as steps.
        denominator: (S,) positive numbers, such as ones for a mean of sessions.

    Raises:
        DataFormatError: Shapes differ, denominators are not positive, or a user is in both arms.
    """
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if not len(users) or any(np.shape(array) != (len(users),) for array in (users, treated, a, b)):
        shapes = [np.shape(array) for array in (users, treated, a, b)]
        raise DataFormatError(
            f"Sessions must be (S,) arrays of at least one session, got shapes {shapes}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (b > 0).all()):
        raise DataFormatError(
            "A metric needs finite numerators and positive denominators: leave sessions out that "
            "have none."
        )
    if shared := np.intersect1d(users[treated], users[~treated]).tolist():
        raise DataFormatError(
            f"A user must be in one arm, but {len(shared)} are in both, such as {shared[0]}: "
            "assign users, not sessions."
        )
    ratios, variances, counts = [], [], []
    for is_arm in (~treated, treated):
        ratio, variance, n_users = running_ratio(users[is_arm], a[is_arm], b[is_arm])
        latest = np.cumsum(is_arm)  # of the arm's sessions; 0 before the first
        ratios.append(np.concatenate([[np.nan], ratio])[latest])
        variances.append(np.concatenate([[np.nan], variance])[latest])
        counts.append(np.concatenate([[0], n_users])[latest])
    return Comparison(ratios[0], ratios[1], variances[0] + variances[1], np.stack(counts, axis=1))
