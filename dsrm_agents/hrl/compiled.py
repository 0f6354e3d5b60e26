"""The draws of :mod:`dsrm_agents.hrl.draws` compiled by numba: a loop over slates and items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsrm_agents.common.bounds import MASKED
from kuaisim_gym.engine.jit import jit


@jit
def _sum(values: NDArray[Any], start: int, end: int) -> float:
    total = 0.0
    for place in range(start, end):
        total += values[place]
    return total


@jit
def _first_beyond(values: NDArray[Any], start: int, end: int, share: float) -> int:
    """The place in [start, end) where the running sum first exceeds a share of the whole."""
    total = _sum(values, start, end)
    level = min(share * total, np.nextafter(total, 0.0))
    total = 0.0
    for place in range(start, end):
        total += values[place]
        if total > level:
            return place
    return -1  # all are 0


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
    mass, log_mass, share = np.empty(n_groups), np.empty(n_groups), np.empty(n_groups)
    drawn = np.empty(n_groups, np.int64)
    for row in range(len(scores)):
        drawn[:] = 0
        for group in range(n_groups):
            mass[group] = _sum(blocks[row], groups[group], groups[group + 1])
        for number in range(size):
            unreserved = size
            for group in range(n_groups):
                unreserved -= max(drawn[group], least[row, group])
            ahead = -math.inf
            for group in range(n_groups):
                closed = drawn[group] >= most[row, group] or (
                    drawn[group] >= least[row, group] and unreserved <= 0
                )
                is_open = not closed and mass[group] > 0.0
                log_mass[group] = top[row, group] + math.log(mass[group]) if is_open else -math.inf
                ahead = max(ahead, log_mass[group])
            if ahead == -math.inf:
                return False
            for group in range(n_groups):
                share[group] = math.exp(log_mass[group] - ahead)
            group = _first_beyond(share, 0, n_groups, uniform[row, number, 0])
            first, last = groups[group], groups[group + 1]
            block = _first_beyond(blocks[row], first, last, uniform[row, number, 1])
            start, end = edges[block], edges[block + 1]
            item = _first_beyond(weight[row], start, end, uniform[row, number, 2])
            slates[row, number] = item
            allowed = ahead + math.log(_sum(share, 0, n_groups))
            log_prob[row, number] = log_mass[group] - allowed
            log_prob[row, size + number] = scores[row, item] - log_mass[group]
            drawn[group] += 1
            scores[row, item], weight[row, item] = MASKED, 0.0
            blocks[row, block] = _sum(weight[row], start, end)
            mass[group] = _sum(blocks[row], first, last)
            if mass[group] < faint:
                best = MASKED
                for place in range(edges[first], edges[last]):
                    best = max(best, scores[row, place])
                top[row, group] = max(best, MASKED / 2)
                for place in range(edges[first], edges[last]):
                    weight[row, place] = math.exp(scores[row, place] - top[row, group])
                for block in range(first, last):
                    blocks[row, block] = _sum(weight[row], edges[block], edges[block + 1])
                mass[group] = _sum(blocks[row], first, last)
    return True
