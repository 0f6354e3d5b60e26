"""Metrics of finished sessions: pure functions of arrays.

Len, R_each, R_cum and AD are the paper's (section 5.1.2); the others separate what AD, an
aggregate over users, mixes. The metrics of single lists and of returns are those that
KuaiSim names (Zhao et al., "KuaiSim: A Comprehensive Simulator for Recommender Systems", NeurIPS
2023); where it leaves a definition open, the function says which one is taken, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

REQUESTS = 128  # lists that KuaiSim's request-level scripts take the largest reward over


@dataclass(frozen=True, eq=False)
class Sessions:
    """S finished sessions.

    Attributes:
        length: (S,) int64 steps, at least 1.
        rewards: (S, T) float64, zero from ``length`` on.
        penalised: (S, T) bool, false from ``length`` on.
        slates: (S, T, K) int32 item positions, -1 from ``length`` on.
        responses: (S, T, K) float32 in [0, 1], each item's answer, zero from ``length`` on.
        return_day: (S,) int64, days until the user came back after that session, at least 1;
            ``None`` where the task has no returns.
    """

    length: NDArray[np.int64]
    rewards: FloatArray
    penalised: BoolArray
    slates: NDArray[np.int32]
    responses: NDArray[np.float32]
    return_day: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.length)

    def take(self, rows: NDArray[np.int64]) -> Sessions:
        """Some of the sessions, repeats allowed."""
        arrays: list[Any] = [x if x is None else x[rows] for x in vars(self).values()]
        return Sessions(*arrays)

    @classmethod
    def concatenate(cls, batches: list[Sessions]) -> Sessions:
        """All sessions of several batches with the same T and K.

        Raises:
            ValueError: Some batches have return days and others have none.
        """
        n_days = sum(batch.return_day is not None for batch in batches)
        if n_days not in (0, len(batches)):
            raise ValueError(
                "Sessions with and without return days cannot be put together: "
                f"{n_days} of {len(batches)} batches have them."
            )
        columns = zip(*(vars(batch).values() for batch in batches), strict=True)
        arrays: list[Any] = [x[0] if x[0] is None else np.concatenate(x) for x in columns]
        return cls(*arrays)


def session_length(sessions: Sessions) -> float:
    """Len: mean number of steps."""
    return float(sessions.length.mean())


def reward_per_step(sessions: Sessions) -> float:
    """R_each: mean reward of a step, over all steps of all sessions, in [0, 1]."""
    return float(sessions.rewards.sum() / sessions.length.sum())


def reward_per_session(sessions: Sessions) -> float:
    """R_cum: mean over sessions of the summed reward."""
    return float(sessions.rewards.sum(axis=1).mean())


def penalty_rate(sessions: Sessions) -> float:
    """q: share of steps at which the exposure window cost one temper."""
    return float(sessions.penalised.sum() / sessions.length.sum())


def absolute_difference(sessions: Sessions, popular: BoolArray) -> float:
    """AD: |2p - 1| with p the popular share of all exposures made at a step, mean over steps.

    Users of opposite imbalance cancel out: compare :func:`slate_absolute_difference`.
    """
    flags, shown = _popular_flags(sessions, popular)
    exposures = shown.sum(axis=(0, 2))
    share = flags.sum(axis=(0, 2))[exposures > 0] / exposures[exposures > 0]
    return float(np.abs(2.0 * share - 1.0).mean())


def slate_absolute_difference(sessions: Sessions, popular: BoolArray) -> float:
    """Mean over slates of |2p - 1| with p the slate's own popular share."""
    flags, shown = _popular_flags(sessions, popular)
    share = flags.mean(axis=2)[shown[:, :, 0]]
    return float(np.abs(2.0 * share - 1.0).mean())


def longtail_share(sessions: Sessions, popular: BoolArray) -> float:
    """Share of exposures that went to items outside the popular group."""
    flags, shown = _popular_flags(sessions, popular)
    return float(1.0 - flags.sum() / shown.sum())


def exposure_counts(sessions: Sessions, n_items: int) -> NDArray[np.int64]:
    """(n_items,) int64: how often each item was shown."""
    shown = sessions.slates[sessions.slates >= 0]
    return np.bincount(shown, minlength=n_items).astype(np.int64)


def gini(exposure: NDArray[np.integer] | NDArray[np.floating]) -> FloatArray:
    """Gini coefficients of exposure over the whole catalogue: 0 equal, towards 1 concentrated.

    Args:
        exposure: (..., n_items) counts or masses that are not negative.

    Returns:
        (...,) float64.
    """
    ordered = np.sort(exposure, axis=-1).astype(np.float64)
    n = ordered.shape[-1]
    ranks = 2.0 * np.arange(1, n + 1) - n - 1
    return np.asarray(ordered @ ranks / (n * ordered.sum(axis=-1)))


