"""Observed cells of a user x item table: dense where they fit, sorted where they do not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DENSE_CELLS = 1 << 26  # of float32: a dense table of 256 MB at most

FloatArray = NDArray[np.float32]
Index = NDArray[np.integer]


class SortedCells:
    """Cells that are looked up as those of a dense table, in memory of the observed ones alone.

    Args:
        rows: (n,) integers, rows of the observed cells.
        items: (n,) integers, their columns; a cell stands here once.
        values: (n,) float32.
        n_items: Number of columns.
    """

    def __init__(self, rows: Index, items: Index, values: FloatArray, n_items: int) -> None:
        keys = rows.astype(np.int64) * n_items + items
        order = np.argsort(keys, kind="stable")
        self._keys, self._values, self._n_items = keys[order], values[order], n_items

    def __getitem__(self, cells: tuple[Index, Index]) -> FloatArray:
        """Values of cells, by row and item, of their broadcast shape; NaN where none is."""
        rows, items = cells
        keys = np.asarray(rows).astype(np.int64) * self._n_items + items
        rank = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        values = self._values[rank]
        return np.where(self._keys[rank] == keys, values, np.float32(np.nan))


def observed_cells(
    rows: Index, items: Index, values: FloatArray, shape: tuple[int, int]
) -> FloatArray | SortedCells:
    """A table of a shape that holds some cells, and NaN in all others.

    Args:
        rows: (n,) integers, rows of the observed cells.
        items: (n,) integers, their columns; a cell stands here once.
        values: (n,) float32.
        shape: Rows and columns of the table.
    """
    if shape[0] * shape[1] > DENSE_CELLS:
        return SortedCells(rows, items, values, shape[1])
    table = np.full(shape, np.nan, dtype=np.float32)
    table[rows, items] = values
    return table
