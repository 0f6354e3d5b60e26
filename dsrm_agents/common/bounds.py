"""Slates with a bounded number of popular items: the bounds, and draws item by item within them.

A slate is drawn item by item without replacement. Once the popular group has its upper count, or
the long tail the slots that the lower popular count leaves it, that group is closed. Groups close
once and never reopen: a slate can be read off one race, and its probability needs the total weight
of each group alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Stands for minus infinity: its weight is exactly zero in float32, its gradient never NaN.
MASKED = -1e9
CHOICES_PER_ITEM = 2  # of its group, and of the item within the group


class SlateBounds(NamedTuple):
    """Least and most popular items that a slate may hold.

    Attributes:
        least: (N,) int64.
        most: (N,) int64, at least ``least``.
    """

    least: Tensor
    most: Tensor


def feasible_bounds(
    fairness: Tensor, slate_size: int, popular_left: Tensor, tail_left: Tensor
) -> SlateBounds:
    """The feasible fairness manifold: slates whose balance meets the manager's demand (eq. 5).

    A slate with k popular items is feasible if ``1 - |2k/K - 1| >= fairness``. If no count is
    (odd K, high demand), the most balanced counts are. If a group has too few items left, the
    bounds give way.

    Args:
        fairness: (N,) demand in [0, 1]: 0 asks nothing, 1 asks for a balanced slate.
        slate_size: K.
        popular_left: (N,) int64 popular items that may still be shown.
        tail_left: (N,) int64 other items that may still be shown.

    Returns:
        The bounds.
    """
    slack = (1.0 - fairness) * slate_size / 2.0
    rounding = 1e-4  # a demand of exactly 0.8 admits 4 of 10
    least = torch.ceil(slate_size / 2.0 - slack - rounding).clamp(max=slate_size // 2).long()
    return _within_reach(least, slate_size - least, slate_size, popular_left, tail_left)


def target_bounds(
    longtail_share: Tensor,
    slate_size: int,
    popular_shown: Tensor,
    shown: Tensor,
    popular_left: Tensor,
    tail_left: Tensor,
) -> SlateBounds:
    """The one popular count that brings a session's long-tail share nearest to a target.

    The next slates make up for what whole numbers cannot express.

    Args:
        longtail_share: () or (N,) target in [0, 1].
        slate_size: K.
        popular_shown: (N,) int64 popular items that the session has shown.
        shown: (N,) int64 items that it has shown.
        popular_left: (N,) int64 popular items that may still be shown.
        tail_left: (N,) int64 other items that may still be shown.

    Returns:
        The bounds, equal unless a group has too few items left.
    """
    target = (1.0 - longtail_share) * (shown + slate_size) - popular_shown
    # A half is rounded up, but not for the rounding of 1 - 0.7.
    count = torch.floor(target + 0.5 + 1e-4).clamp(0, slate_size).long()
    return _within_reach(count, count, slate_size, popular_left, tail_left)


def _within_reach(
    least: Tensor, most: Tensor, slate_size: int, popular_left: Tensor, tail_left: Tensor
) -> SlateBounds:
    """The bounds, loosened where a group has too few items left."""
    least = torch.minimum(torch.maximum(least, slate_size - tail_left), popular_left)
    most = torch.maximum(torch.minimum(most, popular_left), least)
    return SlateBounds(least, most)


def choice_log_prob(
    chosen: Tensor, never_drawn: Tensor, is_popular: Tensor, bounds: SlateBounds
) -> Tensor:
    """Exact log-probabilities of the drawn groups, and of the items given their groups.

    Args:
        chosen: (N, K) log weights of the drawn items, in order.
        never_drawn: (N, 2) log of the weight of the items that are not in the slate, of the
            popular group and of the other.
        is_popular: (N, K) bool, of the drawn items.
        bounds: Within which they were drawn.

    Returns:
        (N, 2K) float32, in nats: of the K groups, 0 where a bound left no choice, then of the K
        items given their groups. A slate's is the sum.
    """
    slate_size = chosen.shape[1]
    log_mass = torch.stack(
        [
            _log_mass_while_drawing(never_drawn[:, :1], chosen, is_popular),
            _log_mass_while_drawing(never_drawn[:, 1:], chosen, ~is_popular),
        ],
        dim=-1,
    )  # (N, K, 2): of each group, before every draw
    popular_drawn = torch.cumsum(is_popular.long(), dim=1) - is_popular.long()
    tail_drawn = torch.arange(slate_size, device=chosen.device) - popular_drawn
    closed = torch.stack(
        [
            popular_drawn >= bounds.most[:, None],
            tail_drawn >= (slate_size - bounds.least)[:, None],
        ],
        dim=-1,
    )
    allowed = torch.logsumexp(log_mass.masked_fill(closed, MASKED), dim=-1)
    of_group = torch.where(is_popular, log_mass[..., 0], log_mass[..., 1])
    return torch.cat([of_group - allowed, chosen - of_group], dim=1)


def choice_credit(item_credit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Aligns items' credit with the choices of :func:`choice_log_prob`.

    Args:
        item_credit: (N, K) float32.

    Returns:
        (N, 2K) float32: 0 for the choices of groups, because bounds make one popular item more one
        fewer later; then the items' credit.
    """
    return np.concatenate([np.zeros_like(item_credit), item_credit], axis=1)


def first_within_bounds(
    times: list[Tensor], items: list[Tensor], bounds: SlateBounds, slate_size: int
) -> tuple[Tensor, Tensor]:
    """First arrivals of a race, as far as the bounds allow them.

    Args:
        times: Of the popular group and of the other: (N, m) each, its first arrivals in order, as
            many as the slate's size where the group has them.
        items: The arriving items, of the same shapes.
        bounds: How many popular items a slate may hold.
        slate_size: K.

    Returns:
        (N, K) items in order of arrival, and (N, K) their times, infinite where there is none.
    """
    allowed = []
    for arrivals, quota in zip(times, (bounds.most, slate_size - bounds.least), strict=True):
        ranks = torch.arange(arrivals.shape[1], device=arrivals.device)
        allowed.append(arrivals.masked_fill(ranks >= quota[:, None], torch.inf))
    first, chosen = torch.cat(allowed, dim=1).topk(slate_size, dim=1, largest=False)
    return torch.cat(items, dim=1).gather(1, chosen), first


def _log_mass_while_drawing(never_drawn: Tensor, chosen: Tensor, in_group: Tensor) -> Tensor:
    """Log of a group's total weight before every draw.

    Args:
        never_drawn: (N, 1) log of the weight of the group's items that are not in the slate.
        chosen: (N, K) scores of the drawn items, in order.
        in_group: (N, K) bool, whether a drawn item belongs to the group.

    Returns:
        (N, K).
    """
    later = chosen.masked_fill(~in_group, MASKED)
    # Before draw j the group still holds its undrawn items and those drawn from j on.
    remaining = torch.flip(torch.logcumsumexp(torch.flip(later, [1]), dim=1), [1])
    return torch.logaddexp(never_drawn.expand_as(remaining), remaining)
