"""Tests that may be looked at after every session: the mixture sequential probability ratio test.

An estimate with variance V of a difference d has the likelihood ratio, against no difference, of a
normal mixture of differences with standard deviation tau,

    L = sqrt(V / (V + tau^2)) exp(tau^2 d^2 / (2 V (V + tau^2))),

which without a difference is a martingale in the information 1 / V: it ever reaches 1 / alpha with
probability alpha at most (Robbins, "Statistical Methods Related to the Law of the Iterated
Logarithm", 1970; Johari, Koomen, Pekelis and Walsh, "Always Valid Inference", Operations Research
2022). The differences that it does not reject are those within

    sqrt(V (V + tau^2) / tau^2 (log((V + tau^2) / V) - 2 log alpha)).

V is estimated here, and sums are normal only after a while: the guarantee is asymptotic, in the
number of users before the first look (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-
uniform Central Limit Theory and Asymptotic Confidence Sequences", Annals of Statistics 2024). A
test therefore says nothing before each arm has :attr:`SequentialTest.least_users` users, nor while
the users of an arm are all alike, such as before its first conversion: there V is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.experiments.comparison import Comparison
from dsrm_agents.experiments.power import variance_needed
from dsrm_agents.experiments.sessions import FloatArray
from kuaisim_gym.config import check_whole, check_within


@dataclass(frozen=True)
class SequentialTest:
    """An always-valid test of no difference.

    Attributes:
        scale: tau, the size of the differences that it is made for; chosen before the test.
        alpha: Probability of a false positive at any time.
        least_users: Users of each arm before the first look.

    Raises:
        ConfigError: A number is out of range.
    """

    scale: float
    alpha: float = 0.05
    least_users: int = 50

    def __post_init__(self) -> None:
        check_within("scale", self.scale, "(0, inf)")
        check_within("alpha", self.alpha, "(0, 1)")
        check_whole("least_users", self.least_users, 2)

    @classmethod
    def planned(
        cls, effect: float, power: float = 0.8, alpha: float = 0.05, least_users: int = 50
    ) -> SequentialTest:
        """The test whose bounds are tightest where a fixed test would have its power.

        Args:
            effect: The smallest difference that matters.
            power: Of the fixed test at this difference.
            alpha: Probability of a false positive at any time.
            least_users: Users of each arm before the first look.
        """
        variance, cost = variance_needed(effect, power, alpha), -2.0 * math.log(alpha)
        ratio = cost
        for _ in range(50):  # tau^2 / V = x is best where x = log(x + 1) - 2 log alpha
            ratio = math.log1p(ratio) + cost
        return cls(math.sqrt(ratio * variance), alpha, least_users)

    def radius(self, variance: FloatArray | float) -> FloatArray:
        """Half-widths of the intervals of some variances; infinite where that is 0 or NaN."""
        v, prior = _known(variance), self.scale**2
        shrunk = np.log1p(prior / v) - 2.0 * math.log(self.alpha)
        return np.nan_to_num(np.sqrt(v * (v / prior + 1.0) * shrunk), nan=np.inf)

    def log_ratio(self, effect: FloatArray | float, variance: FloatArray | float) -> FloatArray:
        """log L of some differences; 0, which is no evidence, where the variance is 0 or NaN."""
        v, prior = _known(variance), self.scale**2
        gain = np.square(effect) / v * (prior / (v + prior))
        return np.nan_to_num(0.5 * (gain - np.log1p(prior / v)), nan=0.0)

    def looks(self, comparison: Comparison) -> NDArray[np.bool_]:
        """(S,) bool: sessions after which the test may be looked at."""
        enough = (comparison.users >= self.least_users).all(axis=1)
        return np.asarray(enough & (comparison.variances > 0.0).all(axis=1))

    def interval(self, comparison: Comparison) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends (S,) of intervals that all hold at once; infinite before the looks.

        Each contains the fixed-horizon interval of the same session.
        """
        radius = np.where(self.looks(comparison), self.radius(comparison.variance), np.inf)
        effect = np.nan_to_num(comparison.effect)
        return effect - radius, effect + radius

    def p_values(self, comparison: Comparison) -> FloatArray:
        """(S,) always-valid p-values, which never rise: 1 over the largest L so far."""
        log_ratio = np.where(
            self.looks(comparison), self.log_ratio(comparison.effect, comparison.variance), -np.inf
        )
        return np.exp(np.minimum(-np.maximum.accumulate(log_ratio), 0.0))

    def decided(self, comparison: Comparison) -> int | None:
        """Position of the session after which the test rejects; ``None`` if it never does."""
        rejects = np.flatnonzero(self.p_values(comparison) <= self.alpha)
        return int(rejects[0]) if len(rejects) else None


def _known(variance: FloatArray | float) -> FloatArray:
    """Variances; NaN for 0, which users give who are all alike, and which is not known to be 0."""
    v = np.asarray(variance, dtype=np.float64)
    return np.where(v > 0.0, v, np.nan)
