"""Plackett-Luce slates with a bounded number of items of each group.

A slate is drawn item by item without replacement, each in proportion to ``exp(score)`` among the
items still allowed by bounds, which close groups (:mod:`dsrm_agents.common.bounds`). Groups never
reopen, so that a draw and its exact log-probability need the total weight of each group alone:
O(n_items + K) both (:mod:`dsrm_agents.hrl.draws`).

Columns are ordered by group, popular items first, so that a group is a view and not a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsrm_agents.common.bounds import MASKED, SlateBounds, choice_log_prob, first_within_bounds
from dsrm_agents.common.draws import generator
from dsrm_agents.hrl.draws import CHOICES, draw_slates


class SlateDistribution:
    """Slates of N sessions, an item's score being the inner product of a query and its key.

    Args:
        query: (N, d).
        key: (n_items, d), group by group.
        masked: (N, h) int64 columns of items that may not be shown; repeats do not matter.
        starts: The first column of each of G groups, from 0 on.
        bounds: How many items of each group each slate may hold.
        slate_size: K.
        closed: (N, n_items) bool, further items that may not be shown, where they are many; (N, 0)
            or ``None`` for none.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        masked: Tensor,
        starts: Sequence[int],
        bounds: SlateBounds,
        slate_size: int,
        closed: Tensor | None = None,
    ) -> None:
        self.query = query
        self.key = key
        self.masked = masked
        self.starts = tuple(starts)
        self.bounds = bounds
        self.slate_size = slate_size
        self.closed = None if closed is None or not closed.shape[1] else closed

    def sample(self) -> tuple[Tensor, Tensor]:
        """Draws slates, without gradients.

        Returns:
            (N, K) int64 columns, in order of choice, and their :meth:`log_prob`.
        """
        with torch.no_grad():
            scores = self._scores()
            weight, top = _weights(scores, self._groups, torch.empty_like(scores))
        slates, log_prob = draw_slates(
            scores.cpu().numpy(),
            weight.cpu().numpy(),
            top.cpu().numpy(),
            self.starts,
            self.bounds.least.cpu().numpy(),
            self.bounds.most.cpu().numpy(),
            generator().random((len(scores), self.slate_size, CHOICES)),
        )
        device = self.query.device
        return torch.from_numpy(slates).to(device), torch.from_numpy(log_prob).to(device)

    def best(self) -> Tensor:
        """(N, K) int64 columns of the best feasible slates, in order of score."""
        with torch.no_grad():
            return self._first_to_ring(self._scores().neg_())[0]

    def log_prob(self, slates: Tensor) -> Tensor:
        """Exact log-probabilities of the drawn groups, and of the items given their groups.

        Args:
            slates: (N, K) int64 columns, drawn under the same bounds.

        Returns:
            (N, 2K) float32, in nats: of the K groups, 0 where a bound left no choice, then of the K
            items given their groups. A slate's is the sum.
        """
        masked = torch.cat([self.masked, slates], dim=1)
        never_drawn: Tensor = _GroupMass.apply(  # type: ignore[no-untyped-call]
            self.query, self.key, masked, self.closed, self._groups
        )
        return self._log_prob(slates, never_drawn)

    def _log_prob(self, slates: Tensor, never_drawn: Tensor) -> Tensor:
        """(N, 2K), from the (N, G) log weights of each group's items that are not drawn."""
        chosen = torch.einsum("nd,nkd->nk", self.query, self.key[slates])
        later = torch.tensor(self.starts[1:], device=slates.device)
        group = torch.searchsorted(later, slates, right=True)
        return choice_log_prob(chosen, never_drawn, group, self.bounds)

    def entropy(self) -> Tensor:
        """(N,) entropy, in nats, of a first draw without bounds."""
        log_prob = torch.log_softmax(self._scores(), dim=1)
        return -(log_prob.exp() * log_prob).sum(dim=1)

    @property
    def _groups(self) -> tuple[slice, ...]:
        """Columns of each group."""
        return tuple(map(slice, self.starts, (*self.starts[1:], None)))

    def _scores(self) -> Tensor:
        return _without(self.query @ self.key.T, self.masked, self.closed)

    def _first_to_ring(self, clocks: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest of (N, n_items) clocks that the bounds allow: (N, K) columns and times."""
        soonest = [
            clocks[:, group].topk(min(self.slate_size, clocks[:, group].shape[1]), largest=False)
            for group in self._groups
        ]
        times = [values for values, _ in soonest]
        columns = [ranks + start for (_, ranks), start in zip(soonest, self.starts, strict=True)]
        return first_within_bounds(times, columns, self.bounds, self.slate_size)


class _GroupMass(torch.autograd.Function):
    """Log of each group's total weight.

    By hand, because scores of all items are by far the largest arrays there are: autograd of
    masked log-sum-exps would walk over them some twenty times, this does five times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        masked: Tensor,
        closed: Tensor | None,
        groups: tuple[slice, ...],
    ) -> Tensor:
        """(N, d), (n_items, d), (N, h), (N, n_items) and the groups' columns to (N, G)."""
        scores = _without(query @ key.T, masked, closed)
        weight, top = _weights(scores, groups, scores)
        mass = _masses(weight, groups)
        ctx.save_for_backward(query, key, weight, mass)
        ctx.groups = groups
        return top + mass.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the query and the key: each group's softmax, times its gradient."""
        query, key, weight, mass = ctx.saved_tensors
        # Shares multiply queries and sums, not the weights; and products are taken from the left
        # with items in columns, because the other way round takes three times as long.
        share = gradients[0] / mass
        columns = key.T.contiguous()
        of_query, of_key = torch.zeros_like(query), None
        if ctx.needs_input_grad[1]:
            of_key = torch.zeros_like(key)
        for index, group in enumerate(ctx.groups):
            of_group = share[:, index, None]
            of_query += of_group * (columns[:, group] @ weight[:, group].T).T
            if of_key is not None:
                of_key[group] = ((of_group * query).T @ weight[:, group]).T
        return of_query, of_key, None, None, None


