"""Finished sessions: the arrays that all metrics are functions of, and Len, R and q of them.

Len, R_each and R_cum are the paper's (section 5.1.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class HasPopular(Protocol):
    """Items with a popular group: a catalogue or a dataset."""

    @property
    def popular(self) -> BoolArray:
        """(n_items,) bool."""


PopularGroup = BoolArray | HasPopular


class Sample(Protocol):
    """Sessions, in a form that can be resampled."""

    def __len__(self) -> int:
        """S."""

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Some of the sessions, repeats allowed."""


SampleT = TypeVar("SampleT", bound=Sample)


@dataclass(frozen=True, eq=False)
class Sessions:
    """S finished sessions.

    Attributes:
        length: (S,) int64 steps, at least 1.
        rewards: (S, T) float64, zero from ``length`` on.
        penalised: (S, T) bool, false from ``length`` on.
        slates: (S, T, K) int32 item positions, -1 from ``length`` on.
        responses: (S, T, K) float32 in [0, 1], each item's answer, zero from ``length`` on.
        users: (S,) int32 positions of the users whose sessions they are.
        return_day: (S,) int64, days until the user came back after that session, at least 1;
            ``None`` where the task has no returns.
        popular: (S, T, K) bool, whether each exposure was of a popular item, which depends on the
            day of a catalogue that changes; ``None`` of a fixed one.
        ages: (S, T, K) int16 days since the items' birth, -1 from ``length`` on; likewise.
    """

    length: NDArray[np.int64]
    rewards: FloatArray
    penalised: BoolArray
    slates: NDArray[np.int32]
    responses: NDArray[np.float32]
    users: NDArray[np.int32]
    return_day: NDArray[np.int64] | None = None
    popular: BoolArray | None = None
    ages: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.length)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays that there are, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}

    def take(self, rows: NDArray[np.int64]) -> Sessions:
        """Some of the sessions, repeats allowed."""
        return Sessions(**{name: array[rows] for name, array in self.columns.items()})

    @classmethod
    def concatenate(cls, batches: list[Sessions]) -> Sessions:
        """All sessions of several batches with the same T and K.

        Raises:
            DataFormatError: Some batches have return days and others have none.
        """
        n_days = sum(batch.return_day is not None for batch in batches)
        if n_days not in (0, len(batches)):
            raise DataFormatError(
                "Sessions with and without return days cannot be put together: "
                f"{n_days} of {len(batches)} batches have them."
            )
        columns = zip(*(vars(batch).values() for batch in batches), strict=True)
        arrays: list[Any] = [x[0] if x[0] is None else np.concatenate(x) for x in columns]
        return cls(*arrays)


def session_length(sessions: Sessions) -> float:
    """Len: mean number of steps."""
    return float(sessions.length.mean())


def reward_per_step(sessions: Sessions) -> float:
    """R_each: mean reward of a step, over all steps of all sessions, in [0, 1]."""
    return float(sessions.rewards.sum() / sessions.length.sum())


def reward_per_session(sessions: Sessions) -> float:
    """R_cum: mean over sessions of the summed reward."""
    return float(sessions.rewards.sum(axis=1).mean())


def penalty_rate(sessions: Sessions) -> float:
    """q: share of steps at which the exposure window cost one temper."""
    return float(sessions.penalised.sum() / sessions.length.sum())


def bootstrap_ci95(
    sample: SampleT,
    statistic: Callable[[SampleT], dict[str, float]],
    rng: np.random.Generator,
    resamples: int = 200,
    together: int = 1,
) -> dict[str, float]:
    """Half-widths of normal 95 % intervals, from resampled sessions.

    Args:
        sample: :class:`Sessions`, or what was worked out of them once, such as an
            :class:`~kuaisim_gym.metrics.Audit`; sessions are the independent units, steps are not.
        statistic: Named numbers of a sample.
        rng: Source of the resamples.
        resamples: Number of resamples.
        together: Number of successive sessions that are of one user, and so one unit.

    Returns:
        1.96 standard errors of each number.
    """
    units = np.arange(len(sample)).reshape(-1, together)
    draws = [
        statistic(sample.take(units[rng.integers(0, len(units), len(units))].ravel()))
        for _ in range(resamples)
    ]
    return {name: 1.96 * float(np.std([draw[name] for draw in draws])) for name in draws[0]}
