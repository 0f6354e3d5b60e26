"""Catalogue of items, as the train log describes them: embedding, popularity, groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.simulator.response import FactorModel
from kuaisim_gym.simulator.spectral import leading_item_vectors
from kuaisim_gym.tensors import digest_of

EMBEDDING_DIM = 32
POPULAR_SHARE = 0.2  # of the catalogue, by exposures (paper section 5.1.1)

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items that an agent may recommend.

    Attributes:
        embedding: (n_all_items, d) float32, standardised columns over the catalogue. Column 0
            is the item's effect on the logged response, the rest is spectral. Rows from
            ``n_items`` on are items of the log alone.
        exposures: (n_items,) int64, the count by which items are popular: as ``Dataset.popularity``
            says, how often an item was shown (on the whole platform where the dataset knows it,
            else in the train log), or how many train rows with a response of at least .5 it has.
    """

    embedding: FloatArray
    exposures: NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.embedding, self.exposures):
            array.setflags(write=False)

    @property
    def n_items(self) -> int:
        """Number of items that may be recommended."""
        return len(self.exposures)

    @property
    def item_embedding(self) -> FloatArray:
        """(n_items, d) float32: the embedding of the catalogue's own items."""
        return self.embedding[: self.n_items]

    @property
    def known(self) -> FloatArray:
        """(n_items, d + 1) float32: :attr:`item_embedding`, then :attr:`log_popularity`."""
        return np.column_stack([self.item_embedding, self.log_popularity])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        return digest_of([self.embedding, self.exposures])

    @cached_property
    def log_popularity(self) -> FloatArray:
        """(n_items,) float32: standardised ``log(1 + exposures)``."""
        standardised = self.standardised_log(self.exposures)
        standardised.setflags(write=False)  # shared by all environments of the dataset
        return standardised

    def standardised_log(self, exposures: NDArray[np.integer]) -> FloatArray:
        """(m,) float32: ``log(1 + exposures)`` on the scale of :attr:`log_popularity`."""
        values = np.log1p(self.exposures)
        standardised = (np.log1p(exposures) - values.mean()) / (values.std() or 1.0)
        return np.asarray(standardised, dtype=np.float32)

    @cached_property
    def popular(self) -> NDArray[np.bool_]:
        """(n_items,) bool: the fifth of the catalogue that counts most, ties by position."""
        count = max(1, round(POPULAR_SHARE * self.n_items))
        popular = np.zeros(self.n_items, dtype=bool)
        popular[np.argsort(-self.exposures, kind="stable")[:count]] = True
        popular.setflags(write=False)
        return popular


def build_catalogue(data: TrainingData, model: FactorModel) -> Catalogue:
    """Describes the items by the rows of the train users alone.

    The spectral columns are the leading right singular vectors of the degree-normalised
    user x item matrix of logged responses, the usual implicit-feedback embedding. Its leading
    vector follows the items' degree: states built from it carry the popularity signal that the
    paper sets out to remove.

    Args:
        data: Source of the train log.
        model: The train response model; its item effects become column 0.

    Returns:
        The catalogue.
    """
    log = data.train_log
    n_all = data.n_all_items
    spectral = spectral_embedding(log.users, log.items, log.response, (data.n_users, n_all))
    embedding = np.zeros((n_all, EMBEDDING_DIM))
    embedding[:, 0] = model.item_effect[0]
    embedding[:, 1 : 1 + spectral.shape[1]] = spectral
    shown = embedding[: data.n_items]
    spread = shown.std(axis=0)
    embedding = (embedding - shown.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return Catalogue(embedding.astype(np.float32), data.popularity_counts[: data.n_items])


def spectral_embedding(
    users: NDArray[np.int32], items: NDArray[np.int32], weight: FloatArray, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Leading right singular vectors of the degree-normalised matrix of logged responses.

    Args:
        users: (n_rows,) positions.
        items: (n_rows,) positions.
        weight: (n_rows,) float32 responses.
        shape: Number of users and of items.

    Returns:
        (n_items, k) by falling singular value and with a fixed sign; k is less than
        ``EMBEDDING_DIM - 1`` where the matrix is too small.
    """
    matrix = csr_matrix((weight.astype(np.float64), (users, items)), shape=shape)
    matrix = matrix[np.flatnonzero(np.bincount(users, minlength=shape[0]))]
    user_degree, item_degree = (np.asarray(matrix.sum(axis=axis)).ravel() for axis in (1, 0))
    return leading_item_vectors(matrix, user_degree, item_degree, EMBEDDING_DIM - 1)
