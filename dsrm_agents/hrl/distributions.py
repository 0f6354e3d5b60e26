"""Plackett-Luce slates with a bounded number of popular items.

A slate is drawn item by item without replacement, each in proportion to ``exp(score)`` among the
items still allowed. Once the popular group has its upper count, or the long tail the slots that
the lower popular count leaves it, that group is closed. Groups close once and never reopen, so
the slate can be read off one pass of Gumbel-perturbed scores (Gumbel top-k), and its exact
log-probability needs one log-sum-exp a group: O(n_items + K) both.

Columns are ordered by group, popular items first, so that a group is a view and not a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Stands for minus infinity: its weight is exactly zero in float32, its gradient never NaN.
MASKED = -1e9


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
    rounding = 1e-4  # a demand of exactly 0.8 admits 4 of 10
    least = torch.ceil(slate_size / 2.0 - slack - rounding).clamp(max=slate_size // 2).long()
    most = slate_size - least
    least = torch.minimum(torch.maximum(least, slate_size - tail_left), popular_left)
    most = torch.maximum(torch.minimum(most, popular_left), least)
    return SlateBounds(least, most)


def sample_slate(
    scores: Tensor,
    n_popular: int,
    bounds: SlateBounds,
    slate_size: int,
    deterministic: bool = False,
) -> Tensor:
    """Draws slates, or takes the best feasible ones.

    Args:
        scores: (N, n_items), popular columns first; ``MASKED`` where an item may not be shown.
        n_popular: How many columns are popular.
        bounds: How many popular items each slate may hold.
        slate_size: K.
        deterministic: Take the highest scores instead of drawing.

    Returns:
        (N, K) int64 columns, in order of choice.
    """
    keys = scores
    if not deterministic:
        uniform = torch.rand_like(scores).clamp_(min=torch.finfo(scores.dtype).tiny)
        keys = scores - torch.log(-torch.log(uniform))
    ranks = torch.arange(slate_size, device=scores.device)
    values, columns = [], []
    groups = ((0, n_popular, bounds.most), (n_popular, keys.shape[1], slate_size - bounds.least))
    for start, end, quota in groups:
        best, place = keys[:, start:end].topk(min(slate_size, end - start), dim=1)
        within_quota = ranks[: best.shape[1]] < quota[:, None]
        values.append(best.masked_fill(~within_quota, 2 * MASKED))
        columns.append(place + start)
    chosen = torch.cat(values, dim=1).topk(slate_size, dim=1).indices
    return torch.cat(columns, dim=1).gather(1, chosen)


def slate_log_prob(scores: Tensor, slates: Tensor, n_popular: int, bounds: SlateBounds) -> Tensor:
    """Exact log-probability of ordered slates.

    Args:
        scores: (N, n_items), popular columns first; ``MASKED`` where an item may not be shown.
        slates: (N, K) int64 columns, as drawn by :func:`sample_slate` under the same bounds.
        n_popular: How many columns are popular.
        bounds: The bounds they were drawn under.

    Returns:
        (N,) float32, in nats.
    """
    slate_size = slates.shape[1]
    chosen = scores.gather(1, slates)
    is_popular = slates < n_popular
    rest = scores.scatter(1, slates, MASKED)
    log_mass = torch.stack(
        [
            _log_mass_while_drawing(rest[:, :n_popular], chosen, is_popular),
            _log_mass_while_drawing(rest[:, n_popular:], chosen, ~is_popular),
        ],
        dim=-1,
    )  # (N, K, 2): of each group, before every draw
    popular_drawn = torch.cumsum(is_popular.long(), dim=1) - is_popular.long()
    tail_drawn = torch.arange(slate_size, device=scores.device) - popular_drawn
    closed = torch.stack(
        [
            popular_drawn >= bounds.most[:, None],
            tail_drawn >= (slate_size - bounds.least)[:, None],
        ],
        dim=-1,
    )
    allowed = torch.logsumexp(log_mass.masked_fill(closed, MASKED), dim=-1)
    return (chosen - allowed).sum(dim=1)


def first_draw_entropy(scores: Tensor) -> Tensor:
    """(N,) entropy, in nats, of ``softmax(scores)``: what an unbounded first draw leaves open."""
    log_prob = torch.log_softmax(scores, dim=1)
    return -(log_prob.exp() * log_prob).sum(dim=1)


def _log_mass_while_drawing(rest: Tensor, chosen: Tensor, mine: Tensor) -> Tensor:
    """Log of a group's total weight before each draw.

    Args:
        rest: (N, group size) scores of the group's items, chosen ones ``MASKED``.
        chosen: (N, K) scores of the drawn items, in order.
        mine: (N, K) bool, whether a drawn item belongs to the group.

    Returns:
        (N, K).
    """
    never_drawn = torch.logsumexp(rest, dim=1, keepdim=True)
    later = chosen.masked_fill(~mine, MASKED)
    # Before draw j the group still holds its undrawn items and those drawn from j on.
    from_here = torch.flip(torch.logcumsumexp(torch.flip(later, [1]), dim=1), [1])
    return torch.logaddexp(never_drawn.expand_as(from_here), from_here)
