"""Estimators of whole sessions: two ways of weighing what came before, times a model of slates.

What a step shows and earns is weighed by how likely the evaluated policy would have come to it, the
*history*, and by its own slate. The history's weight is the product of all earlier ratios (exact,
and exploding with the session's length), or that product's mean over sessions in the same *state*
(marginalised: bounded, and as good as the state is), or 1.

Estimates are of sums over a session: its steps, its rewards, and its popular exposures over K. A
step is made or not before its slate is known, so that it carries the weight of its history alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.ope.checks import check_items, check_reach, real_numbers
from dsrm_agents.ope.estimators import Columns, Function
from dsrm_agents.ope.logged import FloatArray, LoggedSessions, StochasticPolicy
from dsrm_agents.ope.slates import item_weights
from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

N_SUMS = 3  # steps, rewards, popular exposures over K
HISTORIES = ("cumulative", "marginalised", "none")
PATIENCE_WIDTH = 0.5  # of a state's bin of patience, in temper
STRATA = 4  # quantiles of a covariate of users, each a part of the state
_PRIOR_ROWS = 1.0  # with which the mean of a step stands in for a state that few sessions were in
_MOST = 300.0  # of a logarithm of weights: its exponential, squared and summed, is still a number


@dataclass(frozen=True, eq=False)
class Steps:
    """Arrays of n logged sessions and an evaluated policy, as estimators read them.

    Attributes:
        log_ratio: (n, T, K) log-probabilities of the items, the evaluated policy's less the logging
            one's; zero behind a session's end.
        alive: (n, T) bool, steps that were made.
        answers: (n, T, K), whose mean over K is a step's reward.
        popular: (n, T, K) bool.
        states: (n, T + 1) int64, before each step and after the last; 0 where the session is over.
        itemised: Whether answers are the items' own.
    """

    log_ratio: FloatArray
    alive: NDArray[np.bool_]
    answers: FloatArray
    popular: NDArray[np.bool_]
    states: NDArray[np.int64]
    itemised: bool = True

    @classmethod
    def of(
        cls,
        logged: LoggedSessions,
        policy: StochasticPolicy,
        popular: NDArray[np.bool_],
        covariate: FloatArray | None = None,
    ) -> Steps:
        """Reads off a log what it tells of a policy.

        Args:
            logged: The log.
            policy: The evaluated policy.
            popular: (n_items,) bool.
            covariate: (n_users,) anything that was known of users before, such as their mean answer
                in older logs: its quarters are a part of the state.

        Raises:
            ConfigError: Log, policy and popular group are of other items; the log does not name its
                users, or the covariate lacks one.
        """
        popular = _flags(logged, policy, popular)
        alive, shown = logged.alive, logged.slates >= 0
        log_ratio = np.where(shown, logged.log_probs_of(policy) - logged.log_probs, 0.0)
        flags = popular[np.where(shown, logged.slates, 0)] & shown
        itemised = logged.responses is not None
        answers = np.broadcast_to(logged.rewards[:, :, None], shown.shape)
        if logged.responses is not None:
            # Of several behaviours a reward is no mean of answers: what differs is every item's.
            answers = logged.responses.astype(np.float64)
            answers = answers + (logged.rewards - answers.mean(axis=2))[:, :, None]
        states = _states(logged, alive, covariate)
        return cls(log_ratio, alive, answers, flags, states, itemised)

    def __len__(self) -> int:
        return len(self.alive)

    def take(self, rows: NDArray[np.integer]) -> Steps:
        """Some of the sessions."""
        return Steps(
            self.log_ratio[rows],
            self.alive[rows],
            self.answers[rows],
            self.popular[rows],
            self.states[rows],
            self.itemised,
        )

    @property
    def ratio(self) -> FloatArray:
        """(n, T) weights of the slates."""
        return _exp(self.log_ratio.sum(axis=2))

    @property
    def sums(self) -> FloatArray:
        """(n, T, 3) what each step adds to the sums."""
        return (
            np.stack([self.alive, self.answers.mean(2), self.popular.mean(2)], axis=2)
            * (self.alive[:, :, None])
        )


def _flags(
    logged: LoggedSessions, policy: StochasticPolicy, popular: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The popular group as (n_items,) bool, if it is one of the log's and the policy's items."""
    flags = np.asarray(popular)
    if flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise ConfigError(
            f"popular must hold True or False for each item, got {flags.dtype} of shape "
            f"{flags.shape}."
        )
    n_items = getattr(policy, "n_items", None)
    check_items(log=logged.n_items, policy=n_items, popular_group=len(flags))
    check_reach("popular group", len(flags), int(logged.slates.max()))
    return flags.astype(bool)


