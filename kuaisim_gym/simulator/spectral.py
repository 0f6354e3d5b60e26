"""Leading directions of a user x item matrix, normalised by degree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh, svds


def leading_item_vectors(
    matrix: csr_matrix,
    user_degree: NDArray[np.floating] | NDArray[np.integer],
    item_degree: NDArray[np.floating] | NDArray[np.integer],
    rank: int,
) -> NDArray[np.float64]:
    """Leading right singular vectors of the degree-normalised matrix.

    Args:
        matrix: (n_users, n_items) sparse float64.
        user_degree: (n_users,) degrees by which rows are normalised.
        item_degree: (n_items,) degrees by which columns are normalised.
        rank: Number of vectors.

    Returns:
        (n_items, k) by falling singular value, each with its largest entry positive; k is less than
        ``rank`` where the matrix is too small, and 0 where it is zero.
    """
    rank = min(rank, min(matrix.shape) - 1)
    if rank < 1 or not matrix.count_nonzero():
        return np.zeros((matrix.shape[1], 0))
    # One extra row's worth of weight keeps the rarest items from dominating.
    user_scale = 1.0 / np.sqrt(user_degree + 1.0)
    item_scale = 1.0 / np.sqrt(item_degree + 1.0)
    normalised = diags_array(user_scale) @ matrix @ diags_array(item_scale)
    start = np.ones(min(matrix.shape))  # fixes Lanczos' start: same rows, same vectors
    _, values, right = svds(normalised, k=rank, v0=start)
    return _with_signs(right[np.argsort(-values)].T)


def leading_vectors_of_blocks(
    blocks: Callable[[], Iterable[tuple[slice, csr_matrix]]],
    user_degree: NDArray[np.floating] | NDArray[np.integer],
    item_degree: NDArray[np.floating] | NDArray[np.integer],
    rank: int,
) -> NDArray[np.float64]:
    """As :func:`leading_item_vectors`, of a matrix in blocks: one of them is there at a time.

    Args:
        blocks: Gives, each time anew, ranges of items and their (n_users, m) columns.
        user_degree: As there.
        item_degree: As there.
        rank: Number of vectors, less than users and items are.
    """
    n_users = len(user_degree)
    user_scale = diags_array(1.0 / np.sqrt(user_degree + 1.0))
    item_scale = 1.0 / np.sqrt(item_degree + 1.0)

    def normalised() -> Iterator[tuple[slice, csr_matrix]]:
        for items, block in blocks():
            yield items, user_scale @ block @ diags_array(item_scale[items])

    def times_own_transpose(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(sum(block @ (block.T @ x) for _, block in normalised()))

    square = LinearOperator((n_users, n_users), times_own_transpose, dtype=np.float64)
    values, left = eigsh(square, k=rank, v0=np.ones(n_users))
    order = np.argsort(-values)
    left = left[:, order] / np.sqrt(values[order])
    return _with_signs(np.concatenate([block.T @ left for _, block in normalised()]))


def _with_signs(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vectors, each with its largest entry positive."""
    peak = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return np.asarray(vectors * np.where(peak < 0, -1.0, 1.0), dtype=np.float64)
