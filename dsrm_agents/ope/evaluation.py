"""Metrics of a policy from the logs of another; or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.ope.estimators import Columns, FloatArray, Interval, delta_interval
from dsrm_agents.ope.logged import LoggedSessions, StochasticPolicy
from dsrm_agents.ope.sessions import ESTIMATORS, Steps, cross_fitted, cumulative_weights
from kuaisim_gym.config import check_choice
from kuaisim_gym.errors import ConfigError

METRICS = ("len", "r_each", "r_cum", "longtail_share", "ad")
AUTO = "auto"
LEAST_ESS = 200.0  # sessions that weights must be worth
LEAST_SUPPORT = 0.999  # of the evaluated policy's slates that the log could have shown
_WITHOUT_INTERVAL = "direct"
_ROUNDING = 1e-3  # by which log-probabilities of a float32 network may differ when asked again
_DOUBT = 4.0  # standard errors by which mean weights may miss 1
_PROBES = 1000  # decisions at which the evaluated policy's slates are tried


def session_metrics(sums: FloatArray) -> FloatArray:
    """(..., 5) :data:`METRICS` of (..., 3) mean steps, rewards and popular exposures over K."""
    steps, reward, popular = np.moveaxis(sums, -1, 0)
    longtail = 1.0 - popular / steps
    return np.stack([steps, reward / steps, reward, longtail, np.abs(2.0 * longtail - 1.0)], -1)


def metric_intervals(interval: Interval) -> dict[str, Interval]:
    """Intervals by metric, of an interval of (5,) values of :func:`session_metrics`.

    AD bends where exposures are balanced. Its interval is therefore what the long-tail share's
    interval is mapped to.
    """
    intervals = dict(zip(METRICS, map(Interval._make, zip(*interval, strict=True)), strict=True))
    share = intervals["longtail_share"]
    ends = np.abs(2.0 * np.array([share.low, share.high]) - 1.0)
    low = 0.0 if share.low <= 0.5 <= share.high else ends.min()
    intervals["ad"] = Interval(intervals["ad"].value, np.asarray(low), np.asarray(ends.max()))
    return intervals


def of_metrics(columns: Columns) -> dict[str, Interval]:
    """95 % intervals of the metrics, from columns whose estimates are the three sums."""
    return metric_intervals(delta_interval(columns.then(session_metrics)))


class Support(NamedTuple):
    """Reach of a log.

    Attributes:
        share: Of the evaluated policy's slates, how many the logging policy could have shown; 1
            where it cannot be asked.
        mean_weight: Of slates; 1 in expectation where the log could have shown all.
        doubtful: Whether that misses 1 by more than chance would have it, and by more than what
            support may lack; never where the log could have shown all slates that were tried.
        sessions: Sessions that the products of all ratios are worth, Kish's effective sample size.
        marginal: The same of the marginalised weights of steps, in sessions.
    """

    share: float
    mean_weight: float
    doubtful: bool
    sessions: float
    marginal: float


def support_of(
    steps: Steps, logged: LoggedSessions, policy: StochasticPolicy,
    logging: StochasticPolicy | None = None, seed: int = 0,
) -> Support:  # fmt: skip
    """Measures the support of a log.

    Args:
        steps: Of the log and the policy.
        logged: The log.
        policy: The evaluated policy.
        logging: The policy that acted, if it can be asked.
        seed: Of the evaluated policy's trial slates.
    """
    ratio, share = steps.ratio[steps.alive], 1.0
    error = ratio.std() / np.sqrt(len(steps))  # a session's steps are no independent draws
    if logging is not None:
        share = _possible(logged, policy, logging, np.random.default_rng(seed))
    # A log that could have shown all has mean weights of 1, whatever the rare large ones do here.
    supported = logging is not None and share == 1.0
    tolerance = max(_DOUBT * error, 1.0 - LEAST_SUPPORT)
    doubtful = not supported and abs(ratio.mean() - 1.0) > tolerance
    products = cumulative_weights(steps)[:, -1] * np.where(
        steps.alive[:, -1], steps.ratio[:, -1], 1.0
    )
    marginal = (cross_fitted(steps)[0] * steps.ratio)[steps.alive]
    in_sessions = len(steps) / len(marginal)
    mean = float(ratio.mean())
    return Support(share, mean, bool(doubtful), kish(products), kish(marginal) * in_sessions)


def kish(weights: FloatArray) -> float:
    """Effective sample size of some weights, ``(sum w)^2 / sum w^2``; 0 of none."""
    square = float((weights**2).sum())
    return float(weights.sum()) ** 2 / square if square else 0.0


def _possible(
    logged: LoggedSessions,
    policy: StochasticPolicy,
    logging: StochasticPolicy,
    rng: np.random.Generator,
) -> float:
    """Share of the evaluated policy's slates, in logged contexts, that the logging one can show."""
    size = logged.slates.shape[2]
    possible: list[NDArray[np.bool_]] = []
    rows = np.sort(rng.permutation(len(logged))[: max(_PROBES // 4, 1)])
    for _, _, context in logged.take(rows).decisions():
        slates, _ = policy.act(context, size, rng)
        possible.append(np.asarray(np.isfinite(logging.log_prob(context, slates)).all(axis=1)))
        if sum(flags.size for flags in possible) >= _PROBES:
            break
    return float(np.concatenate(possible).mean())


@dataclass(frozen=True)
class OffPolicyEstimate:
    """Answer of a log about a policy.

    Attributes:
        estimator: The one that was used.
        metrics: 95 % intervals by metric, whose ends are NaN for ``"direct"``; empty where the log
            says nothing.
        support: How far the log reaches.
        refusal: Why there is no answer; empty where there is one.
    """

    estimator: str
    metrics: dict[str, Interval]
    support: Support
    refusal: str = ""


def evaluate_off_policy(
    logged: LoggedSessions,
    policy: StochasticPolicy,
    popular: NDArray[np.bool_],
    estimator: str = AUTO,
    logging: StochasticPolicy | None = None,
    covariate: FloatArray | None = None,
) -> OffPolicyEstimate:
    """Estimates what sessions of a policy would be, from logged sessions of another one.

    The direct method has no interval: what its model errs by, the sessions do not tell. Its ends
    are NaN.

    Args:
        logged: The log, of at least two sessions.
        policy: The evaluated policy.
        popular: (n_items,) bool, the popular group.
        estimator: A key of :data:`~dsrm_agents.ope.sessions.ESTIMATORS`; or ``"auto"``: doubly
            robust where the sessions' weights are worth 200 sessions, marginalised doubly robust
            where those of steps are, and no answer elsewhere.
        logging: The policy that acted, if it can be asked what it could have shown.
        covariate: As for :meth:`~dsrm_agents.ope.sessions.Steps.of`.

    Returns:
        The metrics, or a refusal.

    Raises:
        ConfigError: Unknown estimator; log, policies and popular group are of other items; or
            ``logging`` is not the policy that acted.
    """
    check_choice("estimator", estimator, (AUTO, *ESTIMATORS))
    if logging is not None:
        _check_logging(logged, logging)
    steps = Steps.of(logged, policy, popular, covariate)
    support = support_of(steps, logged, policy, logging)
    chosen = estimator
    if estimator == AUTO:
        near = support.sessions >= LEAST_ESS
        chosen = "doubly robust" if near else "marginalised doubly robust"
    refusal = _refusal(support, chosen)
    if refusal:
        return OffPolicyEstimate(chosen, {}, support, refusal)
    metrics = of_metrics(ESTIMATORS[chosen](steps))
    if chosen == _WITHOUT_INTERVAL:
        unknown = np.asarray(np.nan)
        metrics = {
            name: Interval(interval.value, unknown, unknown) for name, interval in metrics.items()
        }
    return OffPolicyEstimate(chosen, metrics, support)


def _check_logging(logged: LoggedSessions, logging: StochasticPolicy) -> None:
    """Checks that a policy gives a log's items the probabilities that the log has."""
    log_probs = logged.log_probs_of(logging)
    differing = ~np.isclose(log_probs, logged.log_probs, rtol=1e-4, atol=_ROUNDING)
    if differing.any():
        session, step, place = np.argwhere(differing)[0].tolist()
        raise ConfigError(
            f"logging must be the policy that acted: it gives an item log-probability "
            f"{log_probs[session, step, place]:.5f} where the log has "
            f"{logged.log_probs[session, step, place]:.5f} (session {session}, step {step}, place "
            f"{place}), and {differing.sum()} of {(logged.slates >= 0).sum()} differ. "
            "Give the policy that was logged, or logging=None."
        )


def _refusal(support: Support, estimator: str) -> str:
    if support.share < LEAST_SUPPORT:
        return (
            f"The log could have shown {support.share:.1%} of the policy's slates: log a policy "
            "that shows everything now and then, such as epsilon_random."
        )
    if support.doubtful:
        return (
            f"The slates' weights have mean {support.mean_weight:.5f} instead of 1: the policy "
            "shows what the log could not, or the logged probabilities are another policy's."
        )
    by_steps = estimator.startswith(("marginalised", "stepwise", "direct"))
    worth = support.marginal if by_steps else support.sessions
    if worth < LEAST_ESS:
        return (
            f"The weights are worth {worth:.0f} sessions, and {LEAST_ESS:.0f} are needed: log "
            "more, or a policy that is closer."
        )
    return ""
