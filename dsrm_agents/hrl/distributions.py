"""Plackett-Luce slates with a bounded number of popular items.

A slate is drawn item by item without replacement, each in proportion to ``exp(score)`` among the
items still allowed. Once the popular group has its upper count, or the long tail the slots that
the lower popular count leaves it, that group is closed. Groups close once and never reopen, so
the slate can be read off one race of exponential clocks (the Gumbel top-k trick, without its
logarithms), and its exact log-probability needs the total weight of each group alone:
O(n_items + K) both.

Columns are ordered by group, popular items first, so that a group is a view and not a copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Stands for minus infinity: its weight is exactly zero in float32, its gradient never NaN.
MASKED = -1e9
_LEAST_MASS = 1e-30  # of what a slate leaves, beside the 1 of the group's best: float32's last


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

    What a slate's whole numbers cannot express, the next slates make up for.

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
    wanted = (1.0 - longtail_share) * (shown + slate_size) - popular_shown
    # A half is rounded up, but not for the rounding of 1 - 0.7.
    count = torch.floor(wanted + 0.5 + 1e-4).clamp(0, slate_size).long()
    return _within_reach(count, count, slate_size, popular_left, tail_left)


def _within_reach(
    least: Tensor, most: Tensor, slate_size: int, popular_left: Tensor, tail_left: Tensor
) -> SlateBounds:
    """The bounds, loosened where a group has too few items left."""
    least = torch.minimum(torch.maximum(least, slate_size - tail_left), popular_left)
    most = torch.maximum(torch.minimum(most, popular_left), least)
    return SlateBounds(least, most)


class SlateDistribution:
    """Slates of N sessions, an item's score being the inner product of a query and its key.

    Args:
        query: (N, d).
        key: (n_items, d), popular items first.
        hidden: (N, h) int64 columns of items that may not be shown; repeats do not matter.
        n_popular: How many items are popular.
        bounds: How many popular items each slate may hold.
        slate_size: K.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        hidden: Tensor,
        n_popular: int,
        bounds: SlateBounds,
        slate_size: int,
    ) -> None:
        self.query = query
        self.key = key
        self.hidden = hidden
        self.n_popular = n_popular
        self.bounds = bounds
        self.slate_size = slate_size

    def sample(self) -> tuple[Tensor, Tensor]:
        """Draws slates, without gradients.

        Returns:
            (N, K) int64 columns, in order of choice, and what :meth:`log_prob` says of them.
        """
        with torch.no_grad():
            weight, top = _weights(self._scores(), self._groups)
            noise = _exponential(weight)
            clocks = noise / weight
            ahead = (top.amax(1, keepdim=True) - top).exp_()
            for index, group in enumerate(self._groups):
                clocks[:, group].mul_(ahead[:, index : index + 1])
            slates, times = self._first_to_ring(clocks)
            rest = _masses(weight.scatter_(1, slates, 0.0), self._groups)
            if bool(times.isinf().any()) or float(rest.min()) < _LEAST_MASS:
                return self._sample_by_logarithms(noise)
            return slates, self._log_prob(slates, top + rest.log())

    def _sample_by_logarithms(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The same race where scores lie so far apart that weights underflow, at twice the cost.

        The same noise, because whether it is needed depends on what was drawn.
        """
        slates, _ = self._first_to_ring(noise.log_().sub_(self._scores()))
        return slates, self.log_prob(slates)

    def best(self) -> Tensor:
        """(N, K) int64 columns of the best feasible slates, in order of score."""
        with torch.no_grad():
            return self._first_to_ring(self._scores().neg_())[0]

    def log_prob(self, slates: Tensor) -> Tensor:
        """Exact log-probabilities of which group each draw came from, and which of its items.

        Args:
            slates: (N, K) int64 columns, drawn under the same bounds.

        Returns:
            (N, 2K) float32, in nats: of the K groups, 0 where a bound left no choice, then of the K
            items given their groups. A slate's is the sum.
        """
        hidden = torch.cat([self.hidden, slates], dim=1)
        never_drawn: Tensor = _GroupMass.apply(  # type: ignore[no-untyped-call]
            self.query, self.key, hidden, self._groups
        )
        return self._log_prob(slates, never_drawn)

    def _log_prob(self, slates: Tensor, never_drawn: Tensor) -> Tensor:
        """(N, 2K), given (N, 2) the log of the weight of each group's items that are not drawn."""
        chosen = torch.einsum("nd,nkd->nk", self.query, self.key[slates])
        is_popular = slates < self.n_popular
        log_mass = torch.stack(
            [
                _log_mass_while_drawing(never_drawn[:, :1], chosen, is_popular),
                _log_mass_while_drawing(never_drawn[:, 1:], chosen, ~is_popular),
            ],
            dim=-1,
        )  # (N, K, 2): of each group, before every draw
        popular_drawn = torch.cumsum(is_popular.long(), dim=1) - is_popular.long()
        tail_drawn = torch.arange(self.slate_size, device=slates.device) - popular_drawn
        closed = torch.stack(
            [
                popular_drawn >= self.bounds.most[:, None],
                tail_drawn >= (self.slate_size - self.bounds.least)[:, None],
            ],
            dim=-1,
        )
        allowed = torch.logsumexp(log_mass.masked_fill(closed, MASKED), dim=-1)
        own = torch.where(is_popular, log_mass[..., 0], log_mass[..., 1])
        return torch.cat([own - allowed, chosen - own], dim=1)

    def entropy(self) -> Tensor:
        """(N,) entropy, in nats, of a first draw without bounds."""
        scores = self.query @ self.key.T
        log_prob = torch.log_softmax(scores.scatter(1, self.hidden, MASKED), dim=1)
        return -(log_prob.exp() * log_prob).sum(dim=1)

    @property
    def _groups(self) -> tuple[slice, slice]:
        """Columns of the popular items, and of the others."""
        return slice(None, self.n_popular), slice(self.n_popular, None)

    def _scores(self) -> Tensor:
        return (self.query @ self.key.T).scatter_(1, self.hidden, MASKED)

    def _first_to_ring(self, clocks: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest of (N, n_items) clocks that the bounds allow: (N, K) columns and times."""
        ranks = torch.arange(self.slate_size, device=clocks.device)
        values, columns = [], []
        for start, end, quota in (
            (0, self.n_popular, self.bounds.most),
            (self.n_popular, clocks.shape[1], self.slate_size - self.bounds.least),
        ):
            size = min(self.slate_size, end - start)
            soonest, place = clocks[:, start:end].topk(size, dim=1, largest=False)
            within_quota = ranks[:size] < quota[:, None]
            values.append(soonest.masked_fill(~within_quota, torch.inf))
            columns.append(place + start)
        times, chosen = torch.cat(values, dim=1).topk(self.slate_size, dim=1, largest=False)
        return torch.cat(columns, dim=1).gather(1, chosen), times


class _GroupMass(torch.autograd.Function):
    """Log of both groups' total weight.

    By hand, because scores of all items are by far the largest arrays there are: autograd of
    masked log-sum-exps would walk over them some twenty times, this does five times.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, hidden: Tensor, groups: tuple[slice, slice]
    ) -> Tensor:
        """(N, d), (n_items, d), (N, h) and the groups' columns to (N, 2)."""
        scores = (query @ key.T).scatter_(1, hidden, MASKED)
        weight, top = _weights(scores, groups)
        mass = _masses(weight, groups)
        ctx.save_for_backward(query, key, weight, mass)
        ctx.groups = groups
        return top + mass.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the query and the key: each group's softmax, times its gradient."""
        query, key, weight, mass = ctx.saved_tensors
        share = gradients[0] / mass
        of_scores = torch.empty_like(weight)
        for index, group in enumerate(ctx.groups):
            torch.mul(weight[:, group], share[:, index : index + 1], out=of_scores[:, group])
        return of_scores @ key, of_scores.T @ query, None, None


def _weights(scores: Tensor, groups: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
    """Turns scores into weights, in place.

    Args:
        scores: (N, n_items), overwritten.
        groups: Columns of each group.

    Returns:
        (N, n_items) ``exp(score - top)``, and (N, len(groups)) the tops: the groups' best scores.
    """
    # A group with nothing to show has MASKED for its best score, which must not become weight 1.
    top = torch.stack([_amax(scores[:, group]) for group in groups], 1).clamp_(min=MASKED / 2)
    for index, group in enumerate(groups):
        scores[:, group].sub_(top[:, index : index + 1])
    return scores.exp_(), top


def _masses(weight: Tensor, groups: tuple[slice, ...]) -> Tensor:
    """(N, len(groups)) total weights, not quite 0 where a group has nothing to show."""
    masses = torch.stack([weight[:, group].sum(1) for group in groups], dim=1)
    return masses.clamp_(min=torch.finfo(masses.dtype).tiny)


def _amax(scores: Tensor) -> Tensor:
    """(N,) largest of each row, ``MASKED`` where there are no columns."""
    return scores.amax(1) if scores.shape[1] else scores.new_full((len(scores),), MASKED)


def _exponential(like: Tensor) -> Tensor:
    """Standard exponential numbers of a tensor's shape and type.

    NumPy draws them ten times as fast as torch; its generator is seeded by torch's, so that
    torch's seed and state are all there is to know.
    """
    seed = int(torch.randint(2**62, ()))
    rng = np.random.Generator(np.random.SFC64(seed))
    kind = np.float64 if like.dtype == torch.float64 else np.float32
    return torch.from_numpy(rng.standard_exponential(tuple(like.shape), kind)).to(like.device)


def _log_mass_while_drawing(never_drawn: Tensor, chosen: Tensor, mine: Tensor) -> Tensor:
    """Log of a group's total weight before each draw.

    Args:
        never_drawn: (N, 1) log of the weight of the group's items that are not in the slate.
        chosen: (N, K) scores of the drawn items, in order.
        mine: (N, K) bool, whether a drawn item belongs to the group.

    Returns:
        (N, K).
    """
    later = chosen.masked_fill(~mine, MASKED)
    # Before draw j the group still holds its undrawn items and those drawn from j on.
    from_here = torch.flip(torch.logcumsumexp(torch.flip(later, [1]), dim=1), [1])
    return torch.logaddexp(never_drawn.expand_as(from_here), from_here)
