"""Logged answers of users to items, and the properties of their feedback types."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.registry import register

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

POSITIVE = np.float32(0.5)  # the least response that counts as positive
FEEDBACK: dict[str, type[Interactions]] = {}  # by class name; subclasses add themselves


def are_distinct(numbers: NDArray[np.int64], size: int) -> bool:
    """Tells whether (n,) numbers in [0, size) differ from each other."""
    if size <= 8 * len(numbers):  # marks take no more memory than the numbers, and no sort
        marks = np.zeros(size, dtype=bool)
        marks[numbers] = True
        return int(np.count_nonzero(marks)) == len(numbers)
    ascending = np.sort(numbers)
    return not bool((ascending[1:] == ascending[:-1]).any())


@dataclass(frozen=True, eq=False)
class Interactions(ABC):
    """A table of (user, item, feedback) rows, by position in the dataset's id arrays.

    A subclass is a type of feedback: a dataclass that adds the feedback's columns, implements
    ``_behaviour`` and ``_check_feedback``, and sets the class attributes, which tell the response
    models how to use the columns. Rows are grouped by user, users ascending; a user's
    rows are in the order of time where the source knows it, in the source's order otherwise. The
    arrays are taken over, not copied, and become read-only.

    Attributes:
        behaviours: Names of the answers that a row records, the default response first.
        link: How a model's score becomes a response: ``"logistic"`` where responses are yes or no,
            ``"identity"`` where they are shares.
        is_draw: Whether a row is one random draw. If so, a user may answer an item several times,
            rows have an order in time, and only a model knows the probability behind them. If not,
            a row is the answer itself, which a test table looks up.
        calibration: The calibration of response models that is used by default, one of
            :data:`~kuaisim_gym.config.CALIBRATIONS`; ``"balanced"`` needs the logistic link.
        has_negatives: Whether a row can be negative. Where none can, pairs without a row are all
            that a response model can set the rows against.
        complete_from: The feedback from which on the table holds all pairs of its users and the
            catalogue, so that a pair without a row is known to be below; ``None`` for none.
        users: (n,) int32 positions in ``Dataset.user_ids``.
        items: (n,) int32 positions in ``Dataset.item_ids``.
    """

    behaviours: ClassVar[tuple[str, ...]]
    link: ClassVar[Literal["identity", "logistic"]]
    is_draw: ClassVar[bool]
    calibration: ClassVar[Literal["balanced", "calibrated"]]
    has_negatives: ClassVar[bool] = True
    complete_from: ClassVar[float | None] = None

    users: IntArray
    items: IntArray

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        register(FEEDBACK, cls.__name__, cls)

    def __post_init__(self) -> None:
        for column in self.columns.values():
            column.setflags(write=False)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    def starts(self, n_users: int) -> NDArray[np.int64]:
        """(n_users + 1,) int64: the rows of user u are ``starts[u]`` to ``starts[u + 1] - 1``."""
        starts = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.users, minlength=n_users), out=starts[1:])
        return starts

    @property
    def distinct_users(self) -> IntArray:
        """The users that have rows, ascending."""
        first = np.ones(len(self), dtype=bool)
        np.not_equal(self.users[1:], self.users[:-1], out=first[1:])
        return np.asarray(self.users[first])

    @property
    def response(self) -> FloatArray:
        """(n,) float32 in [0, 1]: the first behaviour, the one that rewards count by default."""
        return self.behaviour(0)

    @property
    def is_positive(self) -> NDArray[np.bool_]:
        """(n,) bool: rows whose response is at least :data:`POSITIVE`."""
        return self.response >= POSITIVE

    @property
    def is_sample(self) -> NDArray[np.bool_]:
        """(n,) bool: rows below ``complete_from``, of which others of their kind may be missing."""
        return np.ones(len(self), dtype=bool)

    def behaviour(self, index: int) -> FloatArray:
        """(n,) float32 in [0, 1]: how strongly each row shows one of ``behaviours``.

        Raises:
            IndexError: There is no behaviour of this number.
        """
        if not 0 <= index < len(self.behaviours):
            raise IndexError(
                f"Expected a behaviour's number, 0 to {len(self.behaviours) - 1}, got {index}."
            )
        return self._behaviour(index)

    @abstractmethod
    def _behaviour(self, index: int) -> FloatArray:
        """Computes :meth:`behaviour` of a valid number."""

    @abstractmethod
    def _check_feedback(self, label: str) -> None:
        """Raises a DataFormatError where the feedback columns hold a value that is not allowed."""

    def check(self, label: str, n_users: int, n_items: int) -> None:
        """Checks the rules of all tables of rows.

        Args:
            label: The table's name in messages.
            n_users: Number of user positions.
            n_items: Number of item positions.

        Raises:
            DataFormatError: The table is empty, ragged, out of range, not grouped by user, or holds
                feedback that its type does not allow.
        """
        if len(self) == 0:
            raise DataFormatError(f"The {label} table is empty; at least one row is needed.")
        if len({len(column) for column in self.columns.values()}) > 1:
            raise DataFormatError(f"The {label} table's columns must be equally long.")
        for name, values, size in (("users", self.users, n_users), ("items", self.items, n_items)):
            if values.dtype.kind != "i":
                raise DataFormatError(f"{label}.{name} must be integers, got {values.dtype}.")
            if values.min() < 0 or values.max() >= size:
                raise DataFormatError(
                    f"{label}.{name} must lie in [0, {size}), got [{values.min()}, {values.max()}]."
                )
        if (self.users[1:] < self.users[:-1]).any():
            raise DataFormatError(f"{label}: rows must be grouped by user, users ascending.")
        self._check_feedback(label)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.integer] | slice) -> Self:
        """Some rows: by an (n,) bool array, by number, or by a slice."""
        return type(self)(*(column[rows] for column in self.columns.values()))

    def merged(self, *tables: Self) -> Self:
        """Merges these rows with other tables of the same feedback, users ascending."""
        columns = zip(*(table.columns.values() for table in (self, *tables)), strict=True)
        rows = type(self)(*map(np.concatenate, columns))
        return rows.take(np.argsort(rows.users, kind="stable"))

    def of_users(self, users: IntArray, n_users: int) -> Self:
        """The rows of some users, in their order."""
        chosen = np.zeros(n_users, dtype=bool)
        chosen[users] = True
        return self.take(chosen[self.users])


@dataclass(frozen=True, eq=False)
class WatchLog(Interactions):
    """KuaiRec's feedback: how much of the video was watched; a response is ``min(ratio, 1)``.

    Attributes:
        watch_ratio: (n,) float32 >= 0, watched time over the video's duration.
    """

    behaviours = ("watched",)
    link = "identity"
    is_draw = False
    calibration = "calibrated"

    watch_ratio: FloatArray

    @cached_property
    def _watched(self) -> FloatArray:
        return np.minimum(self.watch_ratio, np.float32(1.0))

    def _behaviour(self, index: int) -> FloatArray:
        return self._watched

    def _check_feedback(self, label: str) -> None:
        if not np.isfinite(self.watch_ratio).all() or self.watch_ratio.min() < 0:
            raise DataFormatError(f"{label}.watch_ratio must be finite and not negative.")


@dataclass(frozen=True, eq=False)
class WatchSample(WatchLog):
    """Watch ratios of a fully observed matrix: all of at least 2, and a sample of the others.

    A ratio that is only known to be at least 2 is written as 2; its response is 1 all the same.
    """

    complete_from = 2.0

    @property
    def is_sample(self) -> NDArray[np.bool_]:
        return np.asarray(self.watch_ratio < self.complete_from)


@dataclass(frozen=True, eq=False)
class BehaviourLog(Interactions):
    """KuaiRand's feedback: seven yes-or-no behaviours.

    Attributes:
        flags: (n,) uint8, bit b set where the row shows ``behaviours[b]``.
    """

    behaviours = (
        "is_click",
        "long_view",
        "is_like",
        "is_comment",
        "is_forward",
        "is_follow",
        "is_hate",
    )
    link = "logistic"
    is_draw = True
    calibration = "balanced"

    flags: NDArray[np.uint8]

    def _behaviour(self, index: int) -> FloatArray:
        return ((self.flags >> index) & 1).astype(np.float32)

    def _check_feedback(self, label: str) -> None:
        if self.flags.dtype != np.uint8 or self.flags.max() >> len(self.behaviours):
            raise DataFormatError(f"{label}.flags must be uint8 with seven bits in use.")


@dataclass(frozen=True, eq=False)
class ResponseLog(Interactions):
    """Feedback that is a share, such as a rescaled rating: an answer of its own in [0, 1].

    Attributes:
        value: (n,) float32 in [0, 1].
    """

    behaviours = ("response",)
    link = "identity"
    is_draw = False
    calibration = "calibrated"

    value: FloatArray

    def _behaviour(self, index: int) -> FloatArray:
        return self.value

    def _check_feedback(self, label: str) -> None:
        if not ((self.value >= 0) & (self.value <= 1)).all():
            raise DataFormatError(f"{label}.value must be numbers in [0, 1].")


@dataclass(frozen=True, eq=False)
class LabelLog(Interactions):
    """Feedback that is yes or no, one answer for a (user, item) pair.

    Attributes:
        label: (n,) uint8, 0 or 1.
    """

    behaviours = ("positive",)
    link = "logistic"
    is_draw = False
    calibration = "calibrated"

    label: NDArray[np.uint8]

    def _behaviour(self, index: int) -> FloatArray:
        return self.label.astype(np.float32)

    def _check_feedback(self, label: str) -> None:
        if self.label.dtype != np.uint8 or self.label.max() > 1:
            raise DataFormatError(f"{label}.label must be uint8, 0 or 1.")


@dataclass(frozen=True, eq=False)
class PositiveLog(Interactions):
    """Rows that are all positive; a pair without one was answered no, or was never shown.

    Its behaviour is that of :class:`LabelLog`, which can be the form of the test table beside it.
    """

    behaviours = LabelLog.behaviours
    link = "logistic"
    is_draw = False
    calibration = "calibrated"
    has_negatives = False

    def _behaviour(self, index: int) -> FloatArray:
        return np.ones(len(self), dtype=np.float32)

    def _check_feedback(self, label: str) -> None:
        """Nothing to check: a row has no feedback beside its being there."""