def _states(
    logged: LoggedSessions, alive: NDArray[np.bool_], covariate: FloatArray | None
) -> NDArray[np.int64]:
    """(n, T + 1) states: the user's quarter, and the bin of what patience is left, 0 for none.

    Where patience is not known, the rewards so far stand for it.
    """
    spent = np.cumsum(logged.rewards, axis=1) - logged.rewards
    patience = spent if logged.patience is None else logged.patience
    # Numbered as they come, however far apart and on whichever side of zero they are.
    _, bins = np.unique(np.floor(patience / PATIENCE_WIDTH), return_inverse=True)
    bins = bins.reshape(alive.shape)
    stratum = np.zeros(len(logged), dtype=np.int64)
    if covariate is not None:
        covariate = real_numbers("covariate", covariate, np.float64, ConfigError)
        if covariate.ndim != 1:
            raise ConfigError(f"covariate must have shape (n_users,), got {covariate.shape}.")
        if logged.users.min() < 0 or logged.users.max() >= len(covariate):
            raise ConfigError(
                f"covariate must have a number for each user, got {len(covariate)} beside users "
                f"{logged.users.min()} to {logged.users.max()}: -1 is a user whom the log does not "
                "name."
            )
        value = covariate[logged.users]
        cuts = np.quantile(value, np.arange(1, STRATA) / STRATA)
        stratum = np.searchsorted(cuts, value, side="right")
    states = np.where(alive, 1 + bins * STRATA + stratum[:, None], 0)
    return np.pad(states, ((0, 0), (0, 1)))


def _exp(logarithm: FloatArray) -> FloatArray:
    return np.asarray(np.exp(np.minimum(logarithm, _MOST)))


def cumulative_weights(steps: Steps) -> FloatArray:
    """(n, T) products of the ratios before each step; of a session that is over, of all."""
    logs = np.cumsum(steps.log_ratio.sum(axis=2), axis=1)
    return _exp(np.pad(logs[:, :-1], ((0, 0), (1, 0))))


@dataclass(frozen=True, eq=False)
class StateModel:
    """A tabular model of the evaluated policy in some states, fitted to weighted sessions.

    Attributes:
        ratios: (T, S) how much likelier the evaluated policy is to be in a state at a step.
        values: (T + 1, S, 3) what its sessions add to the sums from a state at a step on.
    """

    ratios: FloatArray
    values: FloatArray

    @classmethod
    def fit(cls, steps: Steps, n_states: int) -> StateModel:
        """Fits both to sessions, by marginalised importance sampling (Xie et al., NeurIPS 2019).

        The ratio of a state is the mean, over the sessions that came to it, of the ratio of where
        they came from times their slate's. The value is the weighted mean of what a step adds and
        of the value of where it leads.
        """
        horizon, ratio, sums = steps.alive.shape[1], steps.ratio, steps.sums
        ratios, current = np.ones((horizon, n_states)), np.ones(len(steps))
        for step in range(1, horizon):
            current = current * ratio[:, step - 1]
            ratios[step] = _means(steps.states[:, step], current[:, None], None, n_states)[:, 0]
            current = ratios[step][steps.states[:, step]]
            ratios[step] /= max(current.mean(), 1e-300)
            current = ratios[step][steps.states[:, step]]
        values = np.zeros((horizon + 1, n_states, N_SUMS))
        for step in reversed(range(horizon)):
            rows = np.flatnonzero(steps.alive[:, step])
            if len(rows):
                ahead = sums[rows, step] + values[step + 1][steps.states[rows, step + 1]]
                states = steps.states[rows, step]
                values[step] = _means(states, ahead, ratio[rows, step], n_states)
                values[step, 0] = 0.0
        return cls(ratios, values)

    def histories(self, steps: Steps) -> FloatArray:
        """(n, T) ratios of the states before each step."""
        return np.stack(
            [self.ratios[t][steps.states[:, t]] for t in range(len(self.ratios))], axis=1
        )

    def ahead(self, steps: Steps) -> FloatArray:
        """(n, T + 1, 3) values of the states before each step and after the last."""
        return np.stack(
            [self.values[t][steps.states[:, t]] for t in range(len(self.values))], axis=1
        )


