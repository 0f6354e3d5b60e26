"""What the two engines work on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMBALANCE, POPULARITY, NO_PENALTY = 0, 1, 2  # abandonment rules, as numbers

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
CountArray = NDArray[np.int64]


class Rules(NamedTuple):
    """What does not change in a session; see :class:`~kuaisim_gym.config.SessionConfig`.

    Attributes:
        popular: (n_items,) bool, the popular group.
        weights: (B,) float32 of the behaviours in a response.
        stochastic: Whether responses are drawn.
        allow_repeats: Whether an item may be answered twice in a session.
        per_request: Whether a step costs one temper whatever its reward.
        abandonment: ``IMBALANCE``, ``POPULARITY`` or ``NO_PENALTY``.
        surplus: How many more popular than long-tail exposures in the window are too many.
        step_limit: Steps after which a session is truncated.
        least_temper: Temper below which a user leaves.
    """

    popular: BoolArray
    weights: FloatArray
    stochastic: bool
    allow_repeats: bool
    per_request: bool
    abandonment: int
    surplus: float
    step_limit: int
    least_temper: float


class SessionState(NamedTuple):
    """N sessions with slates of K items, changed in place.

    Attributes:
        seeds: (N,) uint64, of the slots.
        episodes: (N,) int64, resets that a slot has seen since it was seeded, from 0.
        users: (N,) int32 positions of the users.
        active: (N,) bool, whether a session has begun and is not over.
        steps: (N,) int64 steps made.
        temper: (N,) float64, patience left, in steps.
        share: (N,) float64 in [0, 1], popular share of the exposure window, 0.5 before any
            exposure.
        last_reward: (N,) float64, zero before the first step.
        reward_sum: (N,) float64, of the session so far.
        recent: (N, window) bool, popular flags of the latest exposures, latest last.
        exposed: (N, n_items) bool, shown in this session.
        slates: (N, longest, K) int32 items shown, -1 where no step was made yet.
        responses: (N, longest, K) float32, zero where no step was made yet.
        rewards: (N, longest) float64, likewise.
        penalised: (N, longest) bool, likewise false.
        tempers: (N, longest) float64 after each step; only steps made have a meaning.
        shares: (N, longest) float64 after each step; likewise.
    """

    seeds: NDArray[np.uint64]
    episodes: CountArray
    users: NDArray[np.int32]
    active: BoolArray
    steps: CountArray
    temper: DoubleArray
    share: DoubleArray
    last_reward: DoubleArray
    reward_sum: DoubleArray
    recent: BoolArray
    exposed: BoolArray
    slates: NDArray[np.int32]
    responses: FloatArray
    rewards: DoubleArray
    penalised: BoolArray
    tempers: DoubleArray
    shares: DoubleArray


class StepResult(NamedTuple):
    """What one step did, a row per session; sessions that stood still have zeros.

    Attributes:
        responses: (N, K) float32 in [0, 1], in slate order: what the reward is the mean of.
        feedback: (N, K, B) float32 in [0, 1], the answers, a column for each behaviour.
        reward: (N,) float64 in [0, 1], mean response.
        penalised: (N,) bool, whether the exposure window cost one temper.
        terminated: (N,) bool, the user left.
        truncated: (N,) bool, the step cap was met first.
    """

    responses: FloatArray
    feedback: FloatArray
    reward: DoubleArray
    penalised: BoolArray
    terminated: BoolArray
    truncated: BoolArray

    @property
    def done(self) -> BoolArray:
        """(N,) bool: the session is over, either way."""
        return self.terminated | self.truncated
