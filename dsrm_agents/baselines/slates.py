"""Slates of policies that pick items by a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.errors import ConfigError

FloatArray = NDArray[np.float32]


def best_slates(
    batch: SessionBatch, scores: FloatArray, counts: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """The best unexposed items of every session.

    Args:
        batch: N sessions.
        scores: (N, n_items) float32.
        counts: (N, G) items of each group of the batch in a slate, which sum to K, see
            :mod:`dsrm_agents.baselines.bands`; ``None`` for the best items of any group.

    Returns:
        (N, K) item positions; with counts the last group's first: popular items before others.
        Exposed items, which get no answer, come last of their group.
    """
    k, top_items, groups = batch.config.slate_size, batch.core.engine.top_items, batch.core.groups
    scores = unexposed(batch, scores)
    if counts is None:
        return np.asarray(top_items(scores, k))
    if batch.core.pools is not None or batch.core.platform is not None:
        # Items outside a pool, or gone, cannot be shown at all.
        counts = _in_stock(counts, batch.core.unexposed(), groups.labels)

    def best(group: int, most: int) -> NDArray[np.int64]:
        items = np.flatnonzero(groups.labels == group)
        return np.asarray(items[top_items(scores[:, items], most)])

    return composed(counts, best)


def composed(
    counts: NDArray[np.int64], best: Callable[[int, int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Slates of so many items of each group, the last group's first.

    Args:
        counts: (N, G) items of each group, which sum to K.
        best: Gives the (N, k) best items of a group, from the group and k.

    Returns:
        (N, K) item positions.
    """
    ranked, is_shown = [], []
    for group in np.flatnonzero(counts.max(axis=0))[::-1]:
        most = int(counts[:, group].max())
        ranked.append(best(int(group), most))
        is_shown.append(np.arange(most) < counts[:, group, None])
    slates = np.concatenate(ranked, axis=1)[np.concatenate(is_shown, axis=1)]
    return slates.reshape(len(counts), -1)


def _in_stock(
    counts: NDArray[np.int64], available: NDArray[np.bool_], labels: NDArray[np.integer]
) -> NDArray[np.int64]:
    """(N, G) counts, filled up from other groups where a session has too few items of one left.

    Args:
        counts: (N, G) items of each group.
        available: (N, n_items) items that can be shown.
        labels: (n_items,) the items' groups.
    """
    n_groups = counts.shape[1]
    left = np.stack([available[:, labels == group].sum(axis=1) for group in range(n_groups)], 1)
    filled: NDArray[np.int64] = np.minimum(counts, left)
    missing = counts.sum(axis=1) - filled.sum(axis=1)
    for group in range(n_groups):
        added = np.minimum(left[:, group] - filled[:, group], missing)
        filled[:, group] += added
        missing -= added
    filled[:, 0] += missing  # of a session that is over
    return filled


def unexposed(batch: SessionBatch, scores: FloatArray) -> FloatArray:
    """(N, n_items) float32 scores, minus infinity where a session has shown the item."""
    return np.where(batch.core.unexposed(), scores, -np.inf).astype(np.float32)


def last_slates(
    batch: SessionBatch, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
) -> NDArray[np.int64]:
    """Slates that a step showed, including sessions that ended with it.

    Args:
        batch: N sessions.
        dones: (N,) bool, as the step returned them.
        infos: Of the step; those of finished sessions hold their ``"record"``.

    Returns:
        (N, K) item positions, in the order shown.
    """
    state = batch.core.state
    slates = state.slates[np.arange(len(dones)), state.steps - 1].astype(np.int64)
    for slot in np.flatnonzero(dones):
        record = infos[slot]["record"]
        slates[slot] = record.slates[0, record.length[0] - 1]
    return slates


def check_picks_items(batch: SessionBatch) -> None:
    """Checks that sessions show a policy its state and take items from it.

    Raises:
        ConfigError: They have other observations or actions.
    """
    types = (batch.encoder.observation_type, batch.action_type)
    if types != ("dict", "slate"):
        raise ConfigError(
            'The policy needs observation_type="dict" and action_type="slate", got '
            f"{types[0]!r} and {types[1]!r}."
        )
