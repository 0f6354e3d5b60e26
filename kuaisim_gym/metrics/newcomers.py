"""Exposure and reward by the age of items, where a catalogue changes.

An item's age is the number of days since it was born; newcomers were born on day 1 or later. Items
that are there from the start have no age of their own, and count as old.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics.exposure import gini
from kuaisim_gym.metrics.sessions import FloatArray, Sessions

NEW = 3  # days after its birth in which an item is new


class Timetable(Protocol):
    """Days on which items are there, as :class:`~kuaisim_gym.simulator.lifecycle.Timetable`."""

    @property
    def born(self) -> NDArray[np.int64]:
        """(n_items,) first days, 0 for items that are there from the start."""

    @property
    def gone(self) -> NDArray[np.int64]:
        """(n_items,) days from which on items are no longer there."""

    def available(self, day: int) -> NDArray[np.bool_]:
        """(n_items,) bool: items that are there on a day."""


class Daily(NamedTuple):
    """Exposure by day, of the D days that sessions fall on.

    Attributes:
        day: (D,) int64, ascending.
        gini: (D,) float64 of the exposures of the items that were there.
        new_share: (D,) float64, share of exposures that new items had.
        popular_share: (D,) float64, share that the day's popular items had.
        reward: (D,) float64, mean response of an exposure.
    """

    day: NDArray[np.int64]
    gini: FloatArray
    new_share: FloatArray
    popular_share: FloatArray
    reward: FloatArray


class ByAge(NamedTuple):
    """Exposure and reward by the age of newcomers, at each of A ages in days.

    Attributes:
        age: (A,) int64, ascending: those at which a newcomer was shown.
        share: (A,) float64, share of all exposures that newcomers of that age had.
        reward: (A,) float64, mean response to them.
    """

    age: NDArray[np.int64]
    share: FloatArray
    reward: FloatArray


class _Exposures(NamedTuple):
    """All E exposures of sessions: (E,) arrays."""

    item: NDArray[np.int64]
    day: NDArray[np.int64]
    new: NDArray[np.bool_]
    popular: NDArray[np.bool_]
    response: FloatArray
    age: NDArray[np.int64]


def summarise_newcomers(sessions: Sessions, timetable: Timetable) -> dict[str, float]:
    """Metrics of newcomers, by their names in result files.

    Args:
        sessions: Finished sessions of one platform.
        timetable: Its timetable.

    Returns:
        ``new_share``, share of all exposures that items of at most three days had;
        ``new_reward`` and ``old_reward``, mean response of an exposure of these and of all others
        (NaN without any); ``first_exposure``, mean age in days at which newcomers that the sessions
        show were first shown; ``unseen``, share of the newcomers that were there and never shown.

    Raises:
        DataFormatError: The sessions are of a catalogue that does not change.
    """
    shown = _exposures(sessions, timetable)
    first = np.full(len(timetable.born), np.inf)
    np.minimum.at(first, shown.item, shown.age)
    days = np.unique(shown.day)
    born = timetable.born
    there = (born >= 1) & (born <= days[-1]) & (timetable.gone > days[0])
    there &= timetable.gone > born  # the others never came: their provider had left
    seen = np.isfinite(first[there])
    return {
        "new_share": float(shown.new.mean()),
        "new_reward": _mean(shown.response[shown.new]),
        "old_reward": _mean(shown.response[~shown.new]),
        "first_exposure": _mean(first[there][seen]),
        "unseen": 1.0 - _mean(seen.astype(np.float64)),
    }


def daily(sessions: Sessions, timetable: Timetable) -> Daily:
    """Exposure by the days of a platform.

    Args:
        sessions: As for :func:`summarise_newcomers`.
        timetable: Likewise.

    Raises:
        DataFormatError: The sessions are of a catalogue that does not change.
    """
    shown = _exposures(sessions, timetable)
    days = np.unique(shown.day)
    rows = []
    for day in days.tolist():
        today = shown.day == day
        counts = np.bincount(shown.item[today], minlength=len(timetable.born))
        rows.append(
            (
                float(gini(counts[timetable.available(day)])),
                shown.new[today].mean(),
                shown.popular[today].mean(),
                shown.response[today].mean(),
            )
        )
    return Daily(days, *np.array(rows, dtype=np.float64).T)


def by_age(sessions: Sessions, timetable: Timetable) -> ByAge:
    """Exposure and reward of newcomers by the days since their birth.

    Args:
        sessions: As for :func:`summarise_newcomers`.
        timetable: Likewise.

    Raises:
        DataFormatError: The sessions are of a catalogue that does not change.
    """
    shown = _exposures(sessions, timetable)
    newcomer = timetable.born[shown.item] >= 1
    ages, owner = np.unique(shown.age[newcomer], return_inverse=True)
    counts = np.bincount(owner, minlength=len(ages))
    total = np.bincount(owner, shown.response[newcomer], len(ages))
    return ByAge(ages, counts / max(len(shown.item), 1), total / np.maximum(counts, 1))


def _exposures(sessions: Sessions, timetable: Timetable) -> _Exposures:
    if sessions.ages is None or sessions.popular is None:
        raise DataFormatError(
            'These sessions are of a catalogue that does not change: play catalogue="dynamic".'
        )
    shown = sessions.slates >= 0
    item, age = sessions.slates[shown].astype(np.int64), sessions.ages[shown].astype(np.int64)
    born = timetable.born[item]
    new = (born >= 1) & (age <= NEW)
    response = sessions.responses[shown].astype(np.float64)
    return _Exposures(item, born + age, new, sessions.popular[shown], response, age)


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else float("nan")
