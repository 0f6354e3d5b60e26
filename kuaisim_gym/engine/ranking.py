"""Exact ranking compiled by numba: ordered products of vectors and items, and their best columns.

A tile's items stay in the processor's first cache for all rows of a group, a chunk's scores in the
second; scratch memory is as large as they are, whatever the catalogue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.jit import inlined, jit

_TILE, _GROUP = 128, 16
_CHUNK = 33 * _TILE  # not a power of two: rows would share the cache's sets
_HALVINGS = 12  # of the range of maxima, until a bound is close enough
_ZERO, _HALF = np.float32(0.0), np.float32(0.5)
_LEAST, _MOST = np.float32(-np.inf), np.float32(np.inf)
_ONE = np.int32(1)


@inlined
def _copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    # To assign a slice would compile the text of an error: three seconds.
    for column in range(target.size):
        target[column] = source[column]


@jit
def inner_products(vectors: NDArray[Any], items: NDArray[Any]) -> NDArray[Any]:
    """Matrix product, summed in order."""
    (n_rows, dim), n_items = vectors.shape, items.shape[1]
    products = np.empty((n_rows + (-n_rows) % 4, n_items), np.float32)
    group = np.zeros((_GROUP, dim), np.float32)
    for first in range(0, n_rows, _GROUP):
        size = min(_GROUP, n_rows - first)
        padded = size + (-size) % 4
        for row in range(size):
            _copy(group[row], vectors[first + row])
        _score(group[:padded], items, 0, n_items, products[first : first + padded])
    return products[:n_rows]


@jit
def top_items(scores: NDArray[Any], k: int, hidden: NDArray[Any]) -> NDArray[np.int64]:
    """The best columns of each row; hidden ones come last."""
    n_rows, n_items = scores.shape
    best = np.empty((n_rows, k), np.int64)
    values = np.empty(k, np.float32)
    lanes = np.empty(_TILE, np.float32)
    visible = np.empty(min(_CHUNK, n_items), np.float32)
    for row in range(n_rows):
        count = 0
        for offset in range(0, n_items, _CHUNK):
            stop = min(offset + _CHUNK, n_items)
            chunk = scores[row, offset:stop]
            if hidden.size:
                chunk = visible[: stop - offset]
                _copy(chunk, scores[row, offset:stop])
                _hide(chunk, hidden[row, offset // 8 :])
            count = _select(chunk, offset, count, lanes, values, best[row])
    return best


@jit
def best_items(
    vectors: NDArray[Any], items: NDArray[Any], k: int, hidden: NDArray[Any]
) -> NDArray[np.int64]:
    """The best columns of each row of the product; hidden ones come last."""
    (n_rows, dim), n_items = vectors.shape, items.shape[1]
    best = np.empty((n_rows, k), np.int64)
    values = np.empty((_GROUP, k), np.float32)
    counts = np.empty(_GROUP, np.int64)
    lanes = np.empty(_TILE, np.float32)
    group = np.zeros((_GROUP, dim), np.float32)
    scores = np.empty((_GROUP, min(_CHUNK, n_items)), np.float32)
    for first in range(0, n_rows, _GROUP):
        size = min(_GROUP, n_rows - first)
        padded = size + (-size) % 4
        for row in range(size):
            _copy(group[row], vectors[first + row])
        counts[:] = 0
        for offset in range(0, n_items, _CHUNK):
            width = min(_CHUNK, n_items - offset)
            _score(group[:padded], items, offset, width, scores)
            for row in range(size):
                chunk = scores[row, :width]
                if hidden.size:
                    _hide(chunk, hidden[first + row, offset // 8 :])
                counts[row] = _select(
                    chunk, offset, counts[row], lanes, values[row], best[first + row]
                )
    return best


@jit
def _score(
    vectors: NDArray[Any], items: NDArray[Any], offset: int, n_items: int, scores: NDArray[Any]
) -> None:
    """Inner products of some vectors, a multiple of four, and items, summed in order.

    Four sums are carried at a time, so that an item's features are loaded a quarter as often, and
    features two at a time, so that sums are loaded and stored half as often.

    Args:
        vectors: (n, d) float32.
        items: (d, n_items) float32.
        offset: The first of the items.
        n_items: How many of them.
        scores: C-contiguous float32, whose first n rows and ``n_items`` columns are written.
    """
    n_rows, dim = vectors.shape
    for start in range(0, n_items, _TILE):
        stop = min(start + _TILE, n_items)
        first, last = offset + start, offset + stop
        for row in range(0, n_rows, 4):
            # Slices of single rows, which are known to be contiguous.
            total0, total1 = scores[row, start:stop], scores[row + 1, start:stop]
            total2, total3 = scores[row + 2, start:stop], scores[row + 3, start:stop]
            for column in range(total0.size):
                total0[column] = total1[column] = total2[column] = total3[column] = _ZERO
            v0, v1, v2, v3 = vectors[row], vectors[row + 1], vectors[row + 2], vectors[row + 3]
            for f in range(0, dim - 1, 2):
                a0, a1, a2, a3 = v0[f], v1[f], v2[f], v3[f]
                b0, b1, b2, b3 = v0[f + 1], v1[f + 1], v2[f + 1], v3[f + 1]
                one, two = items[f, first:last], items[f + 1, first:last]
                for column in range(total0.size):
                    x, y = one[column], two[column]
                    total0[column] = (total0[column] + a0 * x) + b0 * y
                    total1[column] = (total1[column] + a1 * x) + b1 * y
                    total2[column] = (total2[column] + a2 * x) + b2 * y
                    total3[column] = (total3[column] + a3 * x) + b3 * y
            if dim % 2:
                a0, a1, a2, a3 = v0[dim - 1], v1[dim - 1], v2[dim - 1], v3[dim - 1]
                one = items[dim - 1, first:last]
                for column in range(total0.size):
                    x = one[column]
                    total0[column] += a0 * x
                    total1[column] += a1 * x
                    total2[column] += a2 * x
                    total3[column] += a3 * x


@jit
def _hide(scores: NDArray[Any], bits: NDArray[Any]) -> None:
    """Puts the items of a set, whose bits begin with the first score's, behind all others.

    Without a branch for each item: where half of a catalogue is hidden, as on a day of one that
    changes, the processor would guess wrong all the time.
    """
    whole = scores.size // 32
    for word in range(whole):
        flags = np.int32(0)
        for byte in range(4):
            flags |= np.int32(np.int32(bits[4 * word + byte]) << np.int32(8 * byte))
        if flags:
            for bit in range(32):
                item = 32 * word + bit
                scores[item] = _LEAST if (flags >> np.int32(bit)) & _ONE else scores[item]
    for item in range(32 * whole, scores.size):
        scores[item] = _LEAST if (bits[item >> 3] >> (item & 7)) & 1 else scores[item]


@inlined
def _insert(
    value: np.float32, column: int, count: int, values: NDArray[Any], best: NDArray[Any]
) -> int:
    """Adds an item to the best so far, if it is one of them: of ties the first column is."""
    k = values.size
    if count == k:
        least = values[k - 1]
        if not (value > least or (value == least and column < best[k - 1])):
            return count
    count = min(count + 1, k)
    rank = count - 1
    while rank > 0 and (
        values[rank - 1] < value or (values[rank - 1] == value and best[rank - 1] > column)
    ):
        values[rank], best[rank] = values[rank - 1], best[rank - 1]
        rank -= 1
    values[rank], best[rank] = value, column
    return count


@inlined
def _reached(lanes: NDArray[Any], k: int, least: np.float32) -> Any:
    """A value that k lanes reach, close to the largest such value; ``least`` if there is none.

    By bisection, because counting is fast.
    """
    low, high, above = _MOST, _LEAST, 0
    for lane in range(lanes.size):
        # Not from lanes of hidden items alone: there is no middle of minus infinity and a number.
        low = lanes[lane] if least < lanes[lane] < low else low
        high = lanes[lane] if lanes[lane] > high else high
        above += lanes[lane] > least
    if above < k:
        return least
    for _ in range(_HALVINGS):
        middle, count = _HALF * low + _HALF * high, 0
        for lane in range(lanes.size):
            count += lanes[lane] >= middle
        if count >= k:
            low = middle
        else:
            high = middle
        if count == k:
            break
    return low


@jit
def _select(
    scores: NDArray[Any],
    offset: int,
    count: int,
    lanes: NDArray[Any],
    values: NDArray[Any],
    best: NDArray[Any],
) -> int:
    """Takes the best of a chunk's scores into the best so far, and returns how many these are.

    Column c belongs to lane c modulo the number of lanes. Where the maxima of k lanes reach a
    value, so do k columns: the lanes below it hold none of the best.
    """
    n, width, k = scores.size, lanes.size, values.size
    lanes[:] = _LEAST
    for start in range(0, n, width):
        chunk = scores[start : min(start + width, n)]
        for lane in range(chunk.size):
            lanes[lane] = chunk[lane] if chunk[lane] > lanes[lane] else lanes[lane]
    bound = _reached(lanes, k, values[k - 1] if count == k else _LEAST)
    for lane in range(min(width, n)):
        if lanes[lane] >= bound:
            for column in range(lane, n, width):
                if scores[column] >= bound:
                    count = _insert(scores[column], offset + column, count, values, best)
    return count
