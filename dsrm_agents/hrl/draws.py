"""Draws of slates within bounds, by inverting distribution functions.

A draw has three steps, each with a uniform number of its own: the group, by the groups' weights;
the block of items within the group, by the blocks' weights; and the item within the block. That
asks for 3 K numbers a slate, however many items there are, and for one pass over their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.common.bounds import MASKED
from kuaisim_gym.errors import ConfigError

BLOCK = 64  # items whose weights are summed
CHOICES = 3  # behind an item: its group, its block, itself
# Weight of a group, beside the 1 of its best item when it was last scaled, below which it is scaled
# again: float32 would soon tell its items apart no more.
FAINT = 1e-18


def draw_slates(
    scores: NDArray[np.floating],
    weight: NDArray[np.floating],
    top: NDArray[np.floating],
    starts: Sequence[int],
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    uniform: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Draws Plackett-Luce slates within bounds on each group's items.

    Args:
        scores: (N, n_items), ``MASKED`` where an item may not be shown; overwritten.
        weight: (N, n_items) ``exp(score - top)`` of the item's group; overwritten.
        top: (N, G) the groups' best scores.
        starts: The first column of each group, from 0 on.
        least: (N, G) items of each group, at least.
        most: (N, G) items of each group, at most.
        uniform: (N, K, 3) numbers in [0, 1).

    Returns:
        (N, K) columns in order of choice; and (N, 2K) the log-probabilities, in nats, of the K
        groups and of the K items given their groups.

    Raises:
        ConfigError: The items that may be shown do not fill a slate.
    """
    ends = (*starts[1:], scores.shape[1])
    firsts = [np.arange(start, end, BLOCK) for start, end in zip(starts, ends, strict=True)]
    edges = np.append(np.concatenate(firsts), scores.shape[1])
    groups = np.cumsum([0, *map(len, firsts)])
    blocks = np.add.reduceat(weight, edges[:-1], axis=1).astype(np.float64)
    size: int = uniform.shape[1]
    slates = np.empty((len(scores), size), np.int64)
    log_prob = np.empty((len(scores), 2 * size), scores.dtype)
    rows = compiled_rows() or draw_rows
    if not rows(
        scores, weight, top.astype(np.float64), blocks, edges, groups, least, most, uniform, FAINT,
        slates, log_prob,
    ):  # fmt: skip
        raise ConfigError(
            f"A slate has {size} items, but a user is left with fewer that may be "
            "shown: end sessions earlier (max_len), or make slates smaller."
        )
    return slates, log_prob


@cache
def compiled_rows() -> Callable[..., bool] | None:
    """:func:`draw_rows` as numba compiles it; ``None`` where that is not installed."""
    if find_spec("numba") is None:
        return None
    from dsrm_agents.hrl.compiled import draw

    return draw


def draw_rows(
    scores: NDArray[np.floating],
    weight: NDArray[np.floating],
    top: NDArray[np.float64],
    blocks: NDArray[np.float64],
    edges: NDArray[np.int64],
    groups: NDArray[np.int64],
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    uniform: NDArray[np.float64],
    faint: float,
    slates: NDArray[np.int64],
    log_prob: NDArray[np.floating],
) -> bool:
    """Fills slates and log-probabilities, choice by choice, all slates at once.

    Args:
        scores: As for :func:`draw_slates`, as are weight, top, least, most and uniform; all but the
            last three are overwritten.
        weight: (N, n_items).
        top: (N, G).
        blocks: (N, B) sums of the blocks' weights; overwritten.
        edges: (B + 1,) columns at which blocks begin, and their end.
        groups: (G + 1,) blocks at which groups begin, and their end.
        least: (N, G).
        most: (N, G).
        uniform: (N, K, 3).
        faint: Weight of a group below which it is scaled anew.
        slates: (N, K), filled.
        log_prob: (N, 2K), filled.

    Returns:
        Whether there were items enough.
    """
    rows, size = np.arange(len(scores)), slates.shape[1]
    group_of_block = np.repeat(np.arange(len(groups) - 1), np.diff(groups))
    mass = np.stack([_total(blocks[:, a:b]) for a, b in pairwise(groups)], 1)
    drawn = np.zeros(top.shape, np.int64)
    for number in range(size):
        unreserved = size - np.maximum(drawn, least).sum(axis=1, keepdims=True)
        closed = (drawn >= most) | ((drawn >= least) & (unreserved <= 0)) | (mass <= 0.0)
        with np.errstate(divide="ignore"):
            log_mass = np.where(closed, -np.inf, top + np.log(mass))
        ahead = log_mass.max(axis=1)
        if np.isneginf(ahead).any():
            return False
        share = np.exp(log_mass - ahead[:, None])
        group = _first_beyond(share, uniform[:, number, 0])
        within = np.where(group_of_block == group[:, None], blocks, 0.0)
        block = _first_beyond(within, uniform[:, number, 1])
        columns = edges[block][:, None] + np.arange(BLOCK)
        inside = columns < edges[block + 1][:, None]
        columns = np.where(inside, columns, 0)
        of_block = np.where(inside, weight[rows[:, None], columns], 0.0).astype(np.float64)
        place = _first_beyond(of_block, uniform[:, number, 2])
        item = edges[block] + place
        slates[:, number] = item
        own = log_mass[rows, group]
        log_prob[:, number] = own - (ahead + np.log(_total(share)))
        log_prob[:, size + number] = scores[rows, item] - own
        drawn[rows, group] += 1
        scores[rows, item], weight[rows, item], of_block[rows, place] = MASKED, 0.0, 0.0
        blocks[rows, block] = _total(of_block)
        mass[rows, group] = _total(np.where(group_of_block == group[:, None], blocks, 0.0))
        for row in np.flatnonzero(mass[rows, group] < faint):
            _rescale(row, group[row], scores, weight, top, blocks, edges, groups)
            first, last = groups[group[row]], groups[group[row] + 1]
            mass[row, group[row]] = _total(blocks[row, None, first:last])[0]
    return True


def _total(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sums of the rows, term by term, as the compiled code adds."""
    if not values.shape[1]:
        return np.zeros(len(values))
    return np.asarray(np.cumsum(values, axis=1, dtype=np.float64)[:, -1])


def _first_beyond(values: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of each row, the place where the running sum first exceeds a share of the whole.

    A value of 0 is never that place: the sum does not grow there, and a share of 0 is exceeded by
    the first value above 0 alone.
    """
    sums = np.cumsum(values, axis=1)
    level = np.minimum(share * sums[:, -1], np.nextafter(sums[:, -1], 0.0))
    return np.asarray((sums > level[:, None]).argmax(axis=1))


def _rescale(
    row: Any,
    group: Any,
    scores: NDArray[np.floating],
    weight: NDArray[np.floating],
    top: NDArray[np.float64],
    blocks: NDArray[np.float64],
    edges: NDArray[np.int64],
    groups: NDArray[np.int64],
) -> None:
    """Gives the best item left of a group the weight 1; leaves 0 to all if none is left."""
    first, last = groups[group], groups[group + 1]
    columns = slice(edges[first], edges[last])
    left = scores[row, columns].astype(np.float64)
    top[row, group] = max(left.max(), MASKED / 2)
    weight[row, columns] = np.exp(left - top[row, group])
    for block in range(first, last):
        part = weight[row, None, edges[block] : edges[block + 1]]
        blocks[row, block] = _total(part)[0]
