"""Semantic ids: residual k-means over item embeddings, with buckets of equal size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsrm_agents.hsrl.balance import balanced_assignment
from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import ConfigError, UnknownIdError
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.tensors import digest_of, open_tensors, save_tensors

FORMAT = "kuaisim-codebook-1"
SWEEPS = 20  # of k-means, at most
SAMPLE = 256  # items a code that codes are fitted to, at most; all are assigned

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Codebook:
    """Codes of L levels, and the id of every item.

    An id is L tokens and the item's rank in the bucket of items that share them, so that it is
    unique.

    Deviations from the released code: the items of a bucket are spread evenly over the codes of the
    next level, instead of all items at once, which bounds the buckets of all levels; and items that
    share all tokens, which have equal probability there, are distinguished by their rank.

    Attributes:
        centroids: (L, V, d) float32.
        tokens: (n_items, L) int64 in [0, V).
    """

    centroids: FloatArray
    tokens: IntArray

    def __post_init__(self) -> None:
        for array in (self.centroids, self.tokens):
            array.setflags(write=False)

    @classmethod
    def fit(
        cls,
        embedding: ArrayLike,
        levels: int = 3,
        codes: int | None = None,
        tolerance: float = 0.5,
        seed: int = 0,
    ) -> Self:
        """Fits balanced k-means to the embedding, then to the residuals of each level.

        Args:
            embedding: (n_items, d), finite.
            levels: L.
            codes: V; by default the least that gives all items different tokens.
            tolerance: Of m items that share their tokens so far, a code of the next level takes
                ``ceil((1 + tolerance) * m / V)`` at most. With 0 all items have different tokens
                where V allows, but the codes are blurred: on KuaiRand they explain a third of the
                variance that they explain with the default.
            seed: Same seed, same codebook.

        Returns:
            The codebook.

        Raises:
            ConfigError: An argument is out of range.
        """
        residual = _checked(embedding).copy()
        n_items = len(residual)
        check_whole("levels", levels, 1)
        if codes is None:
            codes = max(2, next(v for v in range(1, n_items + 1) if v**levels >= n_items))
        check_whole("codes", codes, 2)
        if codes**levels * n_items >= 2**63:
            raise ConfigError(
                f"{codes} codes on {levels} levels are more ids than can be numbered: take fewer."
            )
        if not 0.0 <= tolerance < np.inf:
            raise ConfigError(f"tolerance must be a number of at least 0, got {tolerance}.")
        rng = np.random.default_rng(seed)
        bucket = np.zeros(n_items, dtype=np.int64)
        tokens = np.empty((n_items, levels), dtype=np.int64)
        centroids = np.empty((levels, codes, residual.shape[1]), dtype=np.float32)
        for level in range(levels):
            fitted = np.sort(rng.permutation(n_items)[: SAMPLE * codes])
            centroids[level] = _fit_codes(residual[fitted], bucket[fitted], codes, tolerance, rng)
            tokens[:, level] = _assign(residual, bucket, centroids[level], tolerance)
            residual -= centroids[level][tokens[:, level]]
            bucket = _ranked(bucket * codes + tokens[:, level])
        return cls(centroids, tokens)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.tokens)

    @property
    def levels(self) -> int:
        """L, tokens of an id."""
        return int(self.tokens.shape[1])

    @property
    def codes(self) -> int:
        """V, codes of a level."""
        return int(self.centroids.shape[1])

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of values along an id: V for a token, then the ranks in a bucket."""
        return (*([self.codes] * self.levels), self.bucket_size)

    @cached_property
    def bucket_size(self) -> int:
        """Most items that share all tokens."""
        return int(self.ids[:, -1].max()) + 1

    @cached_property
    def ids(self) -> IntArray:
        """(n_items, L + 1) int64: tokens, and the rank in the bucket by order of items."""
        bucket = bucket_of(self.tokens, self.codes)
        order = np.argsort(bucket, kind="stable")
        in_order = bucket[order]
        start = np.searchsorted(in_order, in_order)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - start
        ids = np.column_stack([self.tokens, rank])
        ids.setflags(write=False)
        return ids

    @cached_property
    def _in_order(self) -> tuple[IntArray, IntArray]:
        """Leaves in order, and their items."""
        leaf = self._leaf_of(self.ids)
        order = np.argsort(leaf)
        return leaf[order], order

    def items(self, ids: ArrayLike) -> IntArray:
        """The items of ids: the inverse of :attr:`ids`.

        Args:
            ids: (m, L + 1) integers.

        Returns:
            (m,) int64 item positions.

        Raises:
            ConfigError: The array has another shape.
            UnknownIdError: No item has such an id.
        """
        query = np.asarray(ids)
        if query.ndim != 2 or query.shape[1] != self.levels + 1 or query.dtype.kind not in "iu":
            raise ConfigError(
                f"Expected ids as integers of shape (m, {self.levels + 1}), a token a level and "
                f"the rank in the bucket; got {query.dtype} of shape {query.shape}."
            )
        leaves, order = self._in_order
        leaf = self._leaf_of(np.clip(query, 0, np.array(self.widths) - 1))
        at = np.minimum(np.searchsorted(leaves, leaf), len(leaves) - 1)
        items = order[at]
        wrong = np.flatnonzero((self.ids[items] != query).any(axis=1))
        if len(wrong):
            raise UnknownIdError(f"No item has the semantic id {query[wrong[0]].tolist()}.")
        return items

    def check_catalogue(self, catalogue: Catalogue) -> None:
        """Checks that there is an id for every item of a catalogue.

        Raises:
            ConfigError: There are more or fewer.
        """
        if self.n_items != catalogue.n_items:
            raise ConfigError(
                f"The codebook has ids of {self.n_items} items, the catalogue has "
                f"{catalogue.n_items}: fit one to this catalogue."
            )

    def encode(self, embedding: ArrayLike) -> IntArray:
        """Tokens of any embeddings, by the nearest code of each level.

        Fitted items may have other tokens, which respect the sizes of the buckets.

        Args:
            embedding: (m, d), finite; m may be 0.

        Returns:
            (m, L) int64.

        Raises:
            ConfigError: The embedding is not finite or has another width.
        """
        residual = _checked(embedding, least=0).copy()
        if residual.shape[1] != self.centroids.shape[2]:
            raise ConfigError(
                f"This codebook is of embeddings of width {self.centroids.shape[2]}, got "
                f"{residual.shape[1]}."
            )
        tokens = np.empty((len(residual), self.levels), dtype=np.int64)
        for level, centroids in enumerate(self.centroids):
            tokens[:, level] = _cost(residual, centroids).argmin(axis=1)
            residual -= centroids[tokens[:, level]]
        return tokens

    def extended(self, embedding: ArrayLike) -> Self:
        """The codebook with further items at the end; the ids of the present items stay.

        New items go to their nearest codes, one by one, so that two extensions are the same as one
        of all their items. Deviation from :meth:`fit`: they go there whatever the buckets hold
        already, so that only present items keep to its tolerance, and :attr:`bucket_size` may grow.
        A policy moves to the larger codebook with :func:`dsrm_agents.extend`.

        Args:
            embedding: (m, d), finite: of the new items, as the codebook was fitted to the present
                ones; of no items, (0, d), too.

        Returns:
            A codebook of ``n_items + m`` items.

        Raises:
            ConfigError: As for :meth:`encode`.
        """
        return type(self)(self.centroids, np.concatenate([self.tokens, self.encode(embedding)]))

    def begins_with(self, codebook: Codebook) -> bool:
        """Tells if this one is the same as another, or an extension of it."""
        return np.array_equal(self.centroids, codebook.centroids) and np.array_equal(
            self.tokens[: codebook.n_items], codebook.tokens
        )

    def reconstruct(self) -> FloatArray:
        """(n_items, d) float32: the sums of the items' codes."""
        levels = range(self.levels)
        return np.asarray(sum(self.centroids[level][self.tokens[:, level]] for level in levels))

    def report(self, embedding: ArrayLike) -> dict[str, Any]:
        """Measures of the codebook on the embedding that it was fitted to.

        Args:
            embedding: (n_items, d).

        Returns:
            ``explained``, the share of the embedding's variance that the codes reconstruct;
            ``balance``, for every level the largest bucket over the size in an even spread;
            ``collisions``, the share of items that share all tokens with another; and
            ``bucket_size``.

        Raises:
            ConfigError: The embedding is of other items.
        """
        points = _checked(embedding)
        if points.shape != (self.n_items, self.centroids.shape[2]):
            raise ConfigError(
                f"Expected the embedding of this codebook's items, of shape "
                f"({self.n_items}, {self.centroids.shape[2]}); got {points.shape}."
            )
        error = np.square(points - self.reconstruct()).sum()
        total = np.square(points - points.mean(axis=0)).sum()
        balance = []
        for level in range(1, self.levels + 1):
            sizes = np.unique(bucket_of(self.tokens[:, :level], self.codes), return_counts=True)[1]
            balance.append(float(sizes.max() / max(1.0, self.n_items / self.codes**level)))
        return {
            "explained": float(1.0 - error / total) if total > 0 else 1.0,
            "balance": balance,
            "collisions": float(np.mean(sizes.repeat(sizes) > 1)),
            "bucket_size": self.bucket_size,
        }

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        return digest_of([self.centroids, self.tokens])

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, completely or not at all."""
        save_tensors(path, FORMAT, {"centroids": self.centroids, "tokens": self.tokens})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the file that :meth:`save` wrote.

        Raises:
            CheckpointError: The file is missing, damaged, or no codebook.
        """
        with open_tensors(path, FORMAT, "codebook") as file:
            centroids, tokens = file.arrays["centroids"], file.arrays["tokens"]
            fits = centroids.ndim == 3 and tokens.ndim == 2 and tokens.shape[1] == len(centroids)
            if not fits or tokens.min() < 0 or tokens.max() >= centroids.shape[1]:
                raise ValueError("its tokens do not fit its codes")
            return cls(centroids, tokens)

    def _leaf_of(self, ids: IntArray) -> IntArray:
        return np.asarray(bucket_of(ids[:, :-1], self.codes) * self.bucket_size + ids[:, -1])


