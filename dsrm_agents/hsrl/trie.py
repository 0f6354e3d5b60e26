"""Tree of ids: tokens that may follow a prefix, and the weight below them.

Leaves are numbered so that those below a prefix stand side by side. The weight below a prefix is
then a difference of two cumulative sums over the leaves, and the number of shown items below it a
difference of two indices in a sorted list: a level costs O(V log room) a prefix, whatever the size
of the catalogue. Where much of the catalogue cannot be shown, each session has cumulative sums of
its own instead.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsrm_agents.common.bounds import MASKED
from kuaisim_gym.errors import CheckpointError, ConfigError

# Prior log weights are cut this far below the best one: what is left after the best have been shown
# is a difference of sums in float64, and is right to a thousandth for a million items alike.
LEAST_LOG_WEIGHT = -20.0
MOST_LEAVES = 2**27  # 3 GB of tables


class Shown(NamedTuple):
    """Items that N sessions may not show.

    Attributes:
        leaves: (N, h) int64, in order; those after the last stand for no item.
        weighed: (N, h + 1) float64, total weight of the first so many.
    """

    leaves: Tensor
    weighed: Tensor


class Left(NamedTuple):
    """Items that N sessions may show, where they are few of all.

    Attributes:
        counted: (N, n_items + 1) int64, how many of the first so many items are left, in the order
            of their leaves.
        weighed: (N, n_items + 1) float64, their total weight.
    """

    counted: Tensor
    weighed: Tensor


class Trie(nn.Module):
    """Ids of all items, and a prior weight for each.

    Args:
        ids: (n_items, D) int64, distinct.
        widths: D numbers of values along an id.
        log_weight: (n_items,) prior log weights.

    Attributes:
        leaf: (n_items + 1,) int64, the leaf of each item; the last stands for no item.
        item_at: (n_leaves + 1,) int64, the item of each leaf, ``n_items`` where there is none.
        in_order: (n_items,) int64, items in the order of their leaves.

    Raises:
        ConfigError: There are too many leaves for tables of them.
    """

    leaf: Tensor
    item_at: Tensor
    in_order: Tensor
    weight: Tensor
    counted: Tensor
    weighed: Tensor

    def __init__(
        self,
        ids: NDArray[np.int64],
        widths: tuple[int, ...],
        log_weight: NDArray[np.floating],
    ) -> None:
        super().__init__()
        self.widths = widths
        self.n_items = len(ids)
        self.n_leaves = math.prod(widths)
        if self.n_leaves > MOST_LEAVES:
            raise ConfigError(
                f"Ids with {widths} values a level are {self.n_leaves:,} for {self.n_items:,} "
                f"items, more than {MOST_LEAVES:,}: fit a codebook with fewer codes or less "
                "tolerance."
            )
        # Leaves below a prefix that ends at a depth.
        self.spans = tuple(math.prod(widths[depth + 1 :]) for depth in range(len(widths)))
        leaf = np.append(ids @ np.array(self.spans, dtype=np.int64), self.n_leaves)
        item_at = np.full(self.n_leaves + 1, self.n_items)
        item_at[leaf[:-1]] = np.arange(self.n_items)
        log_weight = log_weight.astype(np.float64)
        weight = np.exp(np.maximum(log_weight - log_weight.max(), LEAST_LOG_WEIGHT))
        weight = np.append(weight, 0.0)
        self.register_buffer("leaf", torch.as_tensor(leaf))
        for name, values in (
            ("item_at", item_at),
            ("in_order", item_at[item_at < self.n_items]),
            ("weight", weight),
            ("counted", np.append(0, np.cumsum(item_at[:-1] < self.n_items))),
            ("weighed", np.append(0.0, np.cumsum(weight[item_at[:-1]]))),
        ):
            self.register_buffer(name, torch.as_tensor(values), persistent=False)
        self.register_load_state_dict_pre_hook(_check_ids)  # type: ignore[no-untyped-call]

    def shown(self, items: Tensor) -> Shown:
        """Sorts items that sessions may not show.

        Args:
            items: (N, h) int64 item positions, -1 for none; repeats do not matter.
        """
        items = torch.where(items < 0, self.n_items, items)
        leaves, order = self.leaf[items].sort(dim=1)
        weight = self.weight[items].gather(1, order)
        again = (leaves[:, 1:] == leaves[:, :-1]) & (leaves[:, 1:] < self.n_leaves)
        if bool(again.any()):
            leaves[:, 1:][again] = self.n_leaves
            leaves, order = leaves.sort(dim=1)
            weight = weight.gather(1, order) * (leaves < self.n_leaves)
        return Shown(leaves, nn.functional.pad(weight.cumsum(dim=1), (1, 0)))

    def left(self, closed: Tensor, items: Tensor) -> Left:
        """Adds up the items that sessions may show.

        Args:
            closed: (N, n_items) bool, items that they may not show.
            items: (N, h) int64 further such items, -1 for none; repeats do not matter.
        """
        closed = nn.functional.pad(closed, (0, 1))
        closed.scatter_(1, torch.where(items < 0, self.n_items, items), True)
        is_left = ~closed.index_select(1, self.in_order)
        weight = is_left * self.weight[self.in_order]
        sums = is_left.cumsum(dim=1), weight.cumsum(dim=1)
        return Left(*(nn.functional.pad(column, (1, 0)) for column in sums))

    def log_mass(self, depth: int, prefix: Tensor, shown: Shown | Left) -> Tensor:
        """Log of the prior weight below every token that can follow a prefix.

        Args:
            depth: Length of the prefixes.
            prefix: (N, ...) int64 numbers of prefixes, 0 of the empty one.
            shown: Of N sessions, or what is left of all items.

        Returns:
            (N, ..., V) float32, ``MASKED`` where nothing is left to show.
        """
        edges = self._edges(depth, prefix)
        counted, weight = self._before(edges.flatten(1), shown)
        count = counted.view_as(edges).diff(dim=-1)
        mass = weight.view_as(edges).diff(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        return torch.where(count > 0, mass.log().float(), MASKED)

    def count(self, shown: Shown | Left) -> Tensor:
        """(N, V) int64 numbers of items left below every first token."""
        n = len(shown.weighed)
        edges = self._edges(0, torch.zeros(n, dtype=torch.int64, device=shown.weighed.device))
        return self._before(edges, shown)[0].diff(dim=-1)

    def _before(self, edges: Tensor, shown: Shown | Left) -> tuple[Tensor, Tensor]:
        """Numbers and weights, (N, m), of the items left on the leaves before (N, m) edges."""
        counted = self.counted[edges]
        if isinstance(shown, Left):
            return shown.counted.gather(1, counted), shown.weighed.gather(1, counted)
        n_shown = torch.searchsorted(shown.leaves, edges)
        return counted - n_shown, self.weighed[edges] - shown.weighed.gather(1, n_shown)

    def _edges(self, depth: int, prefix: Tensor) -> Tensor:
        """(N, ..., V + 1) leaves at which the tokens' shares of a prefix begin, and its end."""
        width = self.widths[depth]
        tokens = torch.arange(width + 1, device=prefix.device)
        return (prefix[..., None] * width + tokens) * self.spans[depth]

    def token(self, depth: int, items: Tensor) -> Tensor:
        """Tokens at ``depth`` of the ids of items, of the items' shape."""
        return self.leaf[items] // self.spans[depth] % self.widths[depth]


def _check_ids(trie: Trie, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded: its ids must be those that the networks here are made for.

    Raises:
        CheckpointError: They are not.
    """
    saved = state_dict.get(f"{prefix}leaf")
    if saved is not None and not torch.equal(saved.cpu(), trie.leaf.cpu()):
        raise CheckpointError(
            "This policy was trained with other ids of the items: make it with the codebook that "
            'it had, policy_kwargs={"codebook": ...}.'
        )
