"""Return times: the day on which a user comes back, the feedback of the cross-session task.

KuaiSim (Zhao et al., NeurIPS 2023) draws the day from a truncated geometric distribution whose
daily probability is a user's own bias, plus .4, plus .1 of a mean reward, clipped to [.001, .999].
The form is kept here; three faults are not. There the bias comes from a linear layer with random
weights that nothing trains; here it follows how active the user's log is. There the clip has ends,
at which satisfaction changes nothing; a logistic link has none. And there the last list of a
session alone counts; here the mean over its steps does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_whole
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.errors import ConfigError

_SLACK = 1e-5  # a mean of float32 responses may leave [0, 1] by their rounding

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ReturnModel:
    """A truncated geometric return day with a logistic daily probability.

    On each day a user comes back with probability p, where::

        logit p = bias + habit_weight * habit + influence * satisfaction

    and the first success is the return day, given that it comes within ``max_days``:
    ``P(day = d)`` is proportional to ``p (1 - p)^(d - 1)``. More satisfaction means a higher p for
    every user, so an earlier day in distribution, and for one uniform number never a later day.

    The numbers are assumptions, not measurements: fitting them takes the dates of a user's visits,
    which no :class:`~kuaisim_gym.data.dataset.Dataset` holds. They are set by three demands. An
    average user who is fully satisfied has p = 1/2 (``bias + influence = 0``). At a satisfaction
    of .6 users return after 3.5 days on average, as in KuaiSim's benchmark (3.48 to 3.57); in the
    synthetic KuaiRand and KuaiRec worlds random slates earn .41 and .64, and each user's best ones
    .82 and 1. And a policy must gain by satisfaction: for an average user

    ============  =====  =============
    satisfaction  p      expected days
    ============  =====  =============
    0             .05    5.1
    .4            .14    4.3
    .6            .23    3.5
    .8            .35    2.7
    1             .50    2.0
    ============  =====  =============

    so that a gain of .2 brings users back .8 days earlier. With KuaiSim's influence of .1 it would
    be .15 days where the mean is 3.5. A standard deviation of habit is worth .17 of satisfaction:
    users differ, but a policy can make up for it.

    Attributes:
        habit: (n_users,) float32, standardised activity of each user; 0 is average. The array is
            taken over, not copied, and becomes read-only.
        bias: Logit of p for an average user without any satisfaction.
        habit_weight: Logits per standard deviation of habit.
        influence: Logits per unit of satisfaction, at least 0.
        max_days: Latest return day, at least 1.

    Raises:
        ConfigError: A number or an array is out of range.
    """

    habit: NDArray[np.float32]
    bias: float = -3.0
    habit_weight: float = 0.5
    influence: float = 3.0
    max_days: int = 10

    def __post_init__(self) -> None:
        if self.habit.ndim != 1 or not np.isfinite(self.habit).all():
            raise ConfigError(
                f"habit must hold one finite number per user, got shape {self.habit.shape}."
            )
        self.habit.setflags(write=False)
        for name in ("bias", "habit_weight", "influence"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and np.isfinite(value)):
                raise ConfigError(f"{name} must be a finite number, got {value!r}.")
        if self.influence < 0:
            raise ConfigError(f"influence must be at least 0, got {self.influence!r}.")
        check_whole("max_days", self.max_days, 1)

    @classmethod
    def of(cls, data: TrainingData) -> Self:
        """Builds the model of a dataset's users.

        A user's habit is ``log(1 + rows)`` of the user's logged rows, standardised over the train
        users. A test user's logged rows place that user, as they do in the user's first state; no
        test row is read.

        Args:
            data: Source of the log.

        Returns:
            The model with the default numbers; :func:`dataclasses.replace` changes them.
        """
        rows = np.bincount(data.log.users, minlength=data.n_users)
        activity, train = np.log1p(rows), rows[data.train_users]
        # Equal counts have a spread of rounding errors, which must not become habits.
        spread = np.log1p(train).std() if np.ptp(train) > 0 else 1.0
        habit = (activity - np.log1p(train).mean()) / spread
        return cls(habit.astype(np.float32))

    def probability(self, users: NDArray[np.integer], satisfaction: FloatArray) -> FloatArray:
        """Daily probability p of coming back, before truncation.

        Args:
            users: (n,) integers, positions of the users.
            satisfaction: (n,) float64 in [0, 1], mean reward of the session that ended.

        Returns:
            (n,) float64 in [0, 1].

        Raises:
            ConfigError: The satisfaction has another shape than the users or is out of range.
        """
        return np.asarray(np.exp(-np.logaddexp(0.0, -self._logit(users, satisfaction))))

    def distribution(self, users: NDArray[np.integer], satisfaction: FloatArray) -> FloatArray:
        """(n, max_days) float64: P(return day = d) in column d - 1; see :meth:`probability`."""
        # Powers of 1 - p from its logarithm: p may round to 0 or 1 and every row still sums to one.
        log_absent = -np.logaddexp(0.0, self._logit(users, satisfaction))
        weights = np.exp(log_absent[:, None] * np.arange(self.max_days))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def draw(
        self, users: NDArray[np.integer], satisfaction: FloatArray, uniforms: FloatArray
    ) -> NDArray[np.int64]:
        """Return days, by the inverse of their distribution function.

        Args:
            users: See :meth:`probability`.
            satisfaction: See :meth:`probability`.
            uniforms: (n,) float64 in (0, 1), one for each user.

        Returns:
            (n,) int64 in [1, max_days]: the first day up to which the probability of being back
            reaches the uniform number.

        Raises:
            ConfigError: See :meth:`probability`; or a uniform number is missing or out of range.
        """
        reached = self.distribution(users, satisfaction).cumsum(axis=1)
        if uniforms.shape != users.shape or not ((uniforms > 0) & (uniforms < 1)).all():
            raise ConfigError(
                f"uniforms must hold one number in (0, 1) for each of {len(users)} users."
            )
        # The last day is certain, however the sum of its row is rounded.
        return np.asarray(1 + (reached[:, :-1] < uniforms[:, None]).sum(axis=1), dtype=np.int64)

    def _logit(self, users: NDArray[np.integer], satisfaction: FloatArray) -> FloatArray:
        if satisfaction.shape != users.shape:
            raise ConfigError(
                f"satisfaction must have the users' shape {users.shape}, got {satisfaction.shape}."
            )
        outside = ~(np.abs(satisfaction - 0.5) <= 0.5 + _SLACK)  # NaN is outside, too
        if outside.any():
            raise ConfigError(f"satisfaction must lie in [0, 1], got {satisfaction[outside][0]}.")
        habit = self.habit[users].astype(np.float64)
        return np.asarray(self.bias + self.habit_weight * habit + self.influence * satisfaction)
