"""Dataset, the immutable and validated form of every data source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import POPULARITIES, check_choice, check_whole
from kuaisim_gym.data.feedback import FloatArray, IntArray, Interactions, are_distinct
from kuaisim_gym.errors import ConfigError, DataFormatError

POPULAR_SHARE = 0.2  # of the catalogue, by exposures (paper section 5.1.1)

IdArray = NDArray[Any]  # int64, or strings of any width
POSITIVE_RATE = 0.1  # of exposures, where a log of positives alone is all there is


@dataclass(frozen=True, eq=False)
class Features:
    """Categorical and numerical features of users or items.

    Attributes:
        codes: By field, (n, width) int32: which of the field's values a user or item has. 0 stands
            for a missing value and pads fields that hold several, such as tags.
        values: By field, the values that the codes stand for, as the source writes them;
            ``values[field][0]`` is ``""``.
        numbers: By field, (n,) float64 with NaN for a missing value.
    """

    codes: Mapping[str, IntArray] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("codes", "values", "numbers"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        columns: list[NDArray[Any]] = [*self.codes.values(), *self.numbers.values()]
        for column in columns:
            column.setflags(write=False)

    def __reduce__(self) -> tuple[type[Features], tuple[object, ...]]:
        return type(self), (dict(self.codes), dict(self.values), dict(self.numbers))

    def head(self, n: int) -> Features:
        """The features of the first ``n`` users or items."""
        codes = {name: array[:n] for name, array in self.codes.items()}
        numbers = {name: array[:n] for name, array in self.numbers.items()}
        return Features(codes, self.values, numbers)

    def take(self, chosen: NDArray[np.bool_]) -> Features:
        """The features of the users or items that an (n,) bool array says."""
        codes = {name: array[chosen] for name, array in self.codes.items()}
        numbers = {name: array[chosen] for name, array in self.numbers.items()}
        return Features(codes, self.values, numbers)

    def check(self, label: str, n: int) -> None:
        """Checks shapes and ranges for ``n`` users or items.

        Raises:
            DataFormatError: A field has the wrong shape, or a code has no value.
        """
        if self.codes.keys() != self.values.keys():
            raise DataFormatError(f"{label}: every field needs codes and values.")
        for name, codes in self.codes.items():
            if codes.ndim != 2 or len(codes) != n or codes.dtype.kind != "i":
                raise DataFormatError(
                    f"{label}.codes[{name!r}] must be ({n}, width) integers, got "
                    f"{codes.shape} {codes.dtype}."
                )
            n_values = len(self.values[name])
            if codes.size and (codes.min() < 0 or codes.max() >= n_values):
                raise DataFormatError(f"{label}.codes[{name!r}] must lie in [0, {n_values}).")
        for name, numbers in self.numbers.items():
            if numbers.shape != (n,):
                raise DataFormatError(
                    f"{label}.numbers[{name!r}] must have shape ({n},), got {numbers.shape}."
                )


@dataclass(frozen=True, eq=False)
class Labels:
    """A label of each item of the catalogue that only groups are made of, such as its author.

    Attributes:
        codes: (n_items,) int32, which of the values an item has; 0 stands for a missing one.
        values: The values in order, as the source writes them; ``values[0]`` is ``""``.
    """

    codes: IntArray
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        self.codes.setflags(write=False)

    def check(self, label: str, n: int) -> None:
        """Checks shape and range for ``n`` items.

        Raises:
            DataFormatError: The codes have the wrong shape, or one has no value.
        """
        if self.codes.shape != (n,) or self.codes.dtype.kind != "i":
            raise DataFormatError(
                f"{label}.codes must be ({n},) integers, one for each item of the catalogue, got "
                f"{self.codes.shape} {self.codes.dtype}."
            )
        if self.codes.min() < 0 or self.codes.max() >= len(self.values):
            raise DataFormatError(f"{label}.codes must lie in [0, {len(self.values)}).")


@dataclass(frozen=True, eq=False)
class Truth:
    """Causes of a synthetic world, which no agent sees; for upper bounds and probes.

    The latent score of a (user, item) pair is ``user_level + item_level + scale * <preference,
    item vector>``; a monotone map turns it into the expected unbiased response.

    Attributes:
        preference: (n_users, m) float32, each user's true preference.
        item_vectors: (n_items, m) float32, each item's position in the same space.
        interest: (n_users,) int32, the category that the user likes most.
        conformity: (n_users,) float32, how strongly popularity sways the user's logged answers.
        user_level: (n_users,) float32, general inclination to respond, in latent units.
        item_level: (n_items,) float32, quality, in latent units.
        scale: () float32, latent units of one unit of relevance.
        map_scores: (g,) float32, ascending latent scores.
        map_responses: (g,) float32 in [0, 1], the expected response at each of them.
    """

    preference: FloatArray
    item_vectors: FloatArray
    interest: IntArray
    conformity: FloatArray
    user_level: FloatArray
    item_level: FloatArray
    scale: FloatArray
    map_scores: FloatArray
    map_responses: FloatArray

    def __post_init__(self) -> None:
        for array in vars(self).values():
            array.setflags(write=False)

    def expected(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> FloatArray:
        """Expected unbiased response, float32 in [0, 1], of broadcastable positions."""
        latent = self.user_level[users] + self.item_level[items]
        latent += self.scale * pair_products(self.preference, self.item_vectors, users, items)
        response = np.interp(latent, self.map_scores, self.map_responses)
        return np.asarray(response, dtype=np.float32)


def check_dataset(function: str, dataset: object) -> Dataset:
    """Returns a dataset if it is one.

    Args:
        function: Name of the function that needs it, for the error.
        dataset: The argument.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(dataset, Dataset):
        return dataset
    given = repr(dataset) if isinstance(dataset, str) else f"a {type(dataset).__name__}"
    raise ConfigError(
        f"{function} needs a Dataset, got {given}: give what kuaisim_gym.load_dataset(name, path) "
        "returns, or the dataset of an environment, env.unwrapped.dataset."
    )


