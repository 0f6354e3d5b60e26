"""Options of the source ``table``, checked before a table is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np

from kuaisim_gym.config import (
    POPULARITIES,
    check_choice,
    check_flag,
    is_number,
    plain_number,
)
from kuaisim_gym.errors import ConfigError

SPLITS_OF_TABLES = ("user", "time", "given")
CATALOGUES = ("all", "test")


@dataclass(frozen=True)
class TableOptions:
    """The choices that tables do not make themselves; see :class:`TableSource` for them.

    Raises:
        ConfigError: A value is not allowed, or two of them contradict each other.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    rating_map: tuple[float, float] | None = None
    positive_from: float | None = None
    split: str | None = None
    test_share: float = 0.2
    split_time: Any = None
    history_share: float = 0.5
    catalogue: str | None = None
    popularity: str | None = None
    item_features: Mapping[str, str] | None = None
    user_features: Mapping[str, str] | None = None
    groups: Sequence[str] = ()
    pools: bool = False
    positive_rate: float | None = None
    synthetic: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("split", SPLITS_OF_TABLES),
            ("catalogue", CATALOGUES),
            ("popularity", POPULARITIES),
        ):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), allowed)
        for name in ("columns", "item_features", "user_features"):
            self._check_mapping(name)
        self._check_groups()
        for name in ("pools", "synthetic"):
            self._set(name, check_flag(name, getattr(self, name)))
        if self.positive_rate is not None:
            self._set("positive_rate", _share("positive_rate", self.positive_rate))
        self._set("test_share", _share("test_share", self.test_share))
        self._set("history_share", _share("history_share", self.history_share, or_none=True))
        self._check_ratings()
        if self.split_time is not None and self.split != "time":
            raise ConfigError(f"split_time is for split='time', got split={self.split!r}.")
        self.moment  # noqa: B018  (a date that cannot be read is refused now)

    def _set(self, name: str, value: object) -> None:
        """Replaces NumPy's scalars and sequences by Python's, whose text is one."""
        object.__setattr__(self, name, value)

    def _check_mapping(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name != "columns":
            return
        texts = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        if not texts or not all(cell is None or isinstance(cell, str) for cell in value.values()):
            raise ConfigError(f"{name} must map names to texts, got {value!r}.")

    def _check_groups(self) -> None:
        groups = self.groups
        names = list(groups) if isinstance(groups, (list, tuple, set, frozenset)) else [None]
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"groups must be a list of columns of items, got {groups!r}.")
        if len(set(names)) < len(names):
            raise ConfigError(f"groups names a column twice: {names}.")
        self._set("groups", tuple(names))

    def _check_ratings(self) -> None:
        if self.rating_map is not None and self.positive_from is not None:
            raise ConfigError("Give rating_map or positive_from, not both.")
        if self.positive_from is not None:
            if not is_number(self.positive_from):
                raise ConfigError(
                    f"positive_from must be a finite number, got {self.positive_from!r}."
                )
            self._set("positive_from", plain_number(self.positive_from))
        bounds = self.rating_map
        if bounds is None:
            return
        pair = isinstance(bounds, (tuple, list, np.ndarray)) and len(bounds) == 2
        if not (pair and all(map(is_number, bounds)) and bounds[0] < bounds[1]):
            raise ConfigError(
                f"rating_map must be two ratings, those of the responses 0 and 1, such as (1, 5); "
                f"got {bounds!r}."
            )
        self._set("rating_map", tuple(map(plain_number, bounds)))

    @property
    def moment(self) -> float | None:
        """``split_time`` as a number; a date as seconds since 1970, UTC where it does not say."""
        moment = self.split_time
        if moment is None:
            return None
        if is_number(moment):
            return float(moment)
        if isinstance(moment, np.datetime64):
            moment = str(moment.astype("datetime64[us]"))
        try:
            date = datetime.fromisoformat(str(moment))
        except ValueError as error:
            raise ConfigError(
                f"split_time must be a number or a date such as '2024-05-31', got {moment!r}."
            ) from error
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()

    @property
    def text(self) -> str:
        """The options as text, for the key of a cache entry."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        return repr({name: _plain(value) for name, value in values.items()})


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, (list, tuple)):
        return list(value)
    # Dates and NumPy's numbers have several texts.
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _share(name: str, value: object, or_none: bool = False) -> float:
    """A share below 1 as a Python number.

    Raises:
        ConfigError: It is none.
    """
    if is_number(value) and (0.0 < value < 1.0 or (or_none and value == 0.0)):
        return plain_number(value)
    bounds = "of at least 0" if or_none else "above 0"
    raise ConfigError(f"{name} must be a number {bounds} and below 1, got {value!r}.")
