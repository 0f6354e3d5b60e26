"""Exposure against merit: whether items get what their expected responses deserve, and users too.

Merit is a user's expected response to an item, which the test simulator knows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.metrics.sessions import FloatArray


def exposure_over_merit(exposure: FloatArray, merit: FloatArray) -> float:
    """Smallest group's exposure per merit over the largest's: 1 fair, 0 where a group gets none.

    The disparate treatment ratio of two groups is the quotient of their exposures per merit (Singh
    and Joachims, "Fairness of Exposure in Rankings", KDD 2018); this is the worst quotient of all
    pairs of groups.

    Args:
        exposure: (G,) shares of exposure.
        merit: (G,) shares of merit; groups without any are left out.
    """
    ratio = exposure[merit > 0] / merit[merit > 0]
    return float(ratio.min() / ratio.max())


def inequity(exposure: FloatArray, merit: FloatArray) -> FloatArray:
    """Inequity of amortised attention: sum_i |exposure_i - merit_i|, in [0, 2].

    Attention and relevance are added up over all rankings and then compared (Biega, Gummadi and
    Weikum, "Equity of Attention", SIGIR 2018): no single ranking can be fair, a sequence of them
    can.

    Args:
        exposure: (..., n) shares of exposure.
        merit: (..., n) shares of merit.

    Returns:
        (...,) float64.
    """
    return np.asarray(np.abs(exposure - merit).sum(axis=-1))


def equal_exposure(grades: NDArray[np.integer], weights: FloatArray) -> FloatArray:
    """Target exposure of each item: better grades first, and equal grades alike.

    It is the expected exposure under a ranker that sorts by grade and breaks ties at random (Diaz
    et al., "Evaluating Stochastic Rankings with Expected Exposure", CIKM 2020, section 4.2), by a
    browsing model that ends after K ranks.

    Args:
        grades: (..., n) relevance grades, the higher the better.
        weights: (K,) exposure of each rank, at most n of them.

    Returns:
        (..., n) float64, which sum to the sum of the weights.
    """
    total = np.concatenate([[0.0], np.cumsum(weights)])
    exposure = np.zeros(grades.shape)
    for grade in np.unique(grades):
        better, alike = (
            np.sum(x, axis=-1, keepdims=True) for x in (grades > grade, grades == grade)
        )
        first, last = (np.minimum(rank, len(weights)) for rank in (better, better + alike))
        share = (total[last] - total[first]) / np.maximum(alike, 1)
        exposure = np.where(grades == grade, share, exposure)
    return exposure


def expected_exposure(
    exposure: FloatArray, target: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """EE-L, EE-D and EE-R: loss, disparity and relevance of expected exposure.

    ``EE-L = |exposure - target|^2 = EE-D - 2 EE-R + |target|^2`` with ``EE-D = |exposure|^2``, low
    where many items share the exposure, and ``EE-R = exposure . target``, high where the relevant
    ones get it (Diaz et al., CIKM 2020, section 4.3).

    Args:
        exposure: (..., n) expected exposure of items, or of groups.
        target: (..., n) such as :func:`equal_exposure`.

    Returns:
        Three (...,) arrays of float64.
    """
    loss = ((exposure - target) ** 2).sum(axis=-1)
    return loss, (exposure**2).sum(axis=-1), (exposure * target).sum(axis=-1)


def envy(utility: FloatArray, own_utility: FloatArray) -> FloatArray:
    """Gain of users from the slates of others over their own slates, not below 0.

    User u envies v where v's slates are worth more to u than u's own (Do et al., "Online
    certification of preference-based fairness for personalized recommender systems", AAAI 2022).

    Args:
        utility: (U, V) mean expected response of user u to the slates of v.
        own_utility: (U,) mean expected response of user u to u's own slates.

    Returns:
        (U, V) float64.
    """
    return np.asarray(np.maximum(utility - own_utility[:, None], 0.0))
