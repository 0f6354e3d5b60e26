"""The draws of :mod:`dsrm_agents.hrl.draws` compiled by numba: a loop over slates and items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.common.bounds import MASKED
from kuaisim_gym.engine.jit import inlined, jit


@inlined
def _add_up(values: NDArray[Any], start: int, end: int, sums: NDArray[np.float64]) -> None:
    """Renews the running sums of a range, from start on; ``sums[start - 1]`` counts if it is one.

    ``sums[i]`` is then the sum up to ``values[i]``. Terms are added one by one, so that a range
    that changes in one place keeps the sums before it and gets those that it would have anew.
    """
    total = sums[start - 1] if start else 0.0
    for place in range(start, end):
        total += values[place]
        sums[place] = total


@inlined
def _first_beyond(sums: NDArray[np.float64], end: int, share: float) -> int:
    """The first place at which running sums exceed a share of the last one; not where that is 0."""
    level = min(share * sums[end - 1], np.nextafter(sums[end - 1], 0.0))
    place = 0
    while place < end - 1 and sums[place] <= level:
        place += 1
    return place


@jit
def _rescale(
    row: int,
    group: int,
    scores: NDArray[Any],
    weight: NDArray[Any],
    top: NDArray[np.float64],
    blocks: NDArray[np.float64],
    edges: NDArray[np.int64],
    groups: NDArray[np.int64],
    of_items: NDArray[np.float64],
) -> None:
    """Gives the best item left of a group the weight 1; leaves 0 to all if none is left."""
    first, last = groups[group], groups[group + 1]
    best = MASKED
    for place in range(edges[first], edges[last]):
        best = max(best, scores[row, place])
    top[row, group] = max(best, MASKED / 2)
    for place in range(edges[first], edges[last]):
        weight[row, place] = math.exp(scores[row, place] - top[row, group])
    for block in range(first, last):
        n_items = edges[block + 1] - edges[block]
        _add_up(weight[row, edges[block] :], 0, n_items, of_items)
        blocks[row, block] = of_items[n_items - 1]


@jit
def draw(
    scores: NDArray[Any],
    weight: NDArray[Any],
    top: NDArray[np.float64],
    blocks: NDArray[np.float64],
    edges: NDArray[np.int64],
    groups: NDArray[np.int64],
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    uniform: NDArray[np.float64],
    faint: float,
    slates: NDArray[np.int64],
    log_prob: NDArray[Any],
) -> bool:
    """Fills slates and log-probabilities, slate by slate.

    Arguments and result are those of :func:`dsrm_agents.hrl.draws.draw_rows`.
    """
    n_groups, size = top.shape[1], slates.shape[1]
    whole, log_mass, share = np.empty(n_groups), np.empty(n_groups), np.empty(n_groups)
    drawn = np.empty(n_groups, np.int64)
    # Running sums: of the groups' shares, of blocks within their group, of items within one block.
    of_groups, of_blocks = np.empty(n_groups), np.empty(blocks.shape[1])
    of_items = np.empty(scores.shape[1])
    for row in range(len(scores)):
        drawn[:] = 0
        for group in range(n_groups):
            first, n_blocks = groups[group], groups[group + 1] - groups[group]
            _add_up(blocks[row, first:], 0, n_blocks, of_blocks[first:])
            mass = of_blocks[first + n_blocks - 1] if n_blocks else 0.0
            whole[group] = top[row, group] + math.log(mass) if mass > 0.0 else -math.inf
        for number in range(size):
            unreserved = size
            for group in range(n_groups):
                unreserved -= max(drawn[group], least[row, group])
            ahead = -math.inf
            for group in range(n_groups):
                closed = drawn[group] >= most[row, group] or (
                    drawn[group] >= least[row, group] and unreserved <= 0
                )
                log_mass[group] = -math.inf if closed else whole[group]
                ahead = max(ahead, log_mass[group])
            if ahead == -math.inf:
                return False
            for group in range(n_groups):
                share[group] = math.exp(log_mass[group] - ahead)
            _add_up(share, 0, n_groups, of_groups)
            group = _first_beyond(of_groups, n_groups, uniform[row, number, 0])
            first, n_blocks = groups[group], groups[group + 1] - groups[group]
            block = _first_beyond(of_blocks[first:], n_blocks, uniform[row, number, 1])
            start, n_items = edges[first + block], edges[first + block + 1] - edges[first + block]
            _add_up(weight[row, start:], 0, n_items, of_items)
            place = _first_beyond(of_items, n_items, uniform[row, number, 2])
            item = start + place
            slates[row, number] = item
            log_prob[row, number] = log_mass[group] - (ahead + math.log(of_groups[n_groups - 1]))
            log_prob[row, size + number] = scores[row, item] - log_mass[group]
            drawn[group] += 1
            scores[row, item], weight[row, item] = MASKED, 0.0
            _add_up(weight[row, start:], place, n_items, of_items)
            blocks[row, first + block] = of_items[n_items - 1]
            _add_up(blocks[row, first:], block, n_blocks, of_blocks[first:])
            mass = of_blocks[first + n_blocks - 1]
            if mass < faint:
                _rescale(row, group, scores, weight, top, blocks, edges, groups, of_items)
                _add_up(blocks[row, first:], 0, n_blocks, of_blocks[first:])
                mass = of_blocks[first + n_blocks - 1]
            whole[group] = top[row, group] + math.log(mass) if mass > 0.0 else -math.inf
    return True
