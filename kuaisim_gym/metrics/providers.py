"""Exposure of providers, such as the authors of videos, against what is due to them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.metrics.exposure import gini
from kuaisim_gym.metrics.sessions import FloatArray

_ROUNDING = 1e-6  # exposures; due shares do not sum exactly


class ProviderDays(NamedTuple):
    """Exposure of providers by day, of D days that are over.

    Attributes:
        day: (D,) int64, ascending.
        reached: (D,) float64, see :func:`reached_share`.
        shortfall: (D,) float64, see :func:`mean_shortfall`.
        gini: (D,) float64 of the exposures of the providers who had items there.
        left: (D,) float64, providers who had left when the day was over.
        left_share: (D,) float64, the same over the providers who had ever had items there.
    """

    day: NDArray[np.int64]
    reached: FloatArray
    shortfall: FloatArray
    gini: FloatArray
    left: FloatArray
    left_share: FloatArray


def reached_share(exposures: NDArray[np.integer], due: FloatArray) -> float:
    """Share of providers who got what was due to them, in whole exposures and one at least.

    Args:
        exposures: (P,) of each provider.
        due: (P,) shares of all exposures, at least 0, that sum to at most 1. Providers to whom
            nothing is due are left out.

    Returns:
        In [0, 1]; NaN if nothing was shown, or nothing is due.
    """
    owed = np.maximum(np.floor(due * exposures.sum() + _ROUNDING), 1.0)
    return _mean(1.0 * (exposures >= owed)[due > 0], exposures)


def mean_shortfall(exposures: NDArray[np.integer], due: FloatArray) -> float:
    """Part of what is due that is missing: the mean over providers of ``max(1 - share / due, 0)``.

    Args:
        exposures: As for :func:`reached_share`.
        due: Likewise.

    Returns:
        In [0, 1]; NaN if nothing was shown, or nothing is due.
    """
    claims = due > 0
    owed = due[claims] * max(int(exposures.sum()), 1)
    return _mean(np.maximum(1.0 - exposures[claims] / owed, 0.0), exposures)


def provider_gini(exposures: NDArray[np.integer]) -> float:
    """Gini coefficient of exposures over providers; NaN if nothing was shown."""
    return float(gini(exposures)) if exposures.any() else float("nan")


def summarise_providers(days: ProviderDays) -> dict[str, float]:
    """Metrics of providers, by their names in result files.

    Args:
        days: The days of a platform that are over.

    Returns:
        ``provider_reached``, ``provider_shortfall`` and ``provider_gini``, means over the days on
        which items were shown; ``providers_left``, share of providers who had left by the last
        day. NaN without any such day.
    """
    shown = np.isfinite(days.gini)
    columns = {"reached": days.reached, "shortfall": days.shortfall, "gini": days.gini}
    return {
        **{f"provider_{name}": _mean(column[shown], shown) for name, column in columns.items()},
        "providers_left": float(days.left_share[-1]) if len(days.day) else float("nan"),
    }


def _mean(values: FloatArray, exposures: NDArray[np.integer] | NDArray[np.bool_]) -> float:
    """The mean, NaN where there are no values or no exposures."""
    return float(values.mean()) if values.size and exposures.any() else float("nan")
