"""Leading directions of a user x item matrix, normalised by degree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags_array
from scipy.sparse.linalg import svds


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
    vectors = right[np.argsort(-values)].T
    peak = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return np.asarray(vectors * np.where(peak < 0, -1.0, 1.0), dtype=np.float64)
