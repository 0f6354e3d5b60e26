"""The dynamics of N sessions, the only place where they exist.

A step: the slate is answered, the reward is the mean answer, an unbalanced exposure window
costs one temper, dissatisfaction costs between one and two, and a user whose temper falls below
one leaves. Shells decide when to reset; the core never does.

With steady mean reward R and penalty rate q every policy obeys
``E[Len] = (max_len - 1) / (2 - R + q) + 0.5``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.errors import ConfigError, InvalidActionError, ResetNeededError
from kuaisim_gym.randomness import RESPONSE_STREAM, USER_STREAM, uniform
from kuaisim_gym.simulator.response import ResponseModel

# Tenths, and probabilities in float32, do not sum exactly: temper that is 1 on paper may come out a
# little below. Thresholds are compared with this slack, far below a tenth, the smallest difference
# that a slate of ten makes.
_SLACK = 1e-5

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class StepResult:
    """What one step did, a row per session.

    Attributes:
        responses: (N, K) float32 in [0, 1], in slate order: what the reward is the mean of.
        feedback: (N, K, B) float32 in [0, 1], the answers, a column for each behaviour.
        reward: (N,) float64 in [0, 1], mean response.
        penalised: (N,) bool, whether the exposure window cost one temper.
        terminated: (N,) bool, the user left.
        truncated: (N,) bool, the step cap was met first.
    """

    responses: NDArray[np.float32]
    feedback: NDArray[np.float32]
    reward: NDArray[np.float64]
    penalised: BoolArray
    terminated: BoolArray
    truncated: BoolArray

    @property
    def done(self) -> BoolArray:
        """(N,) bool: the session is over, either way."""
        return self.terminated | self.truncated


class SessionCore:
    """N sessions in lockstep, without automatic reset.

    Args:
        model: Answers (user, item) positions with probabilities.
        popular: (n_items,) bool, the popular group.
        session_users: (n,) int32 positions of the users who may arrive.
        config: The rules.
        n_sessions: N.

    Attributes:
        users: (N,) int32 position of the user of each session.
        temper: (N,) float64, patience left, in steps.
        steps: (N,) int64 steps made.
        slates: (N, longest, K) int32 items shown, -1 where no step was made yet.
        rewards: (N, longest) float64, zero where no step was made yet.
        penalised: (N, longest) bool, false where no step was made yet.

    Raises:
        ConfigError: A slate does not fit into the catalogue, or there are no users.
    """

    def __init__(
        self,
        model: ResponseModel,
        popular: BoolArray,
        session_users: NDArray[np.int32],
        config: SessionConfig,
        n_sessions: int,
    ) -> None:
        if not isinstance(n_sessions, int) or n_sessions < 1:
            raise ConfigError(
                f"The number of sessions must be an integer of at least 1, got {n_sessions!r}."
            )
        if config.slate_size > len(popular):
            raise ConfigError(
                f"slate_size must be at most the catalogue's {len(popular)} items, "
                f"got {config.slate_size}."
            )
        if len(session_users) == 0:
            raise ConfigError("This split has no users to draw sessions from.")
        self.model = model
        self._answers = model.begin(n_sessions)
        self._weights = config.behaviour_weights(model.behaviours)
        self.popular = popular
        self.session_users = session_users
        self.config = config
        self.n_sessions = n_sessions
        n, slate, window = n_sessions, config.slate_size, config.exposure_window
        self.seeds: NDArray[np.uint64] = np.zeros(n, dtype=np.uint64)
        self.episodes: NDArray[np.int64] = np.full(n, -1, dtype=np.int64)
        self.users: NDArray[np.int32] = np.zeros(n, dtype=np.int32)
        self.temper: NDArray[np.float64] = np.zeros(n)
        self.steps: NDArray[np.int64] = np.zeros(n, dtype=np.int64)
        self.slates: NDArray[np.int32] = np.full((n, config.longest, slate), -1, dtype=np.int32)
        self.exposed: BoolArray = np.zeros((n, len(popular)), dtype=bool)
        self.rewards: NDArray[np.float64] = np.zeros((n, config.longest))
        self.penalised: BoolArray = np.zeros((n, config.longest), dtype=bool)
        self._recent: BoolArray = np.zeros((n, window), dtype=bool)  # popular flags, latest last
        self._active: BoolArray = np.zeros(n, dtype=bool)
        self._rows = np.arange(n)

    def seed(self, seeds: NDArray[np.uint64], slots: BoolArray | None = None) -> None:
        """Restarts the random sequence of some slots, which must be reset before the next step.

        Args:
            seeds: (N,) uint64; only the entries of ``slots`` are read.
            slots: (N,) bool, all slots if ``None``.
        """
        slots = np.ones(self.n_sessions, dtype=bool) if slots is None else slots
        self.seeds[slots] = seeds[slots]
        self.episodes[slots] = -1
        self._active[slots] = False

    def reset(self, slots: BoolArray | None = None) -> None:
        """Begins a new session, with a newly drawn user, in some slots.

        Args:
            slots: (N,) bool, all slots if ``None``.
        """
        slots = np.ones(self.n_sessions, dtype=bool) if slots is None else slots
        self.episodes[slots] += 1
        zero = np.zeros(int(slots.sum()), dtype=np.int64)
        draw = uniform(self.seeds[slots], self.episodes[slots], zero, 1, USER_STREAM)[:, 0]
        self.users[slots] = self.session_users[(draw * len(self.session_users)).astype(np.int64)]
        self._answers.reset(slots, self.users[slots])
        self.temper[slots] = self.config.max_len
        self.slates[slots] = -1
        for record in (self.steps, self.exposed, self.rewards, self.penalised, self._recent):
            record[slots] = 0
        self._active[slots] = True

    def step(self, slates: NDArray[np.integer]) -> StepResult:
        """Shows one slate to every session.

        Args:
            slates: (N, K) integers, item positions in [0, n_items).

        Returns:
            What happened. Sessions that ended must be reset before the next step.

        Raises:
            ResetNeededError: A session has not begun or is over.
            InvalidActionError: Wrong shape, dtype or item.
        """
        self._check(slates)
        config, rows = self.config, self._rows[:, None]
        fresh = self._fresh(slates)
        feedback = self._answers.feedback(slates)
        if config.stochastic_response:
            # Behaviour by behaviour, so that the first meets the same draws however many follow.
            n_behaviours = feedback.shape[2]
            draws = uniform(
                self.seeds,
                self.episodes,
                self.steps,
                n_behaviours * config.slate_size,
                RESPONSE_STREAM,
            ).reshape(len(slates), n_behaviours, config.slate_size)
            feedback = (draws.swapaxes(1, 2) < feedback).astype(np.float32)
        feedback = feedback * fresh[:, :, None]
        self._answers.observe(slates, feedback)
        responses = np.maximum(feedback @ self._weights, np.float32(0.0))
        reward = responses.mean(axis=1, dtype=np.float64)

        now = (self._rows, self.steps.copy())
        self.slates[now] = slates
        self.rewards[now] = reward
        self.exposed[rows, slates] = True
        self.steps += 1
        self._recent = np.concatenate([self._recent, self.popular[slates]], axis=1)
        self._recent = self._recent[:, -config.exposure_window :]
        penalised = self._penalised()
        self.penalised[now] = penalised
        self.temper += np.clip(reward - 2.0, -2.0, 0.0) - penalised

        terminated = self.temper < 1.0 - _SLACK
        truncated = (self.steps >= config.step_limit) & ~terminated
        self._active = ~(terminated | truncated)
        return StepResult(responses, feedback, reward, penalised, terminated, truncated)

    @property
    def popular_share(self) -> NDArray[np.float64]:
        """(N,) float64 in [0, 1]: popular share of the exposure window, 0.5 before any exposure."""
        made = np.minimum(self.steps * self.config.slate_size, self.config.exposure_window)
        return np.where(made > 0, self._recent.sum(axis=1) / np.maximum(made, 1), 0.5)

    def _fresh(self, slates: NDArray[np.integer]) -> BoolArray:
        """(N, K) bool: items that may be answered, neither shown before nor repeated."""
        if self.config.allow_repeats:
            return np.ones(slates.shape, dtype=bool)
        fresh: BoolArray = ~self.exposed[self._rows[:, None], slates]
        order = np.argsort(slates, axis=1, kind="stable")
        ordered = np.take_along_axis(slates, order, axis=1)
        repeated = np.zeros(slates.shape, dtype=bool)
        np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
        fresh &= ~repeated
        return fresh

    def _penalised(self) -> BoolArray:
        """(N,) bool: the abandonment rule, on counts so that thresholds are exact."""
        window, rule = self.config.exposure_window, self.config.abandonment
        full = self.steps * self.config.slate_size >= window
        surplus = 2 * self._recent.sum(axis=1) - window  # window * (2s - 1)
        threshold = self.config.ad_bound * window - _SLACK
        unbalanced: BoolArray = np.zeros(self.n_sessions, dtype=bool)
        if rule == "imbalance":
            unbalanced = np.abs(surplus) >= threshold
        elif rule == "popularity":
            unbalanced = surplus >= threshold
        return np.logical_and(full, unbalanced)

    def _check(self, slates: NDArray[np.integer]) -> None:
        if not self._active.all():
            slot = int(np.flatnonzero(~self._active)[0])
            state = "is over" if self.episodes[slot] >= 0 else "has not begun"
            raise ResetNeededError(f"Session {slot} {state}: call reset() before step().")
        shape, n_items = (self.n_sessions, self.config.slate_size), len(self.popular)
        if not isinstance(slates, np.ndarray) or slates.dtype.kind not in "iu":
            kind = getattr(slates, "dtype", type(slates).__name__)
            raise InvalidActionError(
                f"A slate must be an integer array of item positions, got {kind}."
            )
        if slates.shape != shape:
            raise InvalidActionError(
                f"Slates must have shape {shape} (sessions, slate_size), got {slates.shape}."
            )
        bad = (slates < 0) | (slates >= n_items)
        if bad.any():
            raise InvalidActionError(
                f"Item positions must lie in [0, {n_items}), got {slates[bad][0]}."
            )
