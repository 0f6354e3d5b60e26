"""A platform whose catalogue changes: items are born and leave, and what is shown becomes popular.

All sessions are of one platform. Its time is the number of sessions that have begun. Popularity is
the moving average of each item's share of a day's exposures, so that what a policy shows today is
tomorrow's popular group: the rich get richer, or not, by the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data.dataset import popular_items
from kuaisim_gym.engine import Engine, bits
from kuaisim_gym.engine.types import BoolArray, Exposures, SessionState
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups
from kuaisim_gym.simulator.lifecycle import Lifecycle, Timetable
from kuaisim_gym.simulator.providers import Ownership, ProviderLedger
from kuaisim_gym.snapshots import Snapshot, under

_SESSIONS_PER_DAY = 256
_PER_EXPOSURE = 1e9  # shares of exposures as whole numbers, in which a catalogue counts


class Platform:
    """The days of a platform, and what it has shown.

    Args:
        timetable: When items are there.
        lifecycle: Days and memory.
        catalogue: The items, as they are known before the first day.
        n_sessions: N, sessions that are played at once.
        config: Their rules: slates of K items, T steps at most.
        engine: Counts exposures.
        ownership: Providers of the items; ``None`` where nobody asks for them.

    Attributes:
        lifecycle: Days and memory.
        providers: Their due shares, their exposures, and who has left; or ``None``.
        sessions_per_day: Sessions that begin in a day.
        popular: (n_items,) bool, today's popular group: the fifth of today's items with the largest
            share of the exposures, ties by position. Changed in place.
        labels: (n_items,) int8, the same as group labels. Read-only but for the platform.
        hidden: (ceil(n_items / 8),) uint8, bits of the items that are not there.
        shares: (n_items,) float64, popularity: moving average of shares of a day's exposures.
        shown_popular: (N, T, K) bool, whether exposures were of popular items when they were made.
        step_days: (N, T) int16, the day of each step. Only steps made have a meaning.

    Raises:
        ConfigError: Repeats are allowed, or a day has too few sessions or items.
    """

    def __init__(
        self,
        timetable: Timetable,
        lifecycle: Lifecycle,
        catalogue: Catalogue,
        n_sessions: int,
        config: SessionConfig,
        engine: Engine,
        ownership: Ownership | None = None,
    ) -> None:
        self._engine = engine
        self._timetable, self.lifecycle, self._catalogue = timetable, lifecycle, catalogue
        usual = max(_SESSIONS_PER_DAY, n_sessions)
        self.sessions_per_day = lifecycle.sessions_per_day or usual
        if self.sessions_per_day < n_sessions:
            raise ConfigError(
                f"sessions_per_day must be at least the {n_sessions} sessions that are played at "
                f"once, got {self.sessions_per_day}: play fewer at once, or give None."
            )
        if config.allow_repeats:
            raise ConfigError(
                "allow_repeats=True would show items that are not there; leave it out of a "
                "catalogue that changes."
            )
        shape = (n_sessions, config.longest, config.slate_size)
        self._slate_size = config.slate_size
        stock = _check_stock(timetable, lifecycle, config.slate_size)
        least = config.slate_size * config.longest  # of a session that never runs dry
        self.can_run_dry = stock < least
        n_items = catalogue.n_items
        self._clock: NDArray[np.int64] = np.zeros(3, dtype=np.int64)  # day, its sessions, openings
        self.shares: NDArray[np.float64] = np.zeros(n_items)
        self._today: NDArray[np.int64] = np.zeros(n_items, dtype=np.int64)
        self.popular: BoolArray = np.zeros(n_items, dtype=bool)
        self.labels: NDArray[np.int8] = np.zeros(n_items, dtype=np.int8)
        self.hidden: NDArray[np.uint8] = np.zeros(bits.width(n_items), dtype=np.uint8)
        # Bits of the items that sessions had seen when the day began: exposed ones alone do not
        # tell them from absent ones, and a platform that opens anew brings items back.
        self._seen: NDArray[np.uint8] = np.zeros((n_sessions, bits.width(n_items)), dtype=np.uint8)
        self.shown_popular: BoolArray = np.zeros(shape, dtype=bool)
        self.step_days: NDArray[np.int16] = np.zeros(shape[:2], dtype=np.int16)
        self._bits: dict[str, NDArray[np.uint8]] | None = None
        self._exposures = Exposures(self.popular, self._today, self.shown_popular, self.step_days)
        self.providers: ProviderLedger | None = None
        if ownership is not None:
            self.providers = ProviderLedger(
                ownership,
                timetable,
                lifecycle.days,
                self._today,
                config.slate_size if self.can_run_dry else least,
            )
        self.open()

    @property
    def day(self) -> int:
        """Today, from the first of ``lifecycle.days`` to the last."""
        return int(self._clock[0])

    @property
    def today(self) -> tuple[int, int]:
        """Times that the platform has opened, and the day: another pair is another day."""
        return int(self._clock[2]), self.day

    @property
    def timetable(self) -> Timetable:
        """When items are there, as far as no more providers leave."""
        if self.providers is None:
            return self._timetable
        return replace(self._timetable, gone=self.providers.ends)

    @property
    def available(self) -> BoolArray:
        """(n_items,) bool: today's items."""
        return self.timetable.available(self.day)

    @property
    def bits(self) -> dict[str, NDArray[np.uint8]]:
        """(ceil(n_items / 8),) uint8 of today's items, ``"available"`` and ``"popular"`` ones.

        They are packed once a day, and not to be written to.
        """
        if self._bits is None:
            flags = bits.pack(np.stack([self.available, self.popular]))
            self._bits = dict(zip(("available", "popular"), flags, strict=True))
        return self._bits

    def catalogue(self) -> Catalogue:
        """Today's catalogue: popularity counts exposures of a thousand million."""
        return self._catalogue.on_day(self._counts(), self.available)

    def _counts(self) -> NDArray[np.int64]:
        return np.rint(self.shares * _PER_EXPOSURE).astype(np.int64)

    def following(self, groups: Groups) -> Groups:
        """The same groups, or where they are of popularity those of each day."""
        if not groups.by_popularity:
            return groups
        # The very array: a view would be an array of its own in copies and pickles.
        return replace(groups, labels=self.labels, change=True)

    def open(self, again: bool = False) -> None:
        """Begins the first day: popularity is the log's, and all providers are there.

        Args:
            again: Whether the last day is over, so that providers' days stay on record.
        """
        if self.providers is not None:
            self.providers.open(again)
        self._clock[:] = self.lifecycle.days[0], 0, self._clock[2] + 1
        counts = np.where(self.available, self._catalogue.exposures, 0)
        self.shares[:] = counts / max(counts.sum(), 1)
        self._today[:] = 0
        self._describe_day()

    def left(self, state: SessionState) -> NDArray[np.int64]:
        """(N,) int64 items that sessions can still be shown: today, or on the next day if fewer.

        That day may begin before their next step.
        """
        n_items = self._catalogue.n_items
        first, last = self.lifecycle.days
        tomorrow = self.timetable.available(first if self.day == last else self.day + 1)
        unseen = ~bits.unpack(self._seen | (state.exposed & ~self.hidden), n_items)
        counts = [(unseen & there).sum(axis=1) for there in (self.available, tomorrow)]
        left: NDArray[np.int64] = np.minimum(*counts)
        return left

    def reschedule(self, timetable: Timetable) -> None:
        """Opens anew, with other days on which the same items are there.

        Whether sessions end when items run short stays as it was: with fewer items than before,
        play no more steps than there are slates.

        Args:
            timetable: The days.

        Raises:
            ConfigError: A day has too few items, or there are accounts of providers, which are of
                the first timetable.
        """
        if self.providers is not None:
            raise ConfigError("A platform with accounts of providers cannot be rescheduled.")
        _check_stock(timetable, self.lifecycle, self._slate_size)
        self._timetable = timetable
        self.open()

    def arrive(self, state: SessionState, rows: NDArray[np.int64]) -> None:
        """Lets users arrive in some slots; a new day may begin before.

        Sessions that are under way lose items that leave, and can be shown those that come.

        Args:
            state: The sessions, whose exposed items are changed.
            rows: (n,) int64 slots, in which new sessions have just begun.
        """
        if rows.size == 0:
            return
        if self._clock[1] >= self.sessions_per_day:
            before = self.hidden.copy()
            self._next_day()
            self._seen |= state.exposed & ~before
            state.exposed[...] = self._seen | self.hidden
        self._clock[1] += rows.size
        self._seen[rows] = 0
        state.exposed[rows] = self.hidden

    def ages(self, rows: NDArray[np.int64], slates: NDArray[np.integer]) -> NDArray[np.int16]:
        """Days since the birth of items when they were shown.

        Args:
            rows: (n,) int64 slots.
            slates: (n, T, K) items that their sessions were shown, -1 behind the steps made.

        Returns:
            (n, T, K) int16, -1 where no item is; items that are there from the start were born on
            day 0.
        """
        ages = self.step_days[rows, :, None] - self._timetable.born[slates]
        return np.where(slates >= 0, ages, -1).astype(np.int16)

    def show(
        self, state: SessionState, slates: NDArray[np.int64], answered: BoolArray, slots: BoolArray
    ) -> None:
        """Counts the exposures of a step.

        Args:
            state: The sessions after it.
            slates: (N, K) int64.
            answered: (N, K) bool, items that the sessions had not seen, and that were there.
            slots: (N,) bool, the sessions that made it.
        """
        exposures, steps = self._exposures, state.steps
        self._engine.count_exposures(exposures, self.day, steps, slates, answered, slots)

    def snapshot(self) -> Snapshot:
        """Copies of all that changes, by name."""
        return {name: array.copy() for name, array in self._changing().items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Returns to a snapshot of a platform with the same options."""
        self._bits = None
        with self._relabelling():
            for name, array in self._changing().items():
                array[...] = snapshot[name]

    @contextmanager
    def _relabelling(self) -> Iterator[None]:
        """Lets the labels change, which are read-only wherever else they are used."""
        self.labels.setflags(write=True)
        try:
            yield
        finally:
            self.labels.setflags(write=False)

    def _changing(self) -> dict[str, NDArray[Any]]:
        accounts = {} if self.providers is None else self.providers.changing()
        return {
            "clock": self._clock,
            "shares": self.shares,
            "today": self._today,
            "popular": self.popular,
            "labels": self.labels,
            "hidden": self.hidden,
            "seen": self._seen,
            "shown_popular": self.shown_popular,
            "step_days": self.step_days,
            **under("providers", accounts),
        }

    def _next_day(self) -> None:
        if self.providers is not None:
            self.providers.end_day(self.day)
        if self.day == self.lifecycle.days[1]:
            self.open(again=True)
            return
        if total := int(self._today.sum()):
            memory = self.lifecycle.memory
            self.shares *= memory
            self.shares += (1.0 - memory) / total * self._today
        self._today[:] = 0
        self._clock[:2] = self.day + 1, 0
        self._describe_day()

    def _describe_day(self) -> None:
        """Works out who is there, and who is popular."""
        there, self._bits = self.available, None
        if self.providers is not None:
            self.providers.begin_day(there)
        self.hidden[:] = bits.pack(~there[None])[0]
        self.shares[~there] = 0.0  # an item that left does not come back
        self.popular[:] = False
        self.popular[there] = popular_items(self._counts()[there])
        with self._relabelling():
            self.labels[:] = self.popular


def _check_stock(timetable: Timetable, lifecycle: Lifecycle, slate_size: int) -> int:
    """Checks that each day has items for a slate; returns the smallest number of items of a day."""
    stocks = []
    for day in range(lifecycle.days[0], lifecycle.days[1] + 1):
        stocks.append(int(timetable.available(day).sum()))
        if stocks[-1] < slate_size:
            raise ConfigError(
                f"On day {day} the catalogue has {stocks[-1]} items, fewer than the {slate_size} "
                "of a slate: raise initial, arrivals or lifetime, or play fewer days or smaller "
                "slates."
            )
    return min(stocks)
