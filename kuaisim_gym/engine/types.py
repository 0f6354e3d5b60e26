"""Interface of engines, and the named tuples that they work on."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.engine.bits import BitArray

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
CountArray = NDArray[np.int64]
LabelArray = NDArray[np.signedinteger]


class Rules(NamedTuple):
    """Constants of a session; see :class:`~kuaisim_gym.config.SessionConfig`.

    Attributes:
        labels: (n_items,) int8, int16 or int32, the group of each item.
        target: (G,) float64, the share of the exposures that is due to each group; sums to one.
        popular: (n_items,) bool, the popular items, whatever the groups.
        one_sided: Whether group 1, of two, is penalised for too many exposures alone; else groups
            are for their distance.
        limit: Surplus of the exposure window from which on a step is penalised: twice the
            exposures above what is due to their groups, which is the L1 distance of their counts to
            what is due; or twice group 1's alone, where they may be fewer than due.
        weights: (B,) float32 of the behaviours in a response.
        stochastic: Whether responses are drawn.
        allow_repeats: Whether an item may be answered twice in a session.
        per_request: Whether a step costs one temper for any reward.
        step_limit: Steps after which a session is truncated.
        least_temper: Temper below which a user leaves.
    """

    labels: LabelArray
    target: DoubleArray
    popular: BoolArray
    one_sided: bool
    limit: float
    weights: FloatArray
    stochastic: bool
    allow_repeats: bool
    per_request: bool
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
        share: (N,) float64 in [0, 1], of the exposure window: the share of the second of two
            groups, 0.5 before any exposure; of more groups half of the L1 distance to the target,
            0 before any exposure.
        last_reward: (N,) float64, zero before the first step.
        reward_sum: (N,) float64, of the session so far.
        penalties: (N,) int64, penalised steps of the session so far.
        popular: (N,) int64, exposures of popular items in the session so far.
        recent: (N, window) int8, int16 or int32, groups of the latest exposures, latest last; zero
            in front of the first.
        exposed: (N, ceil(n_items / 8)) uint8, a bit for each item that this session has shown, see
            :mod:`~kuaisim_gym.engine.bits`.
        slates: (N, longest, K) int32 items shown, -1 where no step was made yet.
        responses: (N, longest, K) float32, zero where no step was made yet.
        rewards: (N, longest) float64, likewise.
        penalised: (N, longest) bool, false where no step was made yet.
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
    penalties: CountArray
    popular: CountArray
    recent: LabelArray
    exposed: BitArray
    slates: NDArray[np.int32]
    responses: FloatArray
    rewards: DoubleArray
    penalised: BoolArray
    tempers: DoubleArray
    shares: DoubleArray


class Arrivals(NamedTuple):
    """Users who may arrive, and how their sessions begin.

    Attributes:
        users: (n,) int32 positions, drawn from uniformly.
        answering: (N,) int32, the users whom the response model answers for; changed in place.
        max_len: Temper of a new session, in steps.
        share: Share before any exposure.
    """

    users: NDArray[np.int32]
    answering: NDArray[np.int32]
    max_len: int
    share: float


class Scores(NamedTuple):
    """Arrays of a :class:`~kuaisim_gym.simulator.response.FactorModel`.

    Attributes:
        logistic: Whether scores are log-odds.
        mean: (B,) float32.
        slope: (B,) float32.
        user_effect: (B, n_users) float32.
        item_effect: (B, n_items) float32.
        user_factors: (n_users, rank) float32.
        item_factors: (n_items, rank) float32.
    """

    logistic: bool
    mean: FloatArray
    slope: FloatArray
    user_effect: FloatArray
    item_effect: FloatArray
    user_factors: FloatArray
    item_factors: FloatArray


class Pooled(NamedTuple):
    """Weighted sums of N histories: one of what log and session liked, or four that are apart.

    The four are :data:`~kuaisim_gym.observation.PARTS`. There are none where nothing is pooled.

    Attributes:
        total: (P, N, d) float32; changed in place.
        weight: (P, N) float32; changed in place.
        embedding: (n_all_items, d) float32.
        liked: (n_users, d) float32 sums of what was liked in logs.
        liked_weight: (n_users,) float32.
        shown: (n_users, d) float32 sums of what was shown in logs.
        shown_weight: (n_users,) float32.
        mean: (d,) float32 to subtract from a mean embedding that is observed.
        scale: (d,) float32 to divide it by.
        bound: Largest absolute value that is observed.
    """

    total: FloatArray
    weight: FloatArray
    embedding: FloatArray
    liked: FloatArray
    liked_weight: FloatArray
    shown: FloatArray
    shown_weight: FloatArray
    mean: FloatArray
    scale: FloatArray
    bound: np.float32


class Beliefs(NamedTuple):
    """Gaussian beliefs about N users, of no sessions where there are none.

    Attributes:
        mean: (N, d) float64; changed in place.
        covariance: (N, d, d) float64; changed in place.
        first_mean: (n_users, d) float64, about users who arrive.
        first_covariance: (n_users, d, d) float64, likewise; (1, d, d) if it is the same for all.
        design: (n_items, d) float64, see :meth:`Engine.condition`, as the next four.
        quality: (n_items,) float64.
        variance: (n_items,) float64.
        link: (points, 2) float64.
        link_bound: Scores beyond it count as there.
        follows: Whether answers tell of the users.
        observed: Whether the belief is observed.
        bound: Largest absolute value that is observed.
    """

    mean: DoubleArray
    covariance: DoubleArray
    first_mean: DoubleArray
    first_covariance: DoubleArray
    design: DoubleArray
    quality: DoubleArray
    variance: DoubleArray
    link: DoubleArray
    link_bound: float
    follows: bool
    observed: bool
    bound: float


class Exposures(NamedTuple):
    """Exposures on a platform whose items come and go, T steps of N sessions.

    Attributes:
        popular: (n_items,) bool, today's popular group.
        counts: (n_items,) int64, today's exposures; changed in place, as the next two.
        shown_popular: (N, T, K) bool, whether each exposure was of an item popular that day.
        step_days: (N, T) int16, the day of each step.
    """

    popular: BoolArray
    counts: CountArray
    shown_popular: BoolArray
    step_days: NDArray[np.int16]


class StepResult(NamedTuple):
    """Outcome of one step, one row per session; sessions that made no step have zeros.

    Attributes:
        slates: (N, K) int64 items shown.
        responses: (N, K) float32 in [0, 1], in slate order: what the reward is the mean of.
        feedback: (N, K, B) float32 in [0, 1], the answers, a column for each behaviour.
        answered: (N, K) bool, items that were answered; the others were shown before.
        reward: (N,) float64 in [0, 1], mean response; or (N,) or (N, D), of a rule of one's own.
        penalised: (N,) bool, whether the exposure window cost one temper.
        terminated: (N,) bool, the user left.
        truncated: (N,) bool, the step cap was met first.
    """

    slates: NDArray[np.int64]
    responses: FloatArray
    feedback: FloatArray
    answered: BoolArray
    reward: DoubleArray
    penalised: BoolArray
    terminated: BoolArray
    truncated: BoolArray

    @property
    def done(self) -> BoolArray:
        """(N,) bool: sessions that are over, terminated or truncated."""
        return self.terminated | self.truncated


def no_outcome(n_sessions: int, slate_size: int, n_behaviours: int) -> tuple[Any, ...]:
    """Zeros for the fields of a :class:`StepResult` behind the slates, in order."""
    return (
        np.zeros((n_sessions, slate_size), dtype=np.float32),
        np.zeros((n_sessions, slate_size, n_behaviours), dtype=np.float32),
        np.zeros((n_sessions, slate_size), dtype=bool),
        np.zeros(n_sessions),
        np.zeros(n_sessions, dtype=bool),
        np.zeros(n_sessions, dtype=bool),
        np.zeros(n_sessions, dtype=bool),
    )


class Engine(Protocol):
    """The arithmetic of sessions on arrays.

    Attributes:
        name: As in :func:`~kuaisim_gym.engine.find_engine`.
    """

    name: ClassVar[str]

    def uniform(
        self,
        seed: NDArray[np.uint64],
        episode: CountArray,
        step: CountArray,
        draws: int,
        stream: int,
    ) -> DoubleArray:
        """Random numbers of :func:`kuaisim_gym.randomness.uniform`."""

    def first_invalid(
        self, active: BoolArray, slots: BoolArray, slates: NDArray[np.int64], n_items: int
    ) -> tuple[int, int]:
        """Finds the first session that cannot be stepped.

        Args:
            active: (N,) bool, sessions that run.
            slots: (N,) bool, sessions to step.
            slates: (N, K) int64.
            n_items: Catalogue size.

        Returns:
            The session and the position in its slate that holds no item of the catalogue; the
            position is -1 where the session itself does not run; (-1, -1) if all are valid.
        """

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
        """Scores of :class:`~kuaisim_gym.simulator.response.FactorModel`, behaviour by behaviour.

        Args:
            users: (N,) int32 positions.
            slates: (N, K) positions.
            mean: (B,) float32.
            slope: (B,) float32.
            user_effect: (B, n_users) float32.
            item_effect: (B, n_items) float32.
            user_factors: (n_users, rank) float32.
            item_factors: (n_items, rank) float32.

        Returns:
            (N, K, B) float32.
        """

    def begin(
        self, state: SessionState, rows: CountArray, users: NDArray[np.int32], max_len: int
    ) -> None:
        """Begins new sessions in some slots, in place.

        Args:
            state: The sessions.
            rows: (n,) int64 slots.
            users: (n,) int32 positions of the users who arrive in them.
            max_len: Their temper, in steps.
        """

    def advance(
        self,
        rules: Rules,
        state: SessionState,
        slates: NDArray[np.int64],
        probability: FloatArray,
        slots: BoolArray,
    ) -> StepResult:
        """Makes one step of some sessions: answers, rewards, penalties, temper and ends.

        Args:
            rules: The rules.
            state: The sessions; those of ``slots`` must be active. Changed in place.
            slates: (N, K) int64 item positions; zeros but in rows of ``slots``.
            probability: (N, K, B) float32 in [0, 1], of each behaviour.
            slots: (N,) bool, which sessions make the step.

        Returns:
            Answers, rewards and ends.
        """

    def count_exposures(
        self,
        exposures: Exposures,
        day: int,
        steps: CountArray,
        slates: NDArray[np.int64],
        answered: BoolArray,
        slots: BoolArray,
    ) -> None:
        """Counts one step's exposures of a platform, in place.

        Args:
            exposures: Counts, and what is recorded of each.
            day: Today.
            steps: (N,) int64 steps of the sessions, this one included.
            slates: (N, K) int64 item positions.
            answered: (N, K) bool, the exposures that count.
            slots: (N,) bool, the sessions that made the step.
        """

    def update(
        self,
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
        """Conditions Gaussian beliefs on one step's answers, item by item, in place.

        An answer y of expectation g(s), s being the score at the mean, counts as the Gaussian
        observation of the score that has the same slope and information at s: an extended Kalman
        filter, whose update of the covariance is of rank one (Sherman & Morrison, 1950).

        Args:
            mean: (N, d) float64.
            covariance: (N, d, d) float64, symmetric.
            design: (n_items, d) float64: a score is ``quality + <design, user>``.
            quality: (n_items,) float64.
            variance: (n_items,) float64, of scores, by which items are not known.
            link: (points, 2) float64: g and its slope, at scores evenly spaced in [-bound, bound].
            bound: Scores beyond it count as there.
            slates: (N, K) int64 item positions.
            answers: (N, K) float32 in [0, 1].
            answered: (N, K) bool, the items that were answered.
        """

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
        """Writes standardised mean embeddings of histories into state vectors.

        Args:
            vectors: (N, ...) float32; changed in place.
            column: The first of the d columns to write.
            total: (N, d) float32, see :meth:`update`.
            weight: (N,) float32; a user without weight sits at the origin.
            mean: (d,) float32 to subtract from a mean embedding.
            scale: (d,) float32 to divide it by.
            bound: Largest absolute value of the preference.
        """

    def write_belief(
        self, vectors: FloatArray, mean: DoubleArray, covariance: DoubleArray, bound: float
    ) -> None:
        """Writes means, then variances, into the first columns of state vectors.

        Args:
            vectors: (N, ...) float32; changed in place.
            mean: (N, d) float64.
            covariance: (N, d, d) float64.
            bound: Largest absolute value of both.
        """

    def write_context(
        self, vectors: FloatArray, column: int, session: SessionState, max_len: int
    ) -> None:
        """Writes progress, share, last and mean reward into state vectors.

        Args:
            vectors: (N, ...) float32; changed in place.
            column: The first of the four columns to write.
            session: The sessions.
            max_len: Steps that progress is measured in.
        """

    def inner_products(self, vectors: FloatArray, items: FloatArray) -> FloatArray:
        """Matrix product, summed in order.

        BLAS is faster, but the last bits of its rows depend on how many there are and on the
        processor; the other users of a batch must not decide a near tie.

        Args:
            vectors: (N, d) float32.
            items: (d, n) float32.

        Returns:
            (N, n) float32.
        """

    def top_items(self, scores: FloatArray, k: int, hidden: BitArray | None = None) -> CountArray:
        """The k best columns of each row, best first, ties by column.

        Args:
            scores: (N, n_items) float32.
            k: At most n_items.
            hidden: (N, ceil(n_items / 8)) uint8, columns that count as minus infinity, see
                :mod:`~kuaisim_gym.engine.bits`; ``None`` for none.

        Returns:
            (N, k) int64.
        """

    def best_items(
        self, vectors: FloatArray, items: FloatArray, k: int, hidden: BitArray | None
    ) -> CountArray:
        """The k best items of each user by :meth:`inner_products`, in memory for a few users.

        Args:
            vectors: (N, d) float32.
            items: (d, n_items) float32, finite.
            k: At most n_items.
            hidden: (N, ceil(n_items / 8)) uint8, items that come last, see
                :mod:`~kuaisim_gym.engine.bits`; ``None`` for none.

        Returns:
            (N, k) int64, best first, ties by position.
        """
