"""Tastes in a session, as the beliefs of logs predict them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.simulator.response import FactorModel
from kuaisim_gym.simulator.sweeps import TINY, Fit

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Relation:
    """Taste in a session, as a linear regression on the belief of the log: what to trust it with.

    Attributes:
        slopes: (k, k) float64.
        constant: (k,) float64.
        rest: (k, k) float64, covariance of what the regression leaves, the belief's own apart.
    """

    slopes: Vector
    constant: Vector
    rest: Vector

    @classmethod
    def between(
        cls, fit: Fit, mean: Vector, covariance: Vector, answering: FactorModel, data: TrainingData
    ) -> Relation:
        """Compares beliefs with the tastes of a model's users, over the fit's learners."""
        shown, k = slice(0, data.n_items), fit.rank
        own = fit.vectors[shown] - fit.vectors[shown].mean(axis=0)
        theirs = answering.item_factors[shown].astype(np.float64)
        theirs = theirs - theirs.mean(axis=0)
        # Their taste as ours: the one whose scores of all items are nearest.
        turn = np.linalg.solve(own.T @ own + TINY * np.eye(k), own.T @ theirs)
        factors = answering.user_factors[fit.learners] * answering.slope[0]
        taste, told = factors.astype(np.float64) @ turn.T, mean[fit.learners, 1:]
        centred, aim = told - told.mean(axis=0), taste - taste.mean(axis=0)
        gram = centred.T @ centred
        slopes = np.linalg.solve(gram + 1e-6 * np.trace(gram) * np.eye(k) / k, centred.T @ aim).T
        error = aim - centred @ slopes.T
        own_error = slopes @ covariance[fit.learners, 1:, 1:].mean(axis=0) @ slopes.T
        values, axes = np.linalg.eigh(error.T @ error / len(error) - own_error)
        rest = (axes * np.maximum(values, 0.0)) @ axes.T
        return cls(slopes, taste.mean(axis=0) - slopes @ told.mean(axis=0), rest)

    def __call__(self, mean: Vector, covariance: Vector) -> tuple[Vector, Vector]:
        """Beliefs about sessions, from (n, d) means and (..., d, d) covariances of logs."""
        d = mean.shape[1]
        wide = np.eye(d)
        wide[1:, 1:] = self.slopes
        moved, spread = mean @ wide.T, wide @ covariance @ wide.T
        moved[:, 1:] += self.constant
        spread[..., 1:, 1:] += self.rest
        return moved, spread
