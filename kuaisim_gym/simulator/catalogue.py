"""Catalogue of items, as the train log describes them: embedding, popularity, groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import TrainingData, popular_items
from kuaisim_gym.simulator.factors import PreferenceModel
from kuaisim_gym.tensors import digest_of

_ITEMS = 1 << 16  # that are embedded together
_LEAST_SPREAD = 1e-6  # of a column; below it is rounding

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items that an agent may recommend.

    Attributes:
        embedding: (n_all_items, d) float32, column 0 an item's quality, the rest its vector, of
            :class:`~kuaisim_gym.simulator.factors.PreferenceModel`: a user of taste p prefers items
            by their inner product with (1, p). Columns have mean zero over the catalogue, and one
            unit is the spread of quality there. Rows from ``n_items`` on are items of the log
            alone.
        exposures: (n_items,) int64, the count by which items are popular: as ``Dataset.popularity``
            says, how often an item was shown (on the whole platform where the dataset knows it,
            else in the train log), or how many train rows with a response of at least .5 it has.
            Of a catalogue that changes: shares of its latest exposures, in billionths.
        available: (n_items,) bool, the items that are there today; ``None`` for all, always.
        base: Of an extended catalogue the one before, whose means and spreads remain the scales;
            ``None`` of all others.
        larger: Of an extended catalogue the :attr:`fingerprint` of the one with the same items
            whose place it takes; empty of all others.
    """

    embedding: FloatArray
    exposures: NDArray[np.int64]
    available: NDArray[np.bool_] | None = None
    base: Catalogue | None = None
    larger: str = ""

    def __post_init__(self) -> None:
        for array in (self.embedding, self.exposures):
            array.setflags(write=False)

    @property
    def n_items(self) -> int:
        """Number of items that may be recommended."""
        return len(self.exposures)

    @property
    def changes(self) -> bool:
        """True of one day's state of a catalogue whose items are born and leave."""
        return self.available is not None

    @property
    def item_embedding(self) -> FloatArray:
        """(n_items, d) float32: the embedding of the catalogue's own items."""
        return self.embedding[: self.n_items]

    @cached_property
    def standardised(self) -> FloatArray:
        """(n_items, d) float32: :attr:`item_embedding` with unit spread; constant columns are 0.

        By it items resemble each other, every direction counting alike.
        """
        embedding = self.item_embedding.astype(np.float64)
        usual = embedding if self.base is None else self.base.item_embedding.astype(np.float64)
        spread = usual.std(axis=0)
        scale = np.where(spread > _LEAST_SPREAD, spread, np.inf)
        standardised: FloatArray = ((embedding - usual.mean(axis=0)) / scale).astype(np.float32)
        standardised.setflags(write=False)  # shared by all environments of the dataset
        return standardised

    @cached_property
    def known(self) -> FloatArray:
        """(n_items, d + 1) float32: :attr:`standardised`, then :attr:`log_popularity`.

        Scorers weigh these columns. Agents explore all weights with noise of one size, so that
        columns of different spread would be explored as far as they are wide.
        """
        known = np.column_stack([self.standardised, self.log_popularity])
        known.setflags(write=False)
        return known

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content, whatever the day."""
        arrays: list[NDArray[np.generic]] = [self.embedding]
        if not self.changes:
            arrays.append(self.exposures)
        if self.base is not None:
            arrays.append(self.base.embedding)
        return digest_of(arrays)

    @cached_property
    def log_popularity(self) -> FloatArray:
        """(n_items,) float32: standardised ``log(1 + exposures)``."""
        standardised = self.standardised_log(self.exposures)
        standardised.setflags(write=False)  # shared by all environments of the dataset
        return standardised

    def standardised_log(self, exposures: NDArray[np.integer]) -> FloatArray:
        """(m,) float32: ``log(1 + exposures)`` on the scale of :attr:`log_popularity`."""
        if self.base is not None:
            return self.base.standardised_log(exposures)
        values = np.log1p(self.exposures)
        values = values if self.available is None else values[self.available]
        standardised = (np.log1p(exposures) - values.mean()) / (values.std() or 1.0)
        return np.asarray(standardised, dtype=np.float32)

    @cached_property
    def popular(self) -> NDArray[np.bool_]:
        """(n_items,) bool: the popular group, as ``Dataset.popular``, of the items that are there.

        Ties are broken by position.
        """
        if self.available is None:
            return popular_items(self.exposures)
        popular = np.zeros(self.n_items, dtype=bool)
        popular[self.available] = popular_items(self.exposures[self.available])
        popular.setflags(write=False)
        return popular

    def on_day(self, exposures: NDArray[np.int64], available: NDArray[np.bool_]) -> Catalogue:
        """The same items with other popularity, some of them not there.

        Args:
            exposures: (n_items,) int64.
            available: (n_items,) bool.
        """
        today = Catalogue(self.embedding, exposures, available)
        today.__dict__["standardised"] = self.standardised  # which no day changes
        return today

    def is_of(self, shown: Catalogue) -> bool:
        """Tells if agents that were built on this catalogue can act where ``shown`` is it."""
        return shown.fingerprint in (self.fingerprint, self.larger)

    def extended(self, rows: FloatArray, larger: Catalogue) -> Catalogue:
        """This catalogue with the further items of a larger one at its end.

        What was learned on this one goes on: rows of the present items, and the scales of
        :attr:`standardised` and :attr:`log_popularity`, stay to the last bit. Exposures, and with
        them the popular group, are those of the larger one.

        Args:
            rows: (m, d) float32, the embedding of the further items in this one's coordinates.
            larger: A catalogue of ``n_items + m`` items that begins with the present ones.
        """
        alone = Catalogue(self.item_embedding, self.exposures, self.available)
        return Catalogue(
            np.concatenate([self.item_embedding, rows]),
            larger.exposures,
            larger.available,
            self.base or alone,
            larger.fingerprint,
        )


def build_catalogue(data: TrainingData, preferences: PreferenceModel) -> Catalogue:
    """Describes the items by what the rows of the train users tell of them.

    The embedding is the factor model's: it keeps an item's quality, its taste and the sway of its
    popularity apart. States that pool a history with it still carry popularity, because the
    platform chose what the history is made of.

    Args:
        data: Source of the counts.
        preferences: Source of qualities and vectors.

    Returns:
        The catalogue.
    """

    def embedded(items: slice) -> NDArray[np.float64]:
        return np.column_stack([preferences.quality[items], preferences.vectors[items]])

    shown = embedded(slice(0, data.n_items))
    spread = shown[:, 0].std()
    scale = spread if spread > _LEAST_SPREAD else 1.0
    embedding = np.empty((data.n_all_items, preferences.dim), np.float32)
    for start in range(0, data.n_all_items, _ITEMS):  # those of a log can be millions
        items = slice(start, start + _ITEMS)
        embedding[items] = (embedded(items) - shown.mean(axis=0)) / scale
    return Catalogue(embedding, data.popularity_counts[: data.n_items])