def coverage(counts: NDArray[np.integer]) -> float:
    """Share of the catalogue that was shown at least once."""
    return float(np.mean(counts > 0))


def average_list_reward(sessions: Sessions) -> float:
    """L-reward: mean over lists of the list's mean response, in [0, 1].

    It is R_each wherever the reward is the mean response, and stays so under any other reward.
    """
    return float(_list_responses(sessions).mean())


def max_list_reward(sessions: Sessions, requests: int = REQUESTS) -> float:
    """Max L-reward: expected largest mean response among ``requests`` lists, in [0, 1].

    KuaiSim records the largest of the list rewards in each mini-batch, one list for each of
    ``requests`` users, and averages the records. The plain maximum of a sample would grow with the
    sample, and the best list of a session with the session's length; this is instead the exact
    mean over all mini-batches that can be drawn, with replacement, from the sample's lists, so that
    runs of any size compare.

    Args:
        sessions: Finished sessions.
        requests: Lists in a mini-batch, at least 1.
    """
    ascending = np.sort(_list_responses(sessions).mean(axis=1))
    below = np.linspace(0.0, 1.0, len(ascending) + 1) ** requests  # P(largest is at most the i-th)
    return float(ascending @ np.diff(below))


def reward_ndcg(sessions: Sessions) -> float:
    """R-NDCG: normalised discounted cumulative gain with responses as gains, in [0, 1].

    The gain at rank k is discounted by ``log2(k + 1)``; the ideal list holds the same responses,
    best first. The metric is therefore about the order alone: 1 exactly where every list puts its
    better answered items first.

    Returns:
        Mean over the lists with a positive response, NaN where there are none. Lists without one
        are left out: every order of them is as good.
    """
    gains = _list_responses(sessions)
    discount = 1.0 / np.log2(np.arange(2, gains.shape[1] + 2))
    ideal = np.sort(gains, axis=1)[:, ::-1] @ discount
    answered = ideal > 0
    if not answered.any():
        return float("nan")
    return float(((gains @ discount)[answered] / ideal[answered]).mean())


def reward_mrr(sessions: Sessions) -> float:
    """R-MRR: expected reciprocal rank of the first positive response, in [0, 1].

    A list with responses ``r_1, ..., r_K`` scores ``sum_k r_k / k * prod_{j < k} (1 - r_j)``, 0
    without any positive response (the cascade of Chapelle et al., "Expected Reciprocal Rank for
    Graded Relevance", CIKM 2009). With responses of 0 and 1 it is the mean reciprocal rank itself;
    with probabilities it is what their draws give on average. KuaiSim says no more than that the
    item's reward stands in for the label; a plain sum of ``r_k / k`` would be no reciprocal rank
    as soon as two items are answered.
    """
    labels = _list_responses(sessions)
    unanswered = np.cumprod(1.0 - labels, axis=1)
    first = labels.copy()
    first[:, 1:] *= unanswered[:, :-1]
    return float((first / np.arange(1, labels.shape[1] + 1)).sum(axis=1).mean())


def intra_list_diversity(
    sessions: Sessions, vectors: NDArray[np.floating], lists_at_once: int = 4096
) -> float:
    """ILD: 1 minus the mean cosine over all pairs of items of a slate, in [0, 2].

    KuaiSim averages the products of unit vectors over their dimensions instead of adding them up,
    and counts each item with itself: with 64 dimensions its ILD cannot leave [.98, 1.02].

    Args:
        sessions: Finished sessions.
        vectors: (n_items, d) floats, of any length. A zero vector is at right angles to all.
        lists_at_once: Lists handled together, which bounds the memory and nothing else.

    Returns:
        0 for equal directions, 1 for orthogonal ones; 0 where slates hold one item.
    """
    slates = sessions.slates[sessions.slates[:, :, 0] >= 0]
    n_lists, size = slates.shape
    if size < 2:
        return 0.0
    norm = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(norm > 0, norm, 1.0)
    squares = (unit**2).sum(axis=1)
    # The squared length of a sum of unit vectors holds every pair's cosine twice, and each
    # vector's product with itself: no (K, K) table is needed.
    products = 0.0
    for start in range(0, n_lists, lists_at_once):
        batch = slates[start : start + lists_at_once]
        products += (unit[batch].sum(axis=1) ** 2).sum() - squares[batch].sum()
    return float(1.0 - products / (n_lists * size * (size - 1)))


