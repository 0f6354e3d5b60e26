"""Rules of one session, compiled by numba: what the engine's loops and the fused step share.

Arguments are documented in :class:`~kuaisim_gym.engine.types.Engine`; a kernel takes the arrays of
all sessions and the number ``n`` of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite.binding import add_symbol  # type: ignore[import-untyped]
from numba.core.caching import FunctionCache
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

from kuaisim_gym import randomness
from kuaisim_gym.engine.types import (
    BoolArray,
    DoubleArray,
    FloatArray,
    LabelArray,
    Rules,
    Scores,
    SessionState,
    StepResult,
)
from kuaisim_gym.randomness import RESPONSE_STREAM

ZERO, ONE, TINY = np.float32(0.0), np.float32(1.0), np.finfo(np.float32).tiny
_F = TypeVar("_F", bound=Callable[..., Any])
_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
# SciPy's own function, so that log-odds become the same probabilities in any engine.
_EXPIT = "kuaisim_gym_expit_float"
add_symbol(_EXPIT, get_cython_function_address("scipy.special.cython_special", "__pyx_fuse_1expit"))
_expit: Any = numba.types.ExternalFunction(_EXPIT, numba.float32(numba.float32, numba.int32))


def _digest() -> str:
    """Hexadecimal digits of the sources that compiled code is made of."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(randomness.__file__)]
    return hashlib.blake2b(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


_SOURCES = _digest()


class _Cache(FunctionCache):
    """Compiled code of a function, which is made anew when any of the sources has changed.

    Numba looks at the function's own file alone: it would not notice a constant or a field of a
    named tuple that changed in another one.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        key: tuple[Any, ...] = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return (*key, _SOURCES)


def jit(function: _F) -> _F:
    """Compiles a function at its first call, or takes it from the cache."""
    # NumPy's division: a check for zero in each would keep loops from being vectorised.
    compiled: Any = numba.njit(error_model="numpy")(function)
    compiled._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return compiled  # type: ignore[no-any-return]  # called as the function is


def inlined(function: _F) -> _F:
    """Makes a function a part of the compiled ones that call it."""
    # Without a call, which counts references of arrays, loops over sessions are a third faster.
    compiled: Any = numba.njit(error_model="numpy", inline="always")(function)
    return compiled  # type: ignore[no-any-return]


@jit
def fill_uniform(
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
        for offset, word in enumerate((c0, c1, c2, c3)):
            if start + offset < out.size:
                out[start + offset] = (np.float64(word) + 0.5) * 2.0**-32


@inlined
def find_invalid(
    active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
) -> tuple[int, int]:
    """The first session that cannot be stepped, and the place in its slate."""
    for n in range(slots.size):
        if slots[n] and not active[n]:
            return n, -1
    for n in range(slots.size):
        if slots[n]:
            for k in range(slates.shape[1]):
                if slates[n, k] < 0 or slates[n, k] >= n_items:
                    return n, k
    return -1, -1


@inlined
def begin_session(n: int, state: SessionState, user: np.int32, max_len: int) -> None:
    """Begins a session of a user."""
    state.users[n], state.active[n], state.temper[n] = user, True, max_len
    state.steps[n], state.last_reward[n], state.reward_sum[n] = 0, 0.0, 0.0
    state.recent[n, :] = 0
    state.exposed[n, :] = False
    state.slates[n, :, :] = -1
    state.responses[n, :, :] = ZERO
    state.rewards[n, :] = 0.0
    state.penalised[n, :] = False


@inlined
def score_slate(
    user: np.int32, slate: NDArray[np.integer], model: Scores, scores: FloatArray
) -> None:
    """Fills (K, B) scores of a factor model."""
    for k in range(slate.size):
        item = slate[k]
        product = ZERO
        for factor in range(model.user_factors.shape[1]):
            product += model.user_factors[user, factor] * model.item_factors[item, factor]
        for b in range(model.mean.size):
            level = model.user_effect[b, user] + model.mean[b]
            scores[k, b] = (level + model.item_effect[b, item]) + model.slope[b] * product


@inlined
def respond(scores: FloatArray, logistic: bool) -> None:
    """Turns (K, B) scores into probabilities, in place."""
    for k in range(scores.shape[0]):
        for b in range(scores.shape[1]):
            if logistic:
                scores[k, b] = _expit(scores[k, b], numba.int32(0))
            else:
                scores[k, b] = min(max(scores[k, b], ZERO), ONE)


@inlined
def _answer(
    slate: NDArray[np.int64],
    chances: FloatArray,
    draws: DoubleArray,
    rules: Rules,
    exposed: BoolArray,
    feedback: FloatArray,
    answered: BoolArray,
    responses: FloatArray,
    slate_record: NDArray[np.int32],
    response_record: FloatArray,
) -> float:
    """Answers one slate: marks its items, fills feedback and responses, returns their sum."""
    total = 0.0
    for k in range(slate.size):
        item = slate[k]
        # An item is marked as it is met, so that its second position in the slate is a repeat.
        if rules.allow_repeats or not exposed[item]:
            response = ZERO
            for b in range(rules.weights.size):
                answer = chances[k, b]
                if rules.stochastic:
                    answer = ONE if draws[b * slate.size + k] < answer else ZERO
                feedback[k, b] = answer
                response += answer * rules.weights[b]
            responses[k] = min(max(response, ZERO), ONE)
            answered[k] = True
        exposed[item] = True
        slate_record[k] = item
        response_record[k] = responses[k]
        total += np.float64(responses[k])
    return total


@inlined
def _expose(recent: LabelArray, slate: NDArray[np.int64], labels: LabelArray) -> None:
    """Moves an exposure window past a slate."""
    older = max(recent.size - slate.size, 0)
    for position in range(older):
        recent[position] = recent[position + slate.size]
    for position in range(older, recent.size):
        recent[position] = labels[slate[slate.size - recent.size + position]]


@inlined
def _excess(recent: LabelArray, filled: int, target: DoubleArray, counts: Any) -> tuple[float, int]:
    """Exposures above what is due to their groups, and those of group 1.

    The latter are counted of two groups alone. Counts are zero before and after.
    """
    total, second = 0.0, 0
    if target.size == 2:  # one count says all
        for position in range(recent.size - filled, recent.size):
            second += recent[position]
        total += max(second - target[1] * filled, 0.0)
        total += max((filled - second) - target[0] * filled, 0.0)
        return total, second
    for position in range(recent.size - filled, recent.size):
        counts[recent[position]] += 1
    for position in range(recent.size - filled, recent.size):
        group = recent[position]
        if counts[group] > 0:
            total += max(counts[group] - target[group] * filled, 0.0)
            counts[group] = 0
    return total, second


@inlined
def advance_session(
    n: int,
    rules: Rules,
    state: SessionState,
    chances: FloatArray,
    draws: DoubleArray,
    counts: Any,
    result: StepResult,
) -> None:
    """Makes a step of an active session with (K, B) chances; draws and counts are scratch."""
    slates, window = result.slates, state.recent.shape[1]
    slate_size, step = slates.shape[1], state.steps[n]
    if rules.stochastic:
        stream, episode = np.uint64(RESPONSE_STREAM), np.uint64(state.episodes[n])
        fill_uniform(state.seeds[n], episode, np.uint64(step), stream, draws)
    total = _answer(
        slates[n],
        chances,
        draws,
        rules,
        state.exposed[n],
        result.feedback[n],
        result.answered[n],
        result.responses[n],
        state.slates[n, step],
        state.responses[n, step],
    )
    reward = total / slate_size
    filled = min((step + 1) * slate_size, window)
    _expose(state.recent[n], slates[n], rules.labels)
    excess, second = _excess(state.recent[n], filled, rules.target, counts)
    surplus = 2.0 * excess
    if rules.one_sided:
        surplus = 2.0 * (second - rules.target[1] * filled)
    penalised = filled == window and surplus >= rules.limit
    cost = -1.0 if rules.per_request else min(max(reward - 2.0, -2.0), 0.0)
    state.temper[n] += cost - (1.0 if penalised else 0.0)
    terminated = state.temper[n] < rules.least_temper
    truncated = step + 1 >= rules.step_limit and not terminated

    state.share[n] = (second if counts.size == 2 else excess) / filled
    state.steps[n] = step + 1
    state.last_reward[n] = reward
    state.reward_sum[n] += reward
    state.active[n] = not (terminated or truncated)
    state.rewards[n, step] = result.reward[n] = reward
    state.penalised[n, step] = result.penalised[n] = penalised
    state.tempers[n, step] = state.temper[n]
    state.shares[n, step] = state.share[n]
    result.terminated[n], result.truncated[n] = terminated, truncated


@inlined
def add_items(
    n: int,
    total: FloatArray,
    weight: FloatArray,
    embedding: FloatArray,
    slates: NDArray[np.int64],
    responses: NDArray[Any],
) -> None:
    """Adds one step's items to a pooled history; weights may be bools."""
    for k in range(slates.shape[1]):
        response, item = np.float32(responses[n, k]), slates[n, k]
        for column in range(total.shape[1]):
            total[n, column] += response * embedding[item, column]
        weight[n] += response


@inlined
def condition_belief(
    n: int,
    mean: DoubleArray,
    covariance: DoubleArray,
    design: DoubleArray,
    quality: DoubleArray,
    variance: DoubleArray,
    link: DoubleArray,
    bound: float,
    slates: NDArray[np.int64],
    answers: FloatArray,
    answered: BoolArray,
    cross: DoubleArray,
) -> None:
    """Conditions a belief on the first of (N, K, B) answers; (d,) ``cross`` is scratch."""
    d, per_unit, last = mean.shape[1], (len(link) - 1) / (2.0 * bound), len(link) - 2
    # No views of rows, whose references would be counted: that costs more than the arithmetic.
    for k in range(slates.shape[1]):
        if not answered[n, k]:
            continue
        item = slates[n, k]
        score, spread = quality[item], variance[item]
        for row in range(d):  # of the lower half: a column goes on as the row of its number
            weight, own = design[item, row], 0.0
            score += mean[n, row] * weight
            for column in range(row):
                entry = covariance[n, row, column]
                own += entry * design[item, column]
                cross[column] += entry * weight
            cross[row] = own + covariance[n, row, row] * weight
        for column in range(d):
            spread += cross[column] * design[item, column]
        place = min(max((score + bound) * per_unit, 0.0), last + 1.0)
        low = min(int(place), last)
        part = place - low
        expected = link[low, 0] + part * (link[low + 1, 0] - link[low, 0])
        slope = link[low, 1] + part * (link[low + 1, 1] - link[low, 1])
        per_answer = slope / (expected * (1.0 - expected))
        information = slope * per_answer
        gain = 1.0 / (1.0 + information * spread)
        shift = gain * (per_answer * (answers[n, k, 0] - expected))
        shrink = gain * information
        for row in range(d):
            own = cross[row]
            mean[n, row] += own * shift
            for column in range(row + 1):
                covariance[n, row, column] -= shrink * (own * cross[column])
    for row in range(d):
        for column in range(row):
            covariance[n, column, row] = covariance[n, row, column]


@inlined
def show_preference(
    n: int,
    vectors: FloatArray,
    first: int,
    total: FloatArray,
    weight: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    bound: np.float32,
) -> None:
    """Writes a standardised mean embedding into a state vector."""
    if weight[n] > ZERO:
        divisor = max(weight[n], TINY)
        for column in range(total.shape[1]):
            value = (total[n, column] / divisor - mean[column]) / scale[column]
            value = bound if value > bound else value
            vectors[n, first + column] = -bound if value < -bound else value
    else:
        for column in range(total.shape[1]):
            vectors[n, first + column] = ZERO


@inlined
def show_belief(
    n: int, vectors: FloatArray, mean: DoubleArray, covariance: DoubleArray, bound: float
) -> None:
    """Writes a belief's mean and variances into a state vector."""
    d = mean.shape[1]
    for column in range(d):
        vectors[n, column] = min(max(mean[n, column], -bound), bound)
        vectors[n, d + column] = min(covariance[n, column, column], bound)


@inlined
def show_context(
    n: int,
    vectors: FloatArray,
    column: int,
    steps: NDArray[Any],
    share: NDArray[Any],
    last_reward: NDArray[Any],
    reward_sum: NDArray[Any],
    max_len: int,
) -> None:
    """Writes the context of a session into a state vector."""
    vectors[n, column] = steps[n] / max_len
    vectors[n, column + 1] = share[n]
    vectors[n, column + 2] = last_reward[n]
    vectors[n, column + 3] = reward_sum[n] / max(steps[n], 1)