def _means(
    states: NDArray[np.int64], values: FloatArray, weights: FloatArray | None, n_states: int
) -> FloatArray:
    """(S, m) weighted means of (n, m) values by state, drawn to the mean of all where few are."""
    weights = np.ones(len(states)) if weights is None else weights
    total = max(weights.sum(), 1e-300)
    usual = (weights[:, None] * values).sum(axis=0) / total
    prior = _PRIOR_ROWS * total / len(states)
    mass = np.bincount(states, weights, n_states) + prior
    return np.stack(
        [
            (np.bincount(states, weights * column, n_states) + prior * mean) / mass
            for column, mean in zip(values.T, usual, strict=True)
        ],
        axis=1,
    )


def cross_fitted(steps: Steps) -> tuple[FloatArray, FloatArray]:
    """Histories and values ahead, of each half of the sessions by the model of the other half.

    Returns:
        (n, T) and (n, T + 1, 3), as of :class:`StateModel`.

    Raises:
        ConfigError: There is but one session.
    """
    if len(steps) < 2:
        raise ConfigError(f"A log must have at least 2 sessions, got {len(steps)}: log more.")
    n_states = int(steps.states.max()) + 1
    shape = steps.alive.shape
    histories, ahead = np.ones(shape), np.zeros((shape[0], shape[1] + 1, N_SUMS))
    halves = np.arange(len(steps)) % 2
    for half in (0, 1):
        rows = np.flatnonzero(halves == half)
        model = StateModel.fit(steps.take(np.flatnonzero(halves != half)), n_states)
        histories[rows] = model.histories(steps.take(rows))
        ahead[rows] = model.ahead(steps.take(rows))
    return histories, ahead


def trajectory(steps: Steps, normalised: bool = True, clip: float = np.inf) -> Columns:
    """Importance sampling of whole sessions: sums times the product of all ratios."""
    weights = np.minimum(_exp(steps.log_ratio.sum(axis=(1, 2))), clip)[:, None]
    weighted = weights * steps.sums.sum(axis=1)
    if not normalised:
        return Columns(weighted, span=clip * steps.alive.shape[1])
    return Columns(np.hstack([weights, weighted]), lambda means: means[..., 1:] / means[..., :1])


def per_decision(
    steps: Steps,
    history: str = "cumulative",
    model: str = "slate",
    normalised: bool = True,
    clip: float = np.inf,
) -> Columns:
    """Importance sampling of each step by its past (Precup et al., ICML 2000).

    Args:
        steps: The log and the policy.
        history: A key of :data:`HISTORIES`.
        model: Of slates, see :func:`~dsrm_agents.ope.slates.item_weights`.
        normalised: Whether weights are divided by their means, step by step: first of those who
            are there at all, then of what they are shown.
        clip: Largest weight of a history.
    """
    before = np.minimum(_history(steps, history), clip)
    if model != "slate" and not steps.itemised:
        raise ConfigError(f"model={model!r} weighs the items' answers, and the log has none.")
    weights = np.minimum(item_weights(np.minimum(steps.log_ratio, _MOST), model), np.exp(_MOST))
    reached = before * steps.alive
    earned = reached * (weights * steps.answers).mean(axis=2)
    popular = reached * (weights * steps.popular).mean(axis=2)
    if not normalised:
        span = clip * steps.alive.shape[1] if history == "none" else np.inf
        return Columns(np.stack([reached, earned, popular], axis=1).sum(axis=2), span=span)
    columns = np.stack([before, reached, reached * weights.mean(axis=2), earned, popular], axis=1)
    return Columns(columns.reshape(len(steps), -1), _by_step(5, _normalised))


