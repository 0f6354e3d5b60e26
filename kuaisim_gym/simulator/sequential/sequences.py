"""Users' events as padded arrays, in batches of users with similar numbers of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kuaisim_gym.data.feedback import Interactions

Positions = NDArray[np.int64]

RESET_EVENTS = 4096  # events in a batch of logged histories, padding included


@dataclass(frozen=True)
class Padded:
    """Sequences of m users, padded with zeros to the longest length L.

    Attributes:
        items: (m, L) int64 item positions.
        responses: (m, L, B) float32 in [0, 1].
        lengths: (m,) int64.
    """

    items: Tensor
    responses: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False)
class Sequences:
    """Every user's events, in order.

    Attributes:
        starts: (n_users + 1,) int64: user u's events are ``starts[u]`` to ``starts[u + 1] - 1``.
        items: (n,) int32 item positions.
        responses: (n, B), each in [0, 1]: uint8 where all are yes or no, float32 otherwise.
    """

    starts: Positions
    items: NDArray[np.int32]
    responses: NDArray[np.uint8] | NDArray[np.float32]

    @classmethod
    def of(cls, table: Interactions, n_users: int) -> Sequences:
        """All rows of a table, which are grouped by user."""
        starts = table.starts(n_users)
        columns = [table.behaviour(b) for b in range(len(table.behaviours))]
        if all(((column == 0) | (column == 1)).all() for column in columns):
            columns = [column.astype(np.uint8) for column in columns]
        return cls(starts, np.asarray(table.items, dtype=np.int32), np.stack(columns, axis=1))

    @property
    def lengths(self) -> Positions:
        """(n_users,) int64, events of each user."""
        return np.diff(self.starts)

    def last(self, count: int) -> Sequences:
        """Each user's last events, ``count`` at most."""
        lengths = self.lengths
        counts = np.minimum(lengths, count)
        position = np.arange(len(self.items)) - np.repeat(self.starts[:-1], lengths)
        rows = position >= np.repeat(lengths - counts, lengths)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Sequences(starts, self.items[rows], self.responses[rows])

    def padded(self, users: Positions, lengths: Positions) -> Padded:
        """The first ``lengths`` events, (m,), of some users, (m,)."""
        longest = int(lengths.max(initial=0))
        positions = np.arange(longest)
        real = positions < lengths[:, None]
        rows = np.where(real, self.starts[users, None] + positions, 0)
        items = np.zeros(rows.shape, dtype=np.int64)
        responses = np.zeros((*rows.shape, self.responses.shape[1]), dtype=np.float32)
        items[real] = self.items[rows[real]]
        responses[real] = self.responses[rows[real]]
        return Padded(*(torch.from_numpy(array) for array in (items, responses, lengths)))


def batches(
    lengths: Positions, events: int, rng: np.random.Generator | None = None
) -> Iterator[Positions]:
    """Groups sequences of similar length.

    Args:
        lengths: (m,) int64.
        events: Events in a batch, padding included; a longer sequence is a batch by itself.
        rng: Draws neighbours and the order of batches; ``None`` for shortest first.

    Yields:
        (k,) int64 positions in ``lengths``.
    """
    if len(lengths) == 0:
        return
    # Drawing breaks ties and mixes neighbouring lengths, for a little more padding.
    blur = np.ones(len(lengths)) if rng is None else rng.uniform(0.9, 1.1, len(lengths))
    order = np.argsort(lengths * blur, kind="stable")
    cuts, start, longest = [0], 0, 0
    for index, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length, 1)
        if index > start and longest * (index - start + 1) > events:
            cuts.append(index)
            start, longest = index, max(length, 1)
    groups = np.split(order, cuts[1:])
    if rng is not None:
        groups = [groups[index] for index in rng.permutation(len(groups))]
    yield from groups
