"""Metrics by their names in result files, one dictionary for each task."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics.exposure import (
    absolute_difference,
    check_flags,
    coverage,
    exposure_counts,
    gini,
    longtail_share,
    popular_flags,
    slate_absolute_difference,
)
from kuaisim_gym.metrics.lists import (
    average_list_reward,
    intra_list_diversity,
    max_list_reward,
    retention,
    return_time,
    reward_mrr,
    reward_ndcg,
)
from kuaisim_gym.metrics.sessions import (
    PopularGroup,
    Sessions,
    penalty_rate,
    reward_per_session,
    reward_per_step,
    session_length,
)


def each_session(sessions: Sessions, popular: PopularGroup) -> dict[str, NDArray[Any]]:
    """Len, R_each, R_cum, q and popular share of each session: (S,) arrays by name."""
    flags, _ = popular_flags(sessions, popular)
    return session_metrics(
        sessions.length,
        sessions.rewards.cumsum(axis=1)[:, -1],
        sessions.penalised.sum(axis=1),
        flags.sum(axis=(1, 2)),
        sessions.slates.shape[2],
    )


def session_metrics(
    length: NDArray[np.int64],
    total: NDArray[np.float64],
    n_penalised: NDArray[np.integer],
    n_popular: NDArray[np.integer],
    slate_size: int,
) -> dict[str, NDArray[Any]]:
    """Metrics of :func:`each_session` from sums over its steps.

    Args:
        length: (S,) steps; without any, ratios are 0.
        total: (S,) sums of rewards.
        n_penalised: (S,) penalised steps.
        n_popular: (S,) exposures of popular items.
        slate_size: K.
    """
    steps = np.maximum(length, 1)
    return {
        "len": length,
        "r_each": total / steps,
        "r_cum": total,
        "q": n_penalised / steps,
        "popular_share": n_popular / (steps * slate_size),
    }


def summarise(sessions: Sessions, popular: PopularGroup) -> dict[str, float]:
    """Metrics of the whole-session task, by their names in result files.

    Args:
        sessions: Finished sessions.
        popular: (n_items,) bool, the popular group; or the catalogue or the dataset of the
            sessions.

    Raises:
        DataFormatError: ``popular`` is not of this form.
    """
    flags = check_flags(sessions, popular)
    counts = exposure_counts(sessions, len(flags))
    return {
        "len": session_length(sessions),
        "r_each": reward_per_step(sessions),
        "r_cum": reward_per_session(sessions),
        "q": penalty_rate(sessions),
        "ad": absolute_difference(sessions, flags),
        "slate_ad": slate_absolute_difference(sessions, flags),
        "longtail_share": longtail_share(sessions, flags),
        "gini": float(gini(counts)),
        "coverage": coverage(counts),
    }


def summarise_requests(
    sessions: Sessions, popular: PopularGroup, vectors: NDArray[np.floating]
) -> dict[str, float]:
    """Metrics of the request-level task, by their names in result files.

    Args:
        sessions: Finished sessions.
        popular: (n_items,) bool, the popular group; or the catalogue or the dataset of the
            sessions.
        vectors: (n_items, d) floats, in which ILD measures.

    Raises:
        DataFormatError: ``popular`` or ``vectors`` is not of this form.
    """
    flags = check_flags(sessions, popular)
    if vectors.ndim != 2 or len(vectors) != len(flags) or not np.isfinite(vectors).all():
        raise DataFormatError(
            f"vectors must be ({len(flags)}, d) finite numbers, one row for each item, got "
            f"{vectors.dtype} of shape {vectors.shape}."
        )
    return {
        "list_reward": average_list_reward(sessions),
        "list_reward_max": max_list_reward(sessions),
        "r_ndcg": reward_ndcg(sessions),
        "r_mrr": reward_mrr(sessions),
        "coverage": coverage(exposure_counts(sessions, len(flags))),
        "ild": intra_list_diversity(sessions, vectors),
        "slate_ad": slate_absolute_difference(sessions, flags),
        "longtail_share": longtail_share(sessions, flags),
    }


def summarise_retention(sessions: Sessions) -> dict[str, float]:
    """Metrics of the cross-session task, by their names in result files."""
    return {
        "return_time": return_time(sessions),
        "retention": retention(sessions),
        "r_each": reward_per_step(sessions),
    }
