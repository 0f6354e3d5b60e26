"""When items are born and leave: the timetable of a catalogue that changes.

Some items are there when the platform opens, the others arrive in a Poisson process; each stays
for a random while. Dates of a dataset say in which order items come, or the very day.
KuaiRand-Pure's videos were all uploaded within three days, so that its dates alone make no month
of arrivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice, check_fields, check_whole, check_within
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.providers import Providers

CATALOGUES = ("fixed", "dynamic")
DATES = "dates"
_FOR_EVER = 2**31
_LAST_DAY = 2**15 - 1  # ages of items are 16-bit numbers
_STREAM = 2  # of the seed, for trials; others are the timetable's and the providers'
_USUAL_DATES = "upload_dt"  # KuaiRand's day of arrival

DayArray = NDArray[np.int64]


@dataclass(frozen=True)
class Lifecycle:
    """Rates at which a catalogue changes, in days of a platform.

    Attributes:
        days: First and last day that are played, at most 32,767; after it the platform opens anew,
            as on the first.
        sessions_per_day: Sessions that begin in a day, at least as many as are played at once;
            ``None`` for 256, or for as many as are. Those that begin in one step are of one day,
            which can have more for that.
        initial: Share of the catalogue that is there on the first day, in (0, 1].
        lifetime: Mean days that an item stays, exponentially distributed; infinite for ever.
        arrivals: Items a day, ``None`` for as many as have all arrived on the last day; or
            ``"dates"``, the very days of ``dates``, counted from the first of them, day 0, whose
            items are there from the start.
        memory: Share of an item's popularity that is left after a day, in [0, 1): popularity is
            the moving average of shares of a day's exposures.
        dates: Column of the dataset whose order is that of arrival, ties at random; ``None`` for
            ``"upload_dt"`` where there is one, else a random order.
        trials: Rows of each newcomer that the log has already: the platform tries every item on so
            many users before all others can see it. 0 where nobody has logged newcomers.
        seed: Seed of the timetable, of the trials, and of providers that are drawn.
        providers: Exposure that is due to providers of items, and when they leave, or a mapping of
            fields of :class:`~kuaisim_gym.simulator.providers.Providers`; ``None`` for no such
            rule.

    Raises:
        ConfigError: A value is out of range.
    """

    days: tuple[int, int] = (1, 30)
    sessions_per_day: int | None = None
    initial: float = 0.5
    lifetime: float = 30.0
    arrivals: float | str | None = None
    memory: float = 0.9
    dates: str | None = None
    trials: int = 0
    seed: int = 0
    providers: Providers | None = None

    def __post_init__(self) -> None:
        days = tuple(self.days) if isinstance(self.days, Sequence) else ()
        if len(days) != 2:
            raise ConfigError(f"days must be the first and the last day, got {self.days!r}.")
        first = check_whole("The first of days", days[0], 1)
        last = check_whole("The last of days", days[1], first)
        if last > _LAST_DAY:
            raise ConfigError(f"The last of days must be at most {_LAST_DAY}, got {last}.")
        if self.dates is not None and not isinstance(self.dates, str):
            raise ConfigError(f"dates must name a column, got {self.dates!r}.")
        checked: dict[str, Any] = {
            "days": (first, last),
            "initial": check_within("initial", self.initial, "(0, 1]"),
            "lifetime": check_within("lifetime", self.lifetime, "(0, inf]"),
            "memory": check_within("memory", self.memory, "[0, 1)"),
            "trials": check_whole("trials", self.trials, 0),
            "seed": check_whole("seed", self.seed, 0),
            "providers": Providers.of(self.providers),
        }
        if self.sessions_per_day is not None:
            per_day = check_whole("sessions_per_day", self.sessions_per_day, 1)
            checked["sessions_per_day"] = per_day
        if isinstance(self.arrivals, str):
            check_choice("arrivals", self.arrivals, (DATES,))
        elif self.arrivals is not None:
            checked["arrivals"] = check_within("arrivals", self.arrivals, "(0, inf)")
        for name, value in checked.items():  # Python's own numbers, which JSON holds
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, catalogue: str | Mapping[str, Any] | Lifecycle) -> Lifecycle | None:
        """Reads the option ``catalogue`` of an environment.

        Args:
            catalogue: ``"fixed"``, ``"dynamic"``, or a lifecycle, which a mapping of its fields
                stands for, too.

        Returns:
            The lifecycle; ``None`` of a fixed catalogue.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(catalogue, cls):
            return catalogue
        if isinstance(catalogue, Mapping):
            return cls(**check_fields("catalogue", catalogue, cls))
        check_choice("catalogue", str(catalogue), CATALOGUES)
        return cls() if catalogue == "dynamic" else None

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them; without providers where there are none."""
        settings = asdict(self) | {"days": list(self.days)}
        del settings["providers"]
        return settings | ({} if self.providers is None else {"providers": self.providers.settings})


@dataclass(frozen=True, eq=False)
class Timetable:
    """Days on which items of a catalogue are there.

    Attributes:
        born: (n_items,) int64, the first day; 0 for the items that are there from the start, and
            for those who had left before it.
        gone: (n_items,) int64, the day from which on it is no longer there.
    """

    born: DayArray
    gone: DayArray

    def __post_init__(self) -> None:
        for array in (self.born, self.gone):
            array.setflags(write=False)

    def available(self, day: int) -> NDArray[np.bool_]:
        """(n_items,) bool: items that are there on a day."""
        return np.asarray((self.born <= day) & (day < self.gone))

    @property
    def logged(self) -> NDArray[np.bool_]:
        """(n_items,) bool: items that a log from before the first day can know."""
        return np.asarray(self.born == 0)


def timetable_of(dataset: Dataset, lifecycle: Lifecycle) -> Timetable:
    """Draws the timetable of a dataset's catalogue.

    Args:
        dataset: Source of the dates.
        lifecycle: The rates.

    Returns:
        The timetable, the same for the same arguments.

    Raises:
        ConfigError: There is no such column of dates.
    """
    n_items, rng = dataset.n_items, np.random.default_rng(lifecycle.seed)
    dates, ties = _dates(dataset, lifecycle.dates), rng.permutation(n_items)
    born = np.zeros(n_items, dtype=np.int64)
    if lifecycle.arrivals == DATES:
        if dates is None:
            raise ConfigError(
                f'arrivals="dates" needs dates, and {dataset.name} has none: name a column in '
                "dates=, or give a number of arrivals a day."
            )
        born = dates - dates.min()
    else:
        n_later = n_items - max(1, round(lifecycle.initial * n_items))
        usual = max(n_later, 1) / lifecycle.days[1]
        rate = usual if lifecycle.arrivals is None else float(lifecycle.arrivals)
        later = rng.exponential(1.0 / rate, n_later).cumsum()
        order = np.lexsort((ties,) if dates is None else (ties, dates))
        born[order[n_items - n_later :]] = _days(later)
    # An item that is there from the start has been for a while, but what is left of an exponential
    # lifetime is distributed like all of it.
    stays = np.full(n_items, np.inf)
    if np.isfinite(lifecycle.lifetime):
        stays = rng.exponential(lifecycle.lifetime, n_items)
    return Timetable(born, np.maximum(born, 1) + _days(stays))


@lru_cache(maxsize=2)
def before_first_day(dataset: Dataset, lifecycle: Lifecycle) -> tuple[Dataset, Timetable]:
    """A dataset as it stood before the first day, and the timetable of its catalogue.

    No row of log or randomised source is of an item that came later, but for its trials, which are
    a random part of its log rows; features of all items are known. The test source is the same: it
    answers sessions, and teaches nobody.

    Args:
        dataset: The dataset.
        lifecycle: The rates.

    Raises:
        ConfigError: As of :func:`timetable_of`, or the dataset has pools.
    """
    if dataset.pools:
        raise ConfigError(
            f"{dataset.name} has answers of each user's own pool of items alone, which leaves a "
            'catalogue that changes too few: use catalogue="fixed".'
        )
    timetable = timetable_of(dataset, lifecycle)
    known = np.ones(dataset.n_all_items, dtype=bool)
    known[: dataset.n_items] = timetable.logged
    randomised, counts = dataset.randomised, dataset.show_counts
    earlier = replace(
        dataset,
        log=dataset.log.take(known[dataset.log.items] | _trials(dataset, lifecycle)),
        randomised=None if randomised is None else randomised.take(known[randomised.items]),
        show_counts=None if counts is None else np.where(known, counts, 0),
    )
    return earlier, timetable


def _trials(dataset: Dataset, lifecycle: Lifecycle) -> NDArray[np.bool_]:
    """(n_rows,) bool: as many random rows of each item's log as there are trials."""
    items = dataset.log.items
    if not lifecycle.trials:
        return np.zeros(len(items), dtype=bool)  # without a sort of the whole log
    lots = np.random.default_rng((lifecycle.seed, _STREAM)).random(len(items))
    order = np.lexsort((lots, items))
    firsts = np.searchsorted(items[order], items[order])
    tried = np.empty(len(items), dtype=bool)
    tried[order] = np.arange(len(items)) - firsts < lifecycle.trials
    return tried


def _dates(dataset: Dataset, column: str | None) -> DayArray | None:
    """(n_items,) days in a column of dates or numbers; ``None`` where nobody asks for any."""
    labels, numbers = dataset.item_groups, dataset.item_features.numbers
    if column is None:
        if _USUAL_DATES not in labels:
            return None
        column = _USUAL_DATES
    check_choice("dates", column, (*labels, *numbers))
    if column in numbers:
        days = numbers[column][: dataset.n_items].astype(np.float64)
    else:
        try:
            dates = [date.fromisoformat(value) for value in labels[column].values[1:]]
        except ValueError as error:
            raise ConfigError(
                f"dates={column!r} must name a column of dates such as 2022-04-11: {error}."
            ) from error
        days = np.array([np.nan, *(day.toordinal() for day in dates)])[labels[column].codes]
    if not np.isfinite(days).all():
        raise ConfigError(f"dates={column!r} must have a day for each item; some have none.")
    return np.floor(days).astype(np.int64)


def _days(times: NDArray[np.float64]) -> DayArray:
    """The days that times after the start fall on, the first being 1."""
    return np.minimum(np.floor(times) + 1.0, _FOR_EVER).astype(np.int64)