def _history(steps: Steps, kind: str) -> FloatArray:
    check_choice("history", kind, HISTORIES)
    if kind == "none":
        return np.ones(steps.alive.shape)
    return cumulative_weights(steps) if kind == "cumulative" else cross_fitted(steps)[0]


def _normalised(means: FloatArray) -> FloatArray:
    """(..., 3) sums of (..., 5, T) means of the columns of :func:`per_decision`."""
    everyone, reached, shown, earned, popular = np.moveaxis(means, -2, 0)
    staying = _over(reached, everyone)
    blocks = [staying, staying * _over(earned, shown), staying * _over(popular, shown)]
    return np.stack([share.sum(axis=-1) for share in blocks], axis=-1)


def _by_step(n_kinds: int, function: Function) -> Function:
    """A function of (..., n_kinds, T) means as one of (..., n_kinds * T)."""
    return lambda means: function(means.reshape(*means.shape[:-1], n_kinds, -1))


def _over(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """A quotient, 0 where both are."""
    zeros = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def direct(steps: Steps) -> Columns:
    """The direct method: what the model of states expects of each session's first state."""
    return Columns(cross_fitted(steps)[1][:, 0])


def doubly_robust(
    steps: Steps, history: str = "cumulative", clip: float = np.inf, switch: float = np.inf
) -> Columns:
    """The model's value, and weighted surprises at each step (Jiang and Li, ICML 2016).

    A surprise is what a step adds, and the value of where it leads, less the value of where it
    began: ``V(s_0) + sum_t W_t (y_t + V(s_t+1) - V(s_t))``, weights being divided by their mean
    over sessions (Thomas and Brunskill, ICML 2016). With a marginalised history it is double
    reinforcement learning (Kallus and Uehara, JMLR 2020), whose bias is the product of the errors
    of two models.

    Args:
        steps: The log and the policy.
        history: A key of :data:`HISTORIES`.
        clip: Largest weight.
        switch: Weight beyond which the model stands alone.
    """
    histories, ahead = cross_fitted(steps)
    before = histories if history == "marginalised" else _history(steps, history)
    weights = np.minimum(before * steps.ratio, clip)
    weights = np.where(weights <= switch, weights, 0.0)
    surprise = (steps.sums + ahead[:, 1:] - ahead[:, :-1]) * steps.alive[:, :, None]
    blocks = [weights[:, None], np.moveaxis(weights[:, :, None] * surprise, 2, 1)]
    stepwise = np.concatenate(blocks, axis=1).reshape(len(steps), -1)

    def total(means: FloatArray) -> FloatArray:
        start, by_step = means[..., :N_SUMS], means[..., N_SUMS:]
        by_step = by_step.reshape(*by_step.shape[:-1], 1 + N_SUMS, -1)
        surprises = _over(by_step[..., 1:, :], by_step[..., :1, :])
        return np.asarray(start + surprises.sum(axis=-1))

    return Columns(np.concatenate([ahead[:, 0], stepwise], axis=1), total)


# By name, as tables have them.
ESTIMATORS: dict[str, Callable[[Steps], Columns]] = {
    "trajectory": trajectory,
    "per-decision": per_decision,
    "per-decision, items": lambda steps: per_decision(steps, model="position"),
    "stepwise, items": lambda steps: per_decision(steps, "none", "position"),
    "marginalised": lambda steps: per_decision(steps, "marginalised"),
    "direct": direct,
    "doubly robust": doubly_robust,
    "switch": lambda steps: doubly_robust(steps, switch=10.0),
    "marginalised doubly robust": lambda steps: doubly_robust(steps, "marginalised"),
}