def _fit_codes(
    points: FloatArray,
    bucket: IntArray,
    codes: int,
    tolerance: float,
    rng: np.random.Generator,
) -> FloatArray:
    """(V, d) centroids of one level."""
    bucket = _ranked(bucket)  # some buckets have no item in the sample
    centroids = points[rng.choice(len(points), codes, replace=codes > len(points))]
    for _ in range(SWEEPS):
        code = _assign(points, bucket, centroids, tolerance)
        size = np.bincount(code, minlength=codes)
        total = [np.bincount(code, weights=column, minlength=codes) for column in points.T]
        means = np.column_stack(total) / np.maximum(size, 1)[:, None]
        moved = np.where(size[:, None] > 0, means, centroids).astype(np.float32)
        if np.allclose(moved, centroids, atol=1e-6):
            break
        centroids = moved
    return centroids


def _assign(
    points: FloatArray, bucket: IntArray, centroids: FloatArray, tolerance: float
) -> IntArray:
    size = np.bincount(bucket)
    # Rounding may make an integer a little larger.
    capacity = np.ceil((1.0 + tolerance) * size / len(centroids) - 1e-9).astype(np.int64)
    return balanced_assignment(_cost(points, centroids), bucket, capacity)


def _cost(points: FloatArray, centroids: FloatArray) -> FloatArray:
    """(n, V) squared distances, less the points' own squared lengths."""
    cost = points @ centroids.T
    cost *= -2.0
    cost += np.square(centroids).sum(axis=1)
    return cost


def bucket_of(tokens: IntArray, codes: int) -> IntArray:
    """(n,) numbers of (n, L) tokens as digits, so that a prefix is a range."""
    bucket = np.zeros(len(tokens), dtype=np.int64)
    for column in tokens.T:
        bucket = bucket * codes + column
    return bucket


def _ranked(values: IntArray) -> IntArray:
    """(n,) numbers to their ranks among the distinct ones."""
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)


def _checked(embedding: ArrayLike, least: int = 1) -> FloatArray:
    points = np.asarray(embedding, dtype=np.float32)
    if points.ndim != 2 or len(points) < least or not np.isfinite(points).all():
        raise ConfigError(
            "An embedding must be finite numbers of shape (n_items, d), a row for each item; got "
            f"shape {points.shape}."
        )
    return points
