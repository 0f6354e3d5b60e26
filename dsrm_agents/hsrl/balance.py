"""Assignment of points to the nearest code that has room."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced_assignment(
    cost: NDArray[np.float32], group: NDArray[np.int64], capacity: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Assigns points to codes, to no code of a group more than its capacity.

    In every round, all points without a code bid for the cheapest code of their group with room;
    if too many bid, those enter that would lose most by their next choice. Rounds are few, because
    codes fill up: 8 to 12 for a million points and a hundred codes.

    Args:
        cost: (n, V) of every point under every code.
        group: (n,) group of each point, in [0, G).
        capacity: (G,) points that each code of a group has room for; V times that is enough for
            the group.

    Returns:
        (n,) codes in [0, V).
    """
    n, n_codes = cost.shape
    room = np.repeat(capacity[:, None], n_codes, axis=1)
    code = np.full(n, -1, dtype=np.int64)
    waiting = np.arange(n)
    while len(waiting):
        price = np.where(room[group[waiting]] > 0, cost[waiting], np.inf)
        rows = np.arange(len(waiting))
        wish = price.argmin(axis=1)
        first = price[rows, wish]
        price[rows, wish] = np.inf
        loss = price.min(axis=1) - first if n_codes > 1 else first
        cell = group[waiting] * n_codes + wish
        order = np.lexsort((-loss, cell))
        ahead = _rank_among_equals(cell[order])
        admitted = order[ahead < room.ravel()[cell[order]]]
        code[waiting[admitted]] = wish[admitted]
        room.ravel()[:] -= np.bincount(cell[admitted], minlength=room.size)
        waiting = np.delete(waiting, admitted)
    return code


def _rank_among_equals(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) ranks of (n,) ordered numbers among their equals."""
    index = np.arange(len(ordered))
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return np.asarray(index - np.maximum.accumulate(np.where(is_first, index, 0)))
