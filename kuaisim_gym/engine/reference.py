"""The arithmetic of sessions in NumPy.

Sums run in a stated order (``cumsum`` adds from left to right, ``sum`` does not promise to), so
that a session's numbers do not depend on how many other sessions run, nor on the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine import bits
from kuaisim_gym.engine.bits import BitArray
from kuaisim_gym.engine.types import (
    BoolArray,
    CountArray,
    DoubleArray,
    Engine,
    Exposures,
    FloatArray,
    Rules,
    SessionState,
    StepResult,
)
from kuaisim_gym.randomness import RESPONSE_STREAM, uniform

_BITS = np.uint8(1) << np.arange(8, dtype=np.uint8)  # of items modulo 8
_BLOCK = 16  # columns that share a maximum
_ROWS = 64  # users ranked at once, so that their scores stay in the processor's cache


@dataclass(frozen=True)
class NumpyEngine(Engine):
    """Engine in NumPy alone, written like the rules."""

    name: ClassVar[str] = "numpy"
    uniform = staticmethod(uniform)

    def first_invalid(
        self, active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
    ) -> tuple[int, int]:
        inactive = slots > active
        if inactive.any():
            return int(np.flatnonzero(inactive)[0]), -1
        if slates.min() >= 0 and slates.max() < n_items:
            return -1, -1
        invalid = ((slates < 0) | (slates >= n_items)) & slots[:, None]
        if invalid.any():
            slot, position = np.argwhere(invalid)[0]
            return int(slot), int(position)
        return -1, -1

    def begin(
        self, state: SessionState, rows: CountArray, users: NDArray[np.int32], max_len: int
    ) -> None:
        most = int(state.steps[rows].max(initial=0)) * state.slates.shape[2]
        if most < state.exposed.shape[1]:
            shown = state.slates.reshape(len(state.slates), -1)[rows, :most]
            state.exposed[rows[:, None], shown >> 3] = 0  # padding: the last byte
        else:
            state.exposed[rows] = 0
        state.users[rows] = users
        state.active[rows] = True
        state.temper[rows] = max_len
        state.slates[rows] = -1
        records: list[NDArray[Any]] = [
            state.steps,
            state.last_reward,
            state.reward_sum,
            state.penalties,
            state.popular,
            state.recent,
            state.responses,
            state.rewards,
            state.penalised,
        ]
        for record in records:
            record[rows] = 0

    def factor_scores(
        self,
        users: NDArray[np.int32],
        slates: NDArray[np.integer],
        mean: FloatArray,
        slope: FloatArray,
        user_effect: FloatArray,
        item_effect: FloatArray,
        user_factors: FloatArray,
        item_factors: FloatArray,
    ) -> FloatArray:
        of_user, of_item = user_factors[users], item_factors[slates]
        products = of_user[:, None] * of_item
        # Zero is added, so that a sum of minus zeros is zero.
        product = products.cumsum(axis=2)[:, :, -1:].sum(axis=2) + np.float32(0.0)
        scores = np.empty((*slates.shape, len(mean)), dtype=np.float32)
        for b in range(len(mean)):
            level = user_effect[b][users] + mean[b]
            scores[:, :, b] = (level[:, None] + item_effect[b][slates]) + slope[b] * product
        return scores

    def advance(
        self,
        rules: Rules,
        state: SessionState,
        slates: NDArray[np.int64],
        probability: FloatArray,
        slots: BoolArray,
    ) -> StepResult:
        # All sessions are computed, and those that make no step are left as they are.
        n, k, n_behaviours = probability.shape
        everyone = bool(slots.all())
        fresh = _expose(rules, state, slates, slots)
        if rules.stochastic:
            # Behaviour by behaviour, so that the first meets the same draws however many follow.
            draws = uniform(
                state.seeds, state.episodes, state.steps, n_behaviours * k, RESPONSE_STREAM
            )
            drawn = draws.reshape(n, n_behaviours, k).swapaxes(1, 2) < probability
            answers = (drawn & fresh[:, :, None]).astype(np.float32)
        else:
            answers = probability * fresh[:, :, None]
        weighted = answers[:, :, 0] * rules.weights[0]
        for b in range(1, n_behaviours):  # in order
            weighted = weighted + answers[:, :, b] * rules.weights[b]
        responses = np.minimum(np.maximum(weighted, np.float32(0.0)), np.float32(1.0))
        reward = responses.cumsum(axis=1, dtype=np.float64)[:, -1] / k

        window = state.recent.shape[1]
        recent = np.concatenate([state.recent, rules.labels[slates]], axis=1)[:, -window:]
        steps = state.steps + slots
        filled = np.minimum((state.steps + 1) * k, window)
        if len(rules.target) == 2:  # surpluses are of counts, so that thresholds are exact
            second = recent.sum(axis=1, dtype=np.int64)  # in front of the first they are zero
            share = second / filled
            if rules.one_sided:
                surplus = 2.0 * (second - rules.target[1] * filled)
            else:
                surplus = 2.0 * _excess_of_two(second, filled, rules.target)
        else:
            excess = group_excess(recent, filled, rules.target)
            surplus, share = 2.0 * excess, excess / filled
        penalised = slots & (filled == window) & (surplus >= rules.limit)
        cost = -1.0 if rules.per_request else np.minimum(np.maximum(reward - 2.0, -2.0), 0.0)
        temper = state.temper + (cost - penalised)
        terminated = slots & (temper < rules.least_temper)
        truncated = slots & (steps >= rules.step_limit) & ~terminated

        acting = slice(None) if everyone else slots.nonzero()[0]  # views where they will do
        longest = state.rewards.shape[1]
        latest = (np.arange(n) * longest + state.steps)[acting]
        records: list[tuple[NDArray[Any], NDArray[Any]]] = [
            (state.slates, slates),
            (state.responses, responses),
            (state.rewards, reward),
            (state.penalised, penalised),
            (state.tempers, temper),
            (state.shares, share),
        ]
        for record, value in records:
            record.reshape(n * longest, *record.shape[2:])[latest] = value[acting]
        state.recent[acting] = recent[acting]
        for current, value in (
            (state.share, share),
            (state.temper, temper),
            (state.last_reward, reward),
        ):
            np.copyto(current, value, where=slots)
        state.steps[:] = steps
        np.add(state.reward_sum, reward, out=state.reward_sum)
        np.add(state.penalties, penalised, out=state.penalties)
        np.add(state.popular, rules.popular[slates].sum(axis=1) * slots, out=state.popular)
        np.greater(state.active, terminated | truncated, out=state.active)
        return StepResult(
            slates, responses, answers, fresh, reward, penalised, terminated, truncated
        )

    def count_exposures(
        self,
        exposures: Exposures,
        day: int,
        steps: CountArray,
        slates: NDArray[np.int64],
        answered: BoolArray,
        slots: BoolArray,
    ) -> None:
        rows = np.flatnonzero(slots)
        latest, shown = (rows, steps[rows] - 1), slates[rows]
        np.add.at(exposures.counts, shown[answered[rows]], 1)
        exposures.shown_popular[latest] = exposures.popular[shown]
        exposures.step_days[latest] = day

    def update(
        self,
        total: FloatArray,
        weight: FloatArray,
        embedding: FloatArray,
        slates: NDArray[np.int64],
        responses: FloatArray,
    ) -> None:
        for items, response in zip(slates.T, responses.T, strict=True):
            total += response[:, None] * embedding[items]
            weight += response

    def condition(
        self,
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
        d, per_unit, last = mean.shape[1], (len(link) - 1) / (2.0 * bound), len(link) - 2
        for items, answer, fresh in zip(slates.T, answers.T, answered.T, strict=True):
            vector = design[items]
            cross, score = np.zeros_like(mean), quality[items]
            for column in range(d):
                cross += covariance[:, :, column] * vector[:, column, None]
                score = score + mean[:, column] * vector[:, column]
            spread = variance[items]
            for column in range(d):
                spread = spread + cross[:, column] * vector[:, column]
            place = np.minimum(np.maximum((score + bound) * per_unit, 0.0), last + 1.0)
            low = np.minimum(place.astype(np.int64), last)
            part = (place - low)[:, None]
            expected, slope = (link[low] + part * (link[low + 1] - link[low])).T
            gain = slope / (expected * (1.0 - expected) + slope * slope * spread)
            gain = np.where(fresh, gain, 0.0)
            mean += cross * (gain * (answer - expected))[:, None]
            products = cross[:, :, None] * cross[:, None, :]
            covariance -= (gain * slope)[:, None, None] * products

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
        states = preference(total, weight, mean, scale, bound)
        vectors[:, column : column + states.shape[1]] = states

    def write_belief(
        self, vectors: FloatArray, mean: DoubleArray, covariance: DoubleArray, bound: float
    ) -> None:
        d = mean.shape[1]
        vectors[:, :d] = np.clip(mean, -bound, bound)
        vectors[:, d : 2 * d] = np.minimum(np.einsum("nii->ni", covariance), bound)

    def write_context(
        self, vectors: FloatArray, column: int, session: SessionState, max_len: int
    ) -> None:
        vectors[:, column] = session.steps / max_len
        vectors[:, column + 1] = session.share
        vectors[:, column + 2] = session.last_reward
        vectors[:, column + 3] = session.reward_sum / np.maximum(session.steps, 1)

    def inner_products(self, vectors: FloatArray, items: FloatArray) -> FloatArray:
        products = np.zeros((len(vectors), items.shape[1]), dtype=np.float32)
        for feature in range(len(items)):
            products += vectors[:, feature, None] * items[feature]
        return products

    def best_items(
        self, vectors: FloatArray, items: FloatArray, k: int, hidden: BitArray | None
    ) -> CountArray:
        best = np.empty((len(vectors), k), dtype=np.int64)
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            scores = self.inner_products(vectors[rows], items)
            best[rows] = self.top_items(scores, k, None if hidden is None else hidden[rows])
        return best

    def top_items(self, scores: FloatArray, k: int, hidden: BitArray | None = None) -> CountArray:
        if hidden is not None:
            is_hidden = bits.unpack(hidden, scores.shape[1])
            scores = np.where(is_hidden, np.float32(-np.inf), scores)
        rows, columns = np.nonzero(scores >= _kth_largest(scores, k))
        order = np.lexsort((columns, -scores[rows, columns], rows))
        counts = np.bincount(rows, minlength=len(scores))  # more than k where values tie
        first = np.cumsum(counts) - counts
        best: CountArray = columns[order][first[:, None] + np.arange(k)]
        return best


def group_excess(
    recent: NDArray[np.integer], filled: NDArray[np.integer], target: DoubleArray
) -> DoubleArray:
    """Exposures above what is due to their groups, half of the L1 distance to what is due.

    Groups are summed in the order in which they first occur, so that groups that do not occur cost
    nothing.

    Args:
        recent: (n, window) groups of exposures, latest last.
        filled: (n,) how many of them, from the last on, are real.
        target: (G,) shares that are due.

    Returns:
        (n,) float64, at least 0.
    """
    if len(target) == 2:  # one count says all
        second = (recent * _real(recent, filled)).sum(axis=1, dtype=np.int64)
        return _excess_of_two(second, filled, target)
    real = _real(recent, filled)
    alike = (recent[:, :, None] == recent[:, None, :]) & real[:, None, :]
    is_first = real & ~np.tril(alike, -1).any(axis=2)
    excess = np.maximum(alike.sum(axis=2) - target[recent] * filled[:, None], 0.0)
    total: DoubleArray = np.cumsum(np.where(is_first, excess, 0.0), axis=1)[:, -1]
    return total


def _excess_of_two(
    second: CountArray, filled: NDArray[np.integer], target: DoubleArray
) -> DoubleArray:
    """(n,) float64 excess of two groups, from the exposures of group 1."""
    excess = np.maximum(second - target[1] * filled, 0.0)
    return np.asarray(excess + np.maximum((filled - second) - target[0] * filled, 0.0))


def _real(recent: NDArray[np.integer], filled: NDArray[np.integer]) -> BoolArray:
    """(n, window) bool: where there was an exposure; windows fill from the end."""
    real: BoolArray = np.arange(recent.shape[1]) >= recent.shape[1] - filled[:, None]
    return real


def _expose(
    rules: Rules, state: SessionState, slates: NDArray[np.int64], slots: BoolArray
) -> BoolArray:
    """Marks the items of some sessions' slates as exposed.

    Returns:
        (N, K) bool: items of these sessions that may be answered, neither shown before nor
        repeated.
    """
    fresh = np.empty(slates.shape, dtype=bool)
    flat, width = state.exposed.reshape(-1), state.exposed.shape[1]
    rows = np.arange(len(slates)) * width
    # An item is marked as it is met, so that its second position in the slate is a repeat.
    for position, items in enumerate(slates.T):
        byte, bit = rows + (items >> 3), _BITS[items & 7] * slots
        marks = flat[byte]
        np.greater(bit, marks & bit, out=fresh[:, position])
        flat[byte] = marks | bit
    if rules.allow_repeats:
        fresh[:] = slots[:, None]
    return fresh


def mean_embedding(total: FloatArray, weight: FloatArray) -> FloatArray:
    """(N, d) float32 weighted means of (N, d) sums with (N,) weights; zero without weight."""
    return np.divide(total, np.maximum(weight, np.finfo(np.float32).tiny)[:, None])


def preference(
    total: FloatArray, weight: FloatArray, mean: FloatArray, scale: FloatArray, bound: float
) -> FloatArray:
    """Standardised mean embeddings of histories.

    Args:
        total: (N, d) float32, see :meth:`Engine.update`.
        weight: (N,) float32; a user without weight sits at the origin.
        mean: (d,) float32 to subtract from a mean embedding.
        scale: (d,) float32 to divide it by.
        bound: Largest absolute value.

    Returns:
        (N, d) float32.
    """
    states: FloatArray = (mean_embedding(total, weight) - mean) / scale
    states[weight <= 0] = 0.0
    np.minimum(states, np.float32(bound), out=states)  # np.clip is slow
    return np.maximum(states, np.float32(-bound), out=states)


def _kth_largest(scores: FloatArray, k: int) -> FloatArray:
    """(N, 1) float32, the k-th largest score of each row.

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
    rank = scores.shape[1] - k
    return np.partition(scores, rank, axis=1)[:, rank, None]
