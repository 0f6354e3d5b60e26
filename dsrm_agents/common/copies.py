"""Copies of items in both groups of popularity, where every day others are popular.

An item has two copies, numbered ``item`` in the popular group and ``n_items + item`` in the long
tail. That in the group which the item is not of today is treated as if it had been shown, so that
what is laid out by group once stands for every day.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copies_today(popular: Tensor, items: Tensor) -> Tensor:
    """Copies of items in their groups of today.

    Args:
        popular: (N, n_items) bool, today's popular items.
        items: (N, m) int64 item positions, -1 for none.

    Returns:
        (N, m) int64; ``2 * n_items`` for none.
    """
    n_items, at = popular.shape[1], items.clamp(min=0)
    copies = torch.where(popular.gather(1, at), at, at + n_items)
    return torch.where(items < 0, 2 * n_items, copies)


def closed_copies(popular: Tensor, outside: Tensor) -> Tensor:
    """Copies that stand for nothing today: of items in the other group, or that cannot be shown.

    Args:
        popular: (N, n_items) bool, today's popular items.
        outside: (N, n_items) bool, items that cannot be shown; (N, 0) for none.

    Returns:
        (N, 2 * n_items) bool.
    """
    closed = torch.cat([~popular, popular], dim=1)
    return closed | outside.repeat(1, 2) if outside.shape[1] else closed
