"""Popularity of histories, and the erasure of directions along which states tell it linearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.errors import ConfigError

STATISTICS = ("mean log popularity", "share of hits", "mean squared log popularity")
HITS = 0.2  # share of all items, the most shown ones
SHRINKAGE = 1e-3  # of the covariance towards a multiple of the identity, as a share

FloatArray = NDArray[np.float32]
Matrix = NDArray[np.float64]


def popularity_statistics(
    rows: NDArray[np.integer],
    items: NDArray[np.integer],
    exposures: NDArray[np.integer],
    n: int,
) -> NDArray[np.float64]:
    """Statistics of the popularity of histories, the plainest first.

    Args:
        rows: (m,) the history that each logged row belongs to.
        items: (m,) positions.
        exposures: (n_items,) how often each item was shown to the users that are learned from.
        n: Number of histories.

    Returns:
        (n, 3) float64, one column for each of :data:`STATISTICS`; NaN for empty histories. The
        popularity of an item is ``log(1 + exposures)``.
    """
    popularity = np.log1p(exposures)
    hit = exposures >= np.quantile(exposures, 1.0 - HITS)
    columns = [
        np.bincount(rows, weights=value[items], minlength=n)
        for value in (popularity, hit, popularity**2)
    ]
    with np.errstate(invalid="ignore"):
        return np.stack(columns, axis=1) / np.bincount(rows, minlength=n)[:, None]


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


def whiten_blindly(states: NDArray[np.floating], labels: NDArray[np.floating]) -> Affine:
    """Whitens, and leaves out the directions along which states tell labels.

    In whitened coordinates the only direction with a linear relation to a scalar label is its
    covariance with the states; without it no linear reader finds the label in the sample
    (least-squares concept erasure, Belrose et al. 2023). Further labels are taken in turn, each by
    the direction that those before have left of it (as INLP does with one label, Ravfogel et al.
    2020, whose projections need to be repeated because they do not whiten).

    Args:
        states: (n, d).
        labels: (n,) or (n, m), m less than d.

    Returns:
        The map; its output has rank d - m.

    Raises:
        ConfigError: As many labels as coordinates, or more.
    """
    n, dim = states.shape
    labels = labels.reshape(n, -1)
    if labels.shape[1] >= dim:
        raise ConfigError(f"{labels.shape[1]} directions are too many for {dim} coordinates.")
    whitening = whiten(states)
    covariances = whitening(states).astype(np.float64).T @ (labels - labels.mean(axis=0)) / n
    projection = np.eye(dim)
    for covariance, spread in zip(covariances.T, labels.std(axis=0), strict=True):
        direction = projection @ covariance
        length = np.linalg.norm(direction)
        if length > 1e-6 * spread:  # else the directions before have left nothing of this label
            projection -= np.outer(direction, direction) / length**2
    return Affine(whitening.centre, projection @ whitening.matrix)


def erase(states: NDArray[np.floating], labels: NDArray[np.floating]) -> Affine:
    """Removes the directions along which states tell labels, and changes as little else as it can.

    Args:
        states: (n, d).
        labels: (n,) or (n, m), see :func:`whiten_blindly`.

    Returns:
        The map, in the states' own coordinates but for their mean, which becomes zero.

    Raises:
        ConfigError: As many labels as coordinates, or more.
    """
    blind = whiten_blindly(states, labels)
    return Affine(blind.centre, _moments(states)[1] @ blind.matrix)


def _moments(states: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
    """Mean and symmetric square root of the shrunk covariance."""
    centre = states.mean(axis=0, dtype=np.float64)
    centred = states - centre
    covariance = centred.T @ centred / len(states)
    values, vectors = np.linalg.eigh(covariance)
    floor = SHRINKAGE * max(float(values.mean()), 1e-12)
    return centre, (vectors * np.sqrt(values.clip(min=0.0) + floor)) @ vectors.T