def return_time(sessions: Sessions) -> float:
    """Mean number of days until the user came back, at least 1."""
    return float(_return_days(sessions).mean())


def retention(sessions: Sessions) -> float:
    """Share of sessions after which the user came back on the next day, in [0, 1].

    KuaiSim speaks of the ratio of visiting again and leaves the period open. Its published ratios
    (.57 to .61) are no next-day shares of its own return model: with such a share its ten-day
    truncated geometric cannot have a mean of more than 3.2 days, and 3.5 are published.
    """
    return float((_return_days(sessions) == 1).mean())


def each_session(sessions: Sessions, popular: BoolArray) -> dict[str, NDArray[Any]]:
    """Len, R_each, R_cum, q and popular share of each session: (S,) arrays by name."""
    length, slate_size = sessions.length, sessions.slates.shape[2]
    total = np.cumsum(sessions.rewards, axis=1)[:, -1]
    flags, _ = _popular_flags(sessions, popular)
    return {
        "len": length,
        "r_each": total / length,
        "r_cum": total,
        "q": sessions.penalised.sum(axis=1) / length,
        "popular_share": flags.sum(axis=(1, 2)) / (length * slate_size),
    }


def summarise(sessions: Sessions, popular: BoolArray) -> dict[str, float]:
    """Metrics of the whole-session task, by their names in result files."""
    counts = exposure_counts(sessions, len(popular))
    return {
        "len": session_length(sessions),
        "r_each": reward_per_step(sessions),
        "r_cum": reward_per_session(sessions),
        "q": penalty_rate(sessions),
        "ad": absolute_difference(sessions, popular),
        "slate_ad": slate_absolute_difference(sessions, popular),
        "longtail_share": longtail_share(sessions, popular),
        "gini": float(gini(counts)),
        "coverage": coverage(counts),
    }


def summarise_requests(
    sessions: Sessions, popular: BoolArray, vectors: NDArray[np.floating]
) -> dict[str, float]:
    """Metrics of the request-level task, by their names in result files.

    Args:
        sessions: Finished sessions.
        popular: (n_items,) bool, the popular group.
        vectors: (n_items, d) floats, in which ILD measures.
    """
    return {
        "list_reward": average_list_reward(sessions),
        "list_reward_max": max_list_reward(sessions),
        "r_ndcg": reward_ndcg(sessions),
        "r_mrr": reward_mrr(sessions),
        "coverage": coverage(exposure_counts(sessions, len(popular))),
        "ild": intra_list_diversity(sessions, vectors),
        "slate_ad": slate_absolute_difference(sessions, popular),
        "longtail_share": longtail_share(sessions, popular),
    }


def summarise_retention(sessions: Sessions) -> dict[str, float]:
    """Metrics of the cross-session task, by their names in result files."""
    return {
        "return_time": return_time(sessions),
        "retention": retention(sessions),
        "r_each": reward_per_step(sessions),
    }


def bootstrap_ci95(
    sessions: Sessions,
    statistic: Callable[[Sessions], dict[str, float]],
    rng: np.random.Generator,
    resamples: int = 200,
    together: int = 1,
) -> dict[str, float]:
    """Half-widths of normal 95 % intervals, from resampled sessions.

    Args:
        sessions: The sample; sessions are the independent units, steps are not.
        statistic: Named numbers of a sample.
        rng: Source of the resamples.
        resamples: Number of resamples.
        together: Number of successive sessions that are of one user, and so one unit.

    Returns:
        1.96 standard errors of each number.
    """
    units = np.arange(len(sessions)).reshape(-1, together)
    draws = [
        statistic(sessions.take(units[rng.integers(0, len(units), len(units))].ravel()))
        for _ in range(resamples)
    ]
    return {name: 1.96 * float(np.std([draw[name] for draw in draws])) for name in draws[0]}


def _popular_flags(sessions: Sessions, popular: BoolArray) -> tuple[BoolArray, BoolArray]:
    """(S, T, K) bool arrays: cells with a popular item, and cells with an item."""
    shown = sessions.slates >= 0
    return popular[np.where(shown, sessions.slates, 0)] & shown, shown


def _list_responses(sessions: Sessions) -> FloatArray:
    """(L, K) float64 in [0, 1]: the responses of every list that was shown."""
    return sessions.responses[sessions.slates[:, :, 0] >= 0].astype(np.float64)


def _return_days(sessions: Sessions) -> NDArray[np.int64]:
    """(S,) int64 days until the users came back.

    Raises:
        ValueError: The sessions come from a task without returns.
    """
    if sessions.return_day is None:
        raise ValueError("These sessions have no return days: their task ends with the session.")
    return sessions.return_day
