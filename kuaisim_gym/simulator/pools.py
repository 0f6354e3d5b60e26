"""Pools: the items that a user can be shown where only that user's own rows have answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Pools:
    """Pools of the users of one split; a user without rows can be shown every item.

    Attributes:
        n_items: Size of the catalogue.
        room: Size of the largest pool of the dataset's test users.
        items: (n_rows,) int32 item positions, user by user.
        starts: (n_users + 1,) int64: user u's items are ``starts[u]`` to ``starts[u + 1] - 1``.
    """

    n_items: int
    room: int
    items: NDArray[np.int32]
    starts: NDArray[np.int64]

    def sizes(self, users: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) int64: how many items some users can be shown."""
        sizes = self.starts[users + 1] - self.starts[users]
        return np.where(sizes == 0, self.n_items, sizes)

    def padded(self, users: NDArray[np.integer]) -> NDArray[np.int32]:
        """(n, room) int32 items of some users' pools, -1 padded; all -1 for every item."""
        columns = self.starts[users][:, None] + np.arange(self.room)
        inside = columns < self.starts[users + 1][:, None]
        items = np.full(columns.shape, -1, dtype=np.int32)
        items[inside] = self.items[columns[inside]]
        return items

    def outside(self, users: NDArray[np.integer]) -> NDArray[np.bool_]:
        """(n, n_items) bool: items that some users cannot be shown."""
        pools = self.padded(users)
        outside = np.ones((len(users), self.n_items + 1), dtype=bool)
        outside[np.arange(len(users))[:, None], pools] = False  # padding: the last column
        outside[pools[:, 0] < 0] = False
        return outside[:, :-1]


@lru_cache(maxsize=4)
def find_pools(dataset: Dataset, split: str) -> Pools | None:
    """The pools of a split's users; ``None`` where the dataset has no pools.

    Train users can be shown every item; their observations have the room of the test users'.
    """
    if not dataset.pools:
        return None
    test = dataset.test
    starts = test.starts(dataset.n_users)
    room = int(np.diff(starts).max())
    if split == "train":
        starts = np.zeros_like(starts)
    return Pools(dataset.n_items, room, test.items, starts)
