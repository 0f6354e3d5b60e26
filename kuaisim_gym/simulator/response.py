"""Response models: how likely a user's answer to an item is, by position in the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Index = NDArray[np.integer]


class ResponseModel(Protocol):
    """Anything that turns (user, item) positions into probabilities."""

    def probability(self, users: Index, items: Index) -> FloatArray:
        """Probability of a positive response.

        Args:
            users: Integer positions, broadcastable with ``items``.
            items: Integer positions.

        Returns:
            float32 in [0, 1], of the broadcast shape.
        """
        ...


@dataclass(frozen=True, eq=False)
class FactorModel:
    """Mean, user and item effects, and a low-rank interaction, clipped to [0, 1].

    Attributes:
        mean: Mean response.
        user_effect: (n_users,) float32.
        item_effect: (n_items,) float32.
        user_factors: (n_users, rank) float32; rank may be 0.
        item_factors: (n_items, rank) float32.
    """

    mean: float
    user_effect: FloatArray
    item_effect: FloatArray
    user_factors: FloatArray
    item_factors: FloatArray

    def probability(self, users: Index, items: Index) -> FloatArray:
        """See :class:`ResponseModel`."""
        score = np.float32(self.mean) + self.user_effect[users] + self.item_effect[items]
        score += np.einsum("...d,...d->...", self.user_factors[users], self.item_factors[items])
        clipped: FloatArray = np.clip(score, 0.0, 1.0)
        return clipped


@dataclass(frozen=True, eq=False)
class TableModel:
    """Looks answers up in a dense table, and asks another model where a cell is empty.

    Attributes:
        rows: (n_users,) int32, each user's row in ``table``; -1 for users without one.
        table: (n_rows, n_items) float32 in [0, 1]; NaN where nothing was observed.
        fallback: Answers the empty cells; ``None`` where there are none.
    """

    rows: NDArray[np.int32]
    table: FloatArray
    fallback: ResponseModel | None

    def probability(self, users: Index, items: Index) -> FloatArray:
        """See :class:`ResponseModel`."""
        looked_up = self.table[self.rows[users], items]
        if self.fallback is None:
            return looked_up
        return np.where(np.isnan(looked_up), self.fallback.probability(users, items), looked_up)
