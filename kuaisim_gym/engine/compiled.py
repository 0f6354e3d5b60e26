"""The arithmetic of sessions compiled by numba: a loop over sessions instead of array passes.

Arguments and results are documented in :class:`~kuaisim_gym.engine.types.Engine`. Named tuples are
taken apart before a compiled call and put together in it, which costs less than passing them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.bits import BitArray
from kuaisim_gym.engine.jit import inlined, jit
from kuaisim_gym.engine.ranking import best_items, inner_products, top_items
from kuaisim_gym.engine.reference import NumpyEngine
from kuaisim_gym.engine.types import (
    BoolArray,
    CountArray,
    DoubleArray,
    Exposures,
    FloatArray,
    LabelArray,
    Rules,
    SessionState,
    StepResult,
    no_outcome,
)
from kuaisim_gym.randomness import RESPONSE_STREAM

_LOW32 = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_N_RULES = len(Rules._fields)
_LANES = 64  # sessions whose beliefs stay in the processor's first cache
ZERO, ONE, _TINY = np.float32(0.0), np.float32(1.0), np.finfo(np.float32).tiny
_NOTHING = np.zeros((0, 0), dtype=np.uint8)


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


@jit
def _uniform(
    seed: NDArray[np.uint64],
    episode: NDArray[np.int64],
    step: NDArray[np.int64],
    draws: int,
    stream: int,
) -> NDArray[np.float64]:
    out = np.empty((seed.size, draws))
    for n in range(seed.size):
        fill_uniform(seed[n], np.uint64(episode[n]), np.uint64(step[n]), np.uint64(stream), out[n])
    return out


@jit
def first_invalid(
    active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
) -> tuple[int, int]:
    """Finds the first session that cannot be stepped."""
    for n in range(slots.size):
        if slots[n] and not active[n]:
            return n, -1
    for n in range(slots.size):
        if slots[n]:
            for k in range(slates.shape[1]):
                if slates[n, k] < 0 or slates[n, k] >= n_items:
                    return n, k
    return -1, -1


@jit
def factor_scores(
    users: NDArray[np.int32],
    slates: NDArray[np.integer],
    mean: FloatArray,
    slope: FloatArray,
    user_effect: FloatArray,
    item_effect: FloatArray,
    user_factors: FloatArray,
    item_factors: FloatArray,
) -> FloatArray:
    """Scores a factor model's behaviours."""
    n_behaviours = mean.size
    scores = np.empty((slates.shape[0], slates.shape[1], n_behaviours), np.float32)
    for n in range(slates.shape[0]):
        user = users[n]
        for k in range(slates.shape[1]):
            item = slates[n, k]
            product = ZERO
            for factor in range(user_factors.shape[1]):
                product += user_factors[user, factor] * item_factors[item, factor]
            for b in range(n_behaviours):
                level = user_effect[b, user] + mean[b]
                scores[n, k, b] = (level + item_effect[b, item]) + slope[b] * product
    return scores


