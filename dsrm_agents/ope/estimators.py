"""Estimates as functions of means over sessions, with the intervals that follow from that.

Every estimator here turns each logged session into a row of numbers, its *columns*, and is a smooth
function of the columns' means. Its value, its standard error (the delta method) and its bootstrap
are then the same few lines for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_whole, check_within
from kuaisim_gym.errors import ConfigError

FloatArray = NDArray[np.float64]
Function = Callable[[FloatArray], FloatArray]
_STEP = 1e-5  # of a difference quotient, in standard deviations of the column


def identity(means: FloatArray) -> FloatArray:
    """The means themselves."""
    return means


@dataclass(frozen=True, eq=False)
class Columns:
    """n rows of numbers, one a session, and the estimate as a function of their means.

    Attributes:
        values: (n, C) float64.
        function: From (..., C) means to (..., M) estimates.
        span: Width of the range that rows lie in, where they are bounded; infinite elsewhere.
    """

    values: FloatArray
    function: Function = identity
    span: float = np.inf

    def __len__(self) -> int:
        return len(self.values)

    @property
    def estimate(self) -> FloatArray:
        """(M,) float64."""
        return self.function(self.values.mean(axis=0))

    def then(self, function: Function) -> Columns:
        """The same rows, and a function of the estimates."""
        inner = self.function
        return Columns(self.values, lambda means: function(inner(means)), self.span)

    def influence(self) -> FloatArray:
        """(n, M) float64: how far each session moves the estimate, to first order; of mean 0."""
        means = self.values.mean(axis=0)
        size = _STEP * np.maximum(self.values.std(axis=0), 1e-12)
        steps = np.diag(size)
        slope = (self.function(means + steps) - self.function(means - steps)) / (2 * size[:, None])
        return np.asarray((self.values - means) @ slope)


class Interval(NamedTuple):
    """An estimate and the interval around it, arrays of one shape.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray


_NORMAL_975 = 1.959963984540054  # of a 95 % interval


def delta_interval(columns: Columns) -> Interval:
    """95 % normal interval by the delta method: 1.96 standard errors of the influence."""
    value = columns.estimate
    error = columns.influence().std(axis=0, ddof=1) / np.sqrt(len(columns))
    return Interval(value, value - _NORMAL_975 * error, value + _NORMAL_975 * error)


def bootstrap_interval(
    columns: Columns, rng: np.random.Generator, resamples: int = 500, level: float = 0.95
) -> Interval:
    """Percentile interval of resampled sessions.

    Args:
        columns: The sessions.
        rng: Source of the resamples.
        resamples: How many.
        level: Of the interval, in (0, 1).
    """
    check_whole("resamples", resamples, 2)
    tail = 50.0 * (1.0 - check_within("level", level, "(0, 1)"))
    n = len(columns)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples)
    draws = columns.function(counts @ columns.values / n)
    low, high = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return Interval(columns.estimate, low, high)


def bernstein_interval(columns: Columns, level: float = 0.95) -> Interval:
    """Empirical Bernstein interval, which holds for every n (Maurer and Pontil, COLT 2009).

    ``sqrt(2 V log(4 / d) / n) + 7 R log(4 / d) / (3 (n - 1))`` to each side, with V the variance,
    R the span and ``1 - d`` the level.

    Raises:
        ConfigError: Rows have no bound, or the estimate is no mean of columns.
    """
    if not np.isfinite(columns.span) or columns.function is not identity:
        raise ConfigError(
            "A concentration interval needs a mean of bounded rows: clip the weights, and take an "
            "estimator that is not self-normalised."
        )
    n, value = len(columns), columns.estimate
    log = np.log(4.0 / (1.0 - check_within("level", level, "(0, 1)")))
    variance = columns.values.var(axis=0, ddof=1)
    half = np.sqrt(2.0 * variance * log / n) + 7.0 * columns.span * log / (3.0 * (n - 1))
    return Interval(value, value - half, value + half)


def ips(weights: FloatArray, rewards: FloatArray, clip: float = np.inf) -> Columns:
    """Inverse propensity scoring of (n,) or (n, M) rewards by (n,) weights, clipped if said so.

    Horvitz and Thompson, JASA 1952; clipping trades bias for variance (Ionides, JCGS 2008).
    """
    weighted = np.minimum(weights, clip)[:, None] * _columns(rewards)
    span = clip * float(np.ptp(np.append(rewards, 0.0)))
    return Columns(weighted, span=span)


def snips(weights: FloatArray, rewards: FloatArray) -> Columns:
    """Self-normalised IPS (Swaminathan and Joachims, NeurIPS 2015): weights need sum to nothing."""
    values = np.column_stack([weights, weights[:, None] * _columns(rewards)])
    return Columns(values, lambda means: means[..., 1:] / means[..., :1])


def direct(expected: FloatArray) -> Columns:
    """The direct method: the mean of (n,) or (n, M) values that a model expects of the policy."""
    return Columns(_columns(expected))


def doubly_robust(
    weights: FloatArray,
    rewards: FloatArray,
    predicted: FloatArray,
    expected: FloatArray,
    switch: float = np.inf,
    normalised: bool = False,
) -> Columns:
    """Doubly robust: the model's value, and weighted residuals (Dudik et al., ICML 2011).

    Args:
        weights: (n,).
        rewards: (n,) or (n, M).
        predicted: Likewise, by the model for what was shown.
        expected: Likewise, by the model for the evaluated policy.
        switch: Weight beyond which the model stands alone (Wang et al., ICML 2017).
        normalised: Whether weights are divided by their mean.
    """
    switched = np.where(weights <= switch, weights, 0.0)
    residual = switched[:, None] * _columns(rewards - predicted)
    if not normalised:
        return Columns(_columns(expected) + residual)
    values = np.column_stack([switched, _columns(expected), residual])
    m = residual.shape[1]
    return Columns(
        values, lambda means: means[..., 1 : m + 1] + means[..., m + 1 :] / means[..., :1]
    )


def _columns(values: FloatArray) -> FloatArray:
    """(n, M) of (n,) or (n, M)."""
    return values[:, None] if values.ndim == 1 else values
