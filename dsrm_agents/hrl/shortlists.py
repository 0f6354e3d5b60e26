"""Slates drawn from a shortlist of each group: the first of two stages where items are many.

The policy of a worker with shortlists *is* Plackett-Luce over a session's shortlist: the items of
each group that score best, as far as a search finds them, all others having probability 0.
Log-probabilities and gradients are exact for that policy. They cost O(S), because the shortlist of
a rollout's step is kept with it: an update moves scores, not what could be drawn.

Nothing is drawn at random into a shortlist. Scores spread over several nats, so that the best few
hundred of a group have nearly all of its probability, and users' shortlists differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dsrm_agents.common.bounds import MASKED, SlateBounds, choice_log_prob
from dsrm_agents.hrl.distributions import SlateDistribution
from kuaisim_gym.cells import CellIndex
from kuaisim_gym.engine import bits
from kuaisim_gym.errors import ConfigError

# Of the reach of cells in a search: of the 512 best of a million Gaussian items in nine dimensions
# it finds 98.9 in a hundred, and the best ten, in a third of the items that certainty looks at.
SHARE = 0.7


class Shortlists:
    """Finds the shortlists of sessions.

    Args:
        size: S, items of each group; of a smaller group all.
        starts: The first column of each group, from 0 on.
        n_columns: C, columns in all; C stands for no item.
    """

    def __init__(self, size: int, starts: Sequence[int], n_columns: int) -> None:
        self.n_columns = n_columns
        self._groups = list(pairwise((*starts, n_columns)))
        self._sizes = [min(size, end - start) for start, end in self._groups]
        self._indexes: list[CellIndex] = []
        self._version: object = None

    @property
    def starts(self) -> tuple[int, ...]:
        """The first place of each group in a shortlist."""
        return tuple(np.cumsum([0, *self._sizes[:-1]]).tolist())

    def is_current(self, version: object) -> bool:
        """Tells if the keys of :meth:`index` were of this version."""
        return self._version == version

    def index(self, key: Tensor, version: object) -> None:
        """Takes the (C, d) keys of the columns, anew whenever they have moved."""
        vectors = key.detach().cpu().numpy()
        for place, (start, end) in enumerate(self._groups):
            if len(self._indexes) <= place:
                self._indexes.append(CellIndex(vectors[start:end], np.arange(start, end)))
            else:
                self._indexes[place].move(vectors[start:end])
        self._version = version

    def find(self, query: Tensor, masked: Tensor, closed: Tensor) -> Tensor:
        """The shortlists of N sessions.

        Args:
            query: (N, d).
            masked: (N, h) int64 columns that may not be shown; repeats do not matter.
            closed: (N, C + 1) bool, further ones; (N, 0) for none.

        Returns:
            (N, W) int64 columns, each group's in order, C where there is none that may be shown.
        """
        hidden = self._hidden(masked, closed)
        queries = query.detach().cpu().numpy()
        found = [
            np.sort(index.best(queries, size, hidden, SHARE), axis=1)
            for index, size in zip(self._indexes, self._sizes, strict=True)
        ]
        columns = np.concatenate(found, axis=1)
        is_hidden = bits.contains(hidden, np.arange(len(columns)), columns)
        return torch.as_tensor(np.where(is_hidden, self.n_columns, columns)).to(query.device)

    def _hidden(self, masked: Tensor, closed: Tensor) -> bits.BitArray:
        """(N, ceil((C + 1) / 8)) uint8, as :mod:`~kuaisim_gym.engine.bits` has them."""
        columns = masked.cpu().numpy()
        if closed.shape[1]:
            hidden = bits.pack(closed.cpu().numpy())
        else:
            hidden = np.zeros((len(columns), bits.width(self.n_columns + 1)), np.uint8)
        marks = (1 << (columns & 7)).astype(np.uint8)
        np.bitwise_or.at(hidden, (np.arange(len(columns))[:, None], columns >> 3), marks)
        return hidden


class ShortlistedSlates(SlateDistribution):
    """Slates of N sessions, drawn from their shortlists.

    Args:
        query: (N, d).
        key: (C + 1, d), of all columns, and zeros for none.
        shortlist: (N, W) columns, as :meth:`Shortlists.find` gives them.
        starts: The first place of each group in a shortlist, from 0 on.
        bounds: How many items of each group each slate may hold.
        slate_size: K.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        shortlist: Tensor,
        starts: Sequence[int],
        bounds: SlateBounds,
        slate_size: int,
    ) -> None:
        keys = key.index_select(0, shortlist.flatten()).view(*shortlist.shape, -1)
        nothing = shortlist[:, :0].long()
        super().__init__(query, keys, nothing, starts, bounds, slate_size)
        self.shortlist = shortlist
        self._is_none = shortlist == len(key) - 1

    def sample(self) -> tuple[Tensor, Tensor]:
        places, log_prob = super().sample()
        return self.shortlist.gather(1, places).long(), log_prob

    def best(self) -> Tensor:
        return self.shortlist.gather(1, super().best()).long()

    def log_prob(self, slates: Tensor) -> Tensor:
        """As the base class's.

        Raises:
            ConfigError: An item is not on the session's shortlist.
        """
        is_item = self.shortlist[:, None, :] == slates[:, :, None]
        found, places = is_item.max(dim=2)
        if not bool(found.all()):
            raise ConfigError(
                "A slate has an item that is not on its session's shortlist, whose probability is "
                "0: give the shortlist that the slate was drawn from (Decision.shortlist)."
            )
        scores = self._scores()
        left = scores.scatter(1, places, MASKED)
        never_drawn = [left[:, group].logsumexp(dim=1) for group in self._groups]
        later = torch.tensor(self.starts[1:], device=slates.device)
        return choice_log_prob(
            scores.gather(1, places),
            torch.stack(never_drawn, dim=1),
            torch.searchsorted(later, places, right=True),
            self.bounds,
        )

    def _scores(self) -> Tensor:
        scores = torch.bmm(self.key, self.query[:, :, None]).squeeze(2)
        return scores.masked_fill(self._is_none, MASKED)
