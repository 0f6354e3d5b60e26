"""Exact search for the best items in cells, compiled by numba.

A candidate is one integer: its score's bits above, its position below, so that greater ones are
better, of equal scores the first item's is, and no two are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.jit import inlined, jit

_TILE = 512  # scores of one row that are computed at once: they stay in the first cache
_ZERO, _LEAST = np.float32(0.0), np.float32(-np.inf)
_LOW, _SIGN, _MAGNITUDE = np.int64(0xFFFFFFFF), np.int64(31), np.int64(0x7FFFFFFF)
_HIGH = np.int64(32)
_ROOM = 64  # candidates beside twice those that are wanted


@inlined
def _narrow(keys: NDArray[np.int64], count: int, k: int) -> int:
    """Moves the k largest of more numbers, all different, to the front; returns their least.

    By bisection, because counting is fast.
    """
    low, high = keys[0], keys[0]
    for number in range(count):
        low, high = min(low, keys[number]), max(high, keys[number])
    middle, above = low, count - 1  # numbers above the middle
    while above != k:
        middle = (low & high) + ((low ^ high) >> 1)  # rounded down, without overflow
        above = 0
        for number in range(count):
            above += keys[number] > middle
        if above > k:
            low = middle
        else:
            high = middle
    least, end = np.iinfo(np.int64).max, 0
    for number in range(count):
        if keys[number] > middle:
            least = min(least, keys[number])
            keys[end] = keys[number]
            end += 1
    return least


def search(
    queries: NDArray[Any],
    columns: NDArray[Any],
    members: NDArray[np.int64],
    edges: NDArray[np.int64],
    limits: NDArray[Any],
    opening: NDArray[Any],
    hidden: NDArray[Any],
    best: NDArray[np.int64],
) -> None:
    """Fills the best items of each row; arguments are those of `kuaisim_gym.cells.search_rows`."""
    _candidates(queries, columns, members, edges, limits, opening, hidden, best)
    best.sort(axis=1)
    best[:] = _LOW - (best[:, ::-1] & _LOW)


@jit
def _candidates(
    queries: NDArray[Any],
    columns: NDArray[Any],
    members: NDArray[np.int64],
    edges: NDArray[np.int64],
    limits: NDArray[Any],
    opening: NDArray[Any],
    hidden: NDArray[Any],
    best: NDArray[np.int64],
) -> None:
    """Fills the best candidates of each row, in any order.

    A cell's items are read once for all rows, after each row's most promising cells, which set its
    mark.
    """
    (n_rows, dim), k = queries.shape, best.shape[1]
    keys, counts = np.empty((n_rows, 2 * k + _ROOM), np.int64), np.zeros(n_rows, np.int64)
    lowest = np.full(n_rows, np.iinfo(np.int64).min, np.int64)
    least = np.full(n_rows, _LEAST, np.float32)
    sums, worst = np.empty(_TILE, np.float32), np.empty(1, np.float32)
    bits, worst_bits = sums.view(np.int32), worst.view(np.int32)
    for opens in (True, False):
        for cell in range(edges.size - 1):
            for row in range(n_rows):
                limit = limits[row, cell]
                if (limit >= opening[row]) != opens or limit < least[row]:
                    continue
                query, bound = queries[row], least[row]
                for start in range(edges[cell], edges[cell + 1], _TILE):
                    stop = min(start + _TILE, edges[cell + 1])
                    scores = sums[: stop - start]
                    for number in range(scores.size):
                        scores[number] = _ZERO
                    for f in range(0, dim - 1, 2):
                        a, b = query[f], query[f + 1]
                        x, y = columns[f, start:stop], columns[f + 1, start:stop]
                        for number in range(scores.size):
                            scores[number] = (scores[number] + a * x[number]) + b * y[number]
                    if dim % 2:
                        a, x = query[dim - 1], columns[dim - 1, start:stop]
                        for number in range(scores.size):
                            scores[number] += a * x[number]
                    reached = 0
                    for number in range(scores.size):
                        reached += scores[number] >= bound
                    if not reached:
                        continue
                    for number in range(scores.size):
                        if scores[number] < bound:
                            continue
                        item = members[start + number]
                        if hidden.size and hidden[row, item >> 3] >> (item & 7) & 1:
                            scores[number] = _LEAST
                        code = np.int64(bits[number])
                        code ^= (code >> _SIGN) & _MAGNITUDE  # in the order of the scores
                        key = (code << _HIGH) | (_LOW - item)
                        if key <= lowest[row]:
                            continue
                        keys[row, counts[row]] = key
                        counts[row] += 1
                        if counts[row] == keys.shape[1]:
                            lowest[row] = _narrow(keys[row], counts[row], k)
                            counts[row] = k
                            code = lowest[row] >> _HIGH
                            worst_bits[0] = np.int32(code ^ ((code >> _SIGN) & _MAGNITUDE))
                            least[row] = bound = worst[0]
    for row in range(n_rows):
        if counts[row] > k:
            _narrow(keys[row], counts[row], k)
        for number in range(k):
            best[row, number] = keys[row, number]
