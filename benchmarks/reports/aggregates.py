"""Aggregates, intervals and comparisons of runs on several worlds.

Aggregates, performance profiles and probabilities of improvement are those of Agarwal et al., *Deep
Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021, whose library is
rliable. Scores are arrays (..., runs, worlds): the worlds are given, the runs of each are a sample.
Leading axes are resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

FloatArray = NDArray[np.float64]

RESAMPLES = 2000
NORMAL_975 = 1.96  # standard errors in the half-widths of results


def mean(scores: FloatArray) -> FloatArray:
    """Mean score."""
    return np.asarray(np.mean(scores, axis=(-2, -1)))


def median(scores: FloatArray) -> FloatArray:
    """Median over worlds of the mean over runs."""
    return np.asarray(np.median(np.mean(scores, axis=-2), axis=-1))


def interquartile_mean(scores: FloatArray) -> FloatArray:
    """Mean of the middle half of all runs, worlds put together: IQM."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    n_scores = ordered.shape[-1]
    quarter = n_scores // 4
    return np.asarray(ordered[..., quarter : n_scores - quarter].mean(axis=-1))


def optimality_gap(scores: FloatArray, goal: float = 1.0) -> FloatArray:
    """Mean of what runs lack to a goal; runs beyond it lack nothing and make up for nothing."""
    return goal - mean(np.minimum(scores, goal))


def performance_profile(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Share of all runs whose score is above each threshold.

    Args:
        scores: (..., runs, worlds).
        thresholds: (n,) in any order.

    Returns:
        (..., n) float64 in [0, 1].
    """
    is_above = scores[..., None] > thresholds
    return np.asarray(is_above.mean(axis=(-3, -2)))


def probability_of_improvement(scores: FloatArray, controls: FloatArray) -> FloatArray:
    """Chance that a run is above a run of another agent in the same world, mean over worlds.

    A tie counts as half: of each world it is the Mann-Whitney statistic over the number of pairs.

    Args:
        scores: (..., runs, worlds).
        controls: (..., their runs, worlds).
    """
    ahead = np.sign(scores[..., :, None, :] - controls[..., None, :, :])
    return np.asarray((ahead.mean(axis=(-3, -2, -1)) + 1.0) / 2.0)


def resampled(scores: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Bootstrap within worlds: (RESAMPLES, runs, worlds), runs drawn anew for each world."""
    drawn = rng.integers(len(scores), size=(RESAMPLES, *scores.shape))
    return np.take_along_axis(scores[None], drawn, axis=1)


def percentiles(statistics: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ends of the 95 % percentile interval of a resampled statistic, whose first axis they are."""
    low, high = np.percentile(statistics, (2.5, 97.5), axis=0)
    return low, high


class Nested(NamedTuple):
    """A mean over seeds, each of which is itself a mean over sessions.

    Attributes:
        mean: The mean.
        half_width: Half-width of its 95 % interval.
        between: Standard deviation of the seeds' true means; 0 where sessions explain all.
        within: Standard error that the sessions of a seed leave in its mean.
    """

    mean: float
    half_width: float
    between: float
    within: float


def nested_interval(means: ArrayLike, errors: ArrayLike) -> Nested:
    """Interval of a mean over seeds whose means are estimates from sessions.

    The variance of the n seeds' means estimates ``between**2 + within**2``; the sessions' errors
    say ``within**2`` alone. Where few seeds agree by luck more closely than their sessions allow,
    the latter counts, and the interval is never narrower than the sessions make it: Student's t
    of n - 1 degrees of freedom times ``sqrt((between**2 + within**2) / n)``.

    Args:
        means: (n,) a mean for each of at least two seeds.
        errors: (n,) their standard errors over sessions.
    """
    means = np.asarray(means, dtype=float)
    n_seeds = len(means)
    within = float(np.mean(np.square(errors)))
    between = max(float(np.var(means, ddof=1)) - within, 0.0)
    error = np.sqrt((between + within) / n_seeds)
    half_width = float(student_t.ppf(0.975, n_seeds - 1) * error)
    return Nested(float(means.mean()), half_width, float(np.sqrt(between)), float(np.sqrt(within)))


def p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of Student's t test that paired differences, at least two, have mean 0."""
    values = np.asarray(differences, dtype=float)
    centre, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    if error == 0.0:
        return float(centre == 0.0)
    return float(2.0 * student_t.sf(abs(centre) / error, len(values) - 1))


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values of a family of m tests, adjusted for their number.

    The smallest is multiplied by m, the next by m - 1, and so on; none is below a smaller one's,
    or above 1. Who rejects those below .05 errs in any of the m with a chance of at most .05,
    whatever their dependence (Holm, Scandinavian Journal of Statistics 1979).

    Args:
        p_values: (m,).
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted
