"""The frozen, validated form that every data source is turned into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import DataFormatError

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Interactions:
    """A table of (user, item, watch ratio) rows, by position in the dataset's id arrays.

    The arrays are taken over, not copied, and become read-only.

    Attributes:
        users: (n,) int32 positions in ``Dataset.user_ids``.
        items: (n,) int32 positions in ``Dataset.item_ids``.
        watch_ratio: (n,) float32 >= 0, watched time over the video's duration.
    """

    users: IntArray
    items: IntArray
    watch_ratio: FloatArray

    def __post_init__(self) -> None:
        for array in (self.users, self.items, self.watch_ratio):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def response(self) -> FloatArray:
        """(n,) float32 in [0, 1]: ``min(watch_ratio, 1)``, the KuaiRec response."""
        return np.minimum(self.watch_ratio, np.float32(1.0))

    def take(self, rows: NDArray[np.bool_]) -> Interactions:
        """The rows marked in an (n,) bool array, in their order."""
        return Interactions(self.users[rows], self.items[rows], self.watch_ratio[rows])

    def of_users(self, users: IntArray, n_users: int) -> Interactions:
        """The rows of some users, in their order."""
        chosen = np.zeros(n_users, dtype=bool)
        chosen[users] = True
        return self.take(chosen[self.users])


@dataclass(frozen=True, eq=False)
class Truth:
    """What a synthetic world knows and no agent sees; for the ceiling and for probes.

    Attributes:
        preference: (n_users, m) float32, each user's true preference.
        item_vectors: (n_items, m) float32, each item's place in the same space.
        interest: (n_users,) int32, the category that the user likes most.
        conformity: (n_users,) float32, how strongly popularity sways the user's logged answers.
        expected: (n_test_users, n_items) float32 in [0, 1], the unbiased expected response.
    """

    preference: FloatArray
    item_vectors: FloatArray
    interest: IntArray
    conformity: FloatArray
    expected: FloatArray

    def __post_init__(self) -> None:
        for array in vars(self).values():
            array.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items, a biased log and an unbiased test table.

    Items ``0 .. n_items - 1`` are the catalogue: what an agent may recommend. Items from
    ``n_items`` on occur in the log alone; they inform the user models and are never shown.

    Attributes:
        name: Name of the source, such as ``"kuairec"``.
        synthetic: Whether the rows were generated.
        user_ids: (n_users,) int64, ascending, the source's own ids.
        item_ids: (n_all_items,) int64, the source's own ids, catalogue first.
        n_items: Size of the catalogue.
        log: Rows as the platform logged them: exposure-biased, and swayed by conformity.
        test: Rows that only the test simulator may see.
        test_users: (n_test,) int32, users with test rows.
        train_users: (n_train,) int32, users whose sessions and rows train models. They are all
            other users; where there are none, they are the test users themselves and the
            split is by cell.
        truth: The causes behind a synthetic world, or ``None``.
        notes: Counts of what the loader met and how it was handled, for people to read.
    """

    name: str
    synthetic: bool
    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    n_items: int
    log: Interactions
    test: Interactions
    truth: Truth | None = None
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", MappingProxyType(dict(self.notes)))
        for array in (self.user_ids, self.item_ids):
            array.setflags(write=False)
        if not 1 <= self.n_items <= len(self.item_ids):
            raise DataFormatError(
                f"The catalogue must hold 1 to {len(self.item_ids)} items, got {self.n_items}."
            )
        for label, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if len(np.unique(ids)) != len(ids):
                raise DataFormatError(f"{label} must be distinct.")
        for label, table, n_items in (
            ("log", self.log, len(self.item_ids)),
            ("test", self.test, self.n_items),
        ):
            _check_rows(label, table, len(self.user_ids), n_items)
        cell = self.test.users.astype(np.int64) * self.n_items + self.test.items
        answered = np.zeros(len(self.user_ids) * self.n_items, dtype=bool)
        answered[cell] = True
        if np.count_nonzero(answered) != len(cell):
            raise DataFormatError("The test table answers a (user, item) pair more than once.")
        if self.truth is not None and self.truth.expected.shape != (
            len(self.test_users),
            self.n_items,
        ):
            raise DataFormatError(
                f"truth.expected must have shape {(len(self.test_users), self.n_items)}, "
                f"got {self.truth.expected.shape}."
            )

    def __deepcopy__(self, memo: dict[int, object]) -> Dataset:
        # gymnasium.make copies its arguments; what never changes need not be copied.
        return self

    def __reduce__(self) -> tuple[type[Dataset], tuple[object, ...]]:
        parts = {column.name: getattr(self, column.name) for column in fields(self)}
        return type(self), tuple((parts | {"notes": dict(self.notes)}).values())

    @property
    def n_users(self) -> int:
        """Number of users in the log and the test table together."""
        return len(self.user_ids)

    @cached_property
    def test_users(self) -> IntArray:
        """(n_test,) int32, ascending: users with test rows."""
        return np.unique(self.test.users)

    @cached_property
    def train_users(self) -> IntArray:
        """(n_train,) int32, ascending: users whose rows and sessions train models."""
        logged = np.unique(self.log.users)
        others = np.setdiff1d(logged, self.test_users)
        return others if len(others) else logged

    @property
    def split_by(self) -> str:
        """``"user"`` where train and test users differ, ``"cell"`` where only rows differ."""
        return "cell" if np.isin(self.train_users, self.test_users).any() else "user"

    @cached_property
    def train_log(self) -> Interactions:
        """The logged rows of the train users: all that item statistics may be fitted on."""
        return self.log.of_users(self.train_users, self.n_users)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(f"{self.name}|{self.synthetic}|{self.n_items}".encode())
        for table in (self.log, self.test):
            for column in (table.users, table.items, table.watch_ratio):
                digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        for ids in (self.user_ids, self.item_ids):
            digest.update(np.ascontiguousarray(ids).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """One line for people: what this is, how large, and whether it is real."""
        kind = "synthetic" if self.synthetic else "real"
        return (
            f"{self.name} ({kind}): {self.n_users:,} users ({len(self.test_users):,} test), "
            f"{self.n_items:,} items, {len(self.log):,} logged and {len(self.test):,} test rows, "
            f"train and test split by {self.split_by}"
        )


def _check_rows(label: str, table: Interactions, n_users: int, n_items: int) -> None:
    """Checks what every table of rows promises.

    Raises:
        DataFormatError: It is empty, ragged, out of range, or holds a bad watch ratio.
    """
    if len(table) == 0:
        raise DataFormatError(f"The {label} table is empty; at least one row is needed.")
    if not len(table.users) == len(table.items) == len(table.watch_ratio):
        raise DataFormatError(f"The {label} table's columns must be equally long.")
    for column, size in (("users", n_users), ("items", n_items)):
        values = getattr(table, column)
        if values.dtype.kind != "i":
            raise DataFormatError(f"{label}.{column} must be integers, got {values.dtype}.")
        if values.min() < 0 or values.max() >= size:
            raise DataFormatError(
                f"{label}.{column} must lie in [0, {size}), got [{values.min()}, {values.max()}]."
            )
    if not np.isfinite(table.watch_ratio).all() or table.watch_ratio.min() < 0:
        raise DataFormatError(f"{label}.watch_ratio must be finite and not negative.")