def pair_products(
    left: FloatArray, right: FloatArray, rows: NDArray[np.integer], columns: NDArray[np.integer]
) -> FloatArray:
    """Inner products of chosen rows of two matrices.

    Args:
        left: (n, d) float32.
        right: (m, d) float32.
        rows: Positions in ``left``, broadcastable with ``columns``.
        columns: Positions in ``right``.

    Returns:
        float32 of the broadcast shape.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    outer = rows.ndim == columns.ndim == 2 and rows.shape[1] == 1 and columns.shape[0] == 1
    if outer and len(rows) > 1:  # one row goes the way of its batch, whose last bits differ
        return np.asarray(left[rows[:, 0]] @ right[columns[0]].T)  # all pairs: one matrix product
    return np.asarray(np.einsum("...d,...d->...", left[rows], right[columns]))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The part of a dataset that may be learned from: it holds no row of the test source.

    Catalogues, encoders and denoisers are built from this alone, so that nothing of the test
    source can reach them.

    Attributes:
        n_users: Number of users of the dataset, test users included.
        n_all_items: Number of items, log-only ones included.
        log: As the dataset's; a test user's rows in it affect that user alone.

    The other attributes are those of :class:`Dataset`.
    """

    n_users: int
    n_items: int
    n_all_items: int
    log: Interactions
    train_users: IntArray
    train_log: Interactions
    randomised: Interactions | None
    user_features: Features
    item_features: Features
    show_counts: NDArray[np.int64] | None
    popularity: str = "exposures"
    positive_rate: float = POSITIVE_RATE

    def __post_init__(self) -> None:
        check_choice("popularity", self.popularity, POPULARITIES)

    @property
    def popularity_counts(self) -> NDArray[np.int64]:
        """(n_all_items,) int64: the count by which items are popular, see :class:`Dataset`."""
        items, shown = self.train_log.items, self.show_counts
        if self.popularity == "positives":
            items, shown = items[self.train_log.is_positive], None
        if shown is None:
            shown = np.bincount(items, minlength=self.n_all_items)
        return shown.astype(np.int64)


