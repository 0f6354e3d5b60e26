"""Plackett-Luce slates with a bounded number of popular items.

A slate is drawn item by item without replacement, each in proportion to ``exp(score)`` among the
items still allowed. Once the popular group has its upper count, or the long tail the slots that
the lower popular count leaves it, that group is closed. Groups close once and never reopen, so
the slate can be read off one pass of Gumbel-perturbed scores (Gumbel top-k), and its exact
log-probability needs one log-sum-exp a group: O(n_items + K) both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Stands for minus infinity: its weight is exactly zero in float32, its gradient never NaN.
MASKED = -1e9


@dataclass(frozen=True)
class SlateBounds:
    """Least and most popular items that a slate may hold.

    Attributes:
        least: (N,) int64.
        most: (N,) int64, at least ``least``.
    """

    least: Tensor
    most: Tensor


def feasible_bounds(fairness: Tensor, slate_size: int, popular_left: Tensor, tail_left: Tensor) -> SlateBounds:
    """The feasible fairness manifold: slates whose balance meets the manager's demand (eq. 5).

    A slate with k popular items is feasible if ``1 - |2k/K - 1| >= fairness``. Where no count is
    (odd K, high demand), the most balanced counts are. Where a group has too few items left,
    the bounds give way.

    Args:
        fairness: (N,) demand in [0, 1]: 0 asks nothing, 1 asks for a balanced slate.
        slate_size: K.
        popular_left: (N,) int64 popular items that may still be shown.
        tail_left: (N,) int64 other items that may still be shown.

    Returns:
        The bounds.
    """
    slack = (1.0 - fairness) * slate_size / 2.0
    half = slate_size / 2.0
    least = torch.ceil(half - slack - 1e-4).clamp(max=slate_size // 2).long()
    most = slate_size - least
    least = torch.minimum(torch.maximum(least, slate_size - tail_left), popular_left)
    most = torch.maximum(torch.minimum(most, popular_left), least)
    return SlateBounds(least, most)


def sample_slate(
    scores: Tensor, popular: Tensor, bounds: SlateBounds, slate_size: int, deterministic: bool = False
) -> Tensor:
    """Draws slates, or takes the best feasible ones.

    Args:
        scores: (N, n_items); ``MASKED`` for items that may not be shown.
        popular: (n_items,) bool.
        bounds: How many popular items each slate may hold.
        slate_size: K.
        deterministic: Take the highest scores instead of drawing.

    Returns:
        (N, K) int64, in order of choice.
    """
    keys = scores
    if not deterministic:
        keys = scores - torch.log(torch.empty_like(scores).exponential_())
    ranks = torch.arange(slate_size, device=scores.device)
    candidates, values = [], []
    for group, quota in ((popular, bounds.most), (~popular, slate_size - bounds.least)):
        items = torch.nonzero(group).squeeze(1)
        best, place = keys[:, items].topk(min(slate_size, len(items)), dim=1)
        open_slots = ranks[: best.shape[1]] < quota[:, None]
        values.append(best.masked_fill(~open_slots, MASKED))
        candidates.append(items[place])
    chosen = torch.cat(values, dim=1).topk(slate_size, dim=1).indices
    return torch.cat(candidates, dim=1).gather(1, chosen)


def slate_log_prob(
    scores: Tensor, slates: Tensor, popular: Tensor, bounds: SlateBounds
) -> tuple[Tensor, Tensor]:
    """Exact log-probability of ordered slates, and the first draw's entropy.

    Args:
        scores: (N, n_items); ``MASKED`` for items that may not be shown.
        slates: (N, K) int64, as drawn by :func:`sample_slate` under the same bounds.
        popular: (n_items,) bool.
        bounds: The bounds they were drawn under.

    Returns:
        (N,) log-probabilities and (N,) entropies, in nats, of the first item's distribution.
    """
    slate_size = slates.shape[1]
    chosen = scores.gather(1, slates)
    is_popular = popular[slates]
    rest = scores.scatter(1, slates, MASKED)
    remaining = torch.stack(
        [
            _log_mass_while_drawing(rest[:, popular], chosen, is_popular),
            _log_mass_while_drawing(rest[:, ~popular], chosen, ~is_popular),
        ],
        dim=-1,
    )  # (N, K, 2): log mass of each group before every draw
    drawn = torch.cumsum(is_popular.long(), dim=1) - is_popular.long()
    place = torch.arange(slate_size, device=scores.device)
    popular_open = drawn < bounds.most[:, None]
    tail_open = place - drawn < (slate_size - bounds.least)[:, None]
    closed = ~torch.stack([popular_open, tail_open], dim=-1)
    log_prob = (chosen - torch.logsumexp(remaining.masked_fill(closed, MASKED), dim=-1)).sum(1)
    log_first = torch.log_softmax(scores, dim=1)
    entropy = -(log_first.exp() * log_first).sum(1)
    return log_prob, entropy


def _log_mass_while_drawing(rest: Tensor, chosen: Tensor, mine: Tensor) -> Tensor:
    """Log of a group's total weight before each draw.

    Args:
        rest: (N, group size) scores of the group's items, chosen ones ``MASKED``.
        chosen: (N, K) scores of the drawn items, in order.
        mine: (N, K) bool, whether a drawn item belongs to the group.

    Returns:
        (N, K).
    """
    never = torch.logsumexp(rest, dim=1, keepdim=True)
    later = chosen.masked_fill(~mine, MASKED)
    # Before draw j the group still holds its undrawn items and those drawn from j on.
    from_here = torch.flip(torch.logcumsumexp(torch.flip(later, [1]), dim=1), [1])
    return torch.logaddexp(never.expand_as(from_here), from_here)
