"""Removing what a linear reader could find: erasure of directions, with or without whitening."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError

SHRINKAGE = 1e-3  # of the covariance towards a multiple of the identity, as a share

FloatArray = NDArray[np.float32]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """``matrix @ (state - centre)`` for every state.

    Attributes:
        centre: (d,) float64.
        matrix: (d, d) float64.
    """

    centre: Matrix
    matrix: Matrix

    def __call__(self, states: NDArray[np.floating]) -> FloatArray:
        """(n, d) states to (n, d) float32."""
        return np.asarray((states - self.centre) @ self.matrix.T, dtype=np.float32)


def whiten(states: NDArray[np.floating]) -> Affine:
    """The map that gives states mean zero and, nearly, the identity as covariance (ZCA)."""
    centre, root = _moments(states)
    return Affine(centre, np.asarray(np.linalg.inv(root), dtype=np.float64))


def whiten_blindly(
    states: NDArray[np.floating],
    label: NDArray[np.floating],
    directions: int = 1,
    seed: int = 0,
) -> Affine:
    """Whitens, and leaves out the directions along which states tell a label.

    In whitened coordinates the only direction with a linear relation to a scalar label is its
    covariance with the states; without it no linear reader finds the label in the sample
    (least-squares concept erasure, Belrose et al. 2023). What is computed from such states alone
    cannot bring it back linearly. More directions are found one after the other, each on a random
    half of the rows and orthogonal to those before (in the manner of INLP, Ravfogel et al. 2020):
    what one sample missed of the label, another may show.

    Args:
        states: (n, d).
        label: (n,).
        directions: How many to leave out, from 0 to d - 1.
        seed: Of the halves.

    Returns:
        The map; its output has rank d - directions.

    Raises:
        ConfigError: Too many directions.
    """
    n, dim = states.shape
    if not 0 <= directions < dim:
        raise ConfigError(f"directions must lie in [0, {dim}), got {directions}.")
    plain = whiten(states)
    white, centred = plain(states).astype(np.float64), label - label.mean()
    rng = np.random.default_rng(seed)
    kept = np.eye(dim)  # projection on what is left
    rows = np.arange(n)
    for _ in range(directions):
        found = kept @ (white[rows].T @ centred[rows])
        length = np.linalg.norm(found)
        if length <= 1e-9 * n:
            break  # nothing is left to be told
        kept -= np.outer(found, found) / length**2
        rows = rng.permutation(n)[: max(1, n // 2)]
    return Affine(plain.centre, kept @ plain.matrix)


def erase(
    states: NDArray[np.floating],
    label: NDArray[np.floating],
    directions: int = 1,
    seed: int = 0,
) -> Affine:
    """Removes the directions along which states tell a label, and changes as little else as it can.

    Args:
        states: (n, d).
        label: (n,).
        directions: See :func:`whiten_blindly`.
        seed: See the same function.

    Returns:
        The map, in the states' own coordinates but for their mean, which becomes zero.
    """
    blind = whiten_blindly(states, label, directions, seed)
    return Affine(blind.centre, _moments(states)[1] @ blind.matrix)


def _moments(states: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
    """Mean and symmetric square root of the shrunk covariance."""
    centre = states.mean(axis=0, dtype=np.float64)
    centred = states - centre
    covariance = centred.T @ centred / len(states)
    values, vectors = np.linalg.eigh(covariance)
    floor = SHRINKAGE * max(float(values.mean()), 1e-12)
    return centre, (vectors * np.sqrt(values.clip(min=0.0) + floor)) @ vectors.T
