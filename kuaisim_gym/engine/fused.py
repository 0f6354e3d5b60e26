"""One compiled call a step: checks, answers, rewards, histories, new sessions and observations.

Named tuples of arrays are made once and taken apart, so that a call does not look for its arrays.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite.binding import add_symbol  # type: ignore[import-untyped]
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
)
from kuaisim_gym.randomness import USER_STREAM

_TUPLES = (Scores, Rules, SessionState, Arrivals, Pooled, Beliefs)
_ENDS = np.cumsum([len(number._fields) for number in _TUPLES]).tolist()
_SCORES, _RULES, _STATE, _ARRIVALS, _POOLED, _ = _ENDS


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


@jit
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


@jit
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


@jit
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


@jit
def play(
    vectors: FloatArray,
    acting: BoolArray,
    arriving: BoolArray,
    slates: NDArray[np.int64],
    probability: FloatArray,
    responses: FloatArray,
    feedback: FloatArray,
    answered: BoolArray,
    reward: DoubleArray,
    penalised: BoolArray,
    terminated: BoolArray,
    truncated: BoolArray,
    *fields: Any,
) -> tuple[int, int]:
    """Steps some sessions, begins new ones in other slots, and observes all.

    Args:
        vectors: (N, ...) float32, written.
        acting: (N,) bool, sessions that make a step; of length 0 for none.
        arriving: (N,) bool, slots of others in which a new user arrives; of length 0 for none.
        slates: (N, K) int64.
        probability: (N, K, B) float32 of each behaviour; (0, 0, 0) where the model is known.
        responses: Zeros, as the next six, to be filled with what
            :class:`~kuaisim_gym.engine.types.StepResult` says.
        feedback: Likewise.
        answered: Likewise.
        reward: Likewise.
        penalised: Likewise.
        terminated: Likewise.
        truncated: Likewise.
        *fields: The model, the rules, the sessions, the users who may arrive, pooled histories and
            beliefs, each taken apart.

    Returns:
        As :meth:`~kuaisim_gym.engine.types.Engine.first_invalid`; unless all is valid, nothing has
        changed.
    """
    scores, rules = Scores(*fields[:_SCORES]), Rules(*fields[_SCORES:_RULES])
    state = SessionState(*fields[_RULES:_STATE])
    arrivals = Arrivals(*fields[_STATE:_ARRIVALS])
    pooled, beliefs = Pooled(*fields[_ARRIVALS:_POOLED]), Beliefs(*fields[_POOLED:])
    if acting.size:
        slot, position = first_invalid(state.active, acting, slates, rules.labels.size)
        if slot >= 0:
            return slot, position
        chances = probability
        if not probability.size:
            chances = factor_scores(state.users, slates, *scores[1:])
            _respond(chances, scores.logistic)
        advance(
            slates,
            chances,
            acting,
            responses,
            feedback,
            answered,
            reward,
            penalised,
            terminated,
            truncated,
            *fields[_SCORES:_STATE],
        )
        _follow(slates, responses, feedback, answered, pooled, beliefs)
    if arriving.size:
        rows = np.flatnonzero(arriving)
        users = _arrive(rows, state, arrivals, pooled, beliefs)
        begin(rows, users, arrivals.max_len, *fields[_RULES:_STATE])
    _show(vectors, state, arrivals.max_len, pooled, beliefs)
    return -1, -1
