"""Similarity of items by the users who were shown both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kuaisim_gym.config import check_whole
from kuaisim_gym.data.dataset import TrainingData

_BLOCK = 256  # items compared with all others at a time


def neighbours(data: TrainingData, count: int) -> NDArray[np.int32]:
    """Most similar items of each item by the cosine of co-occurrence, ``c_ij / sqrt(n_i n_j)``.

    n_i is the number of train users with item i in their log, c_ij that with both i and j.

    Args:
        data: Only ``train_log`` is read, and of it the rows of the catalogue's items.
        count: Neighbours an item, at most n_items - 1.

    Returns:
        (n_items, min(count, n_items - 1)) positions, most similar first, ties by position. Items
        that nobody was shown are similar to none, and come last.

    Raises:
        ConfigError: ``count`` is no positive integer.
    """
    count = min(check_whole("count", count, 1), data.n_items - 1)
    log = data.train_log
    shown = log.items < data.n_items
    users, items = log.users[shown], log.items[shown]
    shape = (data.n_users, data.n_items)
    shown_to = csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
    shown_to.data[:] = 1.0  # a user who was shown an item twice is one user
    by_item = shown_to.T.tocsr()
    # n_i is the same for all that i is compared with, and leaves their order as it is.
    weights = 1.0 / np.sqrt(np.maximum(np.diff(by_item.indptr), 1))

    similar = np.empty((data.n_items, count), dtype=np.int32)
    for start in range(0, data.n_items, _BLOCK):
        together = (by_item[start : start + _BLOCK] @ shown_to).toarray()
        likeness = (together * weights).astype(np.float32)
        rows = np.arange(len(likeness))
        likeness[rows, start + rows] = -1.0  # an item is not its own neighbour
        similar[start : start + _BLOCK] = _largest(likeness, count)
    return similar


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """(n, count) columns of the largest of (n, m) values, largest first, ties by column.

    Columns are packed beneath the values' bits, which makes all distinct and needs no full sort.
    """
    # Bits of floats that are not negative grow with them; the one below zero stays below.
    keys = values.view(np.int32).astype(np.int64) << 32
    keys += np.arange(values.shape[1])[::-1]
    largest = np.partition(keys, -count, axis=1)[:, -count:]
    largest.sort(axis=1)
    return np.asarray(values.shape[1] - 1 - (largest[:, ::-1] & 0xFFFFFFFF))
