"""The items that a worker chooses from, in columns, group by group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsrm_agents.common.copies import closed_copies, copies_today
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups

IntArray = NDArray[np.int64]


class Context(NamedTuple):
    """Sessions to draw slates for.

    Attributes:
        state: (N, d) float32 observed states.
        exposed: (N, room) int64 items of the session, -1 padded.
        outside: (N, n_items) bool, further items that the users cannot be shown; (N, 0) for none.
        popular: (N, n_items) bool, the items that are popular today, where that changes; else
            (N, 0).
        accuracy: (N,) float32, w_acc.
        fairness: (N,) float32, w_fair.
    """

    state: Tensor
    exposed: Tensor
    outside: Tensor
    popular: Tensor
    accuracy: Tensor
    fairness: Tensor


class Items(nn.Module, ABC):
    """Descriptions of the items in columns, group by group, and their learned projection.

    Groups stand by falling label: popular items first.

    Args:
        catalogue: The items, in the environment's order.
        groups: Their groups.
        features: (n_items, f) float, which describe the items independently of the log, or ``None``
            for the catalogue's embedding. With features the projection starts at the linear map
            that predicts the embedding best, and items that were never logged can be scored too.

    Attributes:
        described: (C, f or d) float32, of the item of each column.
        log_popularity: (C,) float32, standardised.
        item_of_column: (C,) int64, position in the catalogue of each column.
        column_of_item: (n_items,) int64, a column of each item.
        starts: The first column of each of the G groups.
        unprojected: (C + 1, f + 1) or (C + 1, d + 1) float32: descriptions, log popularity as the
            last column, and a row of zeros that stands for no item.
    """

    described: Tensor
    log_popularity: Tensor
    item_of_column: Tensor
    column_of_item: Tensor
    unprojected: Tensor
    starts: tuple[int, ...]

    def __init__(
        self,
        catalogue: Catalogue,
        groups: Groups,
        features: NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        n_items, embedding = catalogue.n_items, catalogue.item_embedding
        if features is not None and (
            features.ndim != 2 or len(features) != n_items or not np.isfinite(features).all()
        ):
            raise ConfigError(
                f"item_features must be ({n_items}, f) finite numbers, a row for each item "
                f"of the catalogue; got an array of shape {features.shape}."
            )
        order, column, starts = self._layout(groups)
        self.starts = tuple(starts.tolist())
        described = embedding if features is None else np.asarray(features, dtype=np.float32)
        self.register_buffer("described", torch.as_tensor(described[order]))
        self.register_buffer("log_popularity", torch.as_tensor(catalogue.log_popularity[order]))
        self.register_buffer("item_of_column", torch.as_tensor(order))
        self.register_buffer("column_of_item", torch.as_tensor(column))
        unprojected = torch.cat([self.described, self.log_popularity[:, None]], dim=1)
        unprojected = nn.functional.pad(unprojected, (0, 0, 0, 1))
        self.register_buffer("unprojected", unprojected, persistent=False)
        start: NDArray[np.floating] = np.eye(embedding.shape[1])
        if features is not None:
            start = np.linalg.lstsq(described, embedding, rcond=1e-6)[0].T
        self.projection = nn.Linear(described.shape[1], embedding.shape[1], bias=False)
        with torch.no_grad():
            self.projection.weight.copy_(torch.as_tensor(start, dtype=torch.float32))

    def __len__(self) -> int:
        return len(self.described)

    @property
    def dim(self) -> int:
        """Width d of the projected items."""
        return self.projection.out_features

    def keys(self, described: Tensor | None = None, log_popularity: Tensor | None = None) -> Tensor:
        """(m, d + 1): the projection, and log popularity as the last column.

        Args:
            described: (m, f or d) items; those of the columns if ``None``.
            log_popularity: (m,), likewise.
        """
        described = self.described if described is None else described
        popularity = self.log_popularity if log_popularity is None else log_popularity
        return torch.cat([self.projection(described), popularity[:, None]], dim=1)

    @property
    def are_narrow(self) -> bool:
        """True where a description is no wider than its projection."""
        return self.described.shape[1] <= self.dim

    @property
    def version(self) -> tuple[int, ...]:
        """Numbers that change when the keys do."""
        projection = 0 if self.are_narrow else self.projection.weight._version
        return self.described._version, projection

    def projected(self, scorer: Tensor) -> Tensor:
        """(N, d + 1) scorers of :meth:`keys` to queries of :attr:`unprojected`."""
        return torch.cat([scorer[:, :-1] @ self.projection.weight, scorer[:, -1:]], dim=1)

    def shown(self, context: Context) -> Tensor:
        """(N, G) int64 items of each group that the sessions have shown."""
        return self._counts(context, context.exposed)

    def left(self, context: Context, shown: Tensor) -> Tensor:
        """(N, G) int64 items of each group that may still be shown, of what :meth:`shown` gave."""
        left = self._sizes(context) - shown
        return left - self._outside(context) if context.outside.shape[1] else left

    def masked(self, context: Context) -> Tensor:
        """(N, m) int64 columns of items that the sessions have shown.

        The column after the last stands for no item and is always among them; others may repeat.
        """
        return self.columns(context, nn.functional.pad(context.exposed, (0, 1), value=-1))

    @abstractmethod
    def closed(self, context: Context) -> Tensor:
        """(N, C + 1) bool, further columns that may not be shown; (N, 0) for none."""

    @abstractmethod
    def columns(self, context: Context, items: Tensor) -> Tensor:
        """(N, m) item positions, -1 for none, to columns, the one after the last for none."""

    @abstractmethod
    def _layout(self, groups: Groups) -> tuple[IntArray, IntArray, IntArray]:
        """:attr:`item_of_column`, :attr:`column_of_item` and :attr:`starts`."""

    @abstractmethod
    def _sizes(self, context: Context) -> Tensor:
        """(G,) or (N, G) int64 items of each group."""

    @abstractmethod
    def _outside(self, context: Context) -> Tensor:
        """(N, G) int64 items of each group that the users cannot be shown."""

    @abstractmethod
    def _groups(self, context: Context, items: Tensor) -> Tensor:
        """(N, m) item positions, -1 for none, to groups, G for none."""

    def _counts(self, context: Context, items: Tensor) -> Tensor:
        """(N, m) item positions, -1 for none, to (N, G) int64 numbers of each group's items."""
        groups = self._groups(context, items)
        counts = groups.new_zeros(items.shape[0], len(self.starts) + 1)
        return counts.scatter_add_(1, groups, torch.ones_like(groups))[:, :-1]