def popular_items(counts: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(n_items,) read-only bool: the fifth of the items that counts most, ties by position.

    Args:
        counts: (n_items,) by which items are popular.
    """
    popular = np.zeros(len(counts), dtype=bool)
    size = max(1, round(POPULAR_SHARE * len(counts)))
    popular[np.argsort(-counts, kind="stable")[:size]] = True
    popular.setflags(write=False)
    return popular


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items, a biased log and an unbiased test table.

    Items ``0 .. n_items - 1`` are the catalogue: what an agent may recommend. Items from
    ``n_items`` on occur in the log alone; they inform the user models and are never shown.

    Attributes:
        name: Its label in results, such as ``"kuairec"``, or the user's own.
        synthetic: Whether the rows were generated.
        user_ids: (n_users,) int64 or strings, ascending, the source's own ids.
        item_ids: (n_all_items,) int64 or strings, the source's own ids, catalogue first.
        n_items: Size of the catalogue.
        log: Rows as the platform logged them: exposure-biased, and swayed by conformity.
        test: Rows that only the test simulator may see.
        test_users: (n_test,) int32, users with test rows.
        train_users: (n_train,) int32, users whose sessions and rows train models. They are all
            other users; where there are none, they are the test users themselves and the
            split is by cell.
        randomised: Rows of users who are no test users, of items that were drawn uniformly, or of
            all items: free of exposure bias, and free to learn from. ``None`` where there are none.
        user_features: Features of the users; without fields where there are none.
        item_features: Features of all items, log-only ones included.
        show_counts: (n_all_items,) int64, how often the platform showed each item; ``None`` where
            it does not say, and popularity is counted in the train log.
        friends: (f, 2) int32, pairs of user positions, the first following the second; ``None``
            where there is no social network.
        truth: The causes behind a synthetic world, or ``None``.
        item_groups: Labels of the catalogue's items, by column: no model and no agent reads them
            as features.
        notes: Counts of irregularities and how reading handled them, for people to read; what did
            not occur has no entry.
        source: Name of the source that read it; ``""`` stands for ``name``.
        split_rule: The rule by which rows became test rows, in words; ``""`` where the source has
            one rule alone.
        popularity: The count by which items are popular. ``"exposures"``: ``show_counts`` if there
            are any, else rows of the train log. ``"positives"``: rows of the train log whose
            response is at least .5 (of a watch ratio: that much of the video was watched).
        pools: Whether a session of the test split may show its user only those items that the
            user has a test row of.
        positive_rate: Share of positives among the exposures behind a log of positives alone, in
            (0, 1). Such a log cannot tell it: it sets the level of the train simulator's answers,
            and no ranking.
    """

    name: str
    synthetic: bool
    user_ids: IdArray
    item_ids: IdArray
    n_items: int
    log: Interactions
    test: Interactions
    randomised: Interactions | None = None
    user_features: Features = field(default_factory=Features)
    item_features: Features = field(default_factory=Features)
    show_counts: NDArray[np.int64] | None = None
    friends: IntArray | None = None
    truth: Truth | None = None
    item_groups: Mapping[str, Labels] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    split_rule: str = ""
    popularity: str = "exposures"
    pools: bool = False
    positive_rate: float = POSITIVE_RATE

    def __post_init__(self) -> None:
        notes = {name: count for name, count in self.notes.items() if count}
        object.__setattr__(self, "notes", MappingProxyType(notes))
        object.__setattr__(self, "item_groups", MappingProxyType(dict(self.item_groups)))
        object.__setattr__(self, "source", self.source or self.name)
        check_choice("popularity", self.popularity, POPULARITIES)
        if not 0.0 < self.positive_rate < 1.0:
            raise DataFormatError(f"positive_rate must lie in (0, 1), got {self.positive_rate}.")
        for array in (self.user_ids, self.item_ids):
            array.setflags(write=False)
        if not 1 <= self.n_items <= len(self.item_ids):
            raise DataFormatError(
                f"The catalogue must hold 1 to {len(self.item_ids)} items, got {self.n_items}."
            )
        for label, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if ids.dtype.kind not in "iU":
                raise DataFormatError(f"{label} must be integers or strings, got {ids.dtype}.")
            ordered = np.sort(ids)  # np.unique would keep a table of millions of items beside it
            if (ordered[1:] == ordered[:-1]).any():
                raise DataFormatError(f"{label} must be distinct.")
        n_all = len(self.item_ids)
        for label, table, n_items in (
            ("log", self.log, n_all),
            ("test", self.test, self.n_items),
            ("randomised", self.randomised, n_all),
        ):
            if table is not None:
                table.check(label, len(self.user_ids), n_items)
        if not self.test.is_draw:
            self._check_test_answers_once()
        self.user_features.check("user_features", len(self.user_ids))
        self.item_features.check("item_features", n_all)
        for name, labels in self.item_groups.items():
            labels.check(f"item_groups[{name!r}]", self.n_items)
        if self.show_counts is not None:
            self.show_counts.setflags(write=False)
            if self.show_counts.shape != (n_all,) or self.show_counts.min() < 0:
                raise DataFormatError(f"show_counts must be {n_all} counts of at least 0.")
        if self.friends is not None:
            self.friends.setflags(write=False)
            inside = (self.friends >= 0) & (self.friends < len(self.user_ids))
            if self.friends.ndim != 2 or self.friends.shape[1] != 2 or not inside.all():
                raise DataFormatError("friends must be pairs of user positions.")

    def _check_test_answers_once(self) -> None:
        """Refuses a (user, item) pair with two rows: one answer is looked up."""
        users, items = self.test.users, self.test.items
        rank = np.zeros(self.n_users, np.int64)
        rank[self.test_users] = np.arange(len(self.test_users))
        cell = rank[users]
        cell *= self.n_items  # in place: the table can be large
        cell += items
        if not are_distinct(cell, len(self.test_users) * self.n_items):
            raise DataFormatError("The test table answers a (user, item) pair more than once.")

    def __deepcopy__(self, memo: dict[int, object]) -> Dataset:
        # Gymnasium's `env.spec` copies make's arguments; what never changes need not be copied.
        return self

    def __reduce__(self) -> tuple[type[Dataset], tuple[object, ...]]:
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        plain = {name: dict(getattr(self, name)) for name in ("item_groups", "notes")}
        return type(self), tuple((values | plain).values())

    def catalogue_only(self) -> Dataset:
        """The dataset without the items that occur in the log alone.

        Models of every item need memory for every item; KuaiRand-27K has 32 million of them, of
        which some 7,600 can be recommended.

        Raises:
            DataFormatError: No logged row is left.
        """
        return self._of_items(np.arange(self.n_all_items) < self.n_items)

    def without_rare(self, least_rows: int = 10) -> Dataset:
        """The dataset without the log-only items of which there is little to learn.

        Between :meth:`catalogue_only` and all items: the items that stay tell most of what users
        like, and in a long tail they are few.

        Args:
            least_rows: Rows of train users that a log-only item must have to stay, at least 1.

        Raises:
            ConfigError: ``least_rows`` is out of range.
            DataFormatError: No logged row is left.
        """
        check_whole("least_rows", least_rows, 1)
        is_train = np.zeros(self.n_users, dtype=bool)
        is_train[self.train_users] = True
        rows = self.log.items[is_train[self.log.users]]
        chosen = np.bincount(rows, minlength=self.n_all_items) >= least_rows
        chosen[: self.n_items] = True
        return self._of_items(chosen)

    def _of_items(self, chosen: NDArray[np.bool_]) -> Dataset:
        """The dataset with some of its items, all of the catalogue among them."""
        position = np.cumsum(chosen, dtype=np.int32) - np.int32(1)

        def moved(table: Interactions) -> Interactions:
            rows = table.take(chosen[table.items])
            return replace(rows, items=position[rows.items])

        return replace(
            self,
            item_ids=self.item_ids[chosen],
            log=moved(self.log),
            randomised=self.randomised and moved(self.randomised),
            item_features=self.item_features.take(chosen),
            show_counts=None if self.show_counts is None else self.show_counts[chosen],
        )

    def with_unbiased_users(self, n_users: int, seed: int = 0) -> Dataset:
        """Turns some test users into train users, whose test rows can be learned from.

        Answers of a fully observed user (KuaiRec's small matrix) are free of exposure bias; with
        some of those users no longer test users, :attr:`randomised` holds their answers, and
        models of the undistorted preference can be learned. The result is another dataset: build
        the environments from it, too.

        Args:
            n_users: Number of test users to turn, at least 1 and not all.
            seed: Seed of the draw.

        Raises:
            ConfigError: ``n_users`` is out of range, or the dataset has test users alone, so that
                the turned ones would be the only users to learn from.
        """
        if self.split_by == "cell":
            raise ConfigError(
                f"{self.name} is split by cell: all its users are test users, and turning some "
                "would leave the logs of the rest unread."
            )
        if self.test.complete_from is not None:
            raise ConfigError(
                f"The test rows of {self.name} hold all high answers but a sample of the others: "
                "they are no fair sample to learn from."
            )
        check_whole("seed", seed, 0)
        if check_whole("n_users", n_users, 1) >= len(self.test_users):
            raise ConfigError(
                f"n_users must be less than {len(self.test_users)}, the number of test users; got "
                f"{n_users}."
            )
        drawn = np.random.default_rng(seed).choice(self.test_users, n_users, replace=False)
        given_up = np.isin(self.test.users, drawn)
        unbiased = self.test.take(given_up)
        if self.randomised is not None:
            unbiased = self.randomised.merged(unbiased)
        return replace(self, test=self.test.take(~given_up), randomised=unbiased)

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Names of the behaviours that rows record, the default response first."""
        return self.log.behaviours

    @property
    def n_users(self) -> int:
        """Number of users in the log and the test table together."""
        return len(self.user_ids)

    @property
    def n_all_items(self) -> int:
        """Number of items, log-only ones included."""
        return len(self.item_ids)

    @cached_property
    def test_users(self) -> IntArray:
        """(n_test,) int32, ascending: users with test rows."""
        return self.test.distinct_users

    @cached_property
    def train_users(self) -> IntArray:
        """(n_train,) int32, ascending: users whose rows and sessions train models."""
        logged = self.log.distinct_users
        untested = np.setdiff1d(logged, self.test_users)
        return untested if len(untested) else logged

    @property
    def split_by(self) -> str:
        """``"user"`` where train and test users differ, ``"cell"`` where only rows differ."""
        return "cell" if np.isin(self.train_users, self.test_users).any() else "user"

    @cached_property
    def train_log(self) -> Interactions:
        """The logged rows of the train users: all that item statistics may be fitted on."""
        return self.log.of_users(self.train_users, self.n_users)

    @cached_property
    def training(self) -> TrainingData:
        """All of the dataset that may be learned from."""
        return TrainingData(*(getattr(self, column.name) for column in fields(TrainingData)))

    @cached_property
    def popular(self) -> NDArray[np.bool_]:
        """(n_items,) bool: the popular group of the catalogue, see :func:`popular_items`."""
        return popular_items(self.training.popularity_counts[: self.n_items])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(f"{self.name}|{self.synthetic}|{self.n_items}".encode())
        arrays: list[NDArray[Any]] = [self.user_ids, self.item_ids]
        for table in (self.log, self.test, self.randomised):
            arrays += [] if table is None else table.columns.values()
        for features in (self.user_features, self.item_features):
            digest.update(repr(sorted(features.values.items())).encode())
            for columns in (features.codes, features.numbers):
                arrays += [columns[name] for name in sorted(columns)]
        arrays += [array for array in (self.show_counts, self.friends) if array is not None]
        for name, labels in sorted(self.item_groups.items()):
            digest.update(repr((name, labels.values)).encode())
            arrays.append(labels.codes)
        form = (self.source, self.popularity, self.pools, self.positive_rate)
        if form != (self.name, "exposures", False, POSITIVE_RATE):
            feedback = [type(table).__name__ for table in (self.log, self.test)]
            digest.update(f"{form}|{feedback}".encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def answered_share(self) -> float:
        """Share of the answers of test sessions that are recorded rows, in [0, 1].

        The others are a model's: of pairs without a test row, and of all where a row is one draw.
        """
        if self.test.is_draw:
            return 0.0
        if self.pools:
            return 1.0
        return len(self.test) / (len(self.test_users) * self.n_items)

    @property
    def modelled(self) -> str:
        """The rest of :attr:`answered_share` in words: ``"none"``, or a percentage."""
        share = 1.0 - self.answered_share
        return f"{100.0 * share:.1f} %" if share else "none"

    @property
    def description(self) -> str:
        """Summary in one line: name, size, and whether data and test answers are real."""
        kind = "synthetic" if self.synthetic else "real"
        modelled = "" if self.synthetic else f", {self.modelled} of test answers modelled"
        return (
            f"{self.name} ({kind}): {self.n_users:,} users ({len(self.test_users):,} test), "
            f"{self.n_items:,} items, {len(self.log):,} logged and {len(self.test):,} test rows, "
            f"train and test split by {self.split_rule or self.split_by}{modelled}"
        )
