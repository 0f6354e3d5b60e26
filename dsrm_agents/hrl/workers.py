"""The worker of section 4.3.2: scores of items, and the slates drawn by them.

Items are scored by eq. 6, ``psi_i = w_acc * Sim(s, e_i) - w_fair * log pop_i``, with log pop
standardised. Sim is the inner product of learned projections of the state and of the item; it
starts at the item's quality plus a weight, the similarity, times the inner product of the state and
the item's vector. With a belief for state and a similarity of 1 that is the belief's ranking.

Deviations from the paper: Sim has learned projections (eq. 6 leaves the worker without parameters
although section 4.4 optimises it), and is no cosine, because an item's length in the embedding
carries its quality. Where slates are bounded, w_fair works by the bounds (eq. 5) and the popularity
term is left out: within a group it would only put worse items before better ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsrm_agents.common.bounds import Band, FeasibleCounts, SlateBounds, target_bounds
from dsrm_agents.hrl.distributions import SlateDistribution
from dsrm_agents.hrl.items import Context, Items
from dsrm_agents.hrl.shortlists import ShortlistedSlates, Shortlists

WORKERS = ("constrained", "band", "unconstrained")
# Of the scores at the start, in units of an item effect's spread; learned from there.
SHARPNESS = 4.0


class Drawn(NamedTuple):
    """The worker's choices.

    Attributes:
        slates: (N, K) int64 item positions.
        log_prob: (N, 2K) float32, :meth:`Worker.log_prob`.
        bounds: Within which the slates were drawn.
    """

    slates: Tensor
    log_prob: Tensor
    bounds: SlateBounds


class Worker(nn.Module):
    """Scores items by eq. 6 and draws slates item by item (:class:`SlateDistribution`).

    Constrained, it draws from the slates whose balance is at least w_fair, the constraint of
    eq. 5, or that keep the session at group shares that were set. Deviation: w_fair thus also
    is the constraint's level, because eq. 5 compares a number with the vector z.

    Args:
        items: The items.
        state_dim: d of the observed states.
        slate_size: K.
        constrained: Whether slates are feasible ones, or eq. 6 stands alone.
        target: (G,) share of the exposures that is due to each group.
        similarity: Weight of the state's inner product with an item's vector, at the start.
        band: Slates that cost nothing and hold the session at the target, to draw from; w_fair
            narrows them. ``None`` to let w_fair alone decide.
        shortlist: Items of each group that a session draws from
            (:mod:`dsrm_agents.hrl.shortlists`); ``None`` for all.

    Attributes:
        group_shares: (G,) float32 that :meth:`HierarchicalPolicy.set_fairness` set, NaN for none.
        start_query: (d, state_dim + 2) float32, the query's weight before training.
        start_bias: (d,) float32, the query's bias before training.
        start_projection: (d, f or d) float32, the items' projection before training.
    """

    group_shares: Tensor
    start_query: Tensor
    start_bias: Tensor
    start_projection: Tensor

    def __init__(
        self,
        items: Items,
        state_dim: int,
        slate_size: int,
        constrained: bool,
        target: NDArray[np.float64],
        similarity: float,
        band: Band | None = None,
        shortlist: int | None = None,
    ) -> None:
        super().__init__()
        self.items = items
        self.slate_size = slate_size
        self.constrained = constrained
        self.query = nn.Linear(state_dim + 2, items.dim)
        self.log_sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        self.feasible = FeasibleCounts(target, slate_size)
        self.band = band
        self.shortlists: Shortlists | None = None
        if shortlist is not None:
            self.shortlists = Shortlists(shortlist, items.starts, len(items))
        # A buffer, so that it is saved with the weights.
        self.register_buffer("group_shares", torch.full((len(target),), torch.nan))
        with torch.no_grad():
            # Column 0 of the embedding is quality; the preference is about the other columns.
            shared = torch.arange(1, min(items.dim, state_dim))
            self.query.weight.zero_()
            self.query.weight[shared, shared] = similarity
            self.query.bias.zero_()
            self.query.bias[0] = 1.0
        self.register_buffer("start_query", self.query.weight.detach().clone())
        self.register_buffer("start_bias", self.query.bias.detach().clone())
        self.register_buffer("start_projection", items.projection.weight.detach().clone())

    def scorer(self, context: Context) -> Tensor:
        """(N, d + 1): inner products with :meth:`Items.keys` are the scores of eq. 6."""
        accuracy, fairness = context.accuracy[:, None], context.fairness[:, None]
        query = self.query(torch.cat([context.state, accuracy, fairness], dim=1))
        penalty = torch.zeros_like(fairness) if self.constrained else fairness
        return torch.cat([self.log_sharpness.exp() * accuracy * query, -penalty], dim=1)

    def drift(self, context: Context, slates: Tensor) -> Tensor:
        """(N,) float32: how far (N, K) drawn items' scores have moved from the start, in nats.

        To second order the divergence of a draw from the start's is half the variance, under the
        draw, of the change of the scores; here the variance over the items of a slate.
        """
        columns = self.items.column_of_item[slates]
        accuracy, fairness = context.accuracy[:, None], context.fairness[:, None]
        read = torch.cat([context.state, accuracy, fairness], dim=1)
        at_start = nn.functional.linear(read, self.start_query, self.start_bias)
        at_start = (SHARPNESS * accuracy * at_start) @ self.start_projection
        scorer = self.scorer(context)[:, :-1]  # the popularity term never moves
        turned = scorer @ self.items.projection.weight - at_start
        moved = torch.einsum("nf,nkf->nk", turned, self.items.described[columns])
        return moved.var(dim=1, correction=min(1, self.slate_size - 1)) / 2.0

    @property
    def is_dialled(self) -> bool:
        """True where shares of the groups were set."""
        return not bool(torch.isnan(self.group_shares).any())

    def distribution(
        self,
        context: Context,
        bounds: SlateBounds | None = None,
        dialled: bool | None = None,
    ) -> SlateDistribution:
        """The slates of N sessions.

        Args:
            context: The sessions.
            bounds: Of their slates, if they are known; else :meth:`bounds`.
            dialled: As for :meth:`bounds`.
        """
        items, scorer = self.items, self.scorer(context)
        # Queries are fewer than items: the projection is theirs, unless it makes items narrower.
        if items.are_narrow:
            query, key = items.projected(scorer), items.unprojected
        else:
            query, key = scorer, nn.functional.pad(items.keys(), (0, 0, 0, 1))
        return SlateDistribution(
            query,
            key,
            items.masked(context),
            items.starts,
            self.bounds(context, dialled) if bounds is None else bounds,
            self.slate_size,
            items.closed(context),
        )

    def shortlist(self, context: Context) -> Tensor:
        """(N, W) int64 columns that N sessions draw from; (N, 0) where they draw from all."""
        if self.shortlists is None:
            return context.exposed[:, :0]
        items = self.items
        with torch.no_grad():
            query, version = self.scorer(context), items.version
            if items.are_narrow:
                query = items.projected(query)
            if not self.shortlists.is_current(version):
                key = items.unprojected[:-1] if items.are_narrow else items.keys()
                self.shortlists.index(key, version)
            return self.shortlists.find(query, items.masked(context), items.closed(context))

    def from_shortlist(
        self, context: Context, shortlist: Tensor, bounds: SlateBounds | None = None
    ) -> SlateDistribution:
        """The slates of N sessions that draw from :meth:`shortlist`; bounds as above."""
        bounds = self.bounds(context) if bounds is None else bounds
        if self.shortlists is None:
            return self.distribution(context, bounds)
        query, key = self.items.projected(self.scorer(context)), self.items.unprojected
        starts = self.shortlists.starts
        return ShortlistedSlates(query, key, shortlist, starts, bounds, self.slate_size)

    def act(self, context: Context, deterministic: bool, shortlist: Tensor | None = None) -> Drawn:
        """Draws slates, or takes the best, from :meth:`shortlist`."""
        shortlist = self.shortlist(context) if shortlist is None else shortlist
        slates = self.from_shortlist(context, shortlist)
        if deterministic:
            columns = slates.best()
            log_prob = slates.log_prob(columns)
        else:
            columns, log_prob = slates.sample()
        return Drawn(self.items.item_of_column[columns], log_prob, slates.bounds)

    def log_prob(
        self,
        context: Context,
        slates: Tensor,
        bounds: SlateBounds | None = None,
        shortlist: Tensor | None = None,
    ) -> Tensor:
        """(N, 2K) log-probabilities of the choices behind (N, K) slates; a slate's is the sum."""
        shortlist = self.shortlist(context) if shortlist is None else shortlist
        columns = self.items.columns(context, slates)
        return self.from_shortlist(context, shortlist, bounds).log_prob(columns)

    def entropy(self, context: Context, shortlist: Tensor | None = None) -> Tensor:
        """(N,) entropy, in nats, of a slate's first draw without bounds."""
        shortlist = self.shortlist(context) if shortlist is None else shortlist
        return self.from_shortlist(context, shortlist).entropy()

    def bounds(self, context: Context, dialled: bool | None = None) -> SlateBounds:
        """Bounds on the items of each group that the slates of N sessions may hold.

        Args:
            context: The sessions.
            dialled: :attr:`is_dialled`, for graphs in which tensors have no values yet.
        """
        shown = self.items.shown(context)
        left = self.items.left(context, shown)
        if self.is_dialled if dialled is None else dialled:
            return target_bounds(self.group_shares, self.slate_size, shown, left)
        if self.band is not None:
            bounds: SlateBounds = self.band(context.fairness, shown, left)
            return bounds
        feasible: SlateBounds = self.feasible(context.fairness * float(self.constrained), left)
        return feasible
