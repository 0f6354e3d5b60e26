"""Exact ranking of the best items of many users at once, without sorting catalogues."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine import Engine

FloatArray = NDArray[np.float32]

_ROWS = 64  # users scored at once, so that their scores stay in the processor's cache


def pick(
    scores: FloatArray, k: int, masked: NDArray[np.integer] | None, engine: Engine
) -> NDArray[np.int64]:
    """Picks the k best items of each row, masked items last.

    Args:
        scores: (N, n_items + 1) float32; the last column is no item, and what padding points to.
            Overwritten.
        k: Items a row, at most n_items.
        masked: (N, m) positions of items not to pick, -1 padded; ``None`` for none.
        engine: Ranks the scores.

    Returns:
        (N, k) int64 item positions, best first.
    """
    if masked is not None:
        scores[np.arange(len(scores))[:, None], masked] = -np.inf
    scores[:, -1] = -np.inf  # behind all items: of ties the first column is the better one
    best: NDArray[np.int64] = engine.top_items(scores, k)
    return best


class Ranker:
    """Ranks a catalogue by inner products with users' vectors.

    Args:
        items: (n_items, d) float32.
        engine: Computes and ranks the inner products.
    """

    def __init__(self, items: FloatArray, engine: Engine) -> None:
        self.engine = engine
        self._items = np.zeros((items.shape[1], len(items) + 1), dtype=np.float32)
        self._items[:, :-1] = items.T

    @property
    def dim(self) -> int:
        """Dimension d of the vectors."""
        return len(self._items)

    def best(
        self, vectors: FloatArray, k: int, masked: NDArray[np.integer] | None = None
    ) -> NDArray[np.int64]:
        """The k best items of each user, which do not depend on the other rows.

        Args:
            vectors: (N, d) float32.
            k: Items a user, at most n_items.
            masked: (N, m) positions of items not to pick, -1 padded; ``None`` for none.

        Returns:
            (N, k) int64 item positions, best first.
        """
        best = np.empty((len(vectors), k), dtype=np.int64)
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            scores = self.engine.inner_products(vectors[rows], self._items)
            best[rows] = pick(scores, k, None if masked is None else masked[rows], self.engine)
        return best
