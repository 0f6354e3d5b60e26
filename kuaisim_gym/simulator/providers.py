"""Providers of items, such as authors: the exposure that is due to them, and those who leave.

Providers whose items are hardly shown give up: one that gets less than some of its due share of the
exposures on several days in a row takes all its items away. What makes real authors stay is not in
the data, so the rule is an assumption: providers look at whole days of the platform, at shares of
all exposures rather than answers, and alike; they leave at midnight, with all items at once, and
stay away until the platform opens anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice, check_fields, check_whole, check_within, is_number
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics.newcomers import Timetable
from kuaisim_gym.metrics.providers import (
    ProviderDays,
    mean_shortfall,
    provider_gini,
    reached_share,
)
from kuaisim_gym.simulator.groups import SLACK, TARGETS, column_codes

_USUAL_COLUMN = "author_id"  # KuaiRand's
_STREAM = 1  # of the lifecycle's seed, whose own draws are the timetable's
_NEVER = 2**31

CountArray = NDArray[np.int64]
DoubleArray = NDArray[np.float64]


@dataclass(frozen=True)
class Providers:
    """Due shares of the providers of a catalogue that changes, and when providers leave.

    Attributes:
        column: Column of the dataset whose labels are the providers, such as ``"author_id"``; an
            item without a label is a provider's only one. ``None`` for ``"author_id"`` where there
            is one, else providers are drawn, see ``exponent``.
        target: Distribution of the promised exposures over today's providers, those with items
            that are there: ``"uniform"``, as much for each; ``"catalogue"``, in proportion to their
            items that are there; or shares by name that sum to at most 1, nothing being due to
            others, and to these while they have no items there.
        promised: Share of all exposures that is promised, in (0, 1]. The rest is free: with 1, all
            can reach a uniform target only by being shown equally often, and with .5 by at least
            half of that (FairRec's guarantee, Patro et al., WWW 2020).
        leave_below: Share of what is due, in (0, 1], below which a provider is neglected in a day;
            ``None``: nobody leaves.
        patience: Days in a row of neglect after which a provider leaves. A day without its items
            ends the row; one on which nothing is shown does not count.
        exponent: Of the power law, above 1, by which the numbers of items of drawn providers fall:
            P(s) ~ s^-exponent. The most likely one of the 6,510 authors of KuaiRand-Pure's
            7,583 videos is 3.49: 87 % of them have one video, 11 % two, and one has 26.

    Raises:
        ConfigError: A value is out of range.
    """

    column: str | None = None
    target: str | Mapping[str, float] | tuple[tuple[str, float], ...] = "uniform"
    promised: float = 1.0
    leave_below: float | None = None
    patience: int = 3
    exponent: float = 3.49

    def __post_init__(self) -> None:
        if isinstance(self.target, str):
            check_choice("providers.target", self.target, TARGETS)
        else:
            object.__setattr__(self, "target", _pairs(self.target))  # a mapping has no hash
        if self.column is not None and not isinstance(self.column, str):
            raise ConfigError(f"providers.column must name a column, got {self.column!r}.")
        checked: dict[str, Any] = {
            "promised": check_within("providers.promised", self.promised, "(0, 1]"),
            "patience": check_whole("providers.patience", self.patience, 1),
            "exponent": check_within("providers.exponent", self.exponent, "(1, inf)"),
        }
        if self.leave_below is not None:
            least = check_within("providers.leave_below", self.leave_below, "(0, 1]")
            checked["leave_below"] = least
        for name, value in checked.items():  # Python's own numbers, which JSON holds
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, fields: Mapping[str, Any] | Providers | None) -> Providers | None:
        """Reads the field ``providers`` of a lifecycle: providers, or a mapping of their fields.

        Raises:
            ConfigError: It is neither, or a field is unknown.
        """
        if fields is None or isinstance(fields, cls):
            return fields
        return cls(**check_fields("providers", fields, cls))

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        target = self.target if isinstance(self.target, str) else dict(self.target)
        return asdict(self) | {"target": target}


@dataclass(frozen=True, eq=False)
class Ownership:
    """Providers of a catalogue's items.

    Attributes:
        settings: Due shares, and rules of leaving.
        names: P names.
        labels: (n_items,) int64, the position of each item's provider in ``names``.
        shares: (P,) float64 due shares of a target by name; ``None`` of another.
    """

    settings: Providers
    names: tuple[str, ...]
    labels: CountArray
    shares: DoubleArray | None

    def __post_init__(self) -> None:
        self.labels.setflags(write=False)


def find_ownership(dataset: Dataset, settings: Providers, seed: int) -> Ownership:
    """Finds the providers of a dataset's items, or draws them.

    Args:
        dataset: Source of the column.
        settings: Names it.
        seed: Of providers that are drawn.

    Returns:
        The providers, the same for the same arguments.

    Raises:
        ConfigError: There is no such column, it tells no two providers apart, or the target names
            somebody who provides nothing.
    """
    column, codes = settings.column, np.zeros(dataset.n_items, dtype=np.int64)
    if column is None and _USUAL_COLUMN in dataset.item_groups:
        column = _USUAL_COLUMN
    if column is None:
        codes = _drawn(dataset.n_items, settings.exponent, seed)
        values = tuple(f"provider {rank}" for rank in range(codes.max() + 1))
        column = "drawn providers"
    else:
        options = (*dataset.item_groups, *dataset.item_features.codes)
        check_choice("providers.column", column, options)
        codes[:], values = column_codes(column, dataset)
        if not codes.any():
            raise ConfigError(
                f"providers.column={column!r} names nobody: no item of {dataset.name} has a value. "
                "Choose another column."
            )
        missing = np.flatnonzero(codes == 0)
        codes[missing] = len(values) + np.arange(len(missing))
        values = (*values, *(f"provider of item {dataset.item_ids[item]}" for item in missing))
    present, labels = np.unique(codes, return_inverse=True)
    names = tuple(values[code] for code in present.tolist())
    if len(names) < 2:
        raise ConfigError(
            f"Providers must differ, but {names[0]!r} of {column!r} provides all items."
        )
    shares = None if isinstance(settings.target, str) else _shares(settings.target, names, column)
    return Ownership(settings, names, labels.reshape(-1).astype(np.int64), shares)


class ProviderLedger:
    """The accounts of a platform's providers: what is due to them, what they get, who has left.

    A provider that is due to leave stays as long as too few items would be left on some later day:
    for a session of full length, or for a slate where there are too few anyway. Those who got the
    least of what was due to them go first, ties by position; so the last providers stay.

    Args:
        ownership: The providers.
        timetable: When items are there while nobody leaves.
        days: First and last day.
        exposures: (n_items,) int64 of today, which the platform counts in this very array.
        least: Items that must be there each day.

    Attributes:
        names: P names.
        labels: (n_items,) int64, the position of each item's provider. Read-only.
    """

    def __init__(
        self,
        ownership: Ownership,
        timetable: Timetable,
        days: tuple[int, int],
        exposures: CountArray,
        least: int,
    ) -> None:
        self.names, self.labels = ownership.names, ownership.labels
        self._settings, self._shares = ownership.settings, ownership.shares
        self._born, self._ends = timetable.born, timetable.gone
        self._days, self._least, self._today = days, least, exposures
        n = len(self.names)
        order = np.argsort(self.labels, kind="stable")
        self._items = np.split(order, np.bincount(self.labels).cumsum()[:-1])
        self._due: DoubleArray = np.zeros(n)
        self._stock: CountArray = np.zeros(n, dtype=np.int64)  # today's items of each
        self._neglected: CountArray = np.zeros(n, dtype=np.int64)  # days in a row
        self._until: CountArray = np.full(n, _NEVER)  # first day without the provider
        n_columns = len(ProviderDays._fields) - 1
        self._record: DoubleArray = np.full((days[1] - days[0] + 1, n_columns), np.nan)

    @property
    def due(self) -> DoubleArray:
        """(P,) float64: each provider's due share of today's exposures. Read-only."""
        return _read_only(self._due.copy())

    @property
    def exposures(self) -> CountArray:
        """(P,) int64: today's exposures so far. Read-only."""
        counts = np.bincount(self.labels, self._today, len(self.names))
        return _read_only(counts.astype(np.int64))

    @property
    def received(self) -> DoubleArray:
        """(P,) float64: each provider's share of today's exposures so far, or 0. Read-only."""
        counts = self.exposures
        return _read_only(counts / max(int(counts.sum()), 1))

    @property
    def left(self) -> NDArray[np.bool_]:
        """(P,) bool: providers who have left. Read-only."""
        return _read_only(self._until < _NEVER)

    @property
    def ends(self) -> CountArray:
        """(n_items,) int64: the day from which on each item is no longer there, as things stand.

        Items of providers who left before can be gone before they are born.
        """
        return np.minimum(self._ends, self._until[self.labels])

    @property
    def days(self) -> ProviderDays:
        """The days that are over, each the latest time since a seed opened the platform."""
        over = np.flatnonzero(np.isfinite(self._record[:, -1]))
        return ProviderDays(over + self._days[0], *self._record[over].T)

    def open(self, again: bool) -> None:
        """Brings all providers back.

        Args:
            again: Whether the platform goes on from its last day, so that days stay on record.
        """
        self._neglected[:] = 0
        self._until[:] = _NEVER
        if not again:
            self._record[:] = np.nan

    def begin_day(self, available: NDArray[np.bool_]) -> None:
        """Works out what is due.

        Args:
            available: (n_items,) bool, today's items.
        """
        self._stock[:] = np.bincount(self.labels[available], minlength=len(self.names))
        present = self._stock > 0
        if self._shares is not None:
            shares = np.where(present, self._shares, 0.0)
        else:
            by_items = self._settings.target == "catalogue"
            weights = self._stock if by_items else present.astype(np.int64)
            shares = weights / weights.sum()
        self._due[:] = self._settings.promised * shares

    def end_day(self, day: int) -> None:
        """Lets neglected providers leave, and puts the day on record.

        Args:
            day: The day that is over.
        """
        counts, due, settings = self.exposures, self._due, self._settings
        total = int(counts.sum())
        if total and settings.leave_below is not None:
            neglected = counts + SLACK < settings.leave_below * due * total
            self._neglected[:] = np.where(neglected, self._neglected + 1, 0)
            leaving = np.flatnonzero(self._neglected >= settings.patience)
            satisfaction = counts[leaving] / due[leaving]
            self._leave(leaving[np.argsort(satisfaction, kind="stable")], day + 1)
        n_left = int(np.count_nonzero(self.left))
        n_arrived = len(np.unique(self.labels[self._born <= day]))
        self._record[day - self._days[0]] = (
            reached_share(counts, due),
            mean_shortfall(counts, due),
            provider_gini(counts[self._stock > 0]),
            n_left,
            n_left / n_arrived,
        )

    def changing(self) -> dict[str, NDArray[Any]]:
        """The arrays that change, by name."""
        return {
            "due": self._due,
            "stock": self._stock,
            "neglected": self._neglected,
            "until": self._until,
            "record": self._record,
        }

    def _leave(self, leaving: NDArray[np.intp], day: int) -> None:
        """Takes providers off the platform from a day on, as long as slates can be filled."""
        if day > self._days[1] or not leaving.size:
            return
        stock = self._stock_from(day, np.flatnonzero(self._until[self.labels] == _NEVER))
        for provider in leaving.tolist():
            without = stock - self._stock_from(day, self._items[provider])
            if without.min() >= self._least:
                stock = without
                self._until[provider] = day

    def _stock_from(self, day: int, items: NDArray[np.intp]) -> CountArray:
        """(D,) int64: how many of some items are there on a day and on each one after."""
        n_days = self._days[1] - day + 1
        first = np.clip(self._born[items] - day, 0, n_days)
        end = np.clip(self._ends[items] - day, first, n_days)
        births = np.bincount(first, minlength=n_days + 1)
        departures = np.bincount(end, minlength=n_days + 1)
        return np.asarray((births - departures).cumsum()[:-1])


def _drawn(n_items: int, exponent: float, seed: int) -> CountArray:
    """(n_items,) int64 providers, whose numbers of items follow a power law."""
    rng = np.random.default_rng((seed, _STREAM))
    sizes = np.minimum(rng.zipf(exponent, n_items), n_items)
    owners = np.searchsorted(sizes.cumsum(), np.arange(n_items), side="right")
    return np.asarray(rng.permutation(owners), dtype=np.int64)


def _shares(
    target: Mapping[str, float] | tuple[tuple[str, float], ...],
    names: tuple[str, ...],
    column: str,
) -> DoubleArray:
    """(P,) shares by name."""
    positions = {name: position for position, name in enumerate(names)}
    shares = np.zeros(len(names))
    for name, share in dict(target).items():
        if name not in positions:
            raise ConfigError(
                f"providers.target names {name!r}, but nobody of that name among the {len(names)} "
                f"of {column!r} provides an item; {names[0]!r} does, for one."
            )
        shares[positions[name]] = share
    return shares


def _pairs(target: object) -> tuple[tuple[str, float], ...]:
    """Names and shares of a target by name, which are checked, as pairs."""
    try:
        pairs = list(target.items() if isinstance(target, Mapping) else target)  # type: ignore[call-overload]
        shares = dict(pairs)
    except (TypeError, ValueError):
        pairs, shares = [], {}
    if len(shares) < len(pairs):
        raise ConfigError(f"providers.target must give each name one share, got {target!r}.")
    numbers = bool(shares) and all(is_number(share) and share >= 0 for share in shares.values())
    if not numbers or not 0.0 < sum(shares.values()) <= 1.0 + SLACK:
        raise ConfigError(
            f"providers.target must be one of {list(TARGETS)}, or shares by name of at least 0 "
            f"that sum to at most 1, got {target!r}."
        )
    return tuple((name, float(share)) for name, share in shares.items())


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
