"""The arithmetic of sessions compiled by numba: a loop over sessions instead of array passes.

Arguments and results are documented in :class:`~kuaisim_gym.engine.types.Engine`. Named tuples are
taken apart before a compiled call and put together in it, which costs less than passing them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.kernels import (
    ZERO,
    add_items,
    advance_session,
    begin_session,
    condition_belief,
    fill_uniform,
    find_invalid,
    inlined,
    jit,
    score_slate,
    show_belief,
    show_context,
    show_preference,
)
from kuaisim_gym.engine.reference import NumpyEngine
from kuaisim_gym.engine.types import (
    BoolArray,
    CountArray,
    DoubleArray,
    FloatArray,
    Rules,
    Scores,
    SessionState,
    StepResult,
)

_N_RULES = len(Rules._fields)
_STRETCH = 512  # items of 2 kB
_BLOCK = 32  # columns that are passed over if none is among the best so far
# Ranking: a tile's vectors stay in the first cache for all rows of a group, a chunk's scores in the
# second; scratch memory is as large as they are, whatever the catalogue.
_TILE, _GROUP = 128, 16
_CHUNK = 33 * _TILE  # not a power of two: rows would share the cache's sets
_LEAST = np.float32(-np.inf)
_NOTHING = np.zeros((0, 0), dtype=bool)


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
def _first_invalid(
    active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
) -> tuple[int, int]:
    return find_invalid(active, slots, slates, n_items)


@jit
def _factor_scores(
    users: NDArray[np.int32],
    slates: NDArray[np.integer],
    mean: FloatArray,
    slope: FloatArray,
    user_effect: FloatArray,
    item_effect: FloatArray,
    user_factors: FloatArray,
    item_factors: FloatArray,
) -> FloatArray:
    model = Scores(False, mean, slope, user_effect, item_effect, user_factors, item_factors)
    scores = np.empty((slates.shape[0], slates.shape[1], mean.size), np.float32)
    for n in range(slates.shape[0]):
        score_slate(users[n], slates[n], model, scores[n])
    return scores


@jit
def _begin(rows: NDArray[np.int64], users: NDArray[np.int32], max_len: int, *fields: Any) -> None:
    state = SessionState(*fields)
    for place in range(rows.size):
        begin_session(rows[place], state, users[place], max_len)


@jit
def _advance(
    slates: NDArray[np.int64], probability: FloatArray, slots: BoolArray, *fields: Any
) -> tuple[Any, ...]:
    rules, state = Rules(*fields[:_N_RULES]), SessionState(*fields[_N_RULES:])
    n_sessions, slate_size, n_behaviours = probability.shape
    result = StepResult(
        slates,
        np.zeros((n_sessions, slate_size), np.float32),
        np.zeros(probability.shape, np.float32),
        np.zeros((n_sessions, slate_size), np.bool_),
        np.zeros(n_sessions),
        np.zeros(n_sessions, np.bool_),
        np.zeros(n_sessions, np.bool_),
        np.zeros(n_sessions, np.bool_),
    )
    draws = np.empty(n_behaviours * slate_size)
    counts = np.zeros(rules.target.size, np.int64)
    for n in range(n_sessions):
        if slots[n]:
            advance_session(n, rules, state, probability[n], draws, counts, result)
    return (
        result.responses,
        result.feedback,
        result.answered,
        result.reward,
        result.penalised,
        result.terminated,
        result.truncated,
    )


@jit
def _update(
    total: FloatArray,
    weight: FloatArray,
    embedding: FloatArray,
    slates: NDArray[np.int64],
    responses: FloatArray,
) -> None:
    for n in range(slates.shape[0]):
        add_items(n, total, weight, embedding, slates, responses)


@jit
def _condition(
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
    cross, first = np.empty(mean.shape[1]), np.expand_dims(answers, 2)
    for n in range(slates.shape[0]):
        condition_belief(
            n,
            mean,
            covariance,
            design,
            quality,
            variance,
            link,
            bound,
            slates,
            first,
            answered,
            cross,
        )


@jit
def _write_preference(
    vectors: FloatArray,
    first: int,
    total: FloatArray,
    weight: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    bound: np.float32,
) -> None:
    for n in range(weight.size):
        show_preference(n, vectors, first, total, weight, mean, scale, bound)


@jit
def _write_belief(
    vectors: FloatArray, mean: DoubleArray, covariance: DoubleArray, bound: float
) -> None:
    for n in range(mean.shape[0]):
        show_belief(n, vectors, mean, covariance, bound)


@jit
def _write_context(
    vectors: FloatArray,
    column: int,
    steps: NDArray[Any],
    share: NDArray[Any],
    last_reward: NDArray[Any],
    reward_sum: NDArray[Any],
    max_len: int,
) -> None:
    for n in range(steps.size):
        show_context(n, vectors, column, steps, share, last_reward, reward_sum, max_len)


@jit
def _inner_products(vectors: NDArray[Any], items: NDArray[Any]) -> NDArray[Any]:
    """Matrix product, summed in order.

    Items are read in stretches that stay in the processor's first cache, and features four at a
    time, so that sums are loaded and stored a quarter as often.
    """
    n_rows, dim = vectors.shape
    n_items = items.shape[1]
    products = np.zeros((n_rows, n_items), np.float32)
    n_unrolled = dim - dim % 4
    for start in range(0, n_items, _STRETCH):
        stop = min(start + _STRETCH, n_items)
        for row in range(n_rows):
            total, weight = products[row, start:stop], vectors[row]
            for f in range(0, n_unrolled, 4):
                w0, w1, w2, w3 = weight[f], weight[f + 1], weight[f + 2], weight[f + 3]
                item0, item1 = items[f, start:stop], items[f + 1, start:stop]
                item2, item3 = items[f + 2, start:stop], items[f + 3, start:stop]
                for column in range(total.size):
                    first = (total[column] + w0 * item0[column]) + w1 * item1[column]
                    total[column] = (first + w2 * item2[column]) + w3 * item3[column]
            for f in range(n_unrolled, dim):
                w0, item0 = weight[f], items[f, start:stop]
                for column in range(total.size):
                    total[column] += w0 * item0[column]
    return products


@jit
def _top_items(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    n_rows, n_items = scores.shape
    best = np.empty((n_rows, k), np.int64)
    values = np.empty(k, np.float32)
    for row in range(n_rows):
        count = 0
        for start in range(0, n_items, _BLOCK):
            stop = min(start + _BLOCK, n_items)
            if count == k:
                largest = scores[row, start]
                for column in range(start + 1, stop):
                    value = scores[row, column]
                    largest = value if value > largest else largest
                if not largest > values[k - 1]:
                    continue
            for column in range(start, stop):
                value = scores[row, column]
                if count == k and not value > values[k - 1]:
                    continue
                # Inserted behind its equals: of ties the first column is the better one.
                count = min(count + 1, k)
                rank = count - 1
                while rank > 0 and values[rank - 1] < value:
                    values[rank] = values[rank - 1]
                    best[row, rank] = best[row, rank - 1]
                    rank -= 1
                values[rank] = value
                best[row, rank] = column
    return best


@inlined
def _insert(
    value: np.float32, column: int, count: int, values: NDArray[Any], best: NDArray[Any]
) -> int:
    """Adds an item to the best so far, if it is one of them: of ties the first column is."""
    k = values.size
    if count == k:
        least = values[k - 1]
        if not (value > least or (value == least and column < best[k - 1])):
            return count
    count = min(count + 1, k)
    rank = count - 1
    while rank > 0 and (
        values[rank - 1] < value or (values[rank - 1] == value and best[rank - 1] > column)
    ):
        values[rank], best[rank] = values[rank - 1], best[rank - 1]
        rank -= 1
    values[rank], best[rank] = value, column
    return count


@jit
def _score_tile(
    vectors: NDArray[Any],
    items: NDArray[Any],
    start: int,
    stop: int,
    scores: NDArray[Any],
    offset: int,
) -> None:
    """Inner products of some vectors, a multiple of four, and a tile of items, summed in order.

    Four sums are carried at a time, so that an item's features are loaded a quarter as often.
    """
    dim, first, last = vectors.shape[1], start - offset, stop - offset
    for row in range(0, vectors.shape[0], 4):
        # Slices of single rows, which are known to be contiguous.
        total0, total1 = scores[row, first:last], scores[row + 1, first:last]
        total2, total3 = scores[row + 2, first:last], scores[row + 3, first:last]
        for column in range(total0.size):
            total0[column] = total1[column] = total2[column] = total3[column] = ZERO
        v0, v1, v2, v3 = vectors[row], vectors[row + 1], vectors[row + 2], vectors[row + 3]
        for f in range(0, dim - 1, 2):
            a0, a1, a2, a3 = v0[f], v1[f], v2[f], v3[f]
            b0, b1, b2, b3 = v0[f + 1], v1[f + 1], v2[f + 1], v3[f + 1]
            one, two = items[f, start:stop], items[f + 1, start:stop]
            for column in range(total0.size):
                x, y = one[column], two[column]
                total0[column] = (total0[column] + a0 * x) + b0 * y
                total1[column] = (total1[column] + a1 * x) + b1 * y
                total2[column] = (total2[column] + a2 * x) + b2 * y
                total3[column] = (total3[column] + a3 * x) + b3 * y
        if dim % 2:
            f = dim - 1
            a0, a1, a2, a3 = v0[f], v1[f], v2[f], v3[f]
            one = items[f, start:stop]
            for column in range(total0.size):
                x = one[column]
                total0[column] += a0 * x
                total1[column] += a1 * x
                total2[column] += a2 * x
                total3[column] += a3 * x


@jit
def _select(
    scores: NDArray[Any],
    hidden: NDArray[Any],
    offset: int,
    count: int,
    lanes: NDArray[Any],
    highest: NDArray[Any],
    places: NDArray[Any],
    values: NDArray[Any],
    best: NDArray[Any],
) -> int:
    """Takes the best of a chunk's scores into the best so far.

    Column c belongs to lane c modulo the number of lanes. The k-th largest of the lanes' maxima
    is a value that at least k columns reach: the lanes below it hold none of the best.
    """
    n, width, k = scores.size, lanes.size, values.size
    lanes[:] = _LEAST
    whole = n - n % width
    for start in range(0, whole, width):
        part = scores[start : start + width]
        if hidden.size:
            seen = hidden[start : start + width]
            for lane in range(width):
                part[lane] = _LEAST if seen[lane] else part[lane]
        for lane in range(width):
            lanes[lane] = part[lane] if part[lane] > lanes[lane] else lanes[lane]
    for column in range(whole, n):
        lane = column - whole
        if hidden.size and hidden[column]:
            scores[column] = _LEAST
        lanes[lane] = scores[column] if scores[column] > lanes[lane] else lanes[lane]
    bound = _LEAST
    if count == k:
        bound = values[k - 1]
    if k <= width:
        ranked = 0
        for lane in range(width):
            if lanes[lane] > bound:
                ranked = _insert(lanes[lane], lane, ranked, highest, places)
        if ranked == k:
            bound = highest[k - 1]
    for lane in range(min(width, n)):
        if lanes[lane] >= bound:
            for column in range(lane, n, width):
                if scores[column] >= bound:
                    count = _insert(scores[column], offset + column, count, values, best)
    return count


@jit
def _best_items(
    vectors: NDArray[Any], items: NDArray[Any], k: int, hidden: NDArray[Any]
) -> NDArray[np.int64]:
    (n_rows, dim), n_items = vectors.shape, items.shape[1]
    best = np.empty((n_rows, k), np.int64)
    values = np.empty((_GROUP, k), np.float32)
    group = np.zeros((_GROUP, dim), np.float32)
    scores = np.empty((_GROUP, min(_CHUNK, n_items)), np.float32)
    lanes, highest = np.empty(_TILE, np.float32), np.empty(k, np.float32)
    places = np.empty(k, np.int64)
    counts = np.empty(_GROUP, np.int64)
    nothing = np.zeros(0, np.bool_)
    for first in range(0, n_rows, _GROUP):
        size = min(_GROUP, n_rows - first)
        group[:size] = vectors[first : first + size]
        padded = size + (-size) % 4
        counts[:] = 0
        for offset in range(0, n_items, _CHUNK):
            stop = min(offset + _CHUNK, n_items)
            for start in range(offset, stop, _TILE):
                end = min(start + _TILE, stop)
                _score_tile(group[:padded], items, start, end, scores, offset)
            for row in range(size):
                seen = hidden[first + row, offset:stop] if hidden.size else nothing
                counts[row] = _select(
                    scores[row, : stop - offset],
                    seen,
                    offset,
                    counts[row],
                    lanes,
                    highest,
                    places,
                    values[row],
                    best[first + row],
                )
    return best


@dataclass(frozen=True)
class NumbaEngine(NumpyEngine):
    """Engine compiled by numba."""

    name: ClassVar[str] = "numba"
    uniform = staticmethod(_uniform)
    first_invalid = staticmethod(_first_invalid)
    factor_scores = staticmethod(_factor_scores)
    update = staticmethod(_update)
    condition = staticmethod(_condition)
    write_belief = staticmethod(_write_belief)
    inner_products = staticmethod(_inner_products)
    top_items = staticmethod(_top_items)

    def best_items(
        self, vectors: FloatArray, items: FloatArray, k: int, hidden: BoolArray | None
    ) -> NDArray[np.int64]:
        return _best_items(vectors, items, k, _NOTHING if hidden is None else hidden)

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
        return StepResult(slates, *_advance(slates, probability, slots, *rules, *state))

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
        _write_preference(vectors, column, total, weight, mean, scale, np.float32(bound))

    def write_context(
        self, vectors: FloatArray, column: int, session: SessionState, max_len: int
    ) -> None:
        _write_context(
            vectors,
            column,
            session.steps,
            session.share,
            session.last_reward,
            session.reward_sum,
            max_len,
        )
