"""One compiled call a step: checks, answers, rewards, histories, new sessions and observations.

Named tuples of arrays are made once and taken apart, so that a call does not look for its arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.kernels import (
    add_items,
    advance_session,
    begin_session,
    condition_belief,
    fill_uniform,
    find_invalid,
    inlined,
    jit,
    respond,
    score_slate,
    show_belief,
    show_context,
    show_preference,
)
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

_PARTS = (Rules, SessionState, Arrivals, Scores, Pooled, Beliefs)
_ENDS = np.cumsum([len(part._fields) for part in _PARTS]).tolist()
_RULES, _STATE, _ARRIVALS, _SCORES, _POOLED, _BELIEFS = _ENDS


@inlined
def _arrive(
    n: int, state: SessionState, arrivals: Arrivals, pooled: Pooled, beliefs: Beliefs, draw: Any
) -> None:
    """Begins a session of a new user; (1,) ``draw`` is scratch."""
    state.episodes[n] += 1
    episode, stream = np.uint64(state.episodes[n]), np.uint64(USER_STREAM)
    fill_uniform(state.seeds[n], episode, np.uint64(0), stream, draw)
    user = arrivals.users[int(draw[0] * arrivals.users.size)]
    begin_session(n, state, user, arrivals.max_len)
    state.share[n] = arrivals.share
    arrivals.answering[n] = user
    for part in range(pooled.total.shape[0]):
        for column in range(pooled.total.shape[2]):
            pooled.total[part, n, column] = 0.0
        pooled.weight[part, n] = 0.0
    if pooled.total.shape[0] > 0:
        for column in range(pooled.total.shape[2]):
            pooled.total[0, n, column] = pooled.liked[user, column]
        pooled.weight[0, n] = pooled.liked_weight[user]
    if pooled.total.shape[0] > 1:
        for column in range(pooled.total.shape[2]):
            pooled.total[1, n, column] = pooled.shown[user, column]
        pooled.weight[1, n] = pooled.shown_weight[user]
    if beliefs.mean.shape[0] > 0:
        of_user = user if beliefs.first_covariance.shape[0] > 1 else 0
        for row in range(beliefs.mean.shape[1]):
            beliefs.mean[n, row] = beliefs.first_mean[user, row]
            for column in range(beliefs.mean.shape[1]):
                beliefs.covariance[n, row, column] = beliefs.first_covariance[of_user, row, column]


@inlined
def _follow(n: int, result: StepResult, pooled: Pooled, beliefs: Beliefs, cross: Any) -> None:
    """Adds a session's step to its histories; (d,) ``cross`` is scratch."""
    slates, responses, embedding = result.slates, result.responses, pooled.embedding
    if pooled.total.shape[0] == 1:
        add_items(n, pooled.total[0], pooled.weight[0], embedding, slates, responses)
    elif pooled.total.shape[0] > 1:
        add_items(n, pooled.total[2], pooled.weight[2], embedding, slates, responses)
        add_items(n, pooled.total[3], pooled.weight[3], embedding, slates, result.answered)
    if beliefs.follows:
        condition_belief(
            n,
            beliefs.mean,
            beliefs.covariance,
            beliefs.design,
            beliefs.quality,
            beliefs.variance,
            beliefs.link,
            beliefs.link_bound,
            slates,
            result.feedback,
            result.answered,
            cross,
        )


@inlined
def _show(
    n: int,
    vectors: FloatArray,
    state: SessionState,
    max_len: int,
    pooled: Pooled,
    beliefs: Beliefs,
) -> None:
    """Writes a session's state vector, but for the weights of sums that are kept apart."""
    if beliefs.observed:
        show_belief(n, vectors, beliefs.mean, beliefs.covariance, beliefs.bound)
    else:
        dim = pooled.total.shape[2]
        for part in range(pooled.total.shape[0]):
            total, weight = pooled.total[part], pooled.weight[part]
            show_preference(
                n, vectors, part * dim, total, weight, pooled.mean, pooled.scale, pooled.bound
            )
    show_context(
        n,
        vectors,
        vectors.shape[1] - 4,
        state.steps,
        state.share,
        state.last_reward,
        state.reward_sum,
        max_len,
    )


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
    """Steps some sessions, begins new ones in other slots, and observes both.

    Args:
        vectors: (N, ...) float32; rows of both are written.
        acting: (N,) bool, sessions that make a step.
        arriving: (N,) bool, slots of others in which a new user arrives.
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
        *fields: The rules, the sessions, the users who may arrive, the model, pooled histories and
            beliefs, each taken apart.

    Returns:
        As :meth:`~kuaisim_gym.engine.types.Engine.first_invalid`; unless all is valid, nothing has
        changed.
    """
    rules, state = Rules(*fields[:_RULES]), SessionState(*fields[_RULES:_STATE])
    arrivals, scores = Arrivals(*fields[_STATE:_ARRIVALS]), Scores(*fields[_ARRIVALS:_SCORES])
    pooled, beliefs = Pooled(*fields[_SCORES:_POOLED]), Beliefs(*fields[_POOLED:_BELIEFS])
    result = StepResult(
        slates, responses, feedback, answered, reward, penalised, terminated, truncated
    )
    slot, position = find_invalid(state.active, acting, slates, state.exposed.shape[1])
    if slot >= 0:
        return slot, position
    draws, draw = np.empty(feedback.shape[1] * feedback.shape[2]), np.empty(1)
    counts = np.zeros(rules.target.size, np.int64)
    chances = np.empty(feedback.shape[1:], np.float32)
    cross = np.empty(beliefs.mean.shape[1])
    for n in range(acting.size):
        if acting[n]:
            if probability.size:
                chances[:, :] = probability[n]
            else:
                score_slate(state.users[n], slates[n], scores, chances)
                respond(chances, scores.logistic)
            advance_session(n, rules, state, chances, draws, counts, result)
            _follow(n, result, pooled, beliefs, cross)
        elif arriving[n]:
            _arrive(n, state, arrivals, pooled, beliefs, draw)
        if acting[n] or arriving[n]:
            _show(n, vectors, state, arrivals.max_len, pooled, beliefs)
    return -1, -1
