"""The arithmetic of sessions compiled by numba: a loop over sessions instead of array passes.

Each function does what its namesake in :mod:`kuaisim_gym.engine.reference` does, which is where
arguments and results are documented. Named tuples are taken apart before the compiled call, which
costs less than passing them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.types import (
    IMBALANCE,
    POPULARITY,
    BoolArray,
    FloatArray,
    Rules,
    SessionState,
    StepResult,
)
from kuaisim_gym.randomness import RESPONSE_STREAM

__all__ = [
    "advance",
    "begin",
    "factor_scores",
    "first_fault",
    "follow",
    "inner_products",
    "state_vectors",
    "top_items",
    "uniform",
]

_F = TypeVar("_F", bound=Callable[..., Any])
_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_STRETCH = 512  # items of 2 kB
_BLOCK = 32  # columns that are passed over if none is among the best so far
_ZERO, _ONE, _TINY = np.float32(0.0), np.float32(1.0), np.finfo(np.float32).tiny


def _jit(function: _F) -> _F:
    # NumPy's division: a check for zero in each would keep loops from being vectorised.
    compiled: Any = numba.njit(cache=True, error_model="numpy")(function)
    return compiled  # type: ignore[no-any-return]  # called as the function is


@_jit
def _fill_uniform(
    seed: np.uint64, episode: np.uint64, step: np.uint64, stream: np.uint64, out: NDArray[Any]
) -> None:
    """Philox4x32-10 of :mod:`kuaisim_gym.randomness`, for one session."""
    for block in range((out.size + 3) // 4):
        c0, c1, c2, c3 = np.uint64(block), step, episode, stream
        k0, k1 = seed & _LOW32, seed >> _SHIFT
        for _ in range(10):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = (
                (p1 >> _SHIFT) ^ c1 ^ k0,
                p1 & _LOW32,
                (p0 >> _SHIFT) ^ c3 ^ k1,
                p0 & _LOW32,
            )
            k0, k1 = (k0 + _W0) & _LOW32, (k1 + _W1) & _LOW32
        start = 4 * block
        for place, word in enumerate((c0, c1, c2, c3)):
            if start + place < out.size:
                out[start + place] = (np.float64(word) + 0.5) * 2.0**-32


@_jit
def uniform(
    seed: NDArray[np.uint64],
    episode: NDArray[np.int64],
    step: NDArray[np.int64],
    draws: int,
    stream: int,
) -> NDArray[np.float64]:
    """See :func:`kuaisim_gym.randomness.uniform`."""
    out = np.empty((seed.size, draws))
    for n in range(seed.size):
        _fill_uniform(seed[n], np.uint64(episode[n]), np.uint64(step[n]), np.uint64(stream), out[n])
    return out


@_jit
def first_fault(
    active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
) -> tuple[int, int]:
    """See :func:`kuaisim_gym.engine.reference.first_fault`."""
    for n in range(slots.size):
        if slots[n] and not active[n]:
            return n, -1
    for n in range(slots.size):
        if slots[n]:
            for k in range(slates.shape[1]):
                if slates[n, k] < 0 or slates[n, k] >= n_items:
                    return n, k
    return -1, -1


def begin(
    state: SessionState, rows: NDArray[np.int64], users: NDArray[np.int32], max_len: int
) -> None:
    """See :func:`kuaisim_gym.engine.reference.begin`."""
    _begin(*state, rows, users, max_len)


@_jit
def _begin(
    seeds: NDArray[Any],
    episodes: NDArray[Any],
    users: NDArray[Any],
    active: NDArray[Any],
    steps: NDArray[Any],
    temper: NDArray[Any],
    share: NDArray[Any],
    last_reward: NDArray[Any],
    reward_sum: NDArray[Any],
    recent: NDArray[Any],
    exposed: NDArray[Any],
    slates: NDArray[Any],
    responses: NDArray[Any],
    rewards: NDArray[Any],
    penalised: NDArray[Any],
    tempers: NDArray[Any],
    shares: NDArray[Any],
    rows: NDArray[Any],
    arriving: NDArray[Any],
    max_len: int,
) -> None:
    for place in range(rows.size):
        n = rows[place]
        users[n] = arriving[place]
        active[n] = True
        steps[n] = 0
        temper[n] = max_len
        share[n] = 0.5
        last_reward[n] = 0.0
        reward_sum[n] = 0.0
        recent[n] = False
        exposed[n] = False
        slates[n] = -1
        responses[n] = 0.0
        rewards[n] = 0.0
        penalised[n] = False


@_jit
def factor_scores(
    users: NDArray[np.int32],
    slates: NDArray[np.int64],
    mean: FloatArray,
    slope: FloatArray,
    user_effect: FloatArray,
    item_effect: FloatArray,
    user_factors: FloatArray,
    item_factors: FloatArray,
) -> FloatArray:
    """See :func:`kuaisim_gym.engine.reference.factor_scores`."""
    n_behaviours = mean.size
    scores = np.empty((slates.shape[0], slates.shape[1], n_behaviours), np.float32)
    for n in range(slates.shape[0]):
        user = users[n]
        for k in range(slates.shape[1]):
            item = slates[n, k]
            product = _ZERO
            for factor in range(user_factors.shape[1]):
                product += user_factors[user, factor] * item_factors[item, factor]
            for b in range(n_behaviours):
                level = user_effect[b, user] + mean[b]
                scores[n, k, b] = (level + item_effect[b, item]) + slope[b] * product
    return scores


def advance(
    rules: Rules,
    state: SessionState,
    slates: NDArray[np.int64],
    probability: FloatArray,
    slots: BoolArray,
) -> StepResult:
    """See :func:`kuaisim_gym.engine.reference.advance`."""
    return StepResult(*_advance(*rules, *state, slates, probability, slots))


@_jit
def _advance(
    popular: NDArray[Any],
    weights: NDArray[Any],
    stochastic: bool,
    allow_repeats: bool,
    per_request: bool,
    abandonment: int,
    surplus_bound: float,
    step_limit: int,
    least_temper: float,
    seeds: NDArray[Any],
    episodes: NDArray[Any],
    users: NDArray[Any],
    active: NDArray[Any],
    steps: NDArray[Any],
    temper: NDArray[Any],
    share: NDArray[Any],
    last_reward: NDArray[Any],
    reward_sum: NDArray[Any],
    recent: NDArray[Any],
    exposed: NDArray[Any],
    slates_record: NDArray[Any],
    responses_record: NDArray[Any],
    rewards_record: NDArray[Any],
    penalised_record: NDArray[Any],
    tempers_record: NDArray[Any],
    shares_record: NDArray[Any],
    slates: NDArray[Any],
    probability: NDArray[Any],
    slots: NDArray[Any],
) -> tuple[Any, ...]:
    n_sessions, slate_size, n_behaviours = probability.shape
    window = recent.shape[1]
    responses = np.zeros((n_sessions, slate_size), np.float32)
    feedback = np.zeros(probability.shape, np.float32)
    reward = np.zeros(n_sessions)
    penalised = np.zeros(n_sessions, np.bool_)
    terminated = np.zeros(n_sessions, np.bool_)
    truncated = np.zeros(n_sessions, np.bool_)
    draws = np.empty(n_behaviours * slate_size)
    for n in range(n_sessions):
        if not slots[n]:
            continue
        now = steps[n]
        if stochastic:
            _fill_uniform(
                seeds[n],
                np.uint64(episodes[n]),
                np.uint64(now),
                np.uint64(RESPONSE_STREAM),
                draws,
            )
        total = 0.0
        for k in range(slate_size):
            item = slates[n, k]
            # An item is marked as it is met, so that a second place in the slate finds it shown.
            if allow_repeats or not exposed[n, item]:
                response = _ZERO
                for b in range(n_behaviours):
                    answer = probability[n, k, b]
                    if stochastic:
                        answer = _ONE if draws[b * slate_size + k] < answer else _ZERO
                    feedback[n, k, b] = answer
                    response += answer * weights[b]
                responses[n, k] = min(max(response, _ZERO), _ONE)
            exposed[n, item] = True
            slates_record[n, now, k] = item
            responses_record[n, now, k] = responses[n, k]
            total += np.float64(responses[n, k])
        reward[n] = total / slate_size

        kept = max(window - slate_size, 0)
        for place in range(kept):
            recent[n, place] = recent[n, place + slate_size]
        for place in range(kept, window):
            recent[n, place] = popular[slates[n, slate_size - window + place]]
        count = 0
        for place in range(window):
            count += recent[n, place]
        made = min((now + 1) * slate_size, window)
        surplus = 2 * count - window
        if made == window:
            if abandonment == IMBALANCE:
                penalised[n] = abs(surplus) >= surplus_bound
            elif abandonment == POPULARITY:
                penalised[n] = surplus >= surplus_bound
        cost = -1.0 if per_request else min(max(reward[n] - 2.0, -2.0), 0.0)
        temper[n] += cost - (1.0 if penalised[n] else 0.0)
        terminated[n] = temper[n] < least_temper
        truncated[n] = now + 1 >= step_limit and not terminated[n]

        share[n] = count / made
        steps[n] = now + 1
        last_reward[n] = reward[n]
        reward_sum[n] += reward[n]
        active[n] = not (terminated[n] or truncated[n])
        rewards_record[n, now] = reward[n]
        penalised_record[n, now] = penalised[n]
        tempers_record[n, now] = temper[n]
        shares_record[n, now] = share[n]
    return responses, feedback, reward, penalised, terminated, truncated


@_jit
def follow(
    total: FloatArray,
    weight: FloatArray,
    embedding: FloatArray,
    slates: NDArray[np.int64],
    responses: FloatArray,
) -> None:
    """See :func:`kuaisim_gym.engine.reference.follow`."""
    for n in range(slates.shape[0]):
        for k in range(slates.shape[1]):
            response, item = responses[n, k], slates[n, k]
            for column in range(total.shape[1]):
                total[n, column] += response * embedding[item, column]
            weight[n] += response


def state_vectors(
    total: FloatArray,
    weight: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    bound: float,
    session: SessionState,
    max_len: int,
    extra: int,
) -> FloatArray:
    """See :func:`kuaisim_gym.engine.reference.state_vectors`."""
    return _state_vectors(
        total,
        weight,
        mean,
        scale,
        np.float32(bound),
        session.steps,
        session.share,
        session.last_reward,
        session.reward_sum,
        max_len,
        extra,
    )


@_jit
def _state_vectors(
    total: FloatArray,
    weight: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    bound: np.float32,
    steps: NDArray[Any],
    share: NDArray[Any],
    last_reward: NDArray[Any],
    reward_sum: NDArray[Any],
    max_len: int,
    extra: int,
) -> NDArray[Any]:
    n_sessions, dim = total.shape
    whole = np.zeros((n_sessions, dim + 4 + extra), np.float32)
    for n in range(n_sessions):
        if weight[n] > _ZERO:
            divisor = max(weight[n], _TINY)
            for column in range(dim):
                value = (total[n, column] / divisor - mean[column]) / scale[column]
                value = bound if value > bound else value
                whole[n, column] = -bound if value < -bound else value
        whole[n, dim] = steps[n] / max_len
        whole[n, dim + 1] = share[n]
        whole[n, dim + 2] = last_reward[n]
        whole[n, dim + 3] = reward_sum[n] / max(steps[n], 1)
    return whole


@_jit
def inner_products(vectors: NDArray[Any], items: NDArray[Any]) -> NDArray[Any]:
    """See :func:`kuaisim_gym.engine.reference.inner_products`.

    Items go by in stretches that stay in the processor's first cache, and features four at a time,
    so that sums are loaded and stored a quarter as often.
    """
    n_rows, dim = vectors.shape
    n_items = items.shape[1]
    products = np.zeros((n_rows, n_items), np.float32)
    whole = dim - dim % 4
    for start in range(0, n_items, _STRETCH):
        stop = min(start + _STRETCH, n_items)
        for row in range(n_rows):
            total, weight = products[row, start:stop], vectors[row]
            for f in range(0, whole, 4):
                w0, w1, w2, w3 = weight[f], weight[f + 1], weight[f + 2], weight[f + 3]
                item0, item1 = items[f, start:stop], items[f + 1, start:stop]
                item2, item3 = items[f + 2, start:stop], items[f + 3, start:stop]
                for place in range(total.size):
                    first = (total[place] + w0 * item0[place]) + w1 * item1[place]
                    total[place] = (first + w2 * item2[place]) + w3 * item3[place]
            for f in range(whole, dim):
                w0, item0 = weight[f], items[f, start:stop]
                for place in range(total.size):
                    total[place] += w0 * item0[place]
    return products


@_jit
def top_items(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """See :func:`kuaisim_gym.engine.reference.top_items`."""
    n_rows, n_items = scores.shape
    best = np.empty((n_rows, k), np.int64)
    values = np.empty(k, np.float32)
    for row in range(n_rows):
        found = 0
        for start in range(0, n_items, _BLOCK):
            stop = min(start + _BLOCK, n_items)
            if found == k:
                largest = scores[row, start]
                for column in range(start + 1, stop):
                    value = scores[row, column]
                    largest = value if value > largest else largest
                if not largest > values[k - 1]:
                    continue
            for column in range(start, stop):
                value = scores[row, column]
                if found == k and not value > values[k - 1]:
                    continue
                # Inserted behind its equals: of ties the first column is the better one.
                found = min(found + 1, k)
                place = found - 1
                while place > 0 and values[place - 1] < value:
                    values[place] = values[place - 1]
                    best[row, place] = best[row, place - 1]
                    place -= 1
                values[place] = value
                best[row, place] = column
    return best
