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
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsrm_agents.experiments.power import two_sided_bound
from dsrm_agents.experiments.sessions import FloatArray, check_ratio, check_sessions

_EQUAL = 1e-9  # relative difference at which metrics of users who are all alike are equal


class Estimate(NamedTuple):
    """A difference, treatment less control, that is normal around the true one.

    Attributes:
        effect: The difference.
        variance: Of its sampling error.
    """

    effect: float
    variance: float

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Ends of the fixed-horizon interval, for a number of sessions that was chosen before.

        Raises:
            ConfigError: alpha is outside (0, 1).
        """
        radius = two_sided_bound(alpha) * math.sqrt(self.variance)
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
        variances: (S, 2) float64 variances of control and treatment, NaN before an arm has two
            users, and 0 where its users are all alike.
        users: (S, 2) int64 users so far of control and treatment.
    """

    control: FloatArray
    treatment: FloatArray
    variances: FloatArray
    users: NDArray[np.int64]

    @property
    def effect(self) -> FloatArray:
        """(S,) float64: treatment less control; 0 for what rounding makes of none."""
        same = np.isclose(self.treatment, self.control, rtol=_EQUAL, atol=0.0)
        return np.where(same & (self.variance == 0.0), 0.0, self.treatment - self.control)

    @property
    def variance(self) -> FloatArray:
        """(S,) float64 variance of the difference, NaN before each arm has two users."""
        return self.variances[:, 0] + self.variances[:, 1]

    @property
    def last(self) -> Estimate:
        """The difference after all sessions."""
        return Estimate(float(self.effect[-1]), float(self.variance[-1]))


def running_ratio(
    users: ArrayLike, numerator: ArrayLike, denominator: ArrayLike
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """A ratio of sums after each of n sessions, its variance, and the number of users.

    A variance that is no more than what rounding makes of none is 0.

    Args:
        users: (n,) whose sessions they are, in the order of arrival.
        numerator: (n,) numbers.
        denominator: (n,) positive numbers.

    Returns:
        (n,) float64 ratios; (n,) float64 variances, NaN for a single user; (n,) int64 users.

    Raises:
        DataFormatError: Shapes differ, or values are none of these.
    """
    return ratio_after(*check_ratio(users, numerator, denominator))


def ratio_after(
    users: NDArray[np.int64], numerator: FloatArray, b: FloatArray
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """:func:`running_ratio` of arrays that have been checked."""
    if not len(b):
        return np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)
    centre = numerator.sum() / b.sum()
    a = numerator - centre * b  # squares of large sums would cancel out
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
    deviation = squares - 2.0 * ratio * products + ratio**2 * weights
    error = 4.0 * len(b) * np.finfo(np.float64).eps  # of a sum, relative to its terms
    rounding = error * (squares + ratio**2 * weights) + (error * centre) ** 2 * weights
    deviation = np.where(deviation > rounding, deviation, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(n_users > 1, n_users / (n_users - 1) * deviation / total**2, np.nan)
    return np.cumsum(numerator) / total, variance, n_users


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
    users: ArrayLike, treated: ArrayLike, numerator: ArrayLike, denominator: ArrayLike
) -> Comparison:
    """Both arms after each of S sessions.

    Args:
        users: (S,) ids, numbers or text, whose sessions they are, in the order of arrival.
        treated: (S,) bool, or 0 and 1: sessions of users of the treatment arm.
        numerator: (S,) numbers, such as steps.
        denominator: (S,) positive numbers, such as ones for a mean of sessions.

    Raises:
        DataFormatError: Shapes differ, denominators are not positive, or a user is in both arms.
    """
    owner, treated, a, b = check_sessions(users, treated, numerator, denominator)
    ratios, variances, counts = [], [], []
    for is_arm in (~treated, treated):
        ratio, variance, n_users = ratio_after(owner[is_arm], a[is_arm], b[is_arm])
        latest = np.cumsum(is_arm)  # of the arm's sessions; 0 before the first
        ratios.append(np.concatenate([[np.nan], ratio])[latest])
        variances.append(np.concatenate([[np.nan], variance])[latest])
        counts.append(np.concatenate([[0], n_users])[latest])
    stacked = np.stack(variances, axis=1), np.stack(counts, axis=1)
    return Comparison(ratios[0], ratios[1], *stacked)
