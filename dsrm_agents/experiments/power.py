"""Power and sample size of the fixed-horizon test, by the normal approximation."""

from __future__ import annotations

import math
from statistics import NormalDist

from kuaisim_gym.config import check_within
from kuaisim_gym.errors import ConfigError

_NORMAL = NormalDist()


def power_of(effect: float, variance: float, alpha: float = 0.05) -> float:
    """Probability that the two-sided test rejects, whatever the sign of its estimate.

    Args:
        effect: The true difference.
        variance: Of the estimate, above 0.
        alpha: Of the test.
    """
    shift, bound = effect / math.sqrt(variance), _NORMAL.inv_cdf(1.0 - alpha / 2.0)
    return _NORMAL.cdf(shift - bound) + _NORMAL.cdf(-shift - bound)


def variance_needed(effect: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Variance of the estimate at which the test has some power, its wrong sign left out.

    Args:
        effect: The true difference, not 0.
        power: In (alpha / 2, 1).
        alpha: Of the test.

    Raises:
        ConfigError: There is no such variance.
    """
    check_within("alpha", alpha, "(0, 1)")
    check_within("power", power, f"({alpha / 2.0}, 1)")
    if not math.isfinite(effect) or effect == 0.0:
        raise ConfigError(
            f"effect must be a finite number other than 0, got {effect}: name the smallest "
            "difference that matters."
        )
    return (effect / (_NORMAL.inv_cdf(1.0 - alpha / 2.0) + _NORMAL.inv_cdf(power))) ** 2


def users_needed(
    effect: float, spread: float, power: float = 0.8, alpha: float = 0.05, share: float = 0.5
) -> int:
    """Users in both arms together at which the test has some power.

    Args:
        effect: The true difference, not 0.
        spread: Variance of one user: that of an arm's metric times the arm's users.
        power: In (alpha / 2, 1).
        alpha: Of the test.
        share: Of the users who are treated, in (0, 1).

    Raises:
        ConfigError: A number is out of range.
    """
    check_within("spread", spread, "[0, inf)")
    check_within("share", share, "(0, 1)")
    variance = variance_needed(effect, power, alpha)
    return math.ceil(spread * (1.0 / share + 1.0 / (1.0 - share)) / variance)