class FixedItems(Items):
    """Items whose groups never change: a column for each.

    Arguments are the base class's.

    Attributes:
        column_of: (n_items + 1,) int64, the column of each item behind that of no item, n_items.
        group_of: (n_items + 1,) int64, the group of each item behind that of no item, G.
        group_sizes: (G,) int64 items of each group.
    """

    column_of: Tensor
    group_of: Tensor
    group_sizes: Tensor

    def __init__(
        self,
        catalogue: Catalogue,
        groups: Groups,
        features: NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__(catalogue, groups, features)
        # No item is -1 among positions and first in these: index_select, which takes a quarter of
        # the time of indexing, knows no negative index.
        columns = nn.functional.pad(self.column_of_item, (1, 0), value=catalogue.n_items)
        self.register_buffer("column_of", columns, persistent=False)
        of_item = torch.as_tensor(np.insert(_falling(groups), 0, len(groups)))
        self.register_buffer("group_of", of_item, persistent=False)
        sizes = torch.as_tensor(groups.sizes[::-1].astype(np.int64))
        self.register_buffer("group_sizes", sizes, persistent=False)

    def columns(self, context: Context, items: Tensor) -> Tensor:
        return _looked_up(self.column_of, items)

    def closed(self, context: Context) -> Tensor:
        outside = context.outside
        if not outside.shape[1]:
            return outside
        return nn.functional.pad(outside.index_select(1, self.item_of_column), (0, 1))

    def _layout(self, groups: Groups) -> tuple[IntArray, IntArray, IntArray]:
        order = np.argsort(_falling(groups), kind="stable")
        return order, np.argsort(order), np.cumsum([0, *groups.sizes[:0:-1]])

    def _sizes(self, context: Context) -> Tensor:
        return self.group_sizes

    def _outside(self, context: Context) -> Tensor:
        of_item = nn.functional.one_hot(self.group_of[1:], len(self.starts))
        return (context.outside.float() @ of_item.float()).long()

    def _groups(self, context: Context, items: Tensor) -> Tensor:
        return _looked_up(self.group_of, items)


class ChangingItems(Items):
    """Items of which others are popular every day: columns are :mod:`~dsrm_agents.common.copies`.

    What a session has shown counts by today's groups, too: observations do not tell of which group
    an item was on the day before.

    Arguments are the base class's.
    """

    def columns(self, context: Context, items: Tensor) -> Tensor:
        return copies_today(context.popular, items)

    def closed(self, context: Context) -> Tensor:
        return nn.functional.pad(closed_copies(context.popular, context.outside), (0, 1))

    def _layout(self, groups: Groups) -> tuple[IntArray, IntArray, IntArray]:
        items = np.arange(groups.n_items)
        return np.tile(items, 2), items, np.array([0, groups.n_items])

    def _sizes(self, context: Context) -> Tensor:
        popular = context.popular.sum(dim=1)
        return torch.stack([popular, len(self.column_of_item) - popular], dim=1)

    def _outside(self, context: Context) -> Tensor:
        popular = (context.outside & context.popular).sum(dim=1)
        return torch.stack([popular, context.outside.sum(dim=1) - popular], dim=1)

    def _groups(self, context: Context, items: Tensor) -> Tensor:
        return copies_today(context.popular, items) // len(self.column_of_item)


def _falling(groups: Groups) -> IntArray:
    """(n_items,) int64 groups, numbered by falling label."""
    falling: IntArray = len(groups) - 1 - groups.labels.astype(np.int64)
    return falling


def _looked_up(of_item: Tensor, items: Tensor) -> Tensor:
    """Entries, at (N, m) item positions or -1 for none, of a table that begins with no item."""
    return of_item.index_select(0, (items + 1).flatten()).view(items.shape)
