"""Metrics of single lists and of returns: those that KuaiSim names.

Zhao et al., "KuaiSim: A Comprehensive Simulator for Recommender Systems", NeurIPS 2023. Where it
leaves a definition open, the function says which one is taken, and why.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics.sessions import FloatArray, Sessions

REQUESTS = 128  # lists that KuaiSim's request-level scripts take the largest reward over


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


def _list_responses(sessions: Sessions) -> FloatArray:
    """(L, K) float64 in [0, 1]: the responses of every list that was shown."""
    return sessions.responses[sessions.slates[:, :, 0] >= 0].astype(np.float64)


def _return_days(sessions: Sessions) -> NDArray[np.int64]:
    """(S,) int64 days until the users came back.

    Raises:
        DataFormatError: The sessions come from a task without returns.
    """
    if sessions.return_day is None:
        raise DataFormatError(
            "These sessions have no return days: their task ends with the session."
        )
    return sessions.return_day
