"""Slates with a bounded number of items of each group: the bounds, and draws within them.

A slate is drawn item by item without replacement. A group is closed once it has its upper count,
or once the slots that are left are those that the lower counts of other groups reserve. Groups
close once and never reopen: a slate can be read off one race, and its probability needs the total
weight of each group alone.

Groups are numbered by falling label of :class:`~kuaisim_gym.simulator.groups.Groups`: the popular
items are group 0, the long tail group 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.groups import count_boxes

# Stands for minus infinity: its weight is exactly zero in float32, its gradient never NaN.
MASKED = -1e9
CHOICES_PER_ITEM = 2  # of its group, and of the item within the group
MOST_GROUPS = 64  # that are raced one by one


class SlateBounds(NamedTuple):
    """Least and most items of each group that a slate may hold.

    Attributes:
        least: (N, G) int64, in all at most the slate's size.
        most: (N, G) int64, at least ``least``, in all at least the slate's size.
    """

    least: Tensor
    most: Tensor


class FeasibleCounts(nn.Module):
    """The feasible fairness manifold: slates whose balance meets the manager's demand (eq. 5).

    A slate's balance is 1 less its L1 distance to the target, as a share of the largest possible:
    ``1 - |2k/K - 1|`` of two equal groups, k of the slate's K items being popular. A demand admits
    the widest bounds on each group's count whose worst slate meets it. If none does (odd K, high
    demand), the tightest are taken. If a group has too few items left, the bounds give way.

    Args:
        target: (G,) share of the exposures that is due to each group.
        slate_size: K.

    Raises:
        ConfigError: There are too many groups.
    """

    worst: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, target: NDArray[np.float64], slate_size: int) -> None:
        super().__init__()
        if len(target) > MOST_GROUPS:
            raise ConfigError(
                f"Slates are drawn within bounds on at most {MOST_GROUPS} groups, got "
                f"{len(target)}: give the policy other groups, such as "
                'policy_kwargs={"groups": popularity_groups(env.catalogue.popular)}.'
            )
        boxes = count_boxes(target, slate_size)
        self.furthest = slate_size * (1.0 - float(target.min()))
        self.register_buffer("worst", torch.as_tensor(boxes.worst).float(), persistent=False)
        self.register_buffer("least", torch.as_tensor(boxes.least), persistent=False)
        self.register_buffer("most", torch.as_tensor(boxes.most), persistent=False)
        self.slate_size = slate_size

    def forward(self, demand: Tensor, left: Tensor) -> SlateBounds:
        """Bounds of N slates.

        Args:
            demand: (N,) in [0, 1]: 0 asks nothing, 1 asks for a balanced slate.
            left: (N, G) int64 items of each group that may still be shown.
        """
        slack = (1.0 - demand) * self.furthest + 1e-4  # a demand of exactly 0.8 admits 4 of 10
        # As a binary search finds it; ONNX has none.
        index = (self.worst <= slack[:, None]).sum(dim=1).sub(1).clamp(min=0)
        return _within_reach(self.least[index], self.most[index], self.slate_size, left)


def target_bounds(target: Tensor, slate_size: int, shown: Tensor, left: Tensor) -> SlateBounds:
    """The one count of each group that brings a session's shares nearest to a target.

    The next slates make up for what whole numbers cannot express.

    Args:
        target: (G,) shares that sum to one.
        slate_size: K.
        shown: (N, G) int64 items of each group that the session has shown.
        left: (N, G) int64 items of each group that may still be shown.

    Returns:
        The bounds, equal unless a group has too few items left.
    """
    due = target * (shown.sum(1, keepdim=True) + slate_size) - shown
    # Of equal claims the first group's counts, in spite of the rounding of 1 - 0.7.
    due = due + torch.linspace(2e-4, 0.0, len(target), device=due.device)
    count = torch.zeros_like(shown)
    for _ in range(slate_size):
        neediest = (due - count).argmax(dim=1, keepdim=True)
        count.scatter_add_(1, neediest, torch.ones_like(neediest))
    return _within_reach(count, count, slate_size, left)


class Band(nn.Module):
    """Slates that cost nothing and keep the session within one slate's reach of the target.

    Counts lie between those that cost nothing, and a group's total differs from what is due to it
    by no more than one such slate can make up for: of ten items and 4 to 6 popular ones at no cost,
    a session is never more than one popular item off. A demand of 1 narrows this to the slates
    nearest to the target, one of 1/2 or less leaves it all. Where no whole numbers do all of this,
    slates only cost nothing; where a group has too few items left, the bounds give way.

    Args:
        target: (G,) share of the exposures that is due to each group.
        least: (G,) items of each group in a slate that cost nothing, at least.
        most: (G,) items of each group in a slate that cost nothing, at most.
        slate_size: K.
    """

    target: Tensor
    least: Tensor
    most: Tensor

    def __init__(
        self,
        target: NDArray[np.float64],
        least: NDArray[np.int64],
        most: NDArray[np.int64],
        slate_size: int,
    ) -> None:
        super().__init__()
        self.slate_size = slate_size
        self.demanded = FeasibleCounts(target, slate_size)
        of_slate = slate_size * target
        self.width = float(np.maximum(of_slate - least, most - of_slate).sum())
        self.register_buffer("target", torch.as_tensor(target.copy()).float(), persistent=False)
        self.register_buffer("least", torch.as_tensor(least.copy()), persistent=False)
        self.register_buffer("most", torch.as_tensor(most.copy()), persistent=False)

    def forward(self, demand: Tensor, shown: Tensor, left: Tensor) -> SlateBounds:
        """Bounds of N slates.

        Args:
            demand: (N,) in [0, 1].
            shown: (N, G) int64 items of each group that the session has shown.
            left: (N, G) int64 items of each group that may still be shown.
        """
        size, rounding = self.slate_size, 1e-4
        of_slate = self.target * size
        due = self.target * (shown.sum(1, keepdim=True) + size) - shown
        lowest = torch.ceil(due - (of_slate - self.least) - rounding).long()
        highest = torch.floor(due + (self.most - of_slate) + rounding).long()
        free = SlateBounds(self.least.expand_as(shown), self.most.expand_as(shown))
        within = _narrowed(free, SlateBounds(lowest, highest), size)
        balance = 1.0 - (1.0 - demand) * self.width / self.demanded.furthest
        within = _narrowed(within, self.demanded(balance, left), size)
        return _within_reach(*within, size, left)


def _narrowed(bounds: SlateBounds, other: SlateBounds, slate_size: int) -> SlateBounds:
    """Bounds of what both admit; the first alone where that is no slate."""
    least = torch.maximum(bounds.least, other.least)
    most = torch.minimum(bounds.most, other.most)
    possible = (least <= most).all(1) & (least.sum(1) <= slate_size) & (most.sum(1) >= slate_size)
    least = torch.where(possible[:, None], least, bounds.least)
    return SlateBounds(least, torch.where(possible[:, None], most, bounds.most))


def _within_reach(least: Tensor, most: Tensor, slate_size: int, left: Tensor) -> SlateBounds:
    """The bounds, loosened where a group has too few items left."""
    least, most = torch.minimum(least, left), torch.minimum(most, left)
    short = most.sum(1, keepdim=True) < slate_size
    return SlateBounds(least, torch.where(short, left, most))


def choice_log_prob(
    chosen: Tensor, never_drawn: Tensor, group: Tensor, bounds: SlateBounds
) -> Tensor:
    """Exact log-probabilities of the drawn groups, and of the items given their groups.

    Args:
        chosen: (N, K) log weights of the drawn items, in order.
        never_drawn: (N, G) log of the weight of each group's items that are not in the slate.
        group: (N, K) int64, of the drawn items.
        bounds: Within which they were drawn.

    Returns:
        (N, 2K) float32, in nats: of the K groups, 0 where a bound left no choice and about
        ``MASKED`` of a group that it closes, then of the K items given their groups. A slate's is
        the sum.
    """
    log_prob: Tensor = _ChoiceLogProb.apply(  # type: ignore[no-untyped-call]
        chosen, never_drawn, group, bounds
    )
    return log_prob


class _ChoiceLogProb(torch.autograd.Function):
    """Log-probabilities of choices, with their gradient in closed form.

    With ``L_jg`` the log of group g's weight before draw j, ``p_jg`` the share of g in the open
    groups' and ``g_j`` the group of draw j, they are ``L_jg - log sum_h exp L_jh`` and
    ``chosen_j - L_jg`` at ``g = g_j``: the gradients of L are ``(g = g_j) - p_jg`` and
    ``-(g = g_j)``, and those of ``L_jg`` by its terms are their shares in it.
    """

    @staticmethod
    def forward(
        ctx: Any, chosen: Tensor, never_drawn: Tensor, group: Tensor, bounds: SlateBounds
    ) -> Tensor:
        """(N, K), (N, G), (N, K) and bounds to (N, 2K)."""
        size, n_groups = chosen.shape[1], never_drawn.shape[1]
        of_draw = nn.functional.one_hot(group, n_groups).bool()
        # Before draw j a group still holds its undrawn items and those drawn from j on.
        later = torch.where(of_draw, chosen[..., None], MASKED).flip(1)
        terms = torch.cat([never_drawn[:, None], later], dim=1)
        log_mass = terms.logcumsumexp(dim=1)[:, 1:].flip(1)
        drawn = of_draw.cumsum(dim=1) - of_draw.long()
        least, most = bounds.least[:, None], bounds.most[:, None]
        # Slots that no group's lower count reserves, before every draw.
        unreserved = size - torch.maximum(drawn, least).sum(dim=2, keepdim=True)
        closed = (drawn >= most) | ((drawn >= least) & (unreserved <= 0))
        of_open = log_mass.masked_fill(closed, MASKED)
        allowed = of_open.logsumexp(dim=2)
        # A group that its bounds have closed is as unlikely as can be, its items are not.
        of_group, open_group = (
            mass.gather(2, group[..., None]).squeeze(2) for mass in (log_mass, of_open)
        )
        ctx.save_for_backward(
            chosen, never_drawn, group, log_mass, (of_open - allowed[..., None]).exp_()
        )
        return torch.cat([open_group - allowed, chosen - of_group], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the drawn items' log weights, and of what is never drawn."""
        chosen, never_drawn, group, log_mass, share = ctx.saved_tensors
        of_draw = nn.functional.one_hot(group, log_mass.shape[2])
        own = group[:, None].expand(-1, group.shape[1], -1)  # (N, j, i): the group of draw i
        of_group, of_item = gradients[0].chunk(2, dim=1)
        of_mass = of_draw * (of_group - of_item)[..., None] - share * of_group[..., None]
        of_never = (of_mass * (never_drawn[:, None] - log_mass).exp_()).sum(dim=1)
        # (N, i, j): item i is a term of its group's weight before the draws j <= i.
        own_mass, of_own = log_mass.gather(2, own), of_mass.gather(2, own)
        terms = (chosen[:, :, None] - own_mass.transpose(1, 2)).tril_().exp_().tril_()
        return of_item + (of_own.transpose(1, 2) * terms).sum(dim=2), of_never, None, None


