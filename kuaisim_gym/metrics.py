"""Metrics of finished sessions: pure functions of arrays.

Len, R_each, R_cum and AD are the paper's (section 5.1.2); the others tell apart what AD, an
aggregate over users, leaves together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sessions:
    """S finished sessions.

    Attributes:
        length: (S,) int64 steps, at least 1.
        rewards: (S, T) float64, zero from ``length`` on.
        penalised: (S, T) bool, false from ``length`` on.
        slates: (S, T, K) int32 item positions, -1 from ``length`` on.
    """

    length: NDArray[np.int64]
    rewards: FloatArray
    penalised: BoolArray
    slates: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.length)

    def take(self, rows: NDArray[np.int64]) -> Sessions:
        """Some of the sessions, repeats allowed."""
        return Sessions(
            self.length[rows], self.rewards[rows], self.penalised[rows], self.slates[rows]
        )

    @classmethod
    def concatenate(cls, parts: list[Sessions]) -> Sessions:
        """All sessions of several batches with the same T and K."""
        return cls(
            np.concatenate([part.length for part in parts]),
            np.concatenate([part.rewards for part in parts]),
            np.concatenate([part.penalised for part in parts]),
            np.concatenate([part.slates for part in parts]),
        )


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
    made = shown.sum(axis=(0, 2))
    share = flags.sum(axis=(0, 2))[made > 0] / made[made > 0]
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


def gini(counts: NDArray[np.integer]) -> float:
    """Gini coefficient of exposure over the whole catalogue: 0 equal, towards 1 concentrated."""
    ordered = np.sort(counts).astype(np.float64)
    n = len(ordered)
    ranks = 2.0 * np.arange(1, n + 1) - n - 1
    return float(ranks @ ordered / (n * ordered.sum()))


def coverage(counts: NDArray[np.integer]) -> float:
    """Share of the catalogue that was shown at least once."""
    return float(np.mean(counts > 0))


def summarise(sessions: Sessions, popular: BoolArray) -> dict[str, float]:
    """Every metric by its name in result files."""
    counts = exposure_counts(sessions, len(popular))
    return {
        "len": session_length(sessions),
        "r_each": reward_per_step(sessions),
        "r_cum": reward_per_session(sessions),
        "q": penalty_rate(sessions),
        "ad": absolute_difference(sessions, popular),
        "slate_ad": slate_absolute_difference(sessions, popular),
        "longtail_share": longtail_share(sessions, popular),
        "gini": gini(counts),
        "coverage": coverage(counts),
    }


def bootstrap_ci95(
    sessions: Sessions,
    statistic: Callable[[Sessions], dict[str, float]],
    rng: np.random.Generator,
    resamples: int = 200,
) -> dict[str, float]:
    """Half-widths of normal 95 % intervals, from resampled sessions.

    Args:
        sessions: The sample; sessions are the independent units, steps are not.
        statistic: Named numbers of a sample.
        rng: Source of the resamples.
        resamples: How many.

    Returns:
        1.96 standard errors of each number.
    """
    draws = [
        statistic(sessions.take(rng.integers(0, len(sessions), len(sessions))))
        for _ in range(resamples)
    ]
    return {name: 1.96 * float(np.std([draw[name] for draw in draws])) for name in draws[0]}


def _popular_flags(sessions: Sessions, popular: BoolArray) -> tuple[BoolArray, BoolArray]:
    """(S, T, K) bool twice: is a popular item, and is an item at all."""
    shown = sessions.slates >= 0
    return popular[np.where(shown, sessions.slates, 0)] & shown, shown