def _without(scores: Tensor, masked: Tensor, closed: Tensor | None) -> Tensor:
    """(N, n_items) scores, changed in place: ``MASKED`` for items that may not be shown."""
    scores = scores.scatter_(1, masked, MASKED)
    return scores if closed is None else scores.masked_fill_(closed, MASKED)


def _weights(scores: Tensor, groups: tuple[slice, ...], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of items beside the best of their group.

    Args:
        scores: (N, n_items).
        groups: Columns of each group.
        weight: (N, n_items), filled; may be the scores themselves.

    Returns:
        (N, n_items) ``exp(score - top)``, 0 where that is no normal number, and (N, len(groups))
        the tops: the groups' best scores.
    """
    # A group with nothing to show has MASKED for its best score, which must not become weight 1.
    top = torch.stack([_amax(scores[:, group]) for group in groups], 1).clamp_(min=MASKED / 2)
    for index, group in enumerate(groups):
        torch.sub(scores[:, group], top[:, index : index + 1], out=weight[:, group])
    # An exponential that underflows takes ten to thirty times as long.
    lowest = math.log(torch.finfo(scores.dtype).tiny) + 1.0
    weight.clamp_(min=lowest)
    if weight.device.type == "cpu":  # where NumPy takes half of torch's time
        np.exp(weight.numpy(), out=weight.numpy())
    else:
        weight.exp_()
    return nn.functional.threshold(weight, 1.01 * math.exp(lowest), 0.0, inplace=True), top


def _masses(weight: Tensor, groups: tuple[slice, ...]) -> Tensor:
    """(N, len(groups)) total weights, not quite 0 where a group has nothing to show."""
    masses = torch.stack([weight[:, group].sum(1) for group in groups], dim=1)
    return masses.clamp_(min=torch.finfo(masses.dtype).tiny)


def _amax(scores: Tensor) -> Tensor:
    """(N,) largest of each row, ``MASKED`` where there are no columns."""
    return scores.amax(1) if scores.shape[1] else scores.new_full((len(scores),), MASKED)