@inlined
def _answer(
    slate: NDArray[np.int64],
    chances: FloatArray,
    draws: DoubleArray,
    weights: FloatArray,
    stochastic: bool,
    allow_repeats: bool,
    exposed: BitArray,
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
        byte, bit = item >> 3, np.uint8(1 << (item & 7))
        # An item is marked as it is met, so that its second position in the slate is a repeat.
        if allow_repeats or not exposed[byte] & bit:
            response = ZERO
            for b in range(weights.size):
                answer = chances[k, b]
                if stochastic:
                    answer = ONE if draws[b * slate.size + k] < answer else ZERO
                feedback[k, b] = answer
                response += answer * weights[b]
            responses[k] = min(max(response, ZERO), ONE)
            answered[k] = True
        exposed[byte] |= bit
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
def fill_row(array: NDArray[Any], n: int, value: Any) -> None:
    """Fills a row of a matrix: in a loop, which costs less than to take the row out."""
    for column in range(array.shape[1]):
        array[n, column] = value


@inlined
def _forget(exposed: BitArray, slates: NDArray[np.int32], n: int, items: int) -> None:
    """Clears the bits of the items that a session has shown, or its row where that is shorter."""
    if items < exposed.shape[1]:
        for index in range(items):
            exposed[n, slates[n, index] >> 3] = 0
    else:
        fill_row(exposed, n, 0)


@jit
def begin(
    rows: NDArray[np.int64], users: NDArray[np.int32], max_len: int, state: SessionState
) -> None:
    """Begins new sessions in some slots."""
    n_sessions = state.seeds.size
    recent, exposed, rewards, penalised = (
        state.recent,
        state.exposed,
        state.rewards,
        state.penalised,
    )
    slate_size = state.slates.shape[2]
    slates = state.slates.reshape(n_sessions, -1)
    responses = state.responses.reshape(n_sessions, -1)
    for index in range(rows.size):
        n = rows[index]
        # Records are blank behind the steps that were made.
        steps = state.steps[n]
        shown = steps * slate_size
        _forget(exposed, slates, n, shown)
        for column in range(shown):
            slates[n, column], responses[n, column] = -1, ZERO
        for column in range(steps):
            rewards[n, column], penalised[n, column] = 0.0, False
        fill_row(recent, n, 0)
        state.users[n], state.active[n], state.temper[n] = users[index], True, max_len
        state.steps[n], state.last_reward[n], state.reward_sum[n] = 0, 0.0, 0.0
        state.penalties[n], state.popular[n] = 0, 0


@jit
def advance(
    slates: NDArray[np.int64],
    probability: FloatArray,
    slots: BoolArray,
    responses: FloatArray,
    feedback: FloatArray,
    answered: BoolArray,
    reward: DoubleArray,
    penalised: BoolArray,
    terminated: BoolArray,
    truncated: BoolArray,
    rules: Rules,
    state: SessionState,
) -> None:
    """Fills zeros with the outcome of a step."""
    n_sessions, slate_size, n_behaviours = probability.shape
    window = state.recent.shape[1]
    draws = np.empty(n_behaviours * slate_size)
    counts = np.zeros(rules.target.size, np.int64)
    for n in range(n_sessions):
        if not slots[n]:
            continue
        step, episode = state.steps[n], np.uint64(state.episodes[n])
        if rules.stochastic:
            stream = np.uint64(RESPONSE_STREAM)
            fill_uniform(state.seeds[n], episode, np.uint64(step), stream, draws)
        total = _answer(
            slates[n],
            probability[n],
            draws,
            rules.weights,
            rules.stochastic,
            rules.allow_repeats,
            state.exposed[n],
            feedback[n],
            answered[n],
            responses[n],
            state.slates[n, step],
            state.responses[n, step],
        )
        reward[n] = total / slate_size
        filled = min((step + 1) * slate_size, window)
        _expose(state.recent[n], slates[n], rules.labels)
        excess, second = _excess(state.recent[n], filled, rules.target, counts)
        surplus = 2.0 * excess
        if rules.one_sided:
            surplus = 2.0 * (second - rules.target[1] * filled)
        penalised[n] = filled == window and surplus >= rules.limit
        cost = -1.0 if rules.per_request else min(max(reward[n] - 2.0, -2.0), 0.0)
        state.temper[n] += cost - (1.0 if penalised[n] else 0.0)
        terminated[n] = state.temper[n] < rules.least_temper
        truncated[n] = step + 1 >= rules.step_limit and not terminated[n]

        state.share[n] = (second if counts.size == 2 else excess) / filled
        state.steps[n] = step + 1
        state.last_reward[n] = reward[n]
        state.reward_sum[n] += reward[n]
        state.penalties[n] += penalised[n]
        for k in range(slate_size):
            state.popular[n] += rules.popular[slates[n, k]]
        state.active[n] = not (terminated[n] or truncated[n])
        state.rewards[n, step] = reward[n]
        state.penalised[n, step] = penalised[n]
        state.tempers[n, step] = state.temper[n]
        state.shares[n, step] = state.share[n]


@jit
def _begin(rows: NDArray[np.int64], users: NDArray[np.int32], max_len: int, *fields: Any) -> None:
    begin(rows, users, max_len, SessionState(*fields))


@jit
def _advance(
    slates: NDArray[np.int64],
    probability: FloatArray,
    slots: BoolArray,
    responses: FloatArray,
    feedback: FloatArray,
    answered: BoolArray,
    reward: DoubleArray,
    penalised: BoolArray,
    terminated: BoolArray,
    truncated: BoolArray,
    *fields: Any,
) -> None:
    advance(
        slates,
        probability,
        slots,
        responses,
        feedback,
        answered,
        reward,
        penalised,
        terminated,
        truncated,
        Rules(*fields[:_N_RULES]),
        SessionState(*fields[_N_RULES:]),
    )


@jit
def update(
    total: FloatArray,
    weight: FloatArray,
    embedding: FloatArray,
    slates: NDArray[np.int64],
    responses: FloatArray,
) -> None:
    """Adds one step's items to pooled histories."""
    for n in range(slates.shape[0]):
        for k in range(slates.shape[1]):
            response, item = responses[n, k], slates[n, k]
            for column in range(total.shape[1]):
                total[n, column] += response * embedding[item, column]
            weight[n] += response


@inlined
def _products(half: DoubleArray, vectors: DoubleArray, products: DoubleArray, size: int) -> None:
    """Products of symmetric matrices, of whose entries the lower half is read, with vectors."""
    for row in range(vectors.shape[0]):
        for lane in range(size):
            products[row, lane] = 0.0
        for column in range(row):
            for lane in range(size):
                products[row, lane] += half[row, column, lane] * vectors[column, lane]
            for lane in range(size):
                products[column, lane] += half[row, column, lane] * vectors[row, lane]
        for lane in range(size):
            products[row, lane] += half[row, row, lane] * vectors[row, lane]


@inlined
def _add_products(left: DoubleArray, right: DoubleArray, sums: DoubleArray, size: int) -> None:
    """Adds inner products of columns."""
    for row in range(left.shape[0]):
        for lane in range(size):
            sums[lane] += left[row, lane] * right[row, lane]


@inlined
def _interpolated(link: DoubleArray, bound: float, score: float) -> tuple[float, float]:
    """The link and its slope at a score."""
    last = len(link) - 2
    position = min(max((score + bound) * ((len(link) - 1) / (2.0 * bound)), 0.0), last + 1.0)
    low = min(int(position), last)
    fraction = position - low
    expected = link[low, 0] + fraction * (link[low + 1, 0] - link[low, 0])
    return expected, link[low, 1] + fraction * (link[low + 1, 1] - link[low, 1])


@jit
def condition(
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
) -> None:
    """Conditions beliefs on one step's answers."""
    (n_sessions, d), lanes = mean.shape, min(_LANES, len(mean))
    # Sessions lie side by side, so that one instruction serves several of them.
    half, means = np.empty((d, d, lanes)), np.empty((d, lanes))
    vectors, cross = np.empty((d, lanes)), np.empty((d, lanes))
    score, spread = np.empty(lanes), np.empty(lanes)
    shift, shrink = np.empty(lanes), np.empty(lanes)
    for start in range(0, n_sessions, lanes):
        size = min(lanes, n_sessions - start)
        for lane in range(size):
            for row in range(d):
                means[row, lane] = mean[start + lane, row]
                for column in range(row + 1):
                    half[row, column, lane] = covariance[start + lane, row, column]
        for k in range(slates.shape[1]):
            for lane in range(size):
                item = slates[start + lane, k]
                score[lane], spread[lane] = quality[item], variance[item]
                for row in range(d):
                    vectors[row, lane] = design[item, row]
            _add_products(means, vectors, score, size)
            _products(half, vectors, cross, size)
            _add_products(cross, vectors, spread, size)
            for lane in range(size):
                expected, slope = _interpolated(link, bound, score[lane])
                gain = slope / (expected * (1.0 - expected) + slope * slope * spread[lane])
                if not answered[start + lane, k]:
                    gain = 0.0
                shift[lane] = gain * (answers[start + lane, k] - expected)
                shrink[lane] = gain * slope
            for row in range(d):
                for lane in range(size):
                    means[row, lane] += cross[row, lane] * shift[lane]
                for column in range(row + 1):
                    for lane in range(size):
                        product = cross[row, lane] * cross[column, lane]
                        half[row, column, lane] -= shrink[lane] * product
        for lane in range(size):
            for row in range(d):
                mean[start + lane, row] = means[row, lane]
                for column in range(row + 1):
                    covariance[start + lane, row, column] = half[row, column, lane]
                    covariance[start + lane, column, row] = half[row, column, lane]


@jit
def write_preference(
    vectors: FloatArray,
    first: int,
    total: FloatArray,
    weight: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    bound: np.float32,
) -> None:
    """Writes standardised mean embeddings."""
    n_sessions, dim = total.shape
    for n in range(n_sessions):
        if weight[n] > ZERO:
            divisor = max(weight[n], _TINY)
            for column in range(dim):
                value = (total[n, column] / divisor - mean[column]) / scale[column]
                value = bound if value > bound else value
                vectors[n, first + column] = -bound if value < -bound else value
        else:
            for column in range(dim):
                vectors[n, first + column] = ZERO


@jit
def write_belief(
    vectors: FloatArray, mean: DoubleArray, covariance: DoubleArray, bound: float
) -> None:
    """Writes means and variances."""
    n_sessions, d = mean.shape
    for n in range(n_sessions):
        for column in range(d):
            vectors[n, column] = min(max(mean[n, column], -bound), bound)
            vectors[n, d + column] = min(covariance[n, column, column], bound)


@jit
def write_context(
    vectors: FloatArray,
    column: int,
    steps: NDArray[Any],
    share: NDArray[Any],
    last_reward: NDArray[Any],
    reward_sum: NDArray[Any],
    max_len: int,
) -> None:
    """Writes the context of sessions."""
    for n in range(steps.size):
        vectors[n, column] = steps[n] / max_len
        vectors[n, column + 1] = share[n]
        vectors[n, column + 2] = last_reward[n]
        vectors[n, column + 3] = reward_sum[n] / max(steps[n], 1)


@jit
def measure(measures: DoubleArray, state: SessionState, slate_size: int) -> None:
    """Writes what :func:`~kuaisim_gym.metrics.summaries.session_metrics` gives behind ``len``."""
    for n in range(state.steps.size):
        length = max(state.steps[n], 1)
        measures[0, n] = state.reward_sum[n] / length
        measures[1, n] = state.reward_sum[n]
        measures[2, n] = state.penalties[n] / length
        measures[3, n] = state.popular[n] / (length * slate_size)


@jit
def _count_exposures(
    day: int,
    steps: NDArray[np.int64],
    slates: NDArray[np.int64],
    answered: BoolArray,
    slots: BoolArray,
    *fields: Any,
) -> None:
    popular, counts, shown_popular, step_days = Exposures(*fields)
    for n in range(slates.shape[0]):
        if slots[n]:
            step = steps[n] - 1
            step_days[n, step] = day
            for k in range(slates.shape[1]):
                item = slates[n, k]
                counts[item] += answered[n, k]
                shown_popular[n, step, k] = popular[item]


@dataclass(frozen=True)
class NumbaEngine(NumpyEngine):
    """Engine compiled by numba."""

    name: ClassVar[str] = "numba"
    uniform = staticmethod(_uniform)
    first_invalid = staticmethod(first_invalid)
    factor_scores = staticmethod(factor_scores)
    update = staticmethod(update)
    condition = staticmethod(condition)
    write_belief = staticmethod(write_belief)
    inner_products = staticmethod(inner_products)

    def top_items(
        self, scores: FloatArray, k: int, hidden: BitArray | None = None
    ) -> NDArray[np.int64]:
        return top_items(scores, k, _NOTHING if hidden is None else hidden)

    def best_items(
        self, vectors: FloatArray, items: FloatArray, k: int, hidden: BitArray | None
    ) -> NDArray[np.int64]:
        return best_items(vectors, items, k, _NOTHING if hidden is None else hidden)

    def count_exposures(
        self,
        exposures: Exposures,
        day: int,
        steps: NDArray[np.int64],
        slates: NDArray[np.int64],
        answered: BoolArray,
        slots: BoolArray,
    ) -> None:
        _count_exposures(day, steps, slates, answered, slots, *exposures)

    def begin(
        self, state: SessionState, rows: CountArray, users: NDArray[np.int32], max_len: int
    ) -> None:
        _begin(rows, users, max_len, *state)

    def advance(
        self,
        rules: Rules,
        state: SessionState,
        slates: NDArray[np.int64],
        probability: FloatArray,
        slots: BoolArray,
    ) -> StepResult:
        result = StepResult(slates, *no_outcome(*probability.shape))
        _advance(slates, probability, slots, *result[1:], *rules, *state)
        return result

    def write_preference(
        self,
        vectors: FloatArray,
        column: int,
        total: FloatArray,
        weight: FloatArray,
        mean: FloatArray,
        scale: FloatArray,
        bound: float,
    ) -> None:
        write_preference(vectors, column, total, weight, mean, scale, np.float32(bound))

    def write_context(
        self, vectors: FloatArray, column: int, session: SessionState, max_len: int
    ) -> None:
        write_context(
            vectors,
            column,
            session.steps,
            session.share,
            session.last_reward,
            session.reward_sum,
            max_len,
        )
