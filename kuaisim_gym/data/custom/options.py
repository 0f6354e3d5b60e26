"""Options of the source ``table``, checked before a table is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from kuaisim_gym.config import POPULARITIES, check_choice
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
    split_time: float | str | None = None
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
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"{name} must map names to texts, got {value!r}.")
        for name in ("pools", "synthetic"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if self.positive_rate is not None:
            _check_share("positive_rate", self.positive_rate, 0.0, open_ends=True)
        if isinstance(self.groups, str) or not all(isinstance(name, str) for name in self.groups):
            raise ConfigError(f"groups must be a list of columns of items, got {self.groups!r}.")
        _check_share("test_share", self.test_share, 0.0, open_ends=True)
        _check_share("history_share", self.history_share, 0.0, open_ends=False)
        self._check_ratings()
        if self.split_time is not None and self.split != "time":
            raise ConfigError(f"split_time is for split='time', got split={self.split!r}.")
        self.moment  # noqa: B018  (a date that cannot be read is refused now)

    def _check_ratings(self) -> None:
        if self.rating_map is not None and self.positive_from is not None:
            raise ConfigError("Give rating_map or positive_from, not both.")
        if self.positive_from is not None and not _is_number(self.positive_from):
            raise ConfigError(f"positive_from must be a finite number, got {self.positive_from!r}.")
        bounds = self.rating_map
        if bounds is None:
            return
        pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
        if not (pair and all(map(_is_number, bounds)) and bounds[0] < bounds[1]):
            raise ConfigError(
                f"rating_map must be two ratings, those of the responses 0 and 1, such as (1, 5); "
                f"got {bounds!r}."
            )

    @property
    def moment(self) -> float | None:
        """``split_time`` as a number; a date as seconds since 1970, UTC where it does not say."""
        moment = self.split_time
        if moment is None or _is_number(moment):
            return None if moment is None else float(moment)
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
    return list(value) if isinstance(value, (list, tuple)) else value


def _is_number(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _check_share(name: str, value: object, low: float, open_ends: bool) -> None:
    valid = _is_number(value) and low <= value < 1.0  # type: ignore[operator]
    if not valid or (open_ends and value == low):
        bounds = "above 0" if open_ends else "of at least 0"
        raise ConfigError(f"{name} must be a number {bounds} and below 1, got {value!r}.")
