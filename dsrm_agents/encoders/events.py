"""Histories of users' last events, read from a log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data import Interactions

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class LoggedEvents:
    """A log indexed by user; of the answers, it has the response alone.

    Args:
        log: Rows grouped by user, in the order of events.
        n_users: Number of users of the dataset.

    Attributes:
        users: (n,) int32 positions.
        items: (n,) int32 positions.
        responses: (n,) float32 in [0, 1].
        has_negatives: Whether answers can be negative.
        starts: (n_users + 1,) int64, see :meth:`Interactions.starts`.
    """

    def __init__(self, log: Interactions, n_users: int) -> None:
        self.users, self.items, self.responses = log.users, log.items, log.response
        self.has_negatives = log.has_negatives
        self.starts = log.starts(n_users)

    def before(self, rows: IntArray, users: NDArray[np.integer], length: int) -> History:
        """The last events of users before some rows.

        Args:
            rows: (n,) row numbers, or one past a user's last.
            users: (n,) users of the rows.
            length: H.

        Returns:
            (n, H) int64 items, oldest first and -1 where there is none, and (n, H) float32
            responses, 0 there.
        """
        positions = rows[:, None] + np.arange(-length, 0)
        real = positions >= self.starts[users][:, None]
        positions = np.where(real, positions, 0)
        items = np.where(real, self.items[positions], -1).astype(np.int64)
        return items, np.where(real, self.responses[positions], np.float32(0.0))

    def last(self, users: NDArray[np.integer], length: int) -> History:
        """The last H events of (n,) users, as :meth:`before` gives them."""
        return self.before(self.starts[users + 1], users, length)


History = tuple[IntArray, FloatArray]
