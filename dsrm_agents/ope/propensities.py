"""Policies that know their probabilities: softmax over scores, uniform, and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsrm_agents.ope.checks import check_items, positions, probabilities, real_numbers
from dsrm_agents.ope.logged import Context, FloatArray, StochasticPolicy
from kuaisim_gym.config import check_whole, check_within
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError

_TRIES = 64  # draws of an item before the weights of all items are looked at
_FAINT = 1e-6  # share of a group that is left, below which a difference of sums is no sum


class SoftmaxPolicy:
    """Plackett-Luce slates: an item in proportion to ``exp(score / temperature)`` of those left.

    With ``shares`` each place of the slate first draws a group, whatever the scores, and then an
    item of it: the dial of a long-tail share, with exact probabilities. Items that the session has
    shown are not left.

    Args:
        scores: (n_users, n_items) floats, or (n_items,) for all users alike.
        temperature: Above 0; the larger, the closer to uniform.
        shares: (G,) probabilities of the groups at each place; ``None`` for no groups.
        labels: (n_items,) int group of each item, with ``shares``.
        users: (n_users,) positions of the users whose rows they are; ``None`` for all, in order.

    Raises:
        ConfigError: The arguments do not belong together, or a group with a share has no item.
    """

    def __init__(
        self,
        scores: NDArray[np.floating],
        temperature: float = 1.0,
        shares: Sequence[float] | None = None,
        labels: NDArray[np.integer] | None = None,
        users: NDArray[np.integer] | None = None,
    ) -> None:
        if (shares is None) != (labels is None):
            raise ConfigError("shares and labels go together: give both, or neither.")
        table = _scaled(scores, temperature)
        self.shares = np.ones(1) if shares is None else probabilities("shares", shares)
        labels = np.zeros(table.shape[1], np.int64) if labels is None else labels
        self.labels = positions("labels", labels, table.shape[1], len(self.shares))
        self._members = [np.flatnonzero(self.labels == g) for g in range(len(self.shares))]
        if any(
            share > 0 and not len(m) for share, m in zip(self.shares, self._members, strict=True)
        ):
            raise ConfigError("A group with a share of the slate has no items.")
        self._row_of = np.zeros(0, dtype=np.int64)
        if np.ndim(scores) == 2:
            in_table = positions(
                "users", np.arange(len(table)) if users is None else users, len(table)
            )
            if len(np.unique(in_table)) < len(in_table):
                raise ConfigError("users must name each user once: a user has one row of scores.")
            self._row_of = np.full(int(in_table.max()) + 1, -1)
            self._row_of[in_table] = np.arange(len(table))
        elif users is not None:
            raise ConfigError("users name the rows of (n_users, n_items) scores, got one row.")
        # Of its group: the chances of a row sum to G.
        self._log_chance = np.zeros_like(table)
        self._cumulative: list[FloatArray] = []
        for members in self._members:
            below = table[:, members] - table[:, members].max(1, keepdims=True, initial=-np.inf)
            weight = np.exp(below)
            total = weight.sum(1, keepdims=True)
            self._log_chance[:, members] = below - np.log(total)
            cumulative: FloatArray = np.cumsum(weight / total, axis=1)
            cumulative[:, -1:] = 1.0
            # One ascending list of all rows: row r lies in (r, r + 1].
            self._cumulative.append((cumulative + np.arange(len(table))[:, None]).ravel())

    def act(
        self, context: Context, slate_size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Draws slates, as of :class:`~dsrm_agents.ope.logged.StochasticPolicy`.

        Raises:
            ConfigError: A group is drawn that has no item left.
        """
        rows, n = self._rows(context), len(context.users)
        check_whole("slate_size", slate_size, 1)
        everyone = np.arange(n)
        hidden = np.zeros((n, len(self.labels) + 1), dtype=bool)
        hidden[everyone[:, None], context.shown] = True  # -1 is the last column
        slates = np.empty((n, slate_size), dtype=np.int64)
        bounds = np.cumsum(self.shares)[:-1]
        for position in range(slate_size):
            group = (rng.random((n, 1)) >= bounds).sum(axis=1)
            waiting = everyone
            for attempt in range(_TRIES + 1):
                drawn = (
                    self._drawn(rows[waiting], group[waiting], rng)
                    if attempt < _TRIES
                    else self._drawn_among(rows[waiting], group[waiting], hidden[waiting], rng)
                )
                free = ~hidden[waiting, drawn]
                slates[waiting[free], position] = drawn[free]
                hidden[waiting[free], drawn[free]] = True
                waiting = waiting[~free]
                if not len(waiting):
                    break
        return slates, self.log_prob(context, slates)

    def log_prob(self, context: Context, slates: NDArray[np.int64]) -> FloatArray:
        """Log-probabilities, as of :class:`~dsrm_agents.ope.logged.StochasticPolicy`."""
        rows = self._rows(context)[:, None]
        before = np.concatenate([context.shown, slates], axis=1)
        n_before = context.shown.shape[1]
        log_chance = np.where(before >= 0, self._log_chance[rows, before], -np.inf)
        chance = np.exp(log_chance)
        group = self.labels[slates]
        left = np.ones(slates.shape)
        for number in range(len(self.shares)):
            of_group = np.where(self.labels[before] == number, chance, 0.0)
            shown_weight = np.cumsum(of_group, axis=1)[:, n_before:] - of_group[:, n_before:]
            left = np.where(group == number, 1.0 - shown_weight, left)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_left = np.log(left)
            for row, position in np.argwhere(~(left >= _FAINT)):
                remaining = self._log_chance[rows[row, 0]].copy()
                remaining[self.labels != group[row, position]] = -np.inf
                past = before[row, : n_before + position]
                remaining[past[past >= 0]] = -np.inf
                best = remaining.max()
                log_left[row, position] = best + np.log(np.exp(remaining - best).sum())
            log_prob = np.log(self.shares[group]) + log_chance[:, n_before:] - log_left
        return np.where(
            context.repeats(slates) | np.isnan(log_prob), -np.inf, np.minimum(log_prob, 0.0)
        )

    @property
    def n_items(self) -> int:
        """Items that it chooses from."""
        return len(self.labels)

    def _rows(self, context: Context) -> NDArray[np.int64]:
        """(N,) rows of the tables of the users."""
        if not len(self._row_of):
            return np.zeros(len(context.users), dtype=np.int64)
        in_table = (context.users >= 0) & (context.users < len(self._row_of))
        rows = np.where(in_table, self._row_of[np.where(in_table, context.users, 0)], -1)
        if (rows < 0).any():
            raise ConfigError(
                f"User {context.users[rows < 0][0]} has no row of scores: give scores of all users "
                "who may arrive."
            )
        return np.asarray(rows)

    def _drawn(
        self, rows: NDArray[np.int64], group: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Items of groups, whether they are left or not."""
        items = np.empty(len(rows), dtype=np.int64)
        for number, (members, cumulative) in enumerate(
            zip(self._members, self._cumulative, strict=True)
        ):
            inside = np.flatnonzero(group == number)
            # Sorted, so that the search walks through the table once.
            inside = inside[np.argsort(rows[inside], kind="stable")]
            keys = rows[inside] + rng.random(len(inside))
            position = np.searchsorted(cumulative, keys, side="right") - rows[inside] * len(members)
            items[inside] = members[np.minimum(position, len(members) - 1)]
        return items

    def _drawn_among(
        self,
        rows: NDArray[np.int64],
        group: NDArray[np.int64],
        hidden: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Items of groups that are left."""
        left = (self.labels == group[:, None]) & ~hidden[:, :-1]
        if not left.any(axis=1).all():
            raise ConfigError(
                "A session is left with no item of a group that was drawn: give the group a "
                "smaller share, or end sessions earlier."
            )
        log_chance = np.where(left, self._log_chance[rows], -np.inf)
        weight = np.exp(log_chance - log_chance.max(axis=1, keepdims=True))  # the best one's is 1
        level = rng.random((len(rows), 1)) * weight.sum(axis=1, keepdims=True)
        ahead = np.cumsum(weight, axis=1) > level
        return np.asarray(ahead.argmax(axis=1))


def uniform_policy(n_items: int) -> SoftmaxPolicy:
    """Every item that the session has not shown is as likely as any other."""
    return SoftmaxPolicy(np.zeros(check_whole("n_items", n_items, 1)))


class Mixture:
    """Acts by one of some policies, drawn anew for each slate.

    A slate's probability is the mixture's; an item's, given the earlier ones, the ratio of two such
    sums: what the earlier items tell of who is acting is taken into account.

    Args:
        policies: The policies.
        weights: Their probabilities.

    Raises:
        ConfigError: Weights are no probabilities, one a policy, or policies show other items.
    """

    def __init__(self, policies: Sequence[StochasticPolicy], weights: Sequence[float]) -> None:
        self.policies, self.weights = tuple(policies), probabilities("weights", weights)
        if len(self.policies) != len(self.weights):
            raise ConfigError(
                f"weights must be one probability a policy, got {len(self.weights)} of "
                f"{len(self.policies)} policies."
            )
        counts = [getattr(policy, "n_items", None) for policy in self.policies]
        check_items(**{f"policy {number}": count for number, count in enumerate(counts)})
        self.n_items: int | None = next((count for count in counts if count is not None), None)
        catalogues = [getattr(policy, "catalogue", None) for policy in self.policies]
        self.catalogue: Any = next((items for items in catalogues if items is not None), None)

    def act(
        self, context: Context, slate_size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Draws slates, as of :class:`~dsrm_agents.ope.logged.StochasticPolicy`."""
        actor = rng.choice(len(self.policies), size=len(context.users), p=self.weights)
        drawn = [policy.act(context, slate_size, rng)[0] for policy in self.policies]
        slates = np.stack(drawn)[actor, np.arange(len(actor))]
        return slates, self.log_prob(context, slates)

    def log_prob(self, context: Context, slates: NDArray[np.int64]) -> FloatArray:
        """Log-probabilities, as of :class:`~dsrm_agents.ope.logged.StochasticPolicy`."""
        log_probs = np.stack([policy.log_prob(context, slates) for policy in self.policies])
        with np.errstate(divide="ignore", invalid="ignore"):
            prior = np.log(self.weights)[:, None]
            prefix = np.logaddexp.reduce(prior[..., None] + np.cumsum(log_probs, axis=2), axis=0)
            log_prob = np.diff(prefix, axis=1, prepend=0.0)
        return np.where(np.isnan(log_prob), -np.inf, np.minimum(log_prob, 0.0))


def epsilon_random(policy: StochasticPolicy, epsilon: float, n_items: int) -> Mixture:
    """A policy that shows a uniformly random slate with probability epsilon."""
    check_within("epsilon", epsilon, "[0, 1]")
    return Mixture([policy, uniform_policy(n_items)], [1.0 - epsilon, epsilon])


def _scaled(scores: ArrayLike, temperature: float) -> FloatArray:
    """(n_rows, n_items) scores over a temperature."""
    check_within("temperature", temperature, "(0, inf]")
    table = real_numbers("scores", scores, np.float64, ConfigError)
    if table.ndim not in (1, 2) or not table.size:
        raise ConfigError(
            f"scores must have shape (n_items,) or (n_users, n_items), got {table.shape}."
        )
    with np.errstate(over="ignore"):
        table = np.atleast_2d(table) / temperature
        spread = np.ptp(table, axis=1) if np.isfinite(table).all() else np.inf
    if not np.isfinite(spread).all():
        raise ConfigError(
            f"scores over a temperature of {temperature} are no numbers any more: take a larger "
            "one."
        )
    return table


class Actor:
    """A stochastic policy as an agent, for :func:`kuaisim_gym.collect_episodes`.

    Args:
        policy: The policy.
        batch: The sessions that it acts in, such as ``envs.unwrapped.batch``.
        seed: Of its draws.
    """

    def __init__(self, policy: StochasticPolicy, batch: SessionBatch, seed: int) -> None:
        self.policy, self.batch = policy, batch
        self._rng = np.random.default_rng(seed)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], None]:
        """Draws actions for the sessions as they stand.

        Raises:
            ConfigError: ``deterministic``: the best action of a policy that draws is another one.
        """
        if deterministic:
            raise ConfigError("An Actor draws its actions: give deterministic=False.")
        return self.draw(observation)[0], None

    def draw(self, observation: Any) -> tuple[NDArray[np.int64], FloatArray]:
        """Actions, and the (N, K) log-probabilities of their items."""
        state = self.batch.core.state
        shown = np.where(state.active[:, None, None], state.slates, -1)
        context = Context(state.users, shown.reshape(len(shown), -1).astype(np.int64), observation)
        slates, log_probs = self.policy.act(context, self.batch.config.slate_size, self._rng)
        return (slates if self.batch.action_type == "slate" else slates[:, 0]), log_probs
