"""Pairs of a corrupted and a cleaner state, built from the train users' logs alone.

What the reverse process should arrive at cannot be read off eq. 7, whose target is its own
condition. Here the target is the state that a fairer log would have produced:

1. inverse-propensity history: each logged item counts in inverse proportion to a power of its
   exposure, clipped (so that a niche item says more about its viewer than a hit does);
2. the direction along which such states still predict how popular a user's history is, is
   erased.

The condition is what an agent would observe: the plain state of a popularity-biased part of the
same history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.observation import PreferenceEncoder
from kuaisim_gym.simulator.catalogue import Catalogue

MODES = ("debiased", "literal")
PROPENSITY_POWER = 0.5  # exponent of the inverse propensity
PROPENSITY_CLIP = 10.0  # largest weight of a row over the median row's
POPULARITY_PULL = 0.5  # exponent of popularity in the corruption's keep probability
LEAST_KEPT = 0.2  # smallest share of a history in a corrupted view
RIDGE = 1.0  # of the regression on popularity, in rows

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """Training pairs in the encoder's units.

    Attributes:
        observed: (n, d) float32, the condition.
        target: (n, d) float32.
    """

    observed: FloatArray
    target: FloatArray


def build_pairs(
    data: TrainingData,
    catalogue: Catalogue,
    encoder: PreferenceEncoder,
    mode: str,
    views: int,
    rng: np.random.Generator,
) -> Pairs:
    """Builds ``views`` pairs for every train user.

    Args:
        data: Only ``train_log`` is read.
        catalogue: Source of exposures.
        encoder: Encodes histories as the environment does.
        mode: ``"debiased"``, or ``"literal"`` for target = condition, as eq. 7 prints it.
        views: Corrupted views of each history; the first is the whole history.
        rng: Source of the corruption.

    Returns:
        ``views * n_train_users`` pairs.

    Raises:
        ConfigError: Unknown mode.
    """
    check_choice("mode", mode, MODES)
    log, users = data.train_log, data.train_users
    row_of_user = np.full(data.n_users, -1)
    row_of_user[users] = np.arange(len(users))
    rows, shape = row_of_user[log.users], (len(users), data.n_all_items)
    exposures = np.bincount(log.items, minlength=shape[1])[log.items]  # (n_rows,), at least 1

    def states(weights: NDArray[np.floating]) -> FloatArray:
        matrix = csr_matrix((weights.astype(np.float32), (rows, log.items)), shape=shape)
        return encoder.encode(*encoder.pool(matrix))

    keep_pull = (exposures / exposures.max()) ** POPULARITY_PULL
    observed = [states(log.response)]
    for _ in range(views - 1):
        share = rng.uniform(LEAST_KEPT, 1.0, len(users))[rows]
        kept = rng.random(len(log)) < np.minimum(1.0, share * keep_pull / keep_pull.mean())
        observed.append(states(log.response * kept))
    conditions = np.concatenate(observed)
    if mode == "literal":
        return Pairs(conditions, conditions)

    propensity = np.median(exposures) / exposures
    weight = np.minimum(propensity**PROPENSITY_POWER, PROPENSITY_CLIP)
    target = states(log.response * weight)
    seen = csr_matrix((np.ones(len(log)), (rows, log.items)), shape=shape)
    target = erase_linearly(target, mean_log_popularity(seen))
    return Pairs(conditions, np.tile(target, (views, 1)))


def mean_log_popularity(seen: csr_matrix) -> NDArray[np.float64]:
    """Mean log exposure of each user's items.

    Args:
        seen: (n, n_items) sparse, one where a user saw an item.

    Returns:
        (n,) float64, zero for users who saw nothing.
    """
    log_exposures = np.log1p(np.asarray(seen.sum(axis=0)).ravel())
    counts = np.asarray(seen.sum(axis=1)).ravel()
    total = np.asarray(seen @ log_exposures).ravel()
    return np.asarray(total / np.maximum(counts, 1.0), dtype=np.float64)


def erase_linearly(states: FloatArray, label: NDArray[np.float64]) -> FloatArray:
    """Removes from states the one direction along which they predict a label.

    With ``y_hat`` the ridge prediction of the label, every coordinate loses its regression on
    ``y_hat``. Unlike a projection along the slope, this leaves nothing that a linear probe could
    find even where coordinates are correlated (least-squares concept erasure, Belrose et al.
    2023, for a scalar label).

    Args:
        states: (n, d).
        label: (n,).

    Returns:
        (n, d) float32 with the same means.
    """
    centred = states - states.mean(axis=0)
    gram = centred.T @ centred + RIDGE * np.eye(states.shape[1])
    predicted = centred @ np.linalg.solve(gram, centred.T @ (label - label.mean()))
    energy = float(predicted @ predicted)
    if energy == 0.0:
        return states
    loading = centred.T @ predicted / energy
    return np.asarray(states - np.outer(predicted, loading), dtype=np.float32)
