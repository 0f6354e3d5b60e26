"""How popular the items of a history are: what states should not tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STATISTICS = ("mean log popularity", "share of hits", "mean squared log popularity")
HITS = 0.2  # share of all items, the most shown ones


def popularity_statistics(
    rows: NDArray[np.integer],
    items: NDArray[np.integer],
    exposures: NDArray[np.integer],
    n: int,
    weight: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Statistics of the popularity of histories, the plainest first.

    Args:
        rows: (m,) whose history each row belongs to.
        items: (m,) positions.
        exposures: (n_items,) how often each item was shown to the users that are learned from.
        n: Number of histories.
        weight: (m,) of the rows, such as 0 for those left out; all one if ``None``.

    Returns:
        (n, 3) float64, one column for each of :data:`STATISTICS`; NaN for empty histories. The
        popularity of an item is ``log(1 + exposures)``.
    """
    popularity = np.log1p(exposures)
    hit = exposures >= np.quantile(exposures, 1.0 - HITS)
    weight = np.ones(len(rows)) if weight is None else weight
    mass = np.bincount(rows, weights=weight, minlength=n)
    columns = [
        np.bincount(rows, weights=weight * value[items], minlength=n)
        for value in (popularity, hit, popularity**2)
    ]
    with np.errstate(invalid="ignore"):
        return np.stack(columns, axis=1) / mass[:, None]
