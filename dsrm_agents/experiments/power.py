"""Power and sample size of the fixed-horizon test, by the normal approximation."""

from __future__ import annotations

import math
from statistics import NormalDist

from kuaisim_gym.config import check_within, is_number
from kuaisim_gym.errors import ConfigError

_NORMAL = NormalDist()


def two_sided_bound(alpha: float) -> float:
    """Standard errors beyond which a two-sided test rejects: 1.96 at .05.

    Raises:
        ConfigError: alpha is outside (0, 1), or so small that 1 - alpha / 2 is 1.
    """
    quantile = 1.0 - check_within("alpha", alpha, "(0, 1)") / 2.0
    if quantile == 1.0:
        raise ConfigError(f"alpha must be at least 1e-15, got {alpha!r}.")
    return _NORMAL.inv_cdf(quantile)


def power_of(effect: float, variance: float, alpha: float = 0.05) -> float:
    """Probability that the two-sided test rejects, whatever the sign of its estimate.

    Args:
        effect: The true difference.
        variance: Of the estimate, above 0.
        alpha: Of the test, in (0, 1).

    Raises:
        ConfigError: A number is out of range.
    """
    if not is_number(effect):
        raise ConfigError(f"effect must be a finite number, got {effect!r}.")
    error = math.sqrt(check_within("variance", variance, "(0, inf)"))
    shift, bound = effect / error, two_sided_bound(alpha)
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
    bound = two_sided_bound(alpha)
    check_within("power", power, f"({alpha / 2.0}, 1)")
    if not is_number(effect) or effect == 0.0:
        raise ConfigError(
            f"effect must be a finite number other than 0, got {effect!r}: name the smallest "
            "difference that matters."
        )
    error = effect / (bound + _NORMAL.inv_cdf(power))
    if not 1e-150 < abs(error) < 1e150:
        raise ConfigError(
            f"effect and power must give a variance that a float holds, got {effect!r} and "
            f"{power!r}: give the effect in another unit."
        )
    return error**2


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
    users = spread * (1.0 / share + 1.0 / (1.0 - share)) / variance
    if not math.isfinite(users):
        raise ConfigError(
            f"effect must be large enough for a number of users, got {effect!r} at a spread of "
            f"{spread!r}."
        )
    return math.ceil(users)
