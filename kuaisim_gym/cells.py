"""Exact search for the best items of a large catalogue, which looks at a part of it.

Items lie in cells of neighbours. By the inequality of Cauchy and Schwarz no item of a cell scores
more than the cell's centre and, times the query's length, its radius: cells that cannot reach the
best found so far are left out. How many that are depends on the items, the result does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.bits import BitArray
from kuaisim_gym.engine.reference import NumpyEngine

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_CELL = 250  # items of a cell, about
_ROUNDS = 5  # of Lloyd's algorithm
_SAMPLE = 40  # points of a centre, by which it is placed
_CHUNK = 1 << 14  # points that are compared with all centres at once
_FIRST = 8  # cells with the highest bounds, which are searched first, of k items
_ROUNDING = 1e-5  # of an inner product in float32, as a share of the lengths' product


class CellIndex:
    """Items in cells of neighbours.

    Args:
        vectors: (m, d) float32, finite; a query's score of an item is the inner product.
        items: (m,) positions of the items in the catalogue; 0 to m - 1 if ``None``.
    """

    def __init__(self, vectors: FloatArray, items: NDArray[np.integer] | None = None) -> None:
        cells = find_cells(vectors)
        order = np.argsort(cells, kind="stable")
        items = np.arange(len(vectors)) if items is None else items
        self._order = order
        self._members = items[order].astype(np.int64)
        self._edges = np.append(0, np.cumsum(np.bincount(cells))).astype(np.int64)
        self.move(vectors)

    def __len__(self) -> int:
        return len(self._members)

    def move(self, vectors: FloatArray) -> None:
        """Gives the items other (m, d) vectors; cells keep their items, and are measured anew."""
        moved = np.asarray(vectors[self._order], dtype=np.float32)
        sizes, starts = np.diff(self._edges), self._edges[:-1]
        self._columns = np.ascontiguousarray(moved.T)
        self._centres = np.zeros((len(sizes), vectors.shape[1]), np.float32)
        if len(moved):
            self._centres[:] = np.add.reduceat(moved, starts, axis=0) / sizes[:, None]
        moved -= np.repeat(self._centres, sizes, axis=0)
        squares = np.einsum("md,md->m", moved, moved)
        radius = np.sqrt(np.maximum.reduceat(squares, starts)) if len(moved) else np.zeros(0)
        lengths = np.linalg.norm(self._centres, axis=1)
        self._reach = (radius + _ROUNDING * (radius + lengths)).astype(np.float32)

    def best(
        self, queries: FloatArray, k: int, hidden: BitArray | None = None, share: float = 1.0
    ) -> IntArray:
        """The k best items of each query, of equal ones the first.

        Args:
            queries: (N, d) float32.
            k: At most m.
            hidden: (N, ceil(n_items / 8)) uint8, items that come last, see
                :mod:`~kuaisim_gym.engine.bits`; ``None`` for none.
            share: Of the reach of cells: 1 finds the best; less looks at fewer cells, and may miss
                items far from their cell's centre.

        Returns:
            (N, k) int64 item positions, best first.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        best = np.empty((len(queries), k), np.int64)
        if not k:
            return best
        lengths = np.linalg.norm(queries, axis=1)
        limits = queries @ self._centres.T + lengths[:, None] * (share * self._reach)
        rank = max(limits.shape[1] - _FIRST - 2 * k // _CELL, 0)
        opening = np.partition(limits, rank, axis=1)[:, rank]
        hidden = np.zeros((0, 0), np.uint8) if hidden is None else hidden
        search = compiled_search() or search_rows
        cells = self._columns, self._members, self._edges
        search(queries, *cells, limits, opening, hidden, best)
        return best


@cache
def compiled_search() -> Callable[..., None] | None:
    """:func:`search_rows` as numba compiles it; ``None`` where that is not installed."""
    if find_spec("numba") is None:
        return None
    from kuaisim_gym.engine.search import search

    return search


def search_rows(
    queries: FloatArray,
    columns: FloatArray,
    members: IntArray,
    edges: IntArray,
    limits: FloatArray,
    opening: FloatArray,
    hidden: BitArray,
    best: IntArray,
) -> None:
    """Fills the best items of each row, by the scores of all.

    Args:
        queries: (N, d).
        columns: (d, m) the items' vectors, cell by cell.
        members: (m,) item positions, likewise.
        edges: (C + 1,) at which cells begin, and their end.
        limits: (N, C) which no score of a cell exceeds.
        opening: (N,) limits of the cells to begin with, at least.
        hidden: (N, ceil(n_items / 8)) uint8, items that come last; (0, 0) for none.
        best: (N, k), filled, the best first.
    """
    engine = NumpyEngine()
    for row, query in enumerate(queries):
        scores = engine.inner_products(query[None], columns)[0]
        if hidden.size:
            is_hidden = hidden[row, members >> 3] >> (members & 7).astype(np.uint8) & 1
            scores[is_hidden.astype(bool)] = -np.inf
        best[row] = members[np.lexsort((members, -scores))[: best.shape[1]]]


def find_cells(vectors: FloatArray) -> IntArray:
    """Cells of neighbours: k-means in k-means (Lloyd), the same for the same vectors.

    Args:
        vectors: (m, d) float32.

    Returns:
        (m,) int64 cells, from 0 on, none of them empty.
    """
    side = max(1, round(np.sqrt(len(vectors) / _CELL)))
    outer = _nearest(vectors, side)
    cells = np.zeros(len(vectors), np.int64)
    for cell in range(side):
        inside = np.flatnonzero(outer == cell)
        cells[inside] = cell * side + _nearest(vectors[inside], side)
    return np.asarray(np.unique(cells, return_inverse=True)[1], dtype=np.int64)


def _nearest(vectors: FloatArray, n_centres: int) -> IntArray:
    """(m,) the nearest of the centres that k-means finds on a part of the points."""
    n = min(n_centres, len(vectors))
    if n <= 1:
        return np.zeros(len(vectors), np.int64)
    sample = vectors[:: -(-len(vectors) // (_SAMPLE * n))]
    centres = sample[:: -(-len(sample) // n)].copy()
    for _ in range(_ROUNDS):
        of_sample = _compared(sample, centres)
        sizes = np.bincount(of_sample, minlength=len(centres))
        sums = [np.bincount(of_sample, column, len(centres)) for column in sample.T]
        centres[sizes > 0] = np.stack(sums, 1)[sizes > 0] / sizes[sizes > 0, None]
    return _compared(vectors, centres)


def _compared(vectors: FloatArray, centres: FloatArray) -> IntArray:
    """(m,) the nearest of some centres."""
    half = 0.5 * np.einsum("cd,cd->c", centres, centres)
    chunks = np.split(vectors, range(_CHUNK, len(vectors), _CHUNK))
    return np.concatenate([(chunk @ centres.T - half).argmax(axis=1) for chunk in chunks])
