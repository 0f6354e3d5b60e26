"""Guardrails: what a change must not spoil, whatever it gains.

A guardrail bounds a loss, such as the rise of AD or the fall of what the worst tenth of users gets.
It is kept where the whole interval of the loss is below a margin, broken where all of it is above,
and open else: no verdict of a test that could not have seen the harm. Intervals are those of a
sequential test, so that guardrails may be looked at whenever the test is; like that, they say
nothing before each arm has :attr:`~dsrm_agents.experiments.SequentialTest.least_users` users.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dsrm_agents.experiments.comparison import ratio_after
from dsrm_agents.experiments.sequential import SequentialTest
from dsrm_agents.experiments.sessions import check_sessions
from kuaisim_gym.config import check_within
from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics import worst_mean

WORST = 0.1  # share of the users who are served worst
LEAST_WORST = 5  # users below the quantile, which is no estimate where it is the minimum


class Guardrail(NamedTuple):
    """A bound on a loss of the treatment arm against the control arm.

    Attributes:
        control: The guarded number of the control arm.
        treatment: That of the treatment arm.
        low: Lower end of the loss's interval; a gain is below 0.
        high: Its upper end.
        margin: The largest loss that is put up with.
        verdict: ``"kept"``, ``"broken"`` or ``"open"``.
    """

    control: float
    treatment: float
    low: float
    high: float
    margin: float
    verdict: str


def guard(control: float, treatment: float, low: float, high: float, margin: float) -> Guardrail:
    """A guardrail with the verdict that the interval of its loss allows."""
    verdict = "kept" if high < margin else "broken" if low > margin else "open"
    return Guardrail(control, treatment, low, high, margin, verdict)


def share_guardrail(
    users: ArrayLike,
    treated: ArrayLike,
    popular: ArrayLike,
    exposures: ArrayLike,
    margin: float,
    alpha: float = 0.05,
) -> Guardrail:
    """AD must not rise: |2p - 1| with p the popular share of an arm's exposures.

    At balance AD has a kink, where its estimate is not normal. So each arm has an interval of p at
    half of alpha, which AD maps to an interval of its own; their ends bound the difference.

    Args:
        users: (S,) ids, numbers or text, whose sessions they are.
        treated: (S,) bool, or 0 and 1: sessions of the treatment arm.
        popular: (S,) exposures of popular items.
        exposures: (S,) exposures, positive.
        margin: The rise that is put up with, in (0, 1].
        alpha: Probability that the interval misses the true rise, at any time.

    Raises:
        ConfigError: A number is out of range.
        DataFormatError: Sessions are bad, or an arm has fewer than two users.
    """
    check_within("margin", margin, "(0, 1]")
    test = SequentialTest.planned(margin, alpha=check_within("alpha", alpha, "(0, 1)") / 2.0)
    owner, arms, a, b = check_sessions(users, treated, popular, exposures)
    if (a < 0.0).any() or (a > b).any():
        worst = int(np.argmax((a < 0.0) | (a > b)))
        raise DataFormatError(
            f"Popular exposures must be 0 to all exposures, got {a[worst]} of {b[worst]} in "
            f"session {worst}."
        )
    points, bounds = [], []
    for is_arm in (~arms, arms):
        ratio, variance, n_users = ratio_after(owner[is_arm], a[is_arm], b[is_arm])
        _check_arm(len(n_users) and int(n_users[-1]))
        balance = 2.0 * ratio[-1] - 1.0
        radius = _radius(test, 4.0 * variance[-1], int(n_users[-1]), test.least_users)
        points.append(abs(balance))
        bounds.append((max(abs(balance) - radius, 0.0), min(abs(balance) + radius, 1.0)))
    (control_low, control_high), (low, high) = bounds
    control, treatment = points
    return guard(control, treatment, low - control_high, high - control_low, margin)


def worst_guardrail(
    users: ArrayLike,
    treated: ArrayLike,
    numerator: ArrayLike,
    denominator: ArrayLike,
    margin: float,
    share: float = WORST,
    alpha: float = 0.05,
) -> Guardrail:
    """The mean of the users who are served worst must not fall.

    Each user counts once, by the metric of all of the user's sessions. The mean M of the lowest
    share s of n values x is ``q - mean(max(q - x, 0)) / s`` with q their quantile, so that its
    variance is that of ``min(x, q) / s`` over n. It says nothing before the share is
    :data:`LEAST_WORST` users.

    Args:
        users: (S,) ids, numbers or text, whose sessions they are.
        treated: (S,) bool, or 0 and 1: sessions of the treatment arm.
        numerator: (S,) numbers, of whose ratio of sums more is better.
        denominator: (S,) positive numbers.
        margin: The fall that is put up with, above 0.
        share: Of the users who count as served worst, in (0, 1].
        alpha: Probability that the interval misses the true fall, at any time.

    Raises:
        ConfigError: A number is out of range.
        DataFormatError: Sessions are bad, or an arm has fewer than two users.
    """
    check_within("margin", margin, "(0, inf)")
    check_within("share", share, "(0, 1]")
    test = SequentialTest.planned(margin, alpha=alpha)
    all_users, arms, a, b = check_sessions(users, treated, numerator, denominator)
    means, variance, sizes = [], 0.0, []
    for is_arm in (~arms, arms):
        names, owner = np.unique(all_users[is_arm], return_inverse=True)
        _check_arm(len(names))
        values = np.bincount(owner, a[is_arm]) / np.bincount(owner, b[is_arm])
        quantile = np.quantile(values, share, method="inverted_cdf")
        means.append(worst_mean(values, share))
        variance += float(np.minimum(values, quantile).var(ddof=1)) / share**2 / len(names)
        sizes.append(len(names))
    control, treatment = means
    least = max(test.least_users, math.ceil(LEAST_WORST / share))
    loss, radius = control - treatment, _radius(test, variance, min(sizes), least)
    return guard(control, treatment, loss - radius, loss + radius, margin)


def _radius(test: SequentialTest, variance: float, n_users: int, least: int) -> float:
    """Half-width of an interval; infinite for too few users, and 0 where enough are all alike.

    A quota gives all users the same share, which so many of them show, unlike a difference.
    """
    if n_users < least:
        return math.inf
    return float(test.radius(variance)) if variance > 0.0 else 0.0


def _check_arm(n_users: int) -> None:
    """Checks that an arm has the users that a variance needs.

    Raises:
        DataFormatError: It has one or none.
    """
    if n_users < 2:
        raise DataFormatError(f"A guardrail needs two users in each arm, got {n_users}.")
