"""Guardrails: what a change must not spoil, whatever it gains.

A guardrail bounds a loss, such as the rise of AD or the fall of what the worst tenth of users gets.
It is kept where the whole interval of the loss is below a margin, broken where all of it is above,
and open else: no verdict of a test that could not have seen the harm. Intervals are those of a
sequential test, so that guardrails may be looked at whenever the test is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.experiments.comparison import FloatArray, running_ratio
from dsrm_agents.experiments.sequential import SequentialTest
from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics import worst_mean

WORST = 0.1  # share of the users who are served worst


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
    users: NDArray[np.integer],
    treated: NDArray[np.bool_],
    popular: FloatArray,
    exposures: FloatArray,
    margin: float,
    alpha: float = 0.05,
) -> Guardrail:
    """AD must not rise: |2p - 1| with p the popular share of an arm's exposures.

    At balance AD has a kink, where its estimate is not normal. So each arm has an interval of p at
    half of alpha, which AD maps to an interval of its own; their ends bound the difference.

    Args:
        users: (S,) whose sessions they are.
        treated: (S,) bool, sessions of the treatment arm.
        popular: (S,) exposures of popular items.
        exposures: (S,) exposures.
        margin: The rise that is put up with, above 0.
        alpha: Probability that the interval misses the true rise, at any time.
    """
    test = SequentialTest.planned(margin, alpha=alpha / 2.0)
    points, bounds = [], []
    for is_arm in (~treated, treated):
        _check_arm(users[is_arm])
        ratio, variance, _ = running_ratio(users[is_arm], popular[is_arm], exposures[is_arm])
        balance, radius = 2.0 * ratio[-1] - 1.0, float(test.radius(4.0 * variance[-1]))
        points.append(abs(balance))
        bounds.append((max(abs(balance) - radius, 0.0), min(abs(balance) + radius, 1.0)))
    (control_low, control_high), (low, high) = bounds
    control, treatment = points
    return guard(control, treatment, low - control_high, high - control_low, margin)


def worst_guardrail(
    users: NDArray[np.integer],
    treated: NDArray[np.bool_],
    numerator: FloatArray,
    denominator: FloatArray,
    margin: float,
    share: float = WORST,
    alpha: float = 0.05,
) -> Guardrail:
    """The mean of the users who are served worst must not fall.

    Each user counts once, by the metric of all of the user's sessions. The mean M of the lowest
    share s of n values x is ``q - mean(max(q - x, 0)) / s`` with q their quantile, so that its
    variance is that of ``min(x, q) / s`` over n.

    Args:
        users: (S,) whose sessions they are.
        treated: (S,) bool, sessions of the treatment arm.
        numerator: (S,) numbers, of whose ratio of sums more is better.
        denominator: (S,) positive numbers.
        margin: The fall that is put up with, above 0.
        share: Of the users who count as served worst.
        alpha: Probability that the interval misses the true fall, at any time.
    """
    test = SequentialTest.planned(margin, alpha=alpha)
    means, variance = [], 0.0
    for is_arm in (~treated, treated):
        names, owner = np.unique(users[is_arm], return_inverse=True)
        _check_arm(names)
        values = np.bincount(owner, numerator[is_arm]) / np.bincount(owner, denominator[is_arm])
        quantile = np.quantile(values, share, method="inverted_cdf")
        means.append(worst_mean(values, share))
        variance += float(np.minimum(values, quantile).var(ddof=1)) / share**2 / len(names)
    (control, treatment), radius = means, float(test.radius(variance))
    loss = control - treatment
    return guard(control, treatment, loss - radius, loss + radius, margin)


def _check_arm(users: NDArray[np.integer]) -> None:
    """Checks that an arm has the users that an interval needs.

    Raises:
        DataFormatError: It has one or none.
    """
    if (n_users := len(np.unique(users))) < 2:
        raise DataFormatError(f"A guardrail needs two users in each arm, got {n_users}.")
