"""Exact ranking of the best items of many users at once, without sorting catalogues."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine import Engine
from kuaisim_gym.engine.bits import BitArray, width

FloatArray = NDArray[np.float32]


class Ranker:
    """Ranks a catalogue by inner products with users' vectors.

    Args:
        items: (n_items, d) float32.
        engine: Computes and ranks the inner products.
    """

    def __init__(self, items: FloatArray, engine: Engine) -> None:
        self.engine = engine
        self._items = np.ascontiguousarray(items.T, dtype=np.float32)

    @property
    def dim(self) -> int:
        """Dimension d of the vectors."""
        return len(self._items)

    def best(
        self, vectors: FloatArray, k: int, hidden: BitArray | None = None
    ) -> NDArray[np.int64]:
        """The k best items of each user, which do not depend on the other rows.

        Args:
            vectors: (N, d) float32.
            k: Items a user, at most n_items.
            hidden: (N, ceil(n_items / 8)) uint8, items not to pick, see
                :mod:`~kuaisim_gym.engine.bits`; ``None`` for none.

        Returns:
            (N, k) int64 item positions, best first; hidden ones come last.

        Raises:
            ValueError: ``hidden`` is not of that form.
        """
        expected = len(vectors), width(self._items.shape[1])
        if hidden is not None and (hidden.shape != expected or hidden.dtype != np.uint8):
            raise ValueError(
                f"hidden must be {expected} uint8, a bit an item as engine.bits.pack gives it, got "
                f"{hidden.shape} {hidden.dtype}."
            )
        return self.engine.best_items(vectors, self._items, k, hidden)