def impossible(log_prob: Tensor) -> Tensor:
    """Log-probabilities of items in slates that may be of another policy.

    Args:
        log_prob: (N, K) sums of :func:`choice_log_prob`'s two parts.

    Returns:
        (N, K), minus infinity from where on a slate has an item that this policy could not show:
        one that may not be shown, or of a group that a bound had closed.
    """
    never = log_prob < MASKED / 2
    return log_prob.masked_fill(never.cummax(dim=1).values, -torch.inf)


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

    The first of each group, up to its lower count, have their slots reserved; the other slots go to
    the first of the rest, up to the upper counts.

    Args:
        times: Of each group, (N, m): its first arrivals in order, as many as the slate's size where
            the group has them.
        items: The arriving items, of the same shapes.
        bounds: How many items of each group a slate may hold.
        slate_size: K.

    Returns:
        (N, K) items in order of arrival, and (N, K) their times, infinite where there is none.
    """
    allowed, claims = [], []
    for index, arrivals in enumerate(times):
        rank = torch.arange(arrivals.shape[1], device=arrivals.device)
        least, most = bounds.least[:, index, None], bounds.most[:, index, None]
        allowed.append(arrivals.masked_fill(rank >= most, torch.inf))
        claims.append(allowed[-1].masked_fill(rank < least, -torch.inf))
    chosen = torch.cat(claims, dim=1).topk(slate_size, dim=1, largest=False).indices
    arrived, order = torch.cat(allowed, dim=1).gather(1, chosen).sort(dim=1, stable=True)
    return torch.cat(items, dim=1).gather(1, chosen.gather(1, order)), arrived
