"""Dynamics of N sessions.

A step: the slate is answered, the reward is the mean answer, an unbalanced exposure window
costs one temper, dissatisfaction costs between one and two, and a user whose temper falls below
one leaves. Environments decide when to reset; the core never does. The arithmetic itself is in
:mod:`kuaisim_gym.engine`.

With steady mean reward R and penalty rate q every policy obeys
``E[Len] = (max_len - 1) / (2 - R + q) + 0.5``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import SessionConfig, check_whole
from kuaisim_gym.engine import Engine, bits, find_engine
from kuaisim_gym.engine.types import (
    Arrivals,
    BoolArray,
    DoubleArray,
    FloatArray,
    Rules,
    Scores,
    SessionState,
    StepResult,
)
from kuaisim_gym.errors import ConfigError, InvalidActionError, ResetNeededError
from kuaisim_gym.randomness import USER_STREAM
from kuaisim_gym.simulator.groups import SLACK, Groups, count_boxes, penalty_rule
from kuaisim_gym.simulator.platform import Platform
from kuaisim_gym.simulator.pools import Pools
from kuaisim_gym.simulator.response import FactorAnswers, ResponseModel
from kuaisim_gym.simulator.rules import OwnRules
from kuaisim_gym.snapshots import Snapshot, under, within


class SessionCore:
    """N sessions in lockstep, without automatic reset.

    Args:
        model: Answers (user, item) positions with probabilities.
        groups: Groups of the catalogue's items, between which exposures are balanced.
        session_users: (n,) int32 positions of the users who may arrive.
        config: The rules.
        n_sessions: N.
        engine: Computes the steps; :func:`~kuaisim_gym.engine.find_engine` by default.
        vectors: (n_items, d) float32, by which items of a slate resemble each other; needed where
            ``config.correlation`` is not 0.
        pools: Items that the users can be shown; ``None`` for the catalogue. Others count as
            exposed already, and a session ends (truncated) when its pool has no slate left.
        popular: (n_items,) bool, items whose exposures are counted; group 1's if ``None``.
        platform: Changes the catalogue under the sessions; ``None`` where nothing does. Items that
            are not there count as exposed already.
        own_rules: Rules of one's own, if there are any. A reward of one's own is what a step
            returns; the user's patience and the state follow the mean response as ever.

    Attributes:
        state: The sessions, as :class:`~kuaisim_gym.engine.types.SessionState` describes them.
        rules: The rules, as arrays and numbers.
        answers: Memory of the response model.
        everyone: (N,) bool, all slots.

    Raises:
        ConfigError: A slate does not fit into the catalogue, there are no users, or the rule of
            abandonment does not go with the groups; or pools are too small, or meet repeats.
    """

    def __init__(
        self,
        model: ResponseModel,
        groups: Groups,
        session_users: NDArray[np.int32],
        config: SessionConfig,
        n_sessions: int,
        engine: Engine | None = None,
        vectors: FloatArray | None = None,
        pools: Pools | None = None,
        popular: BoolArray | None = None,
        platform: Platform | None = None,
        own_rules: OwnRules | None = None,
    ) -> None:
        check_whole("The number of sessions", n_sessions, 1)
        if config.slate_size > groups.n_items:
            raise ConfigError(
                f"slate_size must be at most the catalogue's {groups.n_items} items, "
                f"got {config.slate_size}."
            )
        if len(session_users) == 0:
            raise ConfigError("This split has no users to draw sessions from.")
        _check_pools(pools, session_users, config)
        self.pools = pools
        self.platform = platform
        self.own_rules = own_rules
        self.engine = find_engine() if engine is None else engine
        self.model = model
        self.groups = groups
        self.session_users = session_users
        self.config = config
        self.n_sessions = n = int(n_sessions)
        self.answers = model.begin(n, self.engine)
        self._directions = _directions(vectors, config.correlation)
        self.everyone = np.ones(n, dtype=bool)
        window, slate, longest = config.exposure_window, config.slate_size, config.longest
        self.rules = Rules(
            groups.labels,
            groups.target,
            groups.labels == 1 if popular is None else popular,
            *penalty_rule(groups, config),
            config.behaviour_weights(model.behaviours),
            config.stochastic_response,
            config.allow_repeats,
            config.step_cost == "request",
            config.step_limit,
            1.0 - SLACK,
        )
        self._share_before = 0.0 if len(groups) > 2 else 0.5
        self.state = SessionState(
            seeds=np.zeros(n, dtype=np.uint64),
            episodes=np.full(n, -1, dtype=np.int64),
            users=np.zeros(n, dtype=np.int32),
            active=np.zeros(n, dtype=bool),
            steps=np.zeros(n, dtype=np.int64),
            temper=np.zeros(n),
            share=np.full(n, self._share_before),
            last_reward=np.zeros(n),
            reward_sum=np.zeros(n),
            penalties=np.zeros(n, dtype=np.int64),
            popular=np.zeros(n, dtype=np.int64),
            recent=np.zeros((n, window), dtype=groups.labels.dtype),
            exposed=np.zeros((n, bits.width(groups.n_items)), dtype=np.uint8),
            slates=np.full((n, longest, slate), -1, dtype=np.int32),
            responses=np.zeros((n, longest, slate), dtype=np.float32),
            rewards=np.zeros((n, longest)),
            penalised=np.zeros((n, longest), dtype=bool),
            tempers=np.zeros((n, longest)),
            shares=np.zeros((n, longest)),
        )

    def seed(self, seeds: NDArray[np.uint64], slots: BoolArray | None = None) -> None:
        """Restarts the random sequence of some slots, which must be reset before the next step.

        Args:
            seeds: (N,) uint64; only the entries of ``slots`` are read.
            slots: (N,) bool, all slots if ``None``.
        """
        rows = np.flatnonzero(self.everyone if slots is None else slots)
        self.state.seeds[rows] = seeds[rows]
        self.state.episodes[rows] = -1
        self.state.active[rows] = False

    def reset(
        self, slots: BoolArray | None = None, users: NDArray[np.integer] | None = None
    ) -> None:
        """Begins a new session in some slots.

        Args:
            slots: (N,) bool, all slots if ``None``.
            users: Positions of the users of these slots, in slot order; newly drawn if ``None``.
        """
        state = self.state
        slots = self.everyone if slots is None else slots
        rows = np.flatnonzero(slots)
        if not rows.size:
            return
        state.episodes[rows] += 1
        if users is None:
            draw = self.uniform(rows, USER_STREAM, step=0)
            users = self.session_users[(draw * len(self.session_users)).astype(np.int64)]
        arrivals: NDArray[np.int32] = users.astype(np.int32, copy=False)
        self.engine.begin(state, rows, arrivals, self.config.max_len)
        state.share[rows] = self._share_before
        if self.pools is not None:
            state.exposed[rows] = bits.pack(self.pools.outside(arrivals))
        if self.platform is not None:
            self.platform.arrive(state, rows)
        self.answers.reset(slots, arrivals)
        if self.own_rules is not None:
            self.own_rules.reset(rows, arrivals)

    def step(self, slates: NDArray[np.integer], slots: BoolArray | None = None) -> StepResult:
        """Shows one slate to each of some sessions.

        Args:
            slates: (N, K) integers, item positions in [0, n_items).
            slots: (N,) bool, who is shown a slate, all sessions if ``None``. The others stand
                still, but must be reset before their next step: a model with memory has moved on.

        Returns:
            The outcome. Sessions that ended must be reset before the next step.

        Raises:
            ResetNeededError: A session has not begun or is over.
            InvalidActionError: Wrong shape, dtype or item.
            ConfigError: A rule of one's own does not return what it should.
        """
        everyone = slots is None
        slots = self.everyone if slots is None else slots
        shown = self.conform(slates)
        self.check(shown, slots)
        if not everyone:
            shown = np.where(slots[:, None], shown, 0)
        probability = self.chances(shown)
        result = self.engine.advance(self.rules, self.state, shown, probability, slots)
        self.answers.observe(shown, result.feedback)
        if self.platform is not None:
            self.platform.show(self.state, shown, result.answered, slots)
        if self.own_rules is not None:
            try:
                result = self._judged(self.own_rules, result, np.flatnonzero(slots))
            except ConfigError:
                self.state.active[slots] = False  # half a step: none follows but a reset
                raise
        left = self._left()
        if left is not None:
            exhausted = slots & self.state.active & (left < self.config.slate_size)
            result.truncated[exhausted] = True
            self.state.active[exhausted] = False
        if not everyone:
            self.state.active[~slots] = False
        return result

    @property
    def can_run_dry(self) -> bool:
        """True where a session ends when fewer items than a slate's are left to show."""
        platform = self.platform
        return self.pools is not None or (platform is not None and platform.can_run_dry)

    def _left(self) -> NDArray[np.int64] | None:
        """(N,) int64 items left to show, where sessions can run dry."""
        if not self.can_run_dry:
            return None
        if self.platform is not None:
            return self.platform.left(self.state)
        left: NDArray[np.int64] = self.unexposed().sum(axis=1)
        return left

    def _judged(self, rules: OwnRules, result: StepResult, rows: NDArray[np.int64]) -> StepResult:
        """The outcome of a step of some slots, and what rules of one's own make of it."""
        if rules.abandonment is not None:
            step = rules.step(self.state, result, rows)
            self._charge(rows, rules.abandonment.judge(step, rows), result)
        if rules.reward is None:
            return result
        step = rules.step(self.state, result, rows)  # as it stands after the user's decision
        reward = np.zeros((self.n_sessions, *rules.reward.low.shape))
        reward[rows] = rules.reward.judge(step, rows)
        return result._replace(reward=reward)

    def _charge(self, rows: NDArray[np.int64], cost: DoubleArray, result: StepResult) -> None:
        """Takes temper from users, all of it where the cost is infinite, as the step's penalty."""
        state, latest = self.state, (rows, self.state.steps[rows] - 1)
        state.temper[rows] = np.where(np.isinf(cost), 0.0, state.temper[rows] - cost)
        state.tempers[latest] = state.temper[rows]
        state.penalised[latest] = result.penalised[rows] = cost > 0
        state.penalties[rows] += cost > 0
        left = state.temper[rows] < self.rules.least_temper
        result.terminated[rows] = left
        result.truncated[rows] &= ~left
        state.active[rows] &= ~left

    def conform(self, slates: NDArray[np.integer]) -> NDArray[np.int64]:
        """Returns slates as (N, K) int64, if they are integers of that shape.

        Raises:
            InvalidActionError: They are not.
        """
        if not isinstance(slates, np.ndarray) or slates.dtype.kind not in "iu":
            kind = getattr(slates, "dtype", type(slates).__name__)
            raise InvalidActionError(
                f"A slate must be an integer array of item positions, got {kind}."
            )
        shape = (self.n_sessions, self.config.slate_size)
        if slates.shape != shape:
            raise InvalidActionError(
                f"Slates must have shape {shape} (sessions, slate_size), got {slates.shape}."
            )
        if slates.dtype.kind == "u":  # beyond int64, where a huge number would turn negative
            slates = np.minimum(slates, np.uint64(2**63 - 1))
        return np.ascontiguousarray(slates, dtype=np.int64)

    def check(self, slates: NDArray[np.int64], slots: BoolArray) -> None:
        """Checks that some sessions run, and that their (N, K) slates hold items.

        Raises:
            ResetNeededError: A session has not begun or is over.
            InvalidActionError: An item is not of the catalogue.
        """
        n_items = self.groups.n_items
        slot, position = self.engine.first_invalid(self.state.active, slots, slates, n_items)
        if slot >= 0:
            raise self.fault(slates, slot, position)

    def fault(self, slates: NDArray[np.int64], slot: int, position: int) -> Exception:
        """The error about a session, or a position of its slate, that cannot be stepped."""
        if position < 0:
            state = "is over" if self.state.episodes[slot] >= 0 else "has not begun"
            return ResetNeededError(f"Session {slot} {state}: call reset() before step().")
        return InvalidActionError(
            f"Item positions must lie in [0, {self.groups.n_items}), got {slates[slot, position]}."
        )

    def chances(self, slates: NDArray[np.int64]) -> FloatArray:
        """(N, K, B) float32 in [0, 1], of each behaviour, after what look-alikes take."""
        probability = self.answers.feedback(slates)
        if self._directions is None:
            return probability
        alike = _resemblance(self._directions[slates])
        probability = probability - np.float32(self.config.correlation) * alike[:, :, None]
        return np.maximum(probability, np.float32(0.0))

    def unexposed(self) -> BoolArray:
        """(N, n_items) bool: items that each session has not shown, and can show."""
        return ~bits.unpack(self.state.exposed, self.groups.n_items)

    def arrivals(self) -> Arrivals:
        """Arrays of the users who may arrive, and how their sessions begin."""
        of_model = getattr(self.answers, "users", self.state.users)
        return Arrivals(self.session_users, of_model, self.config.max_len, self._share_before)

    def scores(self) -> Scores | None:
        """Arrays of the factor model that answers alone; ``None`` where other things tell, too."""
        if type(self.answers) is not FactorAnswers or self._directions is not None:
            return None
        return self.answers.scores

    def uniform(
        self, rows: NDArray[np.int64], stream: int, step: int | NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(n,) float64 in (0, 1): one number for each of some sessions."""
        steps = np.full(rows.shape, step, dtype=np.int64)
        seeds, episodes = self.state.seeds[rows], self.state.episodes[rows]
        return self.engine.uniform(seeds, episodes, steps, 1, stream)[:, 0]

    @property
    def unpenalised(self) -> tuple[float, float]:
        """Bounds of a full exposure window's ``share``, between which no step is penalised.

        The share is that of :class:`~kuaisim_gym.engine.types.SessionState`: of the second of two
        groups, such as the popular one, or the imbalance of more.
        """
        rule, half = self.config.abandonment, self.config.ad_bound / 2.0
        if rule == "none":
            return -np.inf, np.inf
        if len(self.groups) > 2:
            return -np.inf, half
        first, second = self.groups.target.tolist()
        return (-np.inf if rule == "popularity" else 1.0 - (first + half)), second + half

    def free_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bounds on a slate's items of each group, within which no slate is penalised.

        Of two groups they are those of :attr:`unpenalised`; of more the widest ones whose worst
        slate is not penalised.

        Returns:
            (G,) int64 least and most items of each group in a slate.

        Raises:
            ConfigError: The exposure window does not hold whole slates, or no slate is free.
        """
        config, k = self.config, self.config.slate_size
        if config.exposure_window % k:
            raise ConfigError(
                f"Only a window of whole slates is unpenalised whenever its slates are, but window "
                f"is {config.exposure_window} and slate_size {k}."
            )
        every, none = np.full(len(self.groups), k), np.zeros(len(self.groups), dtype=np.int64)
        limit = config.ad_bound * k - SLACK
        if config.abandonment == "imbalance":
            bounds = count_boxes(self.groups.target, k).within(limit / 2.0)
            if bounds is None:
                raise ConfigError(
                    f"No slate of {k} items is unpenalised at ad_bound={config.ad_bound}: make the "
                    "slates or the bound larger."
                )
            return bounds
        if config.abandonment == "popularity":
            due = self.groups.target * k
            most = np.array([k, np.ceil(due[1] + limit / 2.0) - 1], dtype=np.int64)
            return k - most[::-1], most
        return none, every

    def snapshot(self) -> Snapshot:
        """Copies of all state of the sessions, by name."""
        state = {name: array.copy() for name, array in self.state._asdict().items()}
        for name, memory in self._memories().items():
            state |= under(name, memory.snapshot())
        return state

    def restore(self, snapshot: Snapshot) -> None:
        """Returns to a snapshot of a core with the same options."""
        for name, array in self.state._asdict().items():
            array[...] = snapshot[name]
        for name, memory in self._memories().items():
            memory.restore(within(name, snapshot))

    def _memories(self) -> dict[str, Any]:
        """Objects that change with the sessions, by their names in a snapshot."""
        memories = {"answers": self.answers, "platform": self.platform, "rules": self.own_rules}
        return {name: memory for name, memory in memories.items() if memory is not None}


def _check_pools(pools: Pools | None, users: NDArray[np.int32], config: SessionConfig) -> None:
    """Checks that each user's pool fills a slate, and that no item outside it can be answered."""
    if pools is None:
        return
    smallest = int(pools.sizes(users).min())
    if smallest < config.slate_size:
        raise ConfigError(
            f"slate_size must be at most {smallest}, the items that a user of this dataset can be "
            f"shown, got {config.slate_size}."
        )
    if config.allow_repeats:
        raise ConfigError(
            "allow_repeats=True would answer items outside a user's pool, of which this dataset "
            "has no answer; leave it out."
        )


def _directions(vectors: FloatArray | None, correlation: float) -> FloatArray | None:
    """(n_items, d) float32 of length one, or zero; ``None`` where they are not needed."""
    if correlation == 0.0:
        return None
    if vectors is None:
        raise ConfigError("correlation needs item vectors, got none; set it to 0.")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), dtype=np.float32)


def _resemblance(directions: FloatArray) -> FloatArray:
    """Mean cosine of each item of a slate to its other items, at least 0.

    KuaiSim's is divided by the dimension once more, and includes the item itself.

    Args:
        directions: (N, K, d) float32.

    Returns:
        (N, K) float32 in [0, 1].
    """
    k = directions.shape[1]
    if k == 1:
        return np.zeros(directions.shape[:2], dtype=np.float32)
    cosines = np.einsum("nid,njd->nij", directions, directions)
    diagonal = np.einsum("nii->ni", cosines)
    mean = (cosines.sum(axis=2) - diagonal) / np.float32(k - 1)
    return np.asarray(np.clip(mean, 0.0, 1.0), dtype=np.float32)
