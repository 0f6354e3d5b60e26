"""Tables of rows in shards of neighbouring items: of a large one, memory holds a shard at a time.

Sums over the rows of a user are sums over shards, those of an item lie in one shard. What is fitted
by such sums is the same model, up to rounding, however many shards there are.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.data.feedback import Interactions
from kuaisim_gym.data.tables import ColumnFiles
from kuaisim_gym.disk import disk_errors
from kuaisim_gym.simulator.evidence import Rows, Table
from kuaisim_gym.simulator.spectral import leading_item_vectors, leading_vectors_of_blocks

MOST_ROWS, MOST_ITEMS = 1 << 24, 1 << 18  # that are one shard
SHARD_ROWS, SHARD_ITEMS = 1 << 22, 1 << 16  # of each shard where there are more

T = TypeVar("T", bound=Rows)


def needs_shards(data: TrainingData) -> bool:
    """Tells whether a table of the data may be more than one shard."""
    rows = len(data.log) + (0 if data.randomised is None else len(data.randomised))
    return rows > MOST_ROWS or data.n_all_items > MOST_ITEMS


def item_ranges(rows_of_items: NDArray[np.integer]) -> list[slice]:
    """Ranges of neighbouring items that are worked on together.

    Args:
        rows_of_items: (n_items,) numbers of rows.

    Returns:
        Ranges that cover all items: a single one where rows and items are few, otherwise as long
        ones as :data:`SHARD_ROWS` and :data:`SHARD_ITEMS` let them be. An item is not divided.
    """
    n_items = len(rows_of_items)
    ends = np.cumsum(rows_of_items, dtype=np.int64)
    if n_items <= MOST_ITEMS and ends[-1] <= MOST_ROWS:
        return [slice(0, n_items)]
    ranges, start = [], 0
    while start < n_items:
        before = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, before + SHARD_ROWS, side="right"))
        end = min(max(end, start + 1), start + SHARD_ITEMS, n_items)
        ranges.append(slice(start, end))
        start = end
    return ranges


class Shards(Generic[T]):
    """A table as a sequence of tables, each with the rows of one range of items.

    The only shard is kept. Several are made anew whenever they are asked for, of rows that lie in
    files.

    Args:
        rows: The table.
        n_users: Number of users.
        ranges: The ranges, of :func:`item_ranges`.
        make: Makes a shard of its rows, whose items count from the range's start, and its size.
        folder: Where rows of several shards go; needed for them alone.

    Attributes:
        ranges: As given.
        n_rows: Number of rows.
        per_user: (n_users,) float64, numbers of rows.
        per_item: (n_items,) int64, numbers of rows.
    """

    def __init__(
        self,
        rows: Interactions,
        n_users: int,
        ranges: Sequence[slice],
        make: Callable[[Interactions, tuple[int, int]], T],
        folder: Path | None = None,
    ) -> None:
        self.ranges, self.n_rows, self._n_users, self._make = ranges, len(rows), n_users, make
        self.per_user = np.bincount(rows.users, minlength=n_users).astype(np.float64)
        self.per_item = np.bincount(rows.items, minlength=ranges[-1].stop)
        self._kind, self._only = type(rows), None
        if len(ranges) == 1:
            self._only = make(rows, (n_users, ranges[0].stop))
            self._columns = rows.columns
        else:
            assert folder is not None
            self._columns = _by_range(rows, ranges, folder)
        ends = np.cumsum([self.per_item[items].sum() for items in ranges])
        self._rows = [slice(*pair) for pair in zip([0, *ends[:-1]], ends, strict=True)]

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, number: int) -> T:
        """A shard by number."""
        if self._only is not None:
            return self._only
        items = self.ranges[number]
        return self._make(self.rows(number), (self._n_users, items.stop - items.start))

    def __iter__(self) -> Iterator[tuple[slice, T]]:
        """The shards, each with its range of items."""
        for number, items in enumerate(self.ranges):
            yield items, self[number]

    def rows(self, number: int) -> Interactions:
        """The rows of a shard, whose items count from the range's start."""
        columns = {name: column[self._rows[number]] for name, column in self._columns.items()}
        return self._kind(**columns)

    def by_user(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_users, m) sums of the items' (n_items, m) columns over each user's rows."""
        sums = np.zeros((self._n_users, columns.shape[1]))
        for items, shard in self:
            sums += shard.by_user(shard.unit_weights, columns[items])
        return sums

    def by_item(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n_items, m) sums of the users' (n_users, m) columns over each item's rows."""
        sums = [shard.by_item(shard.unit_weights, columns) for _, shard in self]
        return sums[0] if len(sums) == 1 else np.concatenate(sums)

    def among(self, n_items: int) -> NDArray[np.float64]:
        """(n_users,) numbers of rows of the first so many items."""
        counts = np.zeros(self._n_users)
        for items, shard in self:
            counts += shard.among(n_items - items.start)
        return counts


def _by_range(
    rows: Interactions, ranges: Sequence[slice], folder: Path
) -> dict[str, NDArray[np.generic]]:
    """The columns of a table, rows of one range of items together and users ascending in it."""
    columns = rows.columns
    dtypes = {name: column.dtype for name, column in columns.items()}
    with disk_errors(folder, sum(column.nbytes for column in columns.values())):
        files = ColumnFiles(folder, uuid.uuid4().hex, dtypes)
        for items in ranges:
            chosen = np.flatnonzero((rows.items >= items.start) & (rows.items < items.stop))
            columns_of_range = {name: column[chosen] for name, column in columns.items()}
            files.append(
                columns_of_range | {"items": columns_of_range["items"] - np.int32(items.start)}
            )
        return files.finish()


def leading_vectors(table: Shards[Any], rank: int) -> NDArray[np.float64]:
    """(n_items, k) leading directions of where rows lie, see the module ``spectral``."""

    def cells() -> Iterator[tuple[slice, csr_matrix]]:
        for number, items in enumerate(table.ranges):
            rows = table.rows(number)
            shape = (len(table.per_user), items.stop - items.start)
            weights = np.ones(len(rows))
            yield items, csr_matrix((weights, (rows.users, rows.items)), shape=shape)

    if len(table) > 1:
        return leading_vectors_of_blocks(cells, table.per_user, table.per_item, rank)
    (_, matrix), *_ = cells()
    return leading_item_vectors(matrix, table.per_user, table.per_item, rank)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence about users: tables of answers, and the rows whose places tell.

    Attributes:
        answers: The tables, with the level of each.
        levels: (tables,) list, the constant of each table's scores.
        places: The log.
    """

    answers: list[Shards[Table]]
    levels: list[float]
    places: Shards[Rows] | Shards[Table]

    @property
    def ranges(self) -> Sequence[slice]:
        """Ranges of items, those of all tables."""
        return self.places.ranges
