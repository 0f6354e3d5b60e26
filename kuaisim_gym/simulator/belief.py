"""Beliefs about the users of N sessions: Gaussian, and updated by every answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice
from kuaisim_gym.engine.types import Beliefs, StepResult
from kuaisim_gym.simulator.core import SessionCore
from kuaisim_gym.simulator.factors import LINK_BOUND, PreferenceModel
from kuaisim_gym.snapshots import Snapshot

EVIDENCE = ("both", "log", "session")


class Belief:
    """Posterior means and covariances of the preferences of N sessions' users.

    It knows what an agent may know: who arrives, with which log and features, and how the session
    has answered so far.

    Args:
        model: Items, and the belief about each user before the session.
        core: The sessions.
        evidence: ``"both"``; ``"log"``, which stands still in the session; or ``"session"``, which
            starts from what the user's features tell.

    Attributes:
        mean: (N, d) float64, of :class:`~kuaisim_gym.simulator.factors.PreferenceModel`'s
            preferences: level, then taste.
        covariance: (N, d, d) float64.

    Raises:
        ConfigError: Unknown evidence.
    """

    def __init__(self, model: PreferenceModel, core: SessionCore, evidence: str = "both") -> None:
        self.model, self.core = model, core
        self.evidence = check_choice("evidence", evidence, EVIDENCE)
        n_items, n, d = core.groups.n_items, core.n_sessions, model.dim
        ones = np.ones((n_items, 1))
        design: NDArray[np.float64] = np.hstack([ones, model.vectors[:n_items]])
        self._items = (
            design,
            np.ascontiguousarray(model.quality[:n_items]),
            np.ascontiguousarray(model.variance[:n_items]),
            np.ascontiguousarray(model.link),
            LINK_BOUND,
        )
        # The level is the same for all items of a user and ranks none.
        self._ranking = np.vstack([self._items[1], design[:, 1:].T]).astype(np.float32)
        self.mean: NDArray[np.float64] = np.zeros((n, d))
        self.covariance: NDArray[np.float64] = np.tile(np.eye(d), (n, 1, 1))
        self.reset(core.state.active)

    @property
    def dim(self) -> int:
        """d, the level and the factors of taste."""
        return self.model.dim

    @property
    def variance(self) -> NDArray[np.float64]:
        """(N, d) float64 posterior variances."""
        return np.asarray(np.einsum("nii->ni", self.covariance))

    def reset(self, slots: NDArray[np.bool_]) -> None:
        """Starts anew for the users who have just arrived in ``slots``."""
        users = self.core.state.users[slots]
        mean, covariance = self._first()
        self.mean[slots] = mean[users]
        self.covariance[slots] = covariance[users if len(covariance) > 1 else 0]

    def arrays(self, observed: bool, bound: float) -> Beliefs:
        """Arrays by which compiled steps follow the sessions.

        Args:
            observed: Whether observations show the belief.
            bound: Largest absolute value of means and variances in them.
        """
        fields: list[Any] = [self.mean, self.covariance]
        fields += map(np.ascontiguousarray, self._first())
        fields += [*self._items, self.evidence != "log", observed, bound]
        return Beliefs(*fields)

    def _first(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and covariances of all users before a session; one covariance if it is the same."""
        if self.evidence == "session":
            return self.model.population_mean, self.model.population_covariance[None]
        return self.model.mean, self.model.covariance

    def update(self, result: StepResult) -> None:
        """Learns from the first behaviour of one step's answers."""
        if self.evidence != "log":
            self.core.engine.condition(
                self.mean,
                self.covariance,
                *self._items,
                result.slates,
                np.ascontiguousarray(result.feedback[:, :, 0]),
                result.answered,
            )

    def write(self, vectors: NDArray[np.float32], bound: float) -> None:
        """Writes means, then variances, into the first 2 d columns of (N, ...) vectors."""
        self.core.engine.write_belief(vectors, self.mean, self.covariance, bound)

    def scores(self) -> NDArray[np.float32]:
        """(N, n_items) float32: posterior mean scores of all items, but for the user's level."""
        return self.core.engine.inner_products(self.queries(), self._ranking)

    @property
    def item_vectors(self) -> NDArray[np.float32]:
        """(n_items, d) float32, whose inner products with :meth:`queries` are the scores."""
        return self._ranking.T

    def queries(self) -> NDArray[np.float32]:
        """(N, d) float32: one, which stands for the level, and the mean tastes."""
        vectors = self.mean.astype(np.float32)
        vectors[:, 0] = 1.0
        return vectors

    def snapshot(self) -> Snapshot:
        """Copies of means and covariances, by name."""
        return {"mean": self.mean.copy(), "covariance": self.covariance.copy()}

    def restore(self, snapshot: Snapshot) -> None:
        """Returns to a snapshot of as many sessions."""
        self.mean[...] = snapshot["mean"]
        self.covariance[...] = snapshot["covariance"]


def no_beliefs() -> Beliefs:
    """Arrays that stand where no beliefs are followed."""
    row, table, cube = (np.zeros((0,) * ndim) for ndim in (1, 2, 3))
    return Beliefs(table, cube, table, cube, table, row, row, table, LINK_BOUND, False, False, 0.0)
