"""The arithmetic of sessions in NumPy.

Sums run in a stated order (``cumsum`` adds from left to right, ``sum`` does not promise to), so
that a session's numbers do not depend on how many sessions run beside it, nor on the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.types import (
    IMBALANCE,
    POPULARITY,
    BoolArray,
    CountArray,
    FloatArray,
    Rules,
    SessionState,
    StepResult,
)
from kuaisim_gym.randomness import RESPONSE_STREAM, uniform

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

_BLOCK = 16  # columns that share a maximum


def first_fault(
    active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
) -> tuple[int, int]:
    """The first session that cannot be stepped.

    Args:
        active: (N,) bool, sessions that run.
        slots: (N,) bool, sessions to step.
        slates: (N, K) int64.
        n_items: Catalogue size.

    Returns:
        The session and the place in its slate that holds no item of the catalogue; the place is
        -1 where the session itself does not run; (-1, -1) if all is well.
    """
    asleep = slots & ~active
    if asleep.any():
        return int(np.flatnonzero(asleep)[0]), -1
    strange = ((slates < 0) | (slates >= n_items)) & slots[:, None]
    if strange.any():
        slot, place = np.argwhere(strange)[0]
        return int(slot), int(place)
    return -1, -1


def begin(state: SessionState, rows: CountArray, users: NDArray[np.int32], max_len: int) -> None:
    """Begins new sessions in some slots, in place.

    Args:
        state: The sessions.
        rows: (n,) int64 slots.
        users: (n,) int32 positions of the users who arrive there.
        max_len: Their temper, in steps.
    """
    state.users[rows] = users
    state.active[rows] = True
    state.temper[rows] = max_len
    state.share[rows] = 0.5
    state.slates[rows] = -1
    records: list[NDArray[Any]] = [
        state.steps,
        state.last_reward,
        state.reward_sum,
        state.recent,
        state.exposed,
        state.responses,
        state.rewards,
        state.penalised,
    ]
    for record in records:
        record[rows] = 0


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
    """Scores of :class:`~kuaisim_gym.simulator.response.FactorModel`, behaviour by behaviour.

    Args:
        users: (N,) int32 positions.
        slates: (N, K) int64 positions.
        mean: (B,) float32.
        slope: (B,) float32.
        user_effect: (B, n_users) float32.
        item_effect: (B, n_items) float32.
        user_factors: (n_users, rank) float32.
        item_factors: (n_items, rank) float32.

    Returns:
        (N, K, B) float32.
    """
    own, theirs = user_factors[users], item_factors[slates]
    product = np.zeros(slates.shape, dtype=np.float32)
    for factor in range(own.shape[1]):
        product += own[:, None, factor] * theirs[:, :, factor]
    scores = np.empty((*slates.shape, len(mean)), dtype=np.float32)
    for b in range(len(mean)):
        level = user_effect[b][users] + mean[b]
        scores[:, :, b] = (level[:, None] + item_effect[b][slates]) + slope[b] * product
    return scores


def advance(
    rules: Rules,
    state: SessionState,
    slates: NDArray[np.int64],
    probability: FloatArray,
    slots: BoolArray,
) -> StepResult:
    """One step of some sessions: answers, reward, penalty, temper, and who leaves.

    Args:
        rules: The rules.
        state: The sessions; those of ``slots`` must be active. Changed in place.
        slates: (N, K) int64 item positions; only rows of ``slots`` are looked at.
        probability: (N, K, B) float32 in [0, 1], of each behaviour.
        slots: (N,) bool, which sessions make the step.

    Returns:
        What happened.
    """
    rows = np.flatnonzero(slots)
    n, k, n_behaviours = probability.shape
    shown, steps = slates[rows], state.steps[rows]
    chance = probability[rows]
    if rules.stochastic:
        # Behaviour by behaviour, so that the first meets the same draws however many follow.
        seeds, episodes = state.seeds[rows], state.episodes[rows]
        draws = uniform(seeds, episodes, steps, n_behaviours * k, RESPONSE_STREAM)
        draws = draws.reshape(len(rows), n_behaviours, k).swapaxes(1, 2)
        answers = (draws < chance).astype(np.float32)
    else:
        answers = chance
    answers = answers * _fresh(rules, state, rows, shown)[:, :, None]
    weighted = np.cumsum(answers * rules.weights, axis=2)[:, :, -1]
    responses = np.minimum(np.maximum(weighted, np.float32(0.0)), np.float32(1.0))
    reward = np.cumsum(responses, axis=1, dtype=np.float64)[:, -1] / k

    flags = np.concatenate([state.recent[rows], rules.popular[shown]], axis=1)
    flags = flags[:, -state.recent.shape[1] :]
    steps = steps + 1
    made = np.minimum(steps * k, flags.shape[1])
    count = flags.sum(axis=1)
    penalised = _penalised(rules, count, made, flags.shape[1])
    cost = -1.0 if rules.per_request else np.clip(reward - 2.0, -2.0, 0.0)
    temper = state.temper[rows] + (cost - penalised)
    terminated = temper < rules.least_temper
    truncated = (steps >= rules.step_limit) & ~terminated

    state.exposed[rows[:, None], shown] = True
    state.recent[rows] = flags
    state.share[rows] = share = count / made
    state.steps[rows] = steps
    state.temper[rows] = temper
    state.last_reward[rows] = reward
    state.reward_sum[rows] += reward
    state.active[rows] = ~(terminated | truncated)
    now = (rows, steps - 1)
    records: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (state.slates, shown),
        (state.responses, responses),
        (state.rewards, reward),
        (state.penalised, penalised),
        (state.tempers, temper),
        (state.shares, share),
    ]
    for record, value in records:
        record[now] = value

    def everyone(values: NDArray[Any]) -> NDArray[Any]:
        whole = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
        whole[rows] = values
        return whole

    told = (responses, answers, reward, penalised, terminated, truncated)
    return StepResult(*map(everyone, told))


def _fresh(
    rules: Rules, state: SessionState, rows: CountArray, shown: NDArray[np.int64]
) -> BoolArray:
    """(n, K) bool: items that may be answered, neither shown before nor repeated."""
    if rules.allow_repeats:
        return np.ones(shown.shape, dtype=bool)
    order = np.argsort(shown, axis=1, kind="stable")
    ordered = np.take_along_axis(shown, order, axis=1)
    repeated = np.zeros(shown.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    fresh: BoolArray = ~(state.exposed[rows[:, None], shown] | repeated)
    return fresh


def _penalised(rules: Rules, count: CountArray, made: CountArray, window: int) -> BoolArray:
    """(n,) bool: the abandonment rule, on counts so that thresholds are exact."""
    surplus = 2 * count - window  # window * (2s - 1)
    if rules.abandonment == IMBALANCE:
        unbalanced = np.abs(surplus) >= rules.surplus
    elif rules.abandonment == POPULARITY:
        unbalanced = surplus >= rules.surplus
    else:
        unbalanced = np.zeros(len(count), dtype=bool)
    penalised: BoolArray = (made == window) & unbalanced
    return penalised


def follow(
    total: FloatArray,
    weight: FloatArray,
    embedding: FloatArray,
    slates: NDArray[np.int64],
    responses: FloatArray,
) -> None:
    """Adds one step's items to the pooled histories, in place.

    Args:
        total: (N, d) float32, response-weighted sums of item embeddings.
        weight: (N,) float32, sums of responses.
        embedding: (n_all_items, d) float32.
        slates: (N, K) int64 item positions.
        responses: (N, K) float32.
    """
    for place in range(slates.shape[1]):
        response = responses[:, place]
        total += response[:, None] * embedding[slates[:, place]]
        weight += response


def mean_embedding(total: FloatArray, weight: FloatArray) -> FloatArray:
    """(N, d) float32 weighted means of (N, d) sums with (N,) weights; zero without weight."""
    return np.divide(total, np.maximum(weight, np.finfo(np.float32).tiny)[:, None])


def preference(
    total: FloatArray, weight: FloatArray, mean: FloatArray, scale: FloatArray, bound: float
) -> FloatArray:
    """Standardised mean embeddings of histories.

    Args:
        total: (N, d) float32, see :func:`follow`.
        weight: (N,) float32; a user without weight sits at the origin.
        mean: (d,) float32 to subtract from a mean embedding.
        scale: (d,) float32 to divide it by.
        bound: Largest absolute value.

    Returns:
        (N, d) float32.
    """
    states: FloatArray = (mean_embedding(total, weight) - mean) / scale
    states[weight <= 0] = 0.0
    return np.clip(states, np.float32(-bound), np.float32(bound), out=states)


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
    """State vectors: standardised mean embedding of the history, and the session's context.

    Args:
        total: (N, d) float32, see :func:`follow`.
        weight: (N,) float32; a user without weight sits at the origin.
        mean: (d,) float32 to subtract from a mean embedding.
        scale: (d,) float32 to divide it by.
        bound: Largest absolute value of the preference.
        session: The sessions.
        max_len: Steps that progress is measured in.
        extra: Columns of zeros to leave at the end.

    Returns:
        (N, d + 4 + extra) float32: preference, progress, popular share, last and mean reward.
    """
    n, d = total.shape
    whole = np.zeros((n, d + 4 + extra), dtype=np.float32)
    whole[:, :d] = preference(total, weight, mean, scale, bound)
    whole[:, d] = session.steps / max_len
    whole[:, d + 1] = session.share
    whole[:, d + 2] = session.last_reward
    whole[:, d + 3] = session.reward_sum / np.maximum(session.steps, 1)
    return whole


def inner_products(vectors: FloatArray, items: FloatArray) -> FloatArray:
    """Matrix product, summed in order.

    BLAS is faster, but the last bits of its rows depend on how many there are and on the processor;
    who is ranked beside a user must not decide a near tie.

    Args:
        vectors: (N, d) float32.
        items: (d, n) float32.

    Returns:
        (N, n) float32.
    """
    products = np.zeros((len(vectors), items.shape[1]), dtype=np.float32)
    for feature in range(len(items)):
        products += vectors[:, feature, None] * items[feature]
    return products


def top_items(scores: FloatArray, k: int) -> CountArray:
    """The k best columns of each row, best first, ties by column.

    Args:
        scores: (N, n_items) float32.
        k: At most n_items.

    Returns:
        (N, k) int64.
    """
    rows, columns = np.nonzero(scores >= _kth_largest(scores, k))
    order = np.lexsort((columns, -scores[rows, columns], rows))
    found = np.bincount(rows, minlength=len(scores))  # more than k where values tie
    first = np.cumsum(found) - found
    best: CountArray = columns[order][first[:, None] + np.arange(k)]
    return best


def _kth_largest(scores: FloatArray, k: int) -> FloatArray:
    """(N, 1) float32.

    The k largest values lie in the k blocks with the largest maxima, and a maximum over strided
    blocks is one fast pass: far fewer columns are left to be partitioned.
    """
    n_rows, n_items = scores.shape
    n_blocks = n_items // _BLOCK
    if n_blocks > 2 * k:
        body = n_blocks * _BLOCK
        members = scores[:, :body].reshape(n_rows, _BLOCK, n_blocks)
        blocks = np.argpartition(-members.max(axis=1), k - 1, axis=1)[:, :k]
        chosen = np.take_along_axis(members, blocks[:, None, :], axis=2).reshape(n_rows, -1)
        scores = np.concatenate([chosen, scores[:, body:]], axis=1)
    place = scores.shape[1] - k
    return np.partition(scores, place, axis=1)[:, place, None]
