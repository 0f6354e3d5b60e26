"""One compiled call a step: checks, answers, rewards, histories, new sessions and observations.

Arrays that stay are put together once, so that a call does not look for them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite.binding import add_symbol  # type: ignore[import-untyped]
from numba import types
from numba.experimental import structref
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

from kuaisim_gym.engine.compiled import (
    ONE,
    ZERO,
    advance,
    begin,
    condition,
    factor_scores,
    fill_row,
    fill_uniform,
    first_invalid,
    measure,
    update,
    write_belief,
    write_context,
    write_preference,
)
from kuaisim_gym.engine.jit import inlined, jit
from kuaisim_gym.engine.types import (
    Arrivals,
    Beliefs,
    BoolArray,
    DoubleArray,
    FloatArray,
    Pooled,
    Rules,
    Scores,
    SessionState,
    StepResult,
)
from kuaisim_gym.randomness import USER_STREAM


@structref.register
class _StepArraysType(types.StructRef):
    """Type of :class:`StepArrays` in compiled code."""


class StepArrays(structref.StructRefProxy):
    """All that stays the same from step to step, taken apart once.

    A compiled call looks at one object instead of sixty arrays.

    Args:
        scores: The model.
        rules: The rules.
        state: The sessions.
        arrivals: The users who may arrive.
        pooled: Pooled histories.
        beliefs: Beliefs.
        result: Written by each step, as the next two.
        vectors: (N, ...) float32 observations.
        measures: (4, N) float64 of the sessions so far.
    """

    def __new__(cls, *parts: Any) -> Any:
        return _put_together(*parts)


structref.define_boxing(_StepArraysType, StepArrays)  # type: ignore[no-untyped-call]
_PARTS = [
    "scores", "rules", "state", "arrivals", "pooled", "beliefs", "result", "vectors", "measures",
]  # fmt: skip
structref.define_constructor(StepArrays, _StepArraysType, _PARTS)  # type: ignore[no-untyped-call]
structref.define_attributes(_StepArraysType)  # type: ignore[no-untyped-call]


@jit
def _put_together(
    scores: Scores,
    rules: Rules,
    state: SessionState,
    arrivals: Arrivals,
    pooled: Pooled,
    beliefs: Beliefs,
    result: StepResult,
    vectors: FloatArray,
    measures: DoubleArray,
) -> Any:
    return StepArrays(scores, rules, state, arrivals, pooled, beliefs, result, vectors, measures)


# SciPy's own function, so that log-odds become the same probabilities in any engine.
_EXPIT = "kuaisim_gym_expit_float"
add_symbol(_EXPIT, get_cython_function_address("scipy.special.cython_special", "__pyx_fuse_1expit"))
_expit: Any = numba.types.ExternalFunction(_EXPIT, numba.float32(numba.float32, numba.int32))


@jit
def _respond(scores: FloatArray, logistic: bool) -> None:
    """Turns (N, K, B) scores of a factor model into probabilities, in index."""
    flat = scores.reshape(scores.size)
    for index in range(flat.size):
        if logistic:
            flat[index] = _expit(flat[index], numba.int32(0))
        else:
            flat[index] = min(max(flat[index], ZERO), ONE)


@inlined
def _copy_row(target: NDArray[Any], n: int, source: NDArray[Any], row: int) -> None:
    for column in range(target.shape[1]):
        target[n, column] = source[row, column]


@inlined
def _arrive(
    rows: NDArray[np.int64],
    state: SessionState,
    arrivals: Arrivals,
    pooled: Pooled,
    beliefs: Beliefs,
) -> NDArray[np.int32]:
    """Draws the users who arrive in some slots, and starts from their logs."""
    draw, users = np.empty(1), np.empty(rows.size, np.int32)
    seeds, episodes, stream = state.seeds, state.episodes, np.uint64(USER_STREAM)
    for index in range(rows.size):
        n = rows[index]
        episodes[n] += 1
        fill_uniform(seeds[n], np.uint64(episodes[n]), np.uint64(0), stream, draw)
        user = arrivals.users[int(draw[0] * arrivals.users.size)]
        users[index], arrivals.answering[n], state.share[n] = user, user, arrivals.share
    for number in range(pooled.total.shape[0]):
        total, weight = pooled.total[number], pooled.weight[number]
        logged, logged_weight = pooled.liked, pooled.liked_weight
        if number == 1:
            logged, logged_weight = pooled.shown, pooled.shown_weight
        for index in range(rows.size):
            n, user = rows[index], users[index]
            if number < 2:
                _copy_row(total, n, logged, user)
                weight[n] = logged_weight[user]
            else:
                fill_row(total, n, ZERO)
                weight[n] = ZERO
    if beliefs.mean.size:
        mean, covariance = beliefs.mean, beliefs.covariance.reshape(beliefs.mean.shape[0], -1)
        n_first = beliefs.first_covariance.shape[0]
        first_mean = beliefs.first_mean
        first_covariance = beliefs.first_covariance.reshape(n_first, -1)
        for index in range(rows.size):
            n, user = rows[index], users[index]
            _copy_row(mean, n, first_mean, user)
            _copy_row(covariance, n, first_covariance, user if n_first > 1 else 0)
    return users


@inlined
def _follow(
    slates: NDArray[np.int64],
    responses: FloatArray,
    feedback: FloatArray,
    answered: BoolArray,
    pooled: Pooled,
    beliefs: Beliefs,
) -> None:
    """Adds a step to the histories."""
    embedding, n_parts = pooled.embedding, pooled.total.shape[0]
    if n_parts > 0:
        number = n_parts // 2  # liked in the session, or the only one
        update(pooled.total[number], pooled.weight[number], embedding, slates, responses)
    if n_parts > 1:
        weights = answered.astype(np.float32)
        update(pooled.total[3], pooled.weight[3], embedding, slates, weights)
    if beliefs.follows:
        condition(
            beliefs.mean,
            beliefs.covariance,
            beliefs.design,
            beliefs.quality,
            beliefs.variance,
            beliefs.link,
            beliefs.link_bound,
            slates,
            np.ascontiguousarray(feedback[:, :, 0]),
            answered,
        )


@inlined
def _show(
    vectors: FloatArray, state: SessionState, max_len: int, pooled: Pooled, beliefs: Beliefs
) -> None:
    """Writes state vectors, but for the weights of sums that are kept apart."""
    dim = pooled.total.shape[2]
    for number in range(pooled.total.shape[0]):
        total, weight = pooled.total[number], pooled.weight[number]
        if not beliefs.observed:
            write_preference(
                vectors, number * dim, total, weight, pooled.mean, pooled.scale, pooled.bound
            )
    if beliefs.observed:
        write_belief(vectors, beliefs.mean, beliefs.covariance, beliefs.bound)
    column = vectors.shape[1] - 4
    sums = state.last_reward, state.reward_sum
    write_context(vectors, column, state.steps, state.share, *sums, max_len)


@inlined
def _take_slates(slates: NDArray[np.int64], acting: BoolArray, result: StepResult) -> None:
    """Begins an outcome: the slates of those who act, and zeros."""
    shown, responses, answered = result.slates, result.responses, result.answered
    feedback = result.feedback.reshape(shown.shape[0], -1)
    for n in range(shown.shape[0]):
        result.reward[n], result.penalised[n] = 0.0, False
        result.terminated[n], result.truncated[n] = False, False
        fill_row(responses, n, ZERO)
        fill_row(feedback, n, ZERO)
        fill_row(answered, n, False)
        for k in range(shown.shape[1]):
            shown[n, k] = slates[n, k] if acting[n] else 0


@jit
def play(
    slates: NDArray[np.int64],
    acting: BoolArray,
    arriving: BoolArray,
    probability: FloatArray,
    arrays: Any,
) -> tuple[int, int]:
    """Steps some sessions, begins new ones in other slots, and observes all.

    Args:
        slates: (N, K) int64.
        acting: (N,) bool, sessions that make a step; of length 0 for none.
        arriving: (N,) bool, slots of others in which a new user arrives; of length 0 for none.
        probability: (N, K, B) float32 of each behaviour; (0, 0, 0) where the model is known.
        arrays: :class:`StepArrays`, whose outcome, vectors and measures are written.

    Returns:
        As :meth:`~kuaisim_gym.engine.types.Engine.first_invalid`; unless all is valid, nothing has
        changed.
    """
    scores, rules, state = arrays.scores, arrays.rules, arrays.state
    arrivals, pooled, beliefs = arrays.arrivals, arrays.pooled, arrays.beliefs
    if acting.size:
        slot, position = first_invalid(state.active, acting, slates, rules.labels.size)
        if slot >= 0:
            return slot, position
        result = arrays.result
        _take_slates(slates, acting, result)
        shown, chances = result.slates, probability
        if not probability.size:
            chances = factor_scores(
                state.users,
                shown,
                scores.mean,
                scores.slope,
                scores.user_effect,
                scores.item_effect,
                scores.user_factors,
                scores.item_factors,
            )
            _respond(chances, scores.logistic)
        advance(
            shown,
            chances,
            acting,
            result.responses,
            result.feedback,
            result.answered,
            result.reward,
            result.penalised,
            result.terminated,
            result.truncated,
            rules,
            state,
        )
        _follow(shown, result.responses, result.feedback, result.answered, pooled, beliefs)
    if arriving.size:
        rows = np.flatnonzero(arriving)
        users = _arrive(rows, state, arrivals, pooled, beliefs)
        begin(rows, users, arrivals.max_len, state)
    _show(arrays.vectors, state, arrivals.max_len, pooled, beliefs)
    measure(arrays.measures, state, arrays.result.slates.shape[1])
    return -1, -1
